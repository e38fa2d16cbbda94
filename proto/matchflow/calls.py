"""Every unary call of the contract, described once as a value; the two clients only carry them out."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from google.protobuf import empty_pb2, field_mask_pb2, wrappers_pb2

from matchflow import replies, values
from matchflow.call import Call, Page
from matchflow.labels import labels_message, set_expiry
from matchflow.sources import MAX_MESSAGE_BYTES, ImageFile, QuerySource, query_message, read_image
from matchflow.v1 import gallery_pb2, model_pb2, search_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from matchflow.errors import MatchflowError
    from matchflow.labels import Expiry, Labels
    from matchflow.matches import Comparison, Explanation
    from matchflow.v1 import matching_pb2

GALLERY_SERVICE = "/matchflow.v1.GalleryService/"
SEARCH_SERVICE = "/matchflow.v1.SearchService/"
MODEL_SERVICE = "/matchflow.v1.ModelService/"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"

# What the contract allows in one request.
PAGE_SIZE = 1_000
DELETIONS_PER_CALL = 1_000
IMAGES_PER_EMBED_CALL = 64
# Half of what a message may hold: the one image that crosses the line still fits.
BYTES_PER_EMBED_CALL = MAX_MESSAGE_BYTES // 2


def gallery_name(gallery: str) -> str:
    """Return the resource name of a gallery id."""
    return f"{values.GALLERIES}{gallery}"


def model_name(model: str) -> str:
    """Return the resource name of a model id; the empty id, the server's default, stays empty."""
    return f"{values.MODELS}{model}" if model else ""


def create_gallery(gallery: str, *, model: str, thumbnails: bool) -> Call[values.Gallery]:
    """Describe GalleryService.CreateGallery."""
    content = gallery_pb2.Gallery(model=model_name(model), without_thumbnails=not thumbnails)
    return Call(
        path=f"{GALLERY_SERVICE}CreateGallery",
        request=gallery_pb2.CreateGalleryRequest(gallery_id=gallery, gallery=content),
        reply_type=gallery_pb2.Gallery,
        convert=replies.gallery,
    )


def get_gallery(gallery: str) -> Call[values.Gallery]:
    """Describe GalleryService.GetGallery."""
    return Call(
        path=f"{GALLERY_SERVICE}GetGallery",
        request=gallery_pb2.GetGalleryRequest(name=gallery_name(gallery)),
        reply_type=gallery_pb2.Gallery,
        convert=replies.gallery,
    )


def list_galleries(token: str) -> Call[Page[values.Gallery]]:
    """Describe one page of GalleryService.ListGalleries."""
    return Call(
        path=f"{GALLERY_SERVICE}ListGalleries",
        request=gallery_pb2.ListGalleriesRequest(page_size=PAGE_SIZE, page_token=token),
        reply_type=gallery_pb2.ListGalleriesResponse,
        convert=lambda reply: Page(
            values=tuple(map(replies.gallery, reply.galleries)), next_token=reply.next_page_token
        ),
    )


def set_default_rerank(gallery: str, default: matching_pb2.Rerank) -> Call[values.Gallery]:
    """Describe GalleryService.UpdateGallery."""
    content = gallery_pb2.Gallery(name=gallery_name(gallery), default_rerank=default)
    mask = field_mask_pb2.FieldMask(paths=["default_rerank"])
    return Call(
        path=f"{GALLERY_SERVICE}UpdateGallery",
        request=gallery_pb2.UpdateGalleryRequest(gallery=content, update_mask=mask),
        reply_type=gallery_pb2.Gallery,
        convert=replies.gallery,
    )


def delete_gallery(gallery: str) -> Call[None]:
    """Describe GalleryService.DeleteGallery."""
    return Call(
        path=f"{GALLERY_SERVICE}DeleteGallery",
        request=gallery_pb2.DeleteGalleryRequest(name=gallery_name(gallery)),
        reply_type=empty_pb2.Empty,
        convert=lambda _: None,
    )


def get_image(image: values.ImageRef) -> Call[values.Image]:
    """Describe GalleryService.GetImage."""
    return Call(
        path=f"{GALLERY_SERVICE}GetImage",
        request=gallery_pb2.GetImageRequest(name=image.name),
        reply_type=gallery_pb2.Image,
        convert=replies.image,
    )


def list_images(gallery: str, token: str) -> Call[Page[values.Image]]:
    """Describe one page of GalleryService.ListImages."""
    return Call(
        path=f"{GALLERY_SERVICE}ListImages",
        request=gallery_pb2.ListImagesRequest(parent=gallery_name(gallery), page_size=PAGE_SIZE, page_token=token),
        reply_type=gallery_pb2.ListImagesResponse,
        convert=lambda reply: Page(values=tuple(map(replies.image, reply.images)), next_token=reply.next_page_token),
    )


def update_labels(image: values.ImageRef, labels: Labels, *, etag: str) -> Call[values.Image]:
    """Describe the GalleryService.UpdateImage that replaces labels; InvalidFieldError as `labels_message`."""
    return _update(gallery_pb2.Image(name=image.name, labels=labels_message(labels), etag=etag), "labels")


def set_expire_time(image: values.ImageRef, expire_time: Expiry | None, *, etag: str) -> Call[values.Image]:
    """Describe the GalleryService.UpdateImage that says when an image is gone; InvalidFieldError as `set_expiry`."""
    content = gallery_pb2.Image(name=image.name, etag=etag)
    set_expiry(content, expire_time)
    return _update(content, "expire_time")


def _update(content: gallery_pb2.Image, path: str) -> Call[values.Image]:
    return Call(
        path=f"{GALLERY_SERVICE}UpdateImage",
        request=gallery_pb2.UpdateImageRequest(image=content, update_mask=field_mask_pb2.FieldMask(paths=[path])),
        reply_type=gallery_pb2.Image,
        convert=replies.image,
    )


def delete_images(
    gallery: str, image_ids: Iterable[str], etags: Mapping[str, str] | None
) -> Iterator[Call[values.DeletedImages]]:
    """Describe as many GalleryService.DeleteImages as the ids need."""
    ids = iter(image_ids)
    while chunk := list(itertools.islice(ids, DELETIONS_PER_CALL)):
        names = {image_id: values.ImageRef(gallery, image_id).name for image_id in chunk}
        current = {names[image_id]: etag for image_id, etag in (etags or {}).items() if image_id in names}
        yield Call(
            path=f"{GALLERY_SERVICE}DeleteImages",
            request=gallery_pb2.DeleteImagesRequest(
                parent=gallery_name(gallery), names=[names[image_id] for image_id in chunk], etags=current
            ),
            reply_type=gallery_pb2.DeleteImagesResponse,
            convert=replies.deleted,
        )


def add_deletions(parts: Iterable[values.DeletedImages]) -> values.DeletedImages:
    """Return the sum of what several calls deleted."""
    done = list(parts)
    return values.DeletedImages(deleted=sum(p.deleted for p in done), missing=sum(p.missing for p in done))


def search_request(
    query: QuerySource,
    *,
    gallery: str,
    top_k: int,
    rerank: matching_pb2.Rerank,
    max_flows: int,
    filter_: search_pb2.Filter,
    min_score: float | None,
    include_query_image: bool,
    exhaustive: bool,
    group_by: str,
    group_limit: int | None,
    at_least_sequence: int,
    generation: int,
) -> search_pb2.SearchRequest:
    """Return the question; errors as read_image."""
    return search_pb2.SearchRequest(
        gallery=gallery_name(gallery),
        query=query_message(query),
        filter=filter_,
        top_k=top_k,
        rerank=rerank,
        max_flows=max_flows,
        min_score=min_score,
        include_query_image=include_query_image,
        exhaustive=exhaustive,
        group_by=group_by,
        group_limit=group_limit,
        at_least_sequence=at_least_sequence,
        generation=generation,
    )


def search(request: search_pb2.SearchRequest) -> Call[search_pb2.SearchResponse]:
    """Describe SearchService.Search; the clients make the hits, because they can draw them."""
    return Call(
        path=f"{SEARCH_SERVICE}Search",
        request=request,
        reply_type=search_pb2.SearchResponse,
        convert=lambda reply: reply,
    )


def render_hit(request: search_pb2.SearchRequest, reply: search_pb2.SearchResponse, hit: search_pb2.Hit) -> Call[bytes]:
    """Describe the SearchService.RenderMatch that draws a hit as it was scored, whatever has changed by then."""
    rerank = reply.rerank if reply.HasField("rerank") else request.rerank
    generation = reply.generation or request.generation
    return render_match(request.query, values.ImageRef.parse(hit.image.name), rerank=rerank, generation=generation)


def compare(
    query: QuerySource,
    image: QuerySource,
    *,
    rerank: matching_pb2.Rerank,
    max_flows: int | None,
    model: str,
    generation: int,
) -> Call[Comparison]:
    """Describe SearchService.Compare."""
    request = search_pb2.CompareRequest(
        query=query_message(query),
        image=query_message(image),
        rerank=rerank,
        max_flows=max_flows,
        model=model_name(model),
        generation=generation,
    )
    return Call(
        path=f"{SEARCH_SERVICE}Compare",
        request=request,
        reply_type=search_pb2.CompareResponse,
        convert=replies.comparison,
    )


def explain(
    query: QuerySource,
    image: values.ImageRef,
    *,
    rerank: matching_pb2.Rerank,
    max_flows: int | None,
    generation: int,
) -> Call[Explanation]:
    """Describe SearchService.Explain."""
    request = search_pb2.ExplainRequest(
        query=query_message(query), image=image.name, rerank=rerank, max_flows=max_flows, generation=generation
    )
    return Call(
        path=f"{SEARCH_SERVICE}Explain",
        request=request,
        reply_type=search_pb2.ExplainResponse,
        convert=replies.explanation,
    )


def render_match(
    query: QuerySource | search_pb2.Query,
    image: values.ImageRef,
    *,
    rerank: matching_pb2.Rerank,
    max_flows: int | None = None,
    height_px: int | None = None,
    generation: int = 0,
) -> Call[bytes]:
    """Describe SearchService.RenderMatch."""
    request = search_pb2.RenderMatchRequest(
        query=query if isinstance(query, search_pb2.Query) else query_message(query),
        image=image.name,
        rerank=rerank,
        max_flows=max_flows,
        height_px=height_px,
        generation=generation,
    )
    return Call(
        path=f"{SEARCH_SERVICE}RenderMatch",
        request=request,
        reply_type=search_pb2.RenderMatchResponse,
        convert=lambda reply: bytes(reply.png),
    )


def get_model(model: str) -> Call[values.Model]:
    """Describe ModelService.GetModel."""
    return Call(
        path=f"{MODEL_SERVICE}GetModel",
        request=model_pb2.GetModelRequest(name=model_name(model)),
        reply_type=model_pb2.Model,
        convert=replies.model,
    )


def list_models(token: str) -> Call[Page[values.Model]]:
    """Describe one page of ModelService.ListModels."""
    return Call(
        path=f"{MODEL_SERVICE}ListModels",
        request=model_pb2.ListModelsRequest(page_size=PAGE_SIZE, page_token=token),
        reply_type=model_pb2.ListModelsResponse,
        convert=lambda reply: Page(values=tuple(map(replies.model, reply.models)), next_token=reply.next_page_token),
    )


def embed(images: Iterable[ImageFile], *, model: str) -> Iterator[Call[list[values.Features | MatchflowError]]]:
    """Describe as many ModelService.EmbedImages as the images need."""
    chunk: list[bytes] = []
    for data in map(read_image, images):
        if len(chunk) == IMAGES_PER_EMBED_CALL or (chunk and sum(map(len, [*chunk, data])) > BYTES_PER_EMBED_CALL):
            yield _embed(chunk, model)
            chunk = []
        chunk.append(data)
    if chunk:
        yield _embed(chunk, model)


def health(service: str) -> Call[values.Health]:
    """Describe grpc.health.v1.Health.Check.

    Its two messages have one field each; the well-known wrappers have the same bytes, and save a dependency.
    """
    return Call(
        path=HEALTH_CHECK,
        request=wrappers_pb2.StringValue(value=service),
        reply_type=wrappers_pb2.Int32Value,
        convert=replies.health,
    )


def _embed(images: Sequence[bytes], model: str) -> Call[list[values.Features | MatchflowError]]:
    return Call(
        path=f"{MODEL_SERVICE}EmbedImages",
        request=model_pb2.EmbedImagesRequest(model=model_name(model), images=images),
        reply_type=model_pb2.EmbedImagesResponse,
        convert=replies.embeddings,
    )

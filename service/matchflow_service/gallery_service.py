"""The servicer of galleries and the images in them."""
# ruff: noqa: N802, ARG002 - the methods and their arguments are those of the contract

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from google.protobuf import empty_pb2

from matchflow.v1 import gallery_pb2, gallery_pb2_grpc
from matchflow_index import GalleryNotFoundError, GallerySpec, Unchanged
from matchflow_service import fields, names
from matchflow_service.conversions import gallery_message, image_message
from matchflow_service.errors import FieldInvalidError, shown
from matchflow_service.image_fields import parse_etag, parse_expiry
from matchflow_service.labels import parse_labels
from matchflow_service.pages import page_token, parse_page_token
from matchflow_service.reranking import parse_rerank
from matchflow_service.workers import on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf import field_mask_pb2

    from matchflow_index import Gallery, GalleryStore, ImageRecord
    from matchflow_service.models import Models
    from matchflow_service.workers import Workers

MAX_DELETED_IMAGES = 1000
DEFAULT_FIELD = "gallery.default_rerank"


class GalleryServicer(gallery_pb2_grpc.GalleryServiceServicer):
    """Answers on a store thread: every method is one blocking function."""

    def __init__(self, *, store: GalleryStore, models: Models, workers: Workers) -> None:
        self._store = store
        self._models = models
        self._workers = workers

    async def CreateGallery(self, request: gallery_pb2.CreateGalleryRequest, context: Any) -> gallery_pb2.Gallery:
        """See the contract."""
        return await on(self._workers.store, partial(self._create_gallery, request))

    async def GetGallery(self, request: gallery_pb2.GetGalleryRequest, context: Any) -> gallery_pb2.Gallery:
        """See the contract."""
        return await on(self._workers.store, partial(self._get_gallery, request))

    async def ListGalleries(
        self, request: gallery_pb2.ListGalleriesRequest, context: Any
    ) -> gallery_pb2.ListGalleriesResponse:
        """See the contract."""
        return await on(self._workers.store, partial(self._list_galleries, request))

    async def UpdateGallery(self, request: gallery_pb2.UpdateGalleryRequest, context: Any) -> gallery_pb2.Gallery:
        """See the contract."""
        return await on(self._workers.store, partial(self._update_gallery, request))

    async def DeleteGallery(self, request: gallery_pb2.DeleteGalleryRequest, context: Any) -> empty_pb2.Empty:
        """See the contract."""
        return await on(self._workers.store, partial(self._delete_gallery, request))

    async def GetImage(self, request: gallery_pb2.GetImageRequest, context: Any) -> gallery_pb2.Image:
        """See the contract."""
        return await on(self._workers.store, partial(self._get_image, request))

    async def ListImages(self, request: gallery_pb2.ListImagesRequest, context: Any) -> gallery_pb2.ListImagesResponse:
        """See the contract."""
        return await on(self._workers.store, partial(self._list_images, request))

    async def UpdateImage(self, request: gallery_pb2.UpdateImageRequest, context: Any) -> gallery_pb2.Image:
        """See the contract."""
        return await on(self._workers.store, partial(self._update_image, request))

    async def DeleteImages(
        self, request: gallery_pb2.DeleteImagesRequest, context: Any
    ) -> gallery_pb2.DeleteImagesResponse:
        """See the contract."""
        return await on(self._workers.store, partial(self._delete_images, request))

    def _create_gallery(self, request: gallery_pb2.CreateGalleryRequest) -> gallery_pb2.Gallery:
        gallery_id = names.check_gallery_id(request.gallery_id, "gallery_id")
        wanted = request.gallery.model
        model = self._models.named(names.parse_model(wanted, "gallery.model") if wanted else "")
        default = parse_rerank(request.gallery.default_rerank, field=DEFAULT_FIELD)
        gallery = self._store.create(
            GallerySpec(
                gallery_id=gallery_id,
                model=model.name,
                bundle_digest=model.bundle_digest,
                grid=model.grid,
                embedding_dim=model.embedding_dim,
                keep_thumbnails=not request.gallery.without_thumbnails,
                create_time_s=time.time(),
            )
        )
        if request.gallery.HasField("default_rerank"):
            gallery.set_match_defaults(default)
        return gallery_message(gallery)

    def _get_gallery(self, request: gallery_pb2.GetGalleryRequest) -> gallery_pb2.Gallery:
        return gallery_message(self._store.gallery(names.parse_gallery(request.name, "name")))

    def _list_galleries(self, request: gallery_pb2.ListGalleriesRequest) -> gallery_pb2.ListGalleriesResponse:
        limit = fields.page_size(request.page_size)
        after = parse_page_token(request.page_token, "ListGalleries", "")
        ids = [spec.gallery_id for spec in self._store.list()]
        rest = [gallery_id for gallery_id in ids if after is None or gallery_id > after]
        return gallery_pb2.ListGalleriesResponse(
            galleries=[gallery_message(gallery) for gallery in self._still_there(rest[:limit])],
            next_page_token=page_token("ListGalleries", "", rest[limit - 1]) if len(rest) > limit else "",
        )

    def _still_there(self, gallery_ids: list[str]) -> Iterator[Gallery]:
        """Yield galleries, less those that somebody deletes meanwhile."""
        for gallery_id in gallery_ids:
            with contextlib.suppress(GalleryNotFoundError):
                yield self._store.gallery(gallery_id)

    def _update_gallery(self, request: gallery_pb2.UpdateGalleryRequest) -> gallery_pb2.Gallery:
        gallery_id = names.parse_gallery(request.gallery.name, "gallery.name")
        _check_mask(request.update_mask, "default_rerank")
        default = parse_rerank(request.gallery.default_rerank, field=DEFAULT_FIELD)
        if request.update_mask.paths or request.gallery.HasField("default_rerank"):
            self._store.on_active(gallery_id, lambda gallery: gallery.set_match_defaults(default, active=True))
        return gallery_message(self._store.gallery(gallery_id))

    def _delete_gallery(self, request: gallery_pb2.DeleteGalleryRequest) -> empty_pb2.Empty:
        self._store.delete(names.parse_gallery(request.name, "name"))
        return empty_pb2.Empty()

    def _get_image(self, request: gallery_pb2.GetImageRequest) -> gallery_pb2.Image:
        name = names.parse_image(request.name, "name")
        record = self._store.on_active(name.gallery_id, lambda gallery: gallery.get(name.image_id))
        return image_message(name.gallery_id, record)

    def _list_images(self, request: gallery_pb2.ListImagesRequest) -> gallery_pb2.ListImagesResponse:
        gallery_id = names.parse_gallery(request.parent, "parent")
        limit = fields.page_size(request.page_size)
        after = parse_page_token(request.page_token, "ListImages", request.parent)
        records = self._store.on_active(gallery_id, lambda gallery: gallery.page(after, limit + 1))
        more = len(records) > limit
        return gallery_pb2.ListImagesResponse(
            images=[image_message(gallery_id, record) for record in records[:limit]],
            next_page_token=page_token("ListImages", request.parent, records[limit - 1].image_id) if more else "",
        )

    def _update_image(self, request: gallery_pb2.UpdateImageRequest) -> gallery_pb2.Image:
        name = names.parse_image(request.image.name, "image.name")
        _check_mask(request.update_mask, "labels", "expire_time", "ttl")
        paths, ends = set(request.update_mask.paths), request.image.WhichOneof("expiration")
        if not paths:
            paths = {"labels"} | ({ends} if ends else set())
        labels = parse_labels(request.image.labels, "image.labels") if "labels" in paths else None
        end = parse_expiry(request.image, "image.") if paths - {"labels"} else Unchanged.UNCHANGED
        if_sequence = parse_etag(request.image.etag, "image.etag")

        def update(gallery: Gallery) -> ImageRecord:
            return gallery.update(name.image_id, labels=labels, expire_time_s=end, if_sequence=if_sequence)

        return image_message(name.gallery_id, self._store.on_active(name.gallery_id, update))

    def _delete_images(self, request: gallery_pb2.DeleteImagesRequest) -> gallery_pb2.DeleteImagesResponse:
        gallery_id = names.parse_gallery(request.parent, "parent")
        fields.at_most(request.names, "names", MAX_DELETED_IMAGES)
        ids = [names.parse_image_in(name, gallery_id, f"names[{i}]") for i, name in enumerate(request.names)]
        current = {}
        for name, value in request.etags.items():
            field = f"etags[{name}]"
            image_id, sequence = names.parse_image_in(name, gallery_id, field), parse_etag(value, field)
            if image_id not in ids or sequence is None:
                raise FieldInvalidError(field, "expected an etag of one of `names`; got none, or one of another image")
            current[image_id] = sequence
        deleted, missing = self._store.delete_images(gallery_id, ids, if_sequences=current)
        return gallery_pb2.DeleteImagesResponse(deleted_count=deleted, missing_count=missing)


def _check_mask(mask: field_mask_pb2.FieldMask, *changeable: str) -> None:
    """Raise FieldInvalidError for a mask that names anything but the fields that can change."""
    unknown = set(mask.paths) - {*changeable}
    if unknown:
        got = shown(", ".join(sorted(unknown)))
        raise FieldInvalidError("update_mask", f"expected {' or '.join(changeable)}, all that can change; got {got}")

"""From messages of the contract to the client's values; pure functions, shared by both clients."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, TypeVar

from matchflow import ranking, values
from matchflow.errors import MatchflowError, from_status
from matchflow.labels import labels_of
from matchflow.matches import (
    AsyncHit,
    Certificate,
    Comparison,
    Explanation,
    Flow,
    Hit,
    RerankState,
    ScoredImage,
    SearchResult,
    StageTimings,
)
from matchflow.v1 import search_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.timestamp_pb2 import Timestamp
    from google.protobuf.wrappers_pb2 import Int32Value

    from matchflow.v1 import gallery_pb2, model_pb2, types_pb2

HitT = TypeVar("HitT", bound=ScoredImage)

HEALTH_BY_NUMBER = {1: values.Health.SERVING, 2: values.Health.NOT_SERVING}
RERANK_STATES = {
    search_pb2.RerankStatus.STATE_COMPLETE: RerankState.COMPLETE,
    search_pb2.RerankStatus.STATE_PARTIAL: RerankState.PARTIAL,
    search_pb2.RerankStatus.STATE_SKIPPED_DEADLINE: RerankState.SKIPPED_DEADLINE,
}


def gallery(message: gallery_pb2.Gallery) -> values.Gallery:
    """Return the gallery."""
    return values.Gallery(
        id=message.name.removeprefix(values.GALLERIES),
        model=message.model.removeprefix(values.MODELS),
        bundle_digest=message.bundle_digest,
        grid=grid(message.grid),
        embedding_dim=message.embedding_dim,
        image_count=message.image_count,
        sequence=message.sequence,
        create_time=time(message.create_time),
        keeps_thumbnails=not message.without_thumbnails,
        default_rerank=ranking.rerank_settings(message.default_rerank),
        generation=message.generation,
    )


def image(message: gallery_pb2.Image) -> values.Image:
    """Return the stored image."""
    return values.Image(
        ref=values.ImageRef.parse(message.name),
        labels=labels_of(message.labels),
        row_id=message.row_id,
        content_hash=message.content_hash,
        width_px=message.width_px,
        height_px=message.height_px,
        update_time=time(message.update_time) if message.HasField("update_time") else None,
        expire_time=time(message.expire_time) if message.HasField("expire_time") else None,
        etag=message.etag,
        from_thumbnail=message.from_thumbnail,
    )


def model(message: model_pb2.Model) -> values.Model:
    """Return the model."""
    return values.Model(
        id=message.name.removeprefix(values.MODELS),
        version=message.version,
        bundle_digest=message.bundle_digest,
        input_height_px=message.input_height_px,
        input_width_px=message.input_width_px,
        grid=grid(message.grid),
        embedding_dim=message.embedding_dim,
        execution_provider=message.execution_provider,
    )


def features(message: types_pb2.Features) -> values.Features:
    """Return the features."""
    return values.Features(
        bundle_digest=message.bundle_digest,
        embedding=tuple(message.embedding),
        cells=message.cells,
        cell_scales=tuple(message.cell_scales),
    )


def embeddings(message: model_pb2.EmbedImagesResponse) -> list[values.Features | MatchflowError]:
    """Return, per image, its features or why it has none."""
    return [from_status(e.status) if e.status.code else features(e.features) for e in message.embeddings]


def deleted(message: gallery_pb2.DeleteImagesResponse) -> values.DeletedImages:
    """Return how many images were deleted."""
    return values.DeletedImages(deleted=message.deleted_count, missing=message.missing_count)


def health(message: Int32Value) -> values.Health:
    """Return the state of a HealthCheckResponse, whose only field is read as that of an Int32Value."""
    return HEALTH_BY_NUMBER.get(message.value, values.Health.UNKNOWN)


def hit(message: search_pb2.Hit, render: Callable[[], bytes]) -> Hit:
    """Return one hit of a search that `render` can draw."""
    return Hit(**_hit_fields(message), _render=render)


def async_hit(message: search_pb2.Hit, render: Callable[[], Awaitable[bytes]]) -> AsyncHit:
    """Return one hit of a search that `render` can draw."""
    return AsyncHit(**_hit_fields(message), _render=render)


def search_result(message: search_pb2.SearchResponse, make_hit: Callable[[search_pb2.Hit], HitT]) -> SearchResult[HitT]:
    """Return the answer, its hits made by `make_hit`."""
    timings = message.timings
    return SearchResult(
        hits=tuple(make_hit(hit) for hit in message.hits),
        rerank=RERANK_STATES.get(message.rerank_status.state, RerankState.NOT_REQUESTED),
        depth_done=message.rerank_status.depth_done,
        timings=StageTimings(
            decode_ms=timings.decode_ms,
            encode_ms=timings.encode_ms,
            coarse_ms=timings.coarse_ms,
            gather_ms=timings.gather_ms,
            match_ms=timings.match_ms,
            explain_ms=timings.explain_ms,
            total_ms=timings.total_ms,
        ),
        bundle_digest=message.bundle_digest,
        sequence=message.sequence,
        query_id=message.query_id,
        exact=message.exact,
        proved_below=message.proved_below,
        rerank_settings=ranking.rerank_settings(message.rerank),
        generation=message.generation,
        store_unreachable=message.store_unreachable,
    )


def comparison(message: search_pb2.CompareResponse) -> Comparison:
    """Return a compared pair."""
    return Comparison(**_score_fields(message.match), **_plan_fields(message))


def explanation(message: search_pb2.ExplainResponse) -> Explanation:
    """Return an explained hit."""
    fields = _score_fields(message.match) | _plan_fields(message)
    return Explanation(**fields, image=image(message.image), generation=message.generation)


def grid(message: types_pb2.CellGrid) -> values.CellGrid:
    """Return the grid."""
    return values.CellGrid(rows=message.rows, columns=message.columns)


def time(message: Timestamp) -> dt.datetime:
    """Return the time, in UTC."""
    return message.ToDatetime(tzinfo=dt.UTC)


def _score_fields(message: types_pb2.MatchScore) -> dict[str, Any]:
    """Return what every kind of scored pair has, by field name: Any, because the values differ in type."""
    return {
        "coarse_score": message.coarse_score,
        "structural_score": message.structural_score if message.HasField("structural_score") else None,
        "score": message.score,
        "certificate": _certificate(message.certificate) if message.HasField("certificate") else None,
        "flows": tuple(_flow(flow) for flow in message.flows),
        "residual": message.residual,
    }


def _hit_fields(message: search_pb2.Hit) -> dict[str, Any]:
    return _score_fields(message.match) | {"image": image(message.image), "coarse_rank": message.coarse_rank}


def _plan_fields(message: search_pb2.CompareResponse | search_pb2.ExplainResponse) -> dict[str, Any]:
    return {
        "grid": grid(message.grid),
        "query_weights": tuple(message.query_weights),
        "image_weights": tuple(message.image_weights),
        "query_cell_shares": tuple(message.query_cell_shares),
        "image_cell_shares": tuple(message.image_cell_shares),
        "bundle_digest": message.bundle_digest,
        "rerank_settings": ranking.rerank_settings(message.rerank),
    }


def _certificate(message: types_pb2.Certificate) -> Certificate:
    return Certificate(
        iterations=message.iterations,
        marginal_error=message.marginal_error,
        converged=message.converged,
        query_marginal_is_uniform=message.query_marginal_is_uniform,
        image_marginal_is_uniform=message.image_marginal_is_uniform,
        duality_gap=message.duality_gap if message.HasField("duality_gap") else None,
    )


def _flow(message: types_pb2.Flow) -> Flow:
    return Flow(
        query_cell=message.query_cell,
        image_cell=message.image_cell,
        query_box=_box(message.query_box),
        image_box=_box(message.image_box),
        mass=message.mass,
        similarity=message.similarity,
        contribution=message.contribution,
        penalty=message.penalty,
    )


def _box(message: types_pb2.Box) -> values.Box:
    return values.Box(left=message.left, top=message.top, right=message.right, bottom=message.bottom)

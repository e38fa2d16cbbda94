"""Between messages and the values that the other packages work with; checks what comes in."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf import timestamp_pb2

from matchflow.v1 import gallery_pb2, model_pb2, types_pb2
from matchflow_index import StoreUnavailableError
from matchflow_matching import (
    CellGrid,
    Features,
    FeaturesInvalidError,
    check_unit_length,
)
from matchflow_service import names
from matchflow_service.image_fields import etag
from matchflow_service.labels import labels_message
from matchflow_service.reranking import rerank_message

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow.v1 import matching_pb2
    from matchflow_index import Gallery, ImageRecord
    from matchflow_service.models import Model

log = logging.getLogger(__name__)

# What float16 holds.
LARGEST_SCALE = 65_504.0
# Rounding a scale to float16 changes a cell's length by at most 5e-4.
ROUNDING_SLACK = 2e-3


def timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    """Return seconds since 1970 as a message, to the microsecond: a float has no more."""
    message = timestamp_pb2.Timestamp()
    message.FromMicroseconds(round(seconds * 1e6))
    return message


def grid_message(grid: CellGrid) -> types_pb2.CellGrid:
    """Return a grid as a message."""
    return types_pb2.CellGrid(rows=grid.rows, columns=grid.columns)


def gallery_message(gallery: Gallery) -> gallery_pb2.Gallery:
    """Return a gallery and where it stands now."""
    spec = gallery.spec
    return gallery_pb2.Gallery(
        name=names.gallery_name(spec.gallery_id),
        model=names.model_name(spec.model),
        bundle_digest=spec.bundle_digest,
        grid=grid_message(spec.grid),
        embedding_dim=spec.embedding_dim,
        image_count=gallery.count,
        sequence=gallery.sequence,
        create_time=timestamp(spec.gallery_create_time_s or spec.create_time_s),
        without_thumbnails=not spec.keep_thumbnails,
        default_rerank=default_rerank(gallery),
        generation=spec.generation,
    )


def default_rerank(gallery: Gallery) -> matching_pb2.Rerank | None:
    """Return how a gallery's pairs are scored by default; None when that can't be read: the rest can."""
    try:
        default = gallery.match_defaults
    except StoreUnavailableError:
        log.exception("gallery %s is shown without its default", gallery.spec.gallery_id)
        return None
    return rerank_message(default.settings, default.depth)


def image_message(gallery_id: str, record: ImageRecord) -> gallery_pb2.Image:
    """Return what is stored of an image, without its hash and update time where its record has none."""
    return gallery_pb2.Image(
        name=f"galleries/{gallery_id}/images/{record.image_id}",
        labels=labels_message(record.labels),
        row_id=record.row_id,
        content_hash=record.content_hash,
        width_px=record.width_px,
        height_px=record.height_px,
        update_time=timestamp(record.update_time_s) if record.update_time_s else None,
        expire_time=None if record.expire_time_s is None else timestamp(record.expire_time_s),
        etag=etag(record.sequence),
        from_thumbnail=record.from_thumbnail,
    )


def model_message(model: Model) -> model_pb2.Model:
    """Return what a loaded bundle is."""
    return model_pb2.Model(
        name=names.model_name(model.name),
        version=model.manifest.version,
        bundle_digest=model.bundle_digest,
        input_height_px=model.preprocessing.height_px,
        input_width_px=model.preprocessing.width_px,
        grid=grid_message(model.grid),
        embedding_dim=model.embedding_dim,
        execution_provider=model.encoder.provider,
    )


def features_message(features: Features, bundle_digest: str) -> types_pb2.Features:
    """Return features as a client gets them."""
    return types_pb2.Features(
        bundle_digest=bundle_digest,
        embedding=features.embedding.tolist(),
        cells=features.cells.tobytes(),
        cell_scales=features.scales.astype(np.float32).tolist(),
    )


def parse_features(message: types_pb2.Features, grid: CellGrid, dim: int) -> Features:
    """Return a client's features, scales rounded to float16.

    Raises FeaturesInvalidError unless there are D, R * D and R finite numbers, scales are not negative, and embedding
    and cells have unit length; a cell may also be zero.
    """
    got = (len(message.embedding), len(message.cells), len(message.cell_scales))
    if got != (dim, grid.size * dim, grid.size):
        raise FeaturesInvalidError(
            f"expected {dim} embedding values, {grid.size * dim} cell bytes and {grid.size} cell scales; "
            f"got {got[0]}, {got[1]} and {got[2]}"
        )
    embedding = np.array(message.embedding, np.float32)
    scales = np.array(message.cell_scales, np.float32)
    if not (np.isfinite(embedding).all() and np.isfinite(scales).all()):
        raise FeaturesInvalidError("features hold numbers that are not finite")
    if scales.min() < 0 or scales.max() > LARGEST_SCALE:
        raise FeaturesInvalidError(
            f"cell scales must be from 0 to {LARGEST_SCALE:g}; got {scales.min():g} to {scales.max():g}"
        )
    check_unit_length(embedding[None])
    with np.errstate(under="ignore"):
        rounded = scales.astype(np.float16)
    cells = np.frombuffer(message.cells, np.int8).reshape(grid.size, dim)
    _check_cell_lengths(cells, rounded)
    return Features(embedding=embedding, cells=cells, scales=rounded)


def _check_cell_lengths(cells: NDArray[np.int8], scales: NDArray[np.float16]) -> None:
    """Raise FeaturesInvalidError unless cells [R, D] have unit length, up to what rounding to int8 can do to one."""
    steps = scales.astype(np.float64)
    lengths = np.linalg.norm(cells.astype(np.float64), axis=1) * steps
    allowed = ROUNDING_SLACK + steps * np.sqrt(cells.shape[1]) / 2
    wrong = (lengths > 0) & (np.abs(lengths - 1) > allowed)
    if wrong.any():
        cell = int(wrong.argmax())
        raise FeaturesInvalidError(f"cells must have unit length, or be zero; cell {cell} has {lengths[cell]:.3g}")


def features_hash(features: Features) -> str:
    """Return the content hash of ready-made features: sha256 over embedding, cells and scales as they are stored."""
    digest = hashlib.sha256(features.embedding.tobytes())
    digest.update(features.cells.tobytes())
    digest.update(features.scales.tobytes())
    return digest.hexdigest()

"""What may be stored: checks of images before anything is written."""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.errors import FeaturesRejectedError, ImageRejectedError
from matchflow_matching.errors import FeaturesInvalidError
from matchflow_matching.features import check_unit_length

if TYPE_CHECKING:
    from matchflow_index.labels import Labels, LabelValue
    from matchflow_index.records import GallerySpec, NewImage
    from matchflow_matching.features import Features

MAX_ID_CHARACTERS = 256


def check_image(image: NewImage, spec: GallerySpec) -> None:
    """Raise ImageRejectedError, or FeaturesRejectedError, unless the image can be stored in the gallery."""
    if not 1 <= len(image.image_id) <= MAX_ID_CHARACTERS:
        raise ImageRejectedError(f"an image id has 1 to {MAX_ID_CHARACTERS} characters; got {len(image.image_id)}")
    check_labels(image.image_id, image.labels)
    check_features(image.features, spec, f"image {image.image_id!r}")


def check_labels(image_id: str, labels: Labels) -> None:
    """Raise ImageRejectedError unless id and labels can be written: UTF-8, finite float64, times with a zone."""
    try:
        "".join((image_id, *labels, *(value for value in labels.values() if isinstance(value, str)))).encode()
    except UnicodeEncodeError as error:
        raise ImageRejectedError(f"the id or a label of image {image_id!r} is no valid text: {error}") from error
    for name, value in labels.items():
        wrong = _wrong_with(value)
        if wrong is not None:
            raise ImageRejectedError(f"label {name!r} of image {image_id!r}: {wrong}; got {value!r}")


def _wrong_with(value: LabelValue) -> str | None:
    if isinstance(value, str):
        return None
    if isinstance(value, datetime):
        return None if value.utcoffset() is not None else "expected a time with its zone"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "expected a text, a number or a time"
    try:
        exact = math.isfinite(value) and float(value) == value
    except OverflowError:
        exact = False
    return None if exact else "expected a finite number that float64 holds exactly"


def check_shapes(features: Features, spec: GallerySpec, what: str) -> None:
    """Raise FeaturesRejectedError unless shapes and types are the gallery's; `what` names the image."""
    cells, dim = spec.grid.size, spec.embedding_dim
    for name, array, dtype, shape in (
        ("embedding", features.embedding, np.float32, (dim,)),
        ("cells", features.cells, np.int8, (cells, dim)),
        ("scales", features.scales, np.float16, (cells,)),
    ):
        if array.dtype != dtype or array.shape != shape:
            raise FeaturesRejectedError(
                f"{name} of {what}: expected {np.dtype(dtype)} {list(shape)}; got {array.dtype} {list(array.shape)}"
            )


def check_features(features: Features, spec: GallerySpec, what: str) -> None:
    """Raise FeaturesRejectedError unless shapes, types and values are the gallery's; `what` names the image."""
    check_shapes(features, spec, what)
    if not (np.isfinite(features.scales).all() and (features.scales >= 0).all()):
        raise FeaturesRejectedError(f"scales of {what}: expected finite numbers of at least 0")
    try:
        check_unit_length(features.embedding[None])
    except FeaturesInvalidError as error:
        raise FeaturesRejectedError(f"embedding of {what}: {error}") from error

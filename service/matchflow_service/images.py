"""From encoded bytes to what the model takes and the store keeps. All of it blocks: it belongs on a worker thread."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from matchflow_bundle import decode_image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from matchflow_bundle import Preprocessing

THUMBNAIL_SIDE_PX = 256
THUMBNAIL_QUALITY = 88
# About what a JPEG of that size takes.
OWN_THUMBNAIL_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadImage:
    """A decoded image: its upright size, the model's input uint8 [H, W, 3]; thumbnail and pixels where asked for."""

    width_px: int
    height_px: int
    model_input: NDArray[np.uint8]
    thumbnail: bytes | None = None
    rgb: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReader:
    """Decodes images within limits. Errors are matchflow_bundle's ImageError."""

    max_bytes: int
    max_pixels: int

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Return upright RGB, uint8 [H, W, 3]."""
        return decode_image(data, max_bytes=self.max_bytes, max_pixels=self.max_pixels)

    def read(
        self, data: bytes, preprocessing: Preprocessing, *, with_thumbnail: bool = False, with_rgb: bool = False
    ) -> ReadImage:
        """Decode once and derive everything that is wanted of the image."""
        rgb = self.decode(data)
        return ReadImage(
            width_px=rgb.shape[1],
            height_px=rgb.shape[0],
            model_input=preprocessing.apply(rgb),
            thumbnail=_kept_or_drawn(data, rgb) if with_thumbnail else None,
            rgb=rgb if with_rgb else None,
        )


def _kept_or_drawn(data: bytes, rgb: NDArray[np.uint8]) -> bytes:
    """Return a thumbnail; a small image is its own, without loss and without work."""
    if max(rgb.shape) <= THUMBNAIL_SIDE_PX and len(data) <= OWN_THUMBNAIL_BYTES:
        return data
    return thumbnail(rgb)


def thumbnail(rgb: NDArray[np.uint8]) -> bytes:
    """Return a JPEG whose longer side is at most 256 pixels; smaller images keep their size."""
    picture = Image.fromarray(rgb)
    # Reducing by a whole factor first costs a fraction of one exact resize of a large photograph.
    picture.thumbnail((THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return buffer.getvalue()

"""From an image of any size to the model's input, and back from the input's fractions to the image's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from matchflow_bundle.errors import EncoderInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

WHITE = (255, 255, 255)
RGB_NDIM = 3

Box = tuple[float, float, float, float]
"""A rectangle (left, top, right, bottom)."""


class ResizePolicy(StrEnum):
    """How an image of another shape becomes the model's input."""

    STRETCH = "stretch"
    """The whole image, its sides scaled on their own."""
    CENTER_CROP = "center_crop"
    """The largest centred part of the input's shape."""
    PAD = "pad"
    """The whole image in its own shape, centred on white."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What a model's input looks like: `height_px` x `width_px` RGB, made by `policy`."""

    height_px: int
    width_px: int
    policy: ResizePolicy = ResizePolicy.STRETCH

    def __post_init__(self) -> None:
        """Refuse an input without pixels."""
        if self.height_px < 1 or self.width_px < 1:
            raise EncoderInputError(f"expected an input of at least 1 x 1 px; got {self.height_px} x {self.width_px}")

    def apply(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the model's input, uint8 [height_px, width_px, 3], of an upright image [H, W, 3].

        Resampling is Pillow's bilinear with its support scaled, so shrinking averages (no aliasing). An image that has
        the input's size already is returned as it is, not copied.
        """
        if rgb.ndim != RGB_NDIM or rgb.shape[2] != RGB_NDIM or rgb.dtype != np.uint8 or not rgb.size:
            raise EncoderInputError(f"expected uint8 [H, W, 3] pixels; got {rgb.dtype} {list(rgb.shape)}")
        height, width = rgb.shape[:2]
        if (height, width) == (self.height_px, self.width_px):
            return rgb
        source, (left, top, right, bottom) = self._source(width, height), self._target(width, height)
        image = Image.fromarray(rgb)
        resized = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=source)
        if resized.size == (self.width_px, self.height_px):
            return np.array(resized)
        canvas = Image.new("RGB", (self.width_px, self.height_px), WHITE)
        canvas.paste(resized, (left, top))
        return np.array(canvas)

    def image_box(self, box: Box, image_width_px: int, image_height_px: int) -> Box:
        """Map a box in fractions of the input to fractions of the upright image, clipped to it.

        A box wholly on padding collapses to the nearest edge of the image.
        """
        source = self._source(image_width_px, image_height_px)
        target = self._target(image_width_px, image_height_px)

        def along(value: float, axis: int, input_px: int, image_px: int) -> float:
            inside = (value * input_px - target[axis]) / (target[axis + 2] - target[axis])
            pixel = source[axis] + min(max(inside, 0.0), 1.0) * (source[axis + 2] - source[axis])
            return min(max(pixel / image_px, 0.0), 1.0)

        left, right = (along(value, 0, self.width_px, image_width_px) for value in box[::2])
        top, bottom = (along(value, 1, self.height_px, image_height_px) for value in box[1::2])
        return (left, top, right, bottom)

    def _source(self, width: int, height: int) -> Box:
        """Return the part of an image that is used, in its pixels."""
        if self.policy is not ResizePolicy.CENTER_CROP:
            return (0.0, 0.0, float(width), float(height))
        scale = min(width / self.width_px, height / self.height_px)
        left, top = (width - self.width_px * scale) / 2, (height - self.height_px * scale) / 2
        # Rounding must not push a side beyond the image, where Pillow refuses it.
        left, top = max(left, 0.0), max(top, 0.0)
        return (left, top, width - left, height - top)

    def _target(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the part of the input that it fills, in the input's pixels."""
        if self.policy is not ResizePolicy.PAD:
            return (0, 0, self.width_px, self.height_px)
        scale = min(self.width_px / width, self.height_px / height)
        filled_width = min(max(round(width * scale), 1), self.width_px)
        filled_height = min(max(round(height * scale), 1), self.height_px)
        left, top = (self.width_px - filled_width) // 2, (self.height_px - filled_height) // 2
        return (left, top, left + filled_width, top + filled_height)

"""Displaced copies: an image shrunk and shifted on white, the same way every time.

What a query looks like when its subject is framed differently. The displacement follows from a name alone, so it is the
same whatever other images there are and in whatever order they come.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

SCALES = (0.6, 0.9)
WHITE = "white"


@dataclass(frozen=True, slots=True, kw_only=True)
class Displacement:
    """Where the shrunk image lies: its side as a share of the whole, and its upper left corner as shares of the room.

    `left` and `top` are 0 to 1: at 0 the image touches the left (upper) border, at 1 the right (lower) one.
    """

    scale: float
    left: float
    top: float

    @classmethod
    def of(cls, name: str) -> Displacement:
        """Draw the displacement of the image called `name`: scale from `SCALES`, place anywhere, all uniformly."""
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
        scale, left, top = np.random.default_rng(seed).uniform((SCALES[0], 0.0, 0.0), (SCALES[1], 1.0, 1.0)).tolist()
        return cls(scale=scale, left=left, top=top)

    def box(self, side_px: int) -> tuple[int, int, int, int]:
        """Return the shrunk image's rectangle (left, top, right, bottom) in a square of `side_px`, in whole pixels."""
        shrunk_px = max(1, round(side_px * self.scale))
        room_px = side_px - shrunk_px
        left, top = round(room_px * self.left), round(room_px * self.top)
        return (left, top, left + shrunk_px, top + shrunk_px)

    def apply(self, image: Image.Image) -> Image.Image:
        """Return a square RGB image, displaced on white, in the same size. Shrinking averages (bilinear, no aliasing).

        Raises ValueError for an image that is not square.
        """
        if image.width != image.height:
            raise ValueError(f"expected a square image; got {image.width} x {image.height}")
        left, top, right, bottom = self.box(image.width)
        shrunk = image.convert("RGB").resize((right - left, bottom - top), Image.Resampling.BILINEAR)
        canvas = Image.new("RGB", image.size, WHITE)
        canvas.paste(shrunk, (left, top))
        return canvas

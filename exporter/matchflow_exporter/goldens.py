"""The golden inputs: synthetic, so that a bundle gives away none of the images it was fitted on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 20210818
COARSE_PX = 12


def golden_images(height_px: int, width_px: int) -> NDArray[np.uint8]:
    """Return four inputs uint8 [4, H, W, 3]: colour ramps, a disc on white, stripes, and coarse noise."""
    rows, columns = np.mgrid[0:height_px, 0:width_px]
    down, across = (rows + 0.5) / height_px, (columns + 0.5) / width_px
    ramps = np.stack([across, down, 1 - (across + down) / 2], axis=2) * 255
    inside = ((down - 0.45) ** 2 + (across - 0.55) ** 2 < 0.1)[:, :, None]  # noqa: PLR2004 - where the disc is
    disc = np.where(inside, np.array([200, 40, 60]), 255)
    stripes = np.stack([(rows + columns) // 7 % 2, rows // 5 % 2, columns // 9 % 2], axis=2) * 180 + 40
    noise = np.random.default_rng(SEED).integers(0, 256, (COARSE_PX, COARSE_PX, 3), dtype=np.uint8)
    coarse = Image.fromarray(noise).resize((width_px, height_px), Image.Resampling.NEAREST)
    return np.stack([np.asarray(image).astype(np.uint8) for image in (ramps, disc, stripes, coarse)])

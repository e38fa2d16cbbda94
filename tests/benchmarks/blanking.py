"""Images with some of their cells painted over, and their features by the real model."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching import FeatureBatch, Features, quantise

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from matchflow_bundle import Encoder
    from matchflow_matching import CellGrid

    Pixels = NDArray[np.uint8]

BATCH = 16
NEARLY_WHITE = 250


class Fill(enum.StrEnum):
    """What a blanked cell is painted with."""

    MEAN = "mean"
    """The image's mean colour: changes every cell, drawn on or empty."""
    BACKGROUND = "background"
    """White, the ground of the emoji: the part is not there. Empty cells stay as they are."""
    GREY = "grey"
    """127: what the model sees as zero."""

    def colour(self, pixels: Pixels) -> Pixels:
        """Return RGB, uint8 [3], for an image [H, W, 3]."""
        match self:
            case Fill.MEAN:
                mean: Pixels = np.rint(pixels.mean(axis=(0, 1))).astype(np.uint8)
                return mean
            case Fill.BACKGROUND:
                return np.full(3, 255, np.uint8)
            case Fill.GREY:
                return np.full(3, 127, np.uint8)


def cell_slices(grid: CellGrid, cell: int, height_px: int, width_px: int) -> tuple[slice, slice]:
    """Return the rows and columns of pixels that a cell covers; the cells of a grid share none and leave none out."""
    left, top, right, bottom = grid.box(cell)
    rows = slice(round(top * height_px), round(bottom * height_px))
    return rows, slice(round(left * width_px), round(right * width_px))


def blanked(pixels: Pixels, grid: CellGrid, cells: Iterable[int], fill: Fill) -> Pixels:
    """Return a copy of an image [H, W, 3] with the pixels of `cells`, and no others, painted."""
    painted, colour = pixels.copy(), fill.colour(pixels)
    for cell in cells:
        painted[cell_slices(grid, cell, *pixels.shape[:2])] = colour
    return painted


def inked(pixels: Pixels, grid: CellGrid, least: float = 0.02) -> NDArray[np.bool_]:
    """Return bool [R]: the cells with at least the share `least` of their pixels darker than nearly white."""
    drawn = pixels.min(axis=2) < NEARLY_WHITE
    return np.array([drawn[cell_slices(grid, cell, *drawn.shape)].mean() >= least for cell in range(grid.size)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Blanking:
    """One image, by its name, with some cells blanked; no cells: the image itself."""

    image: str
    cells: frozenset[int] = frozenset()
    fill: Fill = Fill.MEAN


@dataclass(slots=True, kw_only=True)
class BlankedFeatures:
    """The features of images (uint8 [H, W, 3] by name) under any blanking, each embedded once."""

    encoder: Encoder
    images: dict[str, Pixels]
    known: dict[Blanking, Features] = field(default_factory=dict)

    @property
    def grid(self) -> CellGrid:
        """The cells of every image."""
        return self.encoder.bundle.manifest.grid

    def embed(self, wanted: Iterable[Blanking]) -> None:
        """Embed those that are not known yet, batch by batch."""
        missing = [each for each in dict.fromkeys(wanted) if each not in self.known]
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            pixels = [blanked(self.images[each.image], self.grid, sorted(each.cells), each.fill) for each in part]
            self.known.update(zip(part, encoded(self.encoder, pixels), strict=True))

    def __getitem__(self, blanking: Blanking) -> Features:
        """Return the features of one blanking."""
        self.embed([blanking])
        return self.known[blanking]


def encoded(encoder: Encoder, pixels: Sequence[Pixels]) -> list[Features]:
    """Return the features of images as the service stores them: quantised."""
    parts: list[FeatureBatch] = [
        quantise(*encoder.encode(np.stack(pixels[start : start + BATCH]))) for start in range(0, len(pixels), BATCH)
    ]
    return [batch[index] for batch in parts for index in range(len(batch))]

"""What matching works on: quantised cells and global vectors, one image or a batch.

An image is a global vector g [D] and R = rows * columns cells z [R, D], all of unit length. Cells are held as int8 with
one float16 scale each, z[i] ~ cells[i] * scales[i]: 16 cells of 128 take 2,080 bytes where float32 takes 8,192.
The score is *defined* on these stored values on both sides, so every machine and every path (search by image, by
stored id, by a client's own features) gives the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching.errors import FeaturesInvalidError

if TYPE_CHECKING:
    from numpy.typing import NDArray

INT8_MAX = 127
UNIT_LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class CellGrid:
    """The rows and columns in which an image is cut; cell i is row i // columns, column i % columns."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        """Refuse a grid without cells."""
        if self.rows < 1 or self.columns < 1:
            raise FeaturesInvalidError(f"a cell grid has at least 1 x 1 cells; got {self.rows} x {self.columns}")

    @property
    def size(self) -> int:
        """The number of cells, R."""
        return self.rows * self.columns

    def box(self, cell: int) -> tuple[float, float, float, float]:
        """Return the cell's rectangle (left, top, right, bottom) in fractions of the model's input."""
        row, column = divmod(cell, self.columns)
        return (column / self.columns, row / self.rows, (column + 1) / self.columns, (row + 1) / self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """One image: `embedding` float32 [D], `cells` int8 [R, D], `scales` float16 [R]."""

    embedding: NDArray[np.float32]
    cells: NDArray[np.int8]
    scales: NDArray[np.float16]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureBatch:
    """N images: `embeddings` float32 [N, D], `cells` int8 [N, R, D], `scales` float16 [N, R]."""

    embeddings: NDArray[np.float32]
    cells: NDArray[np.int8]
    scales: NDArray[np.float16]

    def __len__(self) -> int:
        """Return N."""
        return len(self.embeddings)

    def __getitem__(self, index: int) -> Features:
        """Return one image as a view."""
        return Features(embedding=self.embeddings[index], cells=self.cells[index], scales=self.scales[index])

    def take(self, indices: NDArray[np.intp] | slice) -> FeatureBatch:
        """Return the images at `indices`, in that order."""
        return FeatureBatch(embeddings=self.embeddings[indices], cells=self.cells[indices], scales=self.scales[indices])

    @classmethod
    def stack(cls, features: list[Features]) -> FeatureBatch:
        """Return one batch of images that share R and D."""
        return cls(
            embeddings=np.stack([f.embedding for f in features]),
            cells=np.stack([f.cells for f in features]),
            scales=np.stack([f.scales for f in features]),
        )


def quantise(embeddings: NDArray[np.float32], cells: NDArray[np.float32]) -> FeatureBatch:
    """Quantise a model's output.

    Shapes: embeddings [N, D] and cells [N, R, D], float32, unit length. The largest component of a cell maps to +-127;
    its scale is rounded to float16 first, so that what is stored is what was used. A zero cell stays zero.
    Raises FeaturesInvalidError for another shape, non-finite numbers, or embeddings not of unit length.
    """
    check_float_features(embeddings, cells)
    peaks = np.abs(cells).max(axis=2)
    scales = (peaks / INT8_MAX).astype(np.float16)
    divisors = np.where(scales > 0, scales, 1).astype(np.float32)
    quantised = np.clip(np.rint(cells / divisors[:, :, None]), -INT8_MAX, INT8_MAX).astype(np.int8)
    quantised[scales == 0] = 0
    return FeatureBatch(
        embeddings=np.ascontiguousarray(embeddings, dtype=np.float32),
        cells=quantised,
        scales=scales,
    )


def dequantise(batch: FeatureBatch) -> NDArray[np.float32]:
    """Return the cells as the score sees them, float32 [N, R, D]."""
    return batch.cells.astype(np.float32) * batch.scales.astype(np.float32)[:, :, None]


def check_float_features(embeddings: NDArray[np.float32], cells: NDArray[np.float32]) -> None:
    """Raise FeaturesInvalidError unless the shapes agree, all is finite and embeddings have unit length."""
    well_shaped = (embeddings.ndim, cells.ndim) == (2, 3) and cells.shape[::2] == embeddings.shape and cells.shape[1]
    if not well_shaped:
        raise FeaturesInvalidError(
            f"expected embeddings [N, D] and cells [N, R, D]; got {embeddings.shape} and {cells.shape}"
        )
    if not (np.isfinite(embeddings).all() and np.isfinite(cells).all()):
        raise FeaturesInvalidError("features hold numbers that are not finite")
    check_unit_length(embeddings)


def check_unit_length(embeddings: NDArray[np.float32]) -> None:
    """Raise FeaturesInvalidError unless every embedding [N, D] is finite and of unit length within 1e-3."""
    exact = embeddings.astype(np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", exact, exact))
    worst = float(np.abs(lengths - 1).max(initial=0.0))
    if not worst <= UNIT_LENGTH_TOLERANCE:
        raise FeaturesInvalidError(f"embeddings must have unit length; one is off by {worst:.3g}")

"""How long stored cells are: what bounds their cosines. Quantised cells are of unit length only nearly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.records import RowLayout
from matchflow_matching.compiling import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUND_UP = np.float32(1 + 2.0**-22)


def row_cell_norms(rows: NDArray[np.uint8], layout: RowLayout) -> NDArray[np.float32]:
    """Return the length of the longest cell of each row uint8 [N, size_bytes], float32 [N], rounded up.

    0 for a row with a scale that is not finite: such an image scores no more than any other (see matching.match).
    """
    squares = np.empty((len(rows), layout.cells), np.int32)
    square_lengths(rows, 4 * layout.dim, layout.dim, squares)
    scales = layout.scales(rows).astype(np.float64)
    scales[~np.isfinite(scales).all(axis=1)] = 0
    lengths = (np.sqrt(squares) * np.abs(scales)).max(axis=1)
    rounded_up: NDArray[np.float32] = lengths.astype(np.float32) * ROUND_UP
    return rounded_up


def warm_up() -> None:
    """Compile the kernel, so that no request pays for it (a second the first time; then from the cache on disk)."""
    layout = RowLayout(cells=1, dim=1)
    row_cell_norms(np.frombuffer(bytes(layout.size_bytes), np.uint8)[None], layout)


@compiled()
def square_lengths(rows: NDArray[np.uint8], first: int, dim: int, squares: NDArray[np.int32]) -> None:
    """Fill squares int32 [N, R] with the square lengths of the cells int8 [R, D] that start at byte `first` of rows."""
    for n in range(squares.shape[0]):
        for i in range(squares.shape[1]):
            cell = rows[n, first + i * dim : first + (i + 1) * dim]
            total = np.int32(0)
            for k in range(dim):
                value = np.int32(np.int8(cell[k]))
                # Every step in 32 bits: Numba would widen them, and the loop would not be made of vectors.
                total = np.int32(total + np.int32(value * value))
            squares[n, i] = total

"""From the backbone's map to the grid of cells, as one constant matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_matching.features import CellGrid


def pooling_matrix(grid: CellGrid, map_rows: int, map_columns: int) -> NDArray[np.float64]:
    """Return the weights [R, map_rows * map_columns] that make a cell of the map's positions; rows sum to 1.

    The two axes are independent, each by `axis_weights`; cells and positions are in row-major order.
    """
    rows, columns = axis_weights(grid.rows, map_rows), axis_weights(grid.columns, map_columns)
    return np.kron(rows, columns).astype(np.float64)


def axis_weights(cells: int, positions: int) -> NDArray[np.float64]:
    """Return the weights [cells, positions] along one axis; rows sum to 1.

    Not more cells than positions: the mean over the part that a cell covers, a position counting by its share.
    More: linear interpolation at the cell's centre between the centres of positions, held at the borders.
    """
    if cells <= positions:
        edges = np.arange(cells + 1) * positions / cells
        starts = np.maximum(edges[:-1, None], np.arange(positions))
        ends = np.minimum(edges[1:, None], np.arange(1, positions + 1))
        overlap: NDArray[np.float64] = np.maximum(ends - starts, 0.0)
        overlap /= overlap.sum(axis=1, keepdims=True)
        return overlap
    centres = np.clip((np.arange(cells) + 0.5) * positions / cells - 0.5, 0, positions - 1)
    weights: NDArray[np.float64] = np.maximum(1 - np.abs(centres[:, None] - np.arange(positions)), 0.0)
    return weights

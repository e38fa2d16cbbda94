"""Where cells lie, and how far apart: the spatial term of a cost."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_matching.features import CellGrid


# Few grids are in use at a time, and a table takes a tenth of a search's matching to make.
@lru_cache(maxsize=64)
def squared_distances(image_grid: CellGrid, query_grid: CellGrid) -> NDArray[np.float32]:
    """Return d2 float32 [Rx, Rq], how far image cells are from query cells, squared, 0 to 1; not to be written to.

    Both grids are laid over each other, corner cells on corner cells. The distance counts in cells of the query's grid
    and is divided by that grid's diagonal, so opposite corners are 1 apart; in a grid of one cell all is 0. For equal
    grids of h x w: d2 = (drow^2 + dcolumn^2) / ((h - 1)^2 + (w - 1)^2).

    >>> from matchflow_matching import CellGrid
    >>> grid = CellGrid(rows=2, columns=2)
    >>> squared_distances(grid, grid)[0].tolist()
    [0.0, 0.5, 0.5, 1.0]
    """
    height, width = query_grid.rows - 1, query_grid.columns - 1
    diagonal = max(1, height**2 + width**2)
    rows = _places(image_grid.rows)[:, None] - _places(query_grid.rows)
    columns = _places(image_grid.columns)[:, None] - _places(query_grid.columns)
    # [image row, image column, query row, query column]
    squares = (height * rows[:, None, :, None]) ** 2 + (width * columns[None, :, None, :]) ** 2
    return (squares / diagonal).reshape(image_grid.size, query_grid.size).astype(np.float32)


def coordinates(grid: CellGrid, query_grid: CellGrid) -> NDArray[np.float64]:
    """Return where a grid's cells lie, rows and columns, float64 [R, 2], in units of the query grid's diagonal.

    The squared distances of an image's and a query's coordinates are squared_distances.
    """
    sizes = np.array([query_grid.rows - 1, query_grid.columns - 1], np.float64)
    rows, columns = np.meshgrid(_places(grid.rows), _places(grid.columns), indexing="ij")
    diagonal = max(1.0, float(np.sqrt(np.square(sizes).sum())))
    cells: NDArray[np.float64] = np.stack([rows.ravel(), columns.ravel()], axis=1) * (sizes / diagonal)
    return cells


def _places(count: int) -> NDArray[np.float64]:
    """Return where the rows (or columns) lie, 0 to 1; a single one lies in the middle."""
    return np.linspace(0.0, 1.0, count) if count > 1 else np.array([0.5])

"""What an explanation names first: flows that run alongside others, and cells by what their surroundings show of them.

A cell's feature comes from a patch much wider than the cell. So a part that matches shows in several neighbouring flows
that run in parallel, while a lone flow between two empty corners can have the largest contribution of all and tell
nothing. For the same reason what a cell contributes is in part its neighbours' doing. `make bench-explain` measures
what each order is worth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching.errors import FeaturesInvalidError
from matchflow_matching.features import FeatureBatch, dequantise
from matchflow_matching.support_kernels import average_parallel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_matching.features import CellGrid, Features

# No cell shares with one that is farther away than this many cells, squared.
FARTHEST_SQUARED = 25


def supported(
    contributions: NDArray[np.float32], image_grid: CellGrid, query_grid: CellGrid | None = None
) -> NDArray[np.float32]:
    """Return each flow's contribution averaged with those of the parallel flows next to it, float32 [Rx, Rq].

    contributions: [Rx, Rq]. The flow from query cell (r, c) to image cell (r', c') is next to those from (r + a, c + b)
    to (r' + a, c' + b), a and b in -1..1, with weights (1/4, 1/2, 1/4) for each of a and b. What lies beyond a border
    counts as zero: nothing there vouches for the flow. Column sums rank the query's cells, row sums the image's.
    `query_grid` None: the same as `image_grid`. Raises FeaturesInvalidError when the shape is not that of the grids.

    >>> from matchflow_matching import CellGrid
    >>> supported(np.eye(3, dtype=np.float32), CellGrid(rows=3, columns=1)).diagonal().tolist()
    [0.375, 0.5, 0.375]
    """
    query_grid = query_grid or image_grid
    if contributions.shape != (image_grid.size, query_grid.size):
        raise FeaturesInvalidError(
            f"expected contributions [{image_grid.size}, {query_grid.size}]; got {list(contributions.shape)}"
        )
    by_rows, averaged = np.empty_like(contributions), np.empty_like(contributions)
    average_parallel(contributions, image_grid.columns, query_grid.columns, by_rows, averaged)
    return averaged


@np.errstate(under="ignore")
def shared(contributions: NDArray[np.float32], image: Features, grid: CellGrid) -> NDArray[np.float32]:
    """Return what the picture's cells contribute when each shares with those around it, float32 [R]; the sum stays.

    contributions: [R], what the cells' features contribute: a column or row sum of a matching flow. Cell j gives to
    cell k the part K_jk / sum_k K_jk with K_jk = max(0, <z_j, z_k>) exp(-d_jk^2 / 2), d in cells: features that agree
    and lie close come from the same pixels. K_jj = 1, so a cell without a feature keeps what it has.
    Raises FeaturesInvalidError when the shapes are not those of the grid.
    """
    if contributions.shape != (grid.size,) or len(image.cells) != grid.size:
        raise FeaturesInvalidError(
            f"expected contributions and cells [{grid.size}]; got {list(contributions.shape)} and {len(image.cells)}"
        )
    cells = dequantise(FeatureBatch.stack([image]))[0]
    rows, columns = np.divmod(np.arange(grid.size), grid.columns)
    squares = np.square(rows[:, None] - rows) + np.square(columns[:, None] - columns)
    near = np.exp(-0.5 * np.minimum(squares, FARTHEST_SQUARED)) * (squares <= FARTHEST_SQUARED)
    kernel = np.maximum(0.0, (cells @ cells.T).astype(np.float64)) * near
    np.fill_diagonal(kernel, 1.0)
    parts: NDArray[np.float32] = ((contributions / kernel.sum(axis=1)) @ kernel).astype(np.float32)
    return parts

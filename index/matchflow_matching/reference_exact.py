"""Exact transport, its bounds and stripes in float64 NumPy, one pair at a time: what those kernels are tested against.

The kernels' docstrings state the problems. Nothing here shares a method with them: transport is found by shortest
paths where they pivot, bounds sort where they search, and stripes are aligned by recursion.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_matching.features import CellGrid

    Vector = NDArray[np.float64]
    Matrix = NDArray[np.float64]
    Mask = NDArray[np.bool_]

# Float64 sums of masses and of costs along a path agree to this much.
TINY = 1e-13


def exact_plan(values: Matrix, image_weights: Vector, query_weights: Vector, *, mass: float = 1.0) -> Matrix:
    """Return T [Rx, Rq], of that mass and with T 1 <= u and T' 1 <= v, that has the largest sum T V.

    Successive shortest paths: what has been shipped is at every moment the best plan of its own mass (Ahuja, Magnanti,
    Orlin, Network Flows, 1993, section 9.7), so stopping at a mass gives the best partial plan.
    """
    plan = np.zeros_like(values)
    supply, demand, left = image_weights.copy(), query_weights.copy(), mass
    while left > TINY and (supply > TINY).any() and (demand > TINY).any():
        path = _shortest_path(-values, plan, supply > TINY, demand > TINY)
        forward, backward = path[::2], path[1::2]
        shipped = min(left, supply[path[0][0]], demand[path[-1][1]], *(plan[arc] for arc in backward))
        for arc in forward:
            plan[arc] += shipped
        for arc in backward:
            plan[arc] -= shipped
        supply[path[0][0]] -= shipped
        demand[path[-1][1]] -= shipped
        left -= shipped
    return plan


def _shortest_path(costs: Matrix, plan: Matrix, sources: Mask, sinks: Mask) -> list[tuple[int, int]]:
    """Return the arcs (row, column) of the cheapest path from a source to a sink, by turns shipped and taken back.

    Bellman and Ford's algorithm: distances are lowered until nothing changes.
    """
    rows, columns = np.where(sources, 0.0, np.inf), np.full(len(sinks), np.inf)
    before_row, before_column = np.zeros(len(sources), np.intp), np.zeros(len(sinks), np.intp)
    changed = True
    while changed:
        by_row = rows[:, None] + costs
        nearer = by_row.min(axis=0) < columns - TINY
        before_column[nearer] = by_row.argmin(axis=0)[nearer]
        columns[nearer] = by_row.min(axis=0)[nearer]
        by_column = np.where(plan > TINY, columns[None, :] - costs, np.inf)
        shorter = by_column.min(axis=1) < rows - TINY
        before_row[shorter] = by_column.argmin(axis=1)[shorter]
        rows[shorter] = by_column.min(axis=1)[shorter]
        changed = bool(nearer.any() or shorter.any())
    column = int(np.where(sinks, columns, np.inf).argmin())
    path = [(int(before_column[column]), column)]
    while not sources[path[0][0]]:
        row = path[0][0]
        column = int(before_row[row])
        path = [(int(before_column[column]), column), (row, column), *path]
    return path


def dual_bound(values: Matrix, image_weights: Vector, query_weights: Vector, potentials: Vector) -> float:
    """Return sum u a + sum v b with b_j = max_i (V_ij - a_i), at least sum T V of every whole plan, for any a [Rx]."""
    return float(image_weights @ potentials + query_weights @ (values - potentials[:, None]).max(axis=0))


def best_share(weights: Vector, maxima: Vector, mass: float) -> float:
    """Return the largest (1/m) sum w' maxima with 0 <= w' <= w and sum w' = m: a bound of partial transport's score.

    With the maxima of V over columns, and the query's weights, it is the column bound; with rows, the row bound.
    """
    order = np.argsort(-maxima, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    taken = np.clip(mass - before, 0.0, weights[order])
    return float(taken @ maxima[order]) / mass


def stripes(
    similarity: Matrix, image_mask: Mask, query_mask: Mask, image_grid: CellGrid, query_grid: CellGrid
) -> float:
    """Return the score of the best monotone alignment of rows of cells; 0 where a side has no valid cell."""
    columns = query_grid.columns
    images, queries = image_mask.reshape(-1, columns), query_mask.reshape(-1, columns)
    blocks = similarity.reshape(image_grid.rows, columns, query_grid.rows, columns)
    kept_images, kept_queries = np.flatnonzero(images.any(axis=1)), np.flatnonzero(queries.any(axis=1))

    @cache
    def mean(a: int, b: int) -> float:
        both = images[kept_images[a]] & queries[kept_queries[b]]
        return float(np.diagonal(blocks[kept_images[a], :, kept_queries[b], :])[both].mean()) if both.any() else 0.0

    @cache
    def best(a: int, b: int) -> float:
        if a == b == 0:
            return 2 * mean(0, 0)
        ways = []
        if a > 0 and b > 0:
            ways.append(best(a - 1, b - 1) + 2 * mean(a, b))
        if a > 0:
            ways.append(best(a - 1, b) + mean(a, b))
        if b > 0:
            ways.append(best(a, b - 1) + mean(a, b))
        return max(ways)

    if not (len(kept_images) and len(kept_queries)):
        return 0.0
    return best(len(kept_images) - 1, len(kept_queries) - 1) / (len(kept_images) + len(kept_queries))

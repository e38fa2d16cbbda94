"""Monotone alignment of stripes, compiled; reference_exact.py is its specification.

A stripe is a row of the grid. Those of an image and of a query are aligned from top to bottom without crossings, as in
AlignedReID (Zhang et al., 2017, arXiv 1711.08184), here with cosines and symmetric weights (Sakoe and Chiba, IEEE
TASSP 26, 1978): with h' and h stripes that have a valid cell, over all paths from the first pair to the last one by
steps of one stripe down, one to the right or both,

    score = max_path sum_k weight_k M[a_k, b_k] / (h' + h),

the weight is 2 for a step of both and for the start, 1 for others, so that the weights of every path sum to h' + h.
M[a, b] is the mean of S[(a, c), (b, c)] over the columns c where both cells are valid; without any, M is 0 and the
path's weight there moves no mass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching.compiling import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]
    Wholes = NDArray[np.int64]
    Steps = NDArray[np.int8]
    Mask = NDArray[np.bool_]

BOTH, DOWN, RIGHT = 0, 1, 2


@compiled(inline="always")
def _stripes(valid: Mask, columns: int, stripes: Wholes) -> int:
    """Fill stripes with the rows of the grid that have a valid cell; return how many."""
    count = 0
    for stripe in range(valid.size // columns):
        for column in range(columns):
            if valid[stripe * columns + column]:
                stripes[count] = stripe
                count += 1
                break
    return count


@compiled(inline="always")
def _common(image_valid: Mask, query_valid: Mask, image_cell: int, query_cell: int, columns: int) -> int:
    """Return in how many columns of two stripes, given by their first cells, both cells are valid."""
    count = 0
    for column in range(columns):
        count += image_valid[image_cell + column] and query_valid[query_cell + column]
    return count


@compiled(inline="always")
def _mean(
    similarity: Floats, image_valid: Mask, query_valid: Mask, image_cell: int, query_cell: int, columns: int
) -> float:
    """Return M of two stripes, given by their first cells."""
    total = np.float64(0)
    for column in range(columns):
        if image_valid[image_cell + column] and query_valid[query_cell + column]:
            total += np.float64(similarity[image_cell + column, query_cell + column])
    count = _common(image_valid, query_valid, image_cell, query_cell, columns)
    return float(total / count) if count else 0.0


@compiled(inline="always")
def _step(best: Doubles, a: int, b: int, mean: float) -> tuple[float, int]:
    """Return the best total up to a pair of stripes and its last step; among equals BOTH, then DOWN."""
    if a == 0 and b == 0:
        return 2.0 * mean, BOTH
    total, step = -np.inf, BOTH
    if a > 0 and b > 0:
        total = best[a - 1, b - 1] + 2.0 * mean
    if a > 0 and best[a - 1, b] + mean > total:
        total, step = best[a - 1, b] + mean, DOWN
    if b > 0 and best[a, b - 1] + mean > total:
        total, step = best[a, b - 1] + mean, RIGHT
    return total, step


@compiled(inline="always")
def _fill_plan(
    steps: Steps,
    image_stripes: Wholes,
    query_stripes: Wholes,
    image_valid: Mask,
    query_valid: Mask,
    height: int,
    width: int,
    columns: int,
    plan: Floats,
) -> None:
    """Fill plan [Rx, Rq], zero on entry, with the masses along the best path."""
    a, b = height - 1, width - 1
    while a >= 0 and b >= 0:
        step = steps[a, b]
        i, j = image_stripes[a] * columns, query_stripes[b] * columns
        count = _common(image_valid, query_valid, i, j, columns)
        weight = 2.0 if step == BOTH else 1.0
        for column in range(columns):
            if image_valid[i + column] and query_valid[j + column]:
                plan[i + column, j + column] = np.float32(weight / ((height + width) * count))
        a -= step != RIGHT
        b -= step != DOWN


@compiled()
def align_stripes(
    similarities: Floats, image_valid: Mask, query_valid: Mask, columns: int, structural: Floats, plans: Floats
) -> None:
    """Score N pairs by the best monotone alignment of their stripes; 0 where a side has none.

    Inputs as in kernels.transport; columns: of both grids, Rx and Rq are multiples of it. Outputs, zero on entry:
    structural float32 [N] and plans float32 [N, Rx, Rq], or [0, Rx, Rq] when no plan is wanted.
    """
    n, rx, rq = similarities.shape
    image_stripes, query_stripes = np.zeros(rx // columns, np.int64), np.zeros(rq // columns, np.int64)
    best = np.zeros((image_stripes.size, query_stripes.size), np.float64)
    steps = np.zeros(best.shape, np.int8)
    width = _stripes(query_valid, columns, query_stripes)
    for p in range(n):
        height = _stripes(image_valid[p], columns, image_stripes)
        if height == 0 or width == 0:
            continue
        for a in range(height):
            for b in range(width):
                i, j = image_stripes[a] * columns, query_stripes[b] * columns
                mean = _mean(similarities[p], image_valid[p], query_valid, i, j, columns)
                best[a, b], steps[a, b] = _step(best, a, b, mean)
        structural[p] = np.float32(best[height - 1, width - 1] / (height + width))
        if plans.shape[0] > 0:
            _fill_plan(
                steps, image_stripes, query_stripes, image_valid[p], query_valid, height, width, columns, plans[p]
            )

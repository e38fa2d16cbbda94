"""Upper bounds of the scores of transport, compiled: cheap proofs that a pair need not be solved.

With row maxima r_i = max_j S_ij and column maxima c_j = max_i S_ij, over cells that weigh something,

    sum_ij T_ij S_ij <= sum_j v_j c_j   (column bound)     and   sum_ij T_ij S_ij <= sum_i u_i r_i   (row bound)

for every plan T with the marginals u and v, whatever its cost was: entropic or exact, with a penalty or without. For a
plan that moves only the mass m, with T 1 <= u and T' 1 <= v, (1/m) sum T S is at most (1/m) max sum_j v'_j c_j over
v' <= v with sum v' = m, which the largest c_j attain; likewise for rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching.compiling import compiled
from matchflow_matching.kernels import NO_VALID_CELL, weigh

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]
    Mask = NDArray[np.bool_]

# What the solvers' rounding of masses and sums can add to a score, with room to spare.
SLACK = 1e-8


@compiled(inline="always")
def _maxima(
    similarity: Floats, u: Floats, v: Floats, shield: Floats, row_maxima: Floats, column_maxima: Floats
) -> None:
    """Fill the maxima over cells that weigh something, -inf for cells that do not; shield is float32 [Rq]."""
    for j in range(v.size):
        column_maxima[j] = -np.inf
        shield[j] = 0 if v[j] > 0 else -np.inf
    for i in range(u.size):
        row_maxima[i] = -np.inf
        if u[i] > 0:
            for j in range(v.size):
                value = similarity[i, j] + shield[j]
                column_maxima[j] = max(column_maxima[j], value)
            # Four maxima side by side: each waits only for every fourth.
            m0, m1, m2, m3 = row_maxima[i], row_maxima[i], row_maxima[i], row_maxima[i]
            j = 0
            while j + 4 <= v.size:
                m0 = max(m0, similarity[i, j] + shield[j])
                m1 = max(m1, similarity[i, j + 1] + shield[j + 1])
                m2 = max(m2, similarity[i, j + 2] + shield[j + 2])
                m3 = max(m3, similarity[i, j + 3] + shield[j + 3])
                j += 4
            while j < v.size:
                m0 = max(m0, similarity[i, j] + shield[j])
                j += 1
            row_maxima[i] = max(m0, m1, m2, m3)


@compiled(inline="always")
def _sum_of_best(weights: Floats, maxima: Floats, left: Doubles, amount: float, sign: int) -> float:
    """Return sum w' maxima over the best `amount` of the weights, or over the worst for a negative sign.

    left float64 [R] is overwritten.
    """
    for i in range(weights.size):
        left[i] = weights[i]
    total = 0.0
    while amount > 0.0:
        best = -1
        for i in range(weights.size):
            if left[i] > 0 and (best < 0 or sign * maxima[i] > sign * maxima[best]):
                best = i
        if best < 0:
            break
        taken = min(left[best], amount)
        total += taken * maxima[best]
        amount -= taken
        left[best] = 0.0
    return total


@compiled(inline="always")
def _mean_of_best(weights: Floats, maxima: Floats, left: Doubles, mass: float) -> float:
    """Return the mean of the maxima over the best share `mass` of the weights, rounded up."""
    whole, score, largest = 0.0, 0.0, 0.0
    for i in range(weights.size):
        if weights[i] > 0:
            whole += np.float64(weights[i])
            score += np.float64(weights[i]) * maxima[i]
            largest = max(largest, abs(np.float64(maxima[i])))
    # Taking the best or leaving the worst: whichever is less.
    if mass < 1.0 - mass:
        score = _sum_of_best(weights, maxima, left, mass * whole, 1)
    elif mass < 1.0:
        score -= _sum_of_best(weights, maxima, left, (1.0 - mass) * whole, -1)
    return score / (min(mass, 1.0) * whole) + SLACK * (1.0 + largest)


@compiled()
def transport_bounds(
    similarities: Floats,
    image_attention: Floats,
    query_attention: Floats,
    image_valid: Mask,
    query_valid: Mask,
    cross: bool,
    matched_mass: float,
    row_bounds: Floats,
    column_bounds: Floats,
) -> None:
    """Fill row_bounds and column_bounds float32 [N], zero on entry and where a side has no valid cell.

    Inputs as in kernels.transport; matched_mass: m, 1 for whole transport. Both are rounded up.
    """
    n, rx, rq = similarities.shape
    u, v = np.zeros(rx, np.float32), np.zeros(rq, np.float32)
    row_maxima, column_maxima, shield = np.zeros(rx, np.float32), np.zeros(rq, np.float32), np.zeros(rq, np.float32)
    left = np.zeros(max(rx, rq), np.float64)
    for p in range(n):
        image_state = weigh(image_attention[p], image_valid[p], cross, u)
        query_state = weigh(query_attention[p], query_valid, cross, v)
        if NO_VALID_CELL in (image_state, query_state):
            continue
        _maxima(similarities[p], u, v, shield, row_maxima, column_maxima)
        row_bounds[p] = np.float32(_mean_of_best(u, row_maxima, left, matched_mass))
        column_bounds[p] = np.float32(_mean_of_best(v, column_maxima, left, matched_mass))


@compiled()
def column_bounds(
    similarities: Floats,
    query_attention: Floats,
    image_valid: Mask,
    query_valid: Mask,
    cross: bool,
    bounds: Floats,
) -> None:
    """Fill bounds float32 [N] with the column bound alone, in float32 and fast: what entropic transport is held to.

    Inputs as in kernels.transport. 0 without a valid cell on either side, as the scores then are.
    """
    n, rx, rq = similarities.shape
    weights, largest = np.empty(rq, np.float32), np.empty(rq, np.float32)
    for p in range(n):
        weigh(query_attention[p], query_valid, cross, weights)
        for j in range(rq):
            largest[j] = -np.inf
        for i in range(rx):
            if image_valid[p, i]:
                for j in range(rq):
                    largest[j] = max(largest[j], similarities[p, i, j])
        total = np.float64(0)
        for j in range(rq):
            if weights[j] > 0 and largest[j] > -np.inf:
                total += np.float64(weights[j]) * np.float64(largest[j])
        bounds[p] = np.float32(total)

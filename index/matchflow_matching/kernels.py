"""Compiled loops over pairs. Each pair is worked on alone and in one fixed order of operations.

No `fastmath`: the compiler may vectorise but not reorder, so a pair's numbers do not depend on the batch, the thread or
the width of the machine's vectors. All loops release the GIL. `warm_up` in matching.py compiles them ahead of time.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from matchflow_matching.features import INT8_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Integers = NDArray[np.int32]
    Mask = NDArray[np.bool_]

# Division follows IEEE 754: Python's check for zero would stop the vectoriser. match() looks at the result.
compiled: Callable[..., Callable[[Any], Any]] = partial(numba.njit, cache=True, nogil=True, error_model="numpy")

# 1.5 * 2^23: adding it to a float32 below 2^22 leaves the nearest whole number in the low mantissa bits.
ROUNDER = np.float32(12582912.0)
ROUNDER_BITS = np.int32(0x4B400000)
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
# exp(-87) is near the smallest normal float32. Unit cells give exponents up to 0 and rounding; more is a damaged scale.
LOWEST_EXPONENT = np.float32(-87.0)
HIGHEST_EXPONENT = np.float32(80.0)

ATTENTIVE, UNIFORM, NO_VALID_CELL = 0, 1, 2


@compiled(inline="always")
def _exponentials(values: Floats, bits: Integers, whole: Floats) -> None:
    """Replace values by exp(values), float32, clamped to [-87, 80]; Cody-Waite reduction, degree-6 Taylor polynomial.

    |r| <= ln2 / 2, so the first dropped term is r^7 / 5040 <= 1.2e-7. `bits` int32 and `whole` are scratch that share
    their memory.
    """
    for k in range(values.size):
        x = min(max(values[k], LOWEST_EXPONENT), HIGHEST_EXPONENT)
        values[k] = x
        whole[k] = x * LOG2_E + ROUNDER
    for k in range(values.size):
        n = whole[k] - ROUNDER
        r = (values[k] - n * LN2_HIGH) - n * LN2_LOW
        p = np.float32(1 / 720)
        p = p * r + np.float32(1 / 120)
        p = p * r + np.float32(1 / 24)
        p = p * r + np.float32(1 / 6)
        p = p * r + np.float32(0.5)
        p = p * r + np.float32(1.0)
        p = p * r + np.float32(1.0)
        values[k] = p
        bits[k] = (bits[k] - ROUNDER_BITS + np.int32(127)) << np.int32(23)
    for k in range(values.size):
        values[k] = values[k] * whole[k]


@compiled(inline="always")
def _positive_weights(attention: Floats, valid: Mask, weights: Floats) -> int:
    """Fill `weights` with max(0, attention) over valid cells, summing to 1, and say how it went.

    ATTENTIVE as described; UNIFORM where none is positive: equal weights; NO_VALID_CELL: all zero.
    """
    total = np.float64(0)
    count = 0
    for i in range(weights.size):
        weights[i] = max(np.float32(0), attention[i]) if valid[i] else np.float32(0)
        total += weights[i]
        count += valid[i]
    if total > 0:
        for i in range(weights.size):
            weights[i] = np.float32(weights[i] / total)
        return ATTENTIVE
    if count == 0:
        return NO_VALID_CELL
    for i in range(weights.size):
        weights[i] = np.float32(1.0 / count) if valid[i] else np.float32(0)
    return UNIFORM


@compiled(inline="always")
def _add_scaled_rows(matrix: Floats, factors: Floats, sums: Floats) -> None:
    """Fill sums [C] with matrix' [C, R] @ factors [R], four rows of matrix [R, C] at a time."""
    rows, columns = matrix.shape
    for j in range(columns):
        sums[j] = np.float32(0)
    i = 0
    while i + 4 <= rows:
        f0, f1, f2, f3 = factors[i], factors[i + 1], factors[i + 2], factors[i + 3]
        for j in range(columns):
            sums[j] += (matrix[i, j] * f0 + matrix[i + 1, j] * f1) + (matrix[i + 2, j] * f2 + matrix[i + 3, j] * f3)
        i += 4
    while i < rows:
        f0 = factors[i]
        for j in range(columns):
            sums[j] += matrix[i, j] * f0
        i += 1


@compiled()
def _sinkhorn(
    kernel: Floats,
    transposed: Floats,
    u: Floats,
    v: Floats,
    a: Floats,
    b: Floats,
    row_sums: Floats,
    tolerance: float,
    limit: int,
) -> tuple[int, float]:
    """Solve one pair in place; return (iterations, L1 violation of the rows). See reference.sinkhorn."""
    for j in range(b.size):
        b[j] = np.float32(1)
    iterations = 0
    while True:
        _add_scaled_rows(transposed, b, row_sums)
        error = np.float64(np.inf)
        if iterations > 0:
            error = np.float64(0)
            for i in range(a.size):
                error += abs(a[i] * row_sums[i] - u[i])
            # The negation also stops on NaN, which could otherwise run to the limit.
            if not error > tolerance or iterations >= limit:
                return iterations, error
        for i in range(a.size):
            a[i] = u[i] / row_sums[i]
        _add_scaled_rows(kernel, a, b)
        for j in range(b.size):
            b[j] = v[j] / b[j]
        iterations += 1


@compiled(inline="always")
def _weigh(
    values: Floats,
    image_scales: Floats,
    query_scales: Floats,
    image_valid: Mask,
    query_valid: Mask,
    cross: bool,
    u: Floats,
    v: Floats,
) -> tuple[int, int]:
    """Fill one pair's marginals u [Rx] and v [Rq]; return what _positive_weights says of each."""
    rx, rq = u.size, v.size
    attention = np.zeros(max(rx, rq), np.float32)
    if cross:
        for i in range(rx):
            attention[i] = values[i, rq] * image_scales[i]
    image_state = _positive_weights(attention[:rx], image_valid, u)
    if cross:
        for j in range(rq):
            attention[j] = values[rx, j] * query_scales[j]
    return image_state, _positive_weights(attention[:rq], query_valid, v)


@compiled(inline="always")
def _total(kernel: Floats, similarity: Floats, a: Floats, b: Floats) -> float:
    """Return sum_ij a_i K_ij b_j S_ij."""
    total = np.float64(0)
    for i in range(a.size):
        row = np.float64(0)
        for j in range(b.size):
            row += np.float64(kernel[i, j] * b[j] * similarity[i, j])
        total += row * a[i]
    return total


@compiled()
def transport(
    values: Floats,
    image_scales: Floats,
    query_scales: Floats,
    image_valid: Mask,
    query_valid: Mask,
    cross: bool,
    epsilon: float,
    tolerance: float,
    limit: int,
    structural: Floats,
    iterations: Integers,
    errors: Floats,
    uniform: Mask,
    plans: Floats,
) -> None:
    """Score N pairs by entropic transport.

    Inputs: values float32 [N, Rx + 1, Rq + 1], image_scales float32 [N, Rx], query_scales float32 [Rq], image_valid
    bool [N, Rx], query_valid bool [Rq] (products.Products); cross: weights by cross-correlation, else uniform.
    Outputs, zero on entry: structural float32 [N], iterations int32 [N], errors float32 [N], uniform bool [N, 2] (image
    side, query side fell back), and plans float32 [N, Rx, Rq], or [0, Rx, Rq] when no plan is wanted.
    """
    n, rx, rq = values.shape[0], values.shape[1] - 1, values.shape[2] - 1
    similarity = np.empty((rx, rq), np.float32)
    kernel = np.empty((rx, rq), np.float32)
    transposed = np.empty((rq, rx), np.float32)
    bits = np.empty(rx * rq, np.int32)
    u, a, row_sums = np.empty(rx, np.float32), np.empty(rx, np.float32), np.empty(rx, np.float32)
    v, b = np.empty(rq, np.float32), np.empty(rq, np.float32)
    inverse = np.float32(1.0 / epsilon)
    for p in range(n):
        states = _weigh(values[p], image_scales[p], query_scales, image_valid[p], query_valid, cross, u, v)
        uniform[p, 0] = cross and states[0] == UNIFORM
        uniform[p, 1] = cross and states[1] == UNIFORM
        if NO_VALID_CELL in states:
            continue
        for i in range(rx):
            for j in range(rq):
                similarity[i, j] = values[p, i, j] * image_scales[p, i] * query_scales[j]
                kernel[i, j] = (similarity[i, j] - np.float32(1)) * inverse
        _exponentials(kernel.reshape(-1), bits, bits.view(np.float32))
        for i in range(rx):
            for j in range(rq):
                transposed[j, i] = kernel[i, j]
        iterations[p], error = _sinkhorn(kernel, transposed, u, v, a, b, row_sums, tolerance, limit)
        errors[p] = np.float32(error)
        structural[p] = np.float32(_total(kernel, similarity, a, b))
        if plans.shape[0] > 0:
            for i in range(rx):
                for j in range(rq):
                    plans[p, i, j] = a[i] * kernel[i, j] * b[j]


@compiled()
def max_sim(
    values: Floats,
    image_scales: Floats,
    query_scales: Floats,
    image_valid: Mask,
    query_valid: Mask,
    cross: bool,
    structural: Floats,
    query_weights: Floats,
    uniform: Mask,
    choices: Integers,
) -> None:
    """Score N pairs by sum_j v_j max_i S_ij.

    Inputs as in `transport`. Outputs: structural float32 [N], query_weights float32 [N, Rq], uniform bool [N, 2] and
    choices int32 [N, Rq], the image cell that each query cell takes, -1 where there is no valid one.
    """
    n, rx, rq = values.shape[0], values.shape[1] - 1, values.shape[2] - 1
    attention = np.empty(rq, np.float32)
    for p in range(n):
        for j in range(rq):
            attention[j] = values[p, rx, j] * query_scales[j] if cross else np.float32(0)
        uniform[p, 0] = False
        state = _positive_weights(attention, query_valid, query_weights[p])
        uniform[p, 1] = cross and state == UNIFORM
        total = np.float64(0)
        for j in range(rq):
            best = np.float32(-np.inf)
            choices[p, j] = -1
            for i in range(rx):
                s = values[p, i, j] * image_scales[p, i] * query_scales[j]
                if image_valid[p, i] and s > best:
                    best = s
                    choices[p, j] = i
            if choices[p, j] >= 0:
                total += np.float64(query_weights[p, j]) * np.float64(best)
        structural[p] = np.float32(total)


@compiled()
def same_cell(
    values: Floats, image_scales: Floats, query_scales: Floats, image_valid: Mask, query_valid: Mask, structural: Floats
) -> None:
    """Fill structural float32 [N] with the mean of S_ii over cells valid on both sides; inputs as in `transport`."""
    n, cells = values.shape[0], values.shape[1] - 1
    for p in range(n):
        total = np.float64(0)
        count = 0
        for i in range(cells):
            if image_valid[p, i] and query_valid[i]:
                total += np.float64(values[p, i, i] * image_scales[p, i] * query_scales[i])
                count += 1
        structural[p] = np.float32(total / count) if count else np.float32(0)


@compiled()
def round_embeddings(embeddings: Floats, rounded: Floats, readable: Mask) -> None:
    """Fill rounded [N, D] with embeddings float32 [N, D] scaled to a largest component of +-127, as whole numbers.

    Zero vectors stay zero. Where a number is not finite, the vector becomes zero and readable bool [N] false.
    """
    for p in range(embeddings.shape[0]):
        peak = np.float32(0)
        readable[p] = True
        for k in range(embeddings.shape[1]):
            size = abs(embeddings[p, k])
            peak = max(peak, size)
            readable[p] &= size < np.float32(np.inf)
        usable = readable[p] and peak > 0
        factor = np.float32(INT8_MAX) / peak if usable else np.float32(0)
        for k in range(embeddings.shape[1]):
            rounded[p, k] = np.rint(embeddings[p, k] * factor) if usable else np.float32(0)


@compiled()
def cosines(query: Floats, candidates: Floats, out: Floats) -> None:
    """Fill out float32 [N] with the inner products of query float32 [D] and candidates float32 [N, D].

    Summed in float64 over eight interleaved lanes, whatever the machine's vectors are.
    """
    lanes = np.empty(8, np.float64)
    for p in range(candidates.shape[0]):
        lanes[:] = 0.0
        whole = query.size - query.size % 8
        for k in range(0, whole, 8):
            for lane in range(8):
                lanes[lane] += np.float64(query[k + lane]) * np.float64(candidates[p, k + lane])
        for k in range(whole, query.size):
            lanes[0] += np.float64(query[k]) * np.float64(candidates[p, k])
        out[p] = np.float32(
            ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))
        )

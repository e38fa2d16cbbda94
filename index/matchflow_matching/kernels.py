"""Compiled loops over pairs. Each pair is worked on alone and in one fixed order of operations.

No `fastmath`: the compiler may vectorise but not reorder, so a pair's numbers do not depend on the batch, the thread or
the width of the machine's vectors. All loops release the GIL. `warm_up` in matching.py compiles them ahead of time.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from matchflow_matching import vectors, vnni
from matchflow_matching.features import INT8_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.int8] | NDArray[np.uint8]
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

# Sums that run side by side, so that the compiler may use vectors without reordering anything.
LANES = 16

_padded = compiled(inline="always")(vectors.padded)

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
def _positive_weights(valid: Mask, weights: Floats) -> int:
    """Turn attention into max(0, attention) over valid cells, summing to 1, in place; say how it went.

    ATTENTIVE as described; UNIFORM where none is positive: equal weights; NO_VALID_CELL: all zero.
    """
    total = np.float32(0)
    count = 0
    for i in range(weights.size):
        weight = weights[i] if weights[i] > 0 else np.float32(0)
        weights[i] = weight if valid[i] else np.float32(0)
        count += valid[i]
    for i in range(weights.size):
        total += weights[i]
    if total > 0:
        for i in range(weights.size):
            weights[i] = weights[i] / total
        return ATTENTIVE
    if count == 0:
        return NO_VALID_CELL
    for i in range(weights.size):
        weights[i] = np.float32(1.0 / count) if valid[i] else np.float32(0)
    return UNIFORM


@compiled(inline="always")
def _add_scaled_rows(matrix: Floats, factors: Floats, sums: Floats) -> None:
    """Fill sums [C] with matrix' [C, R] @ factors [R]; R and C are multiples of 8."""
    rows, columns = matrix.shape
    row_bytes = columns * vectors.FLOAT_BYTES
    matrix_at, factors_at, sums_at = matrix.ctypes.data, factors.ctypes.data, sums.ctypes.data
    j = 0
    while j + vectors.WIDE <= columns:
        vectors.wide_columns(matrix_at + j * 4, row_bytes, rows, factors_at, sums_at + j * 4)
        j += vectors.WIDE
    if j < columns:
        vectors.narrow_columns(matrix_at + j * 4, row_bytes, rows, factors_at, sums_at + j * 4)


@compiled(inline="always")
def _violation(a: Floats, row_sums: Floats, u: Floats) -> float:
    """Return sum_i |a_i r_i - u_i|, in four sums that run side by side."""
    e0, e1, e2, e3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    i = 0
    while i + 4 <= u.size:
        e0 += abs(a[i] * row_sums[i] - u[i])
        e1 += abs(a[i + 1] * row_sums[i + 1] - u[i + 1])
        e2 += abs(a[i + 2] * row_sums[i + 2] - u[i + 2])
        e3 += abs(a[i + 3] * row_sums[i + 3] - u[i + 3])
        i += 4
    while i < u.size:
        e0 += abs(a[i] * row_sums[i] - u[i])
        i += 1
    return np.float64((e0 + e1) + (e2 + e3))


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
    """Solve one pair in place; return (iterations, L1 violation of the rows). See reference.sinkhorn.

    u [Rx] and v [Rq] have their own size; all else is padded to multiples of 8, with zeros that stay zero.
    """
    for j in range(v.size):
        b[j] = np.float32(1)
    iterations = 0
    while True:
        _add_scaled_rows(transposed, b, row_sums)
        if iterations > 0:
            error = _violation(a, row_sums, u)
            # The negation also stops on NaN, which could otherwise run to the limit.
            if not error > tolerance or iterations >= limit:
                return iterations, error
        for i in range(u.size):
            a[i] = u[i] / row_sums[i]
        _add_scaled_rows(kernel, a, b)
        for j in range(v.size):
            b[j] = v[j] / b[j]
        iterations += 1


@compiled(inline="always")
def _weigh(attention: Floats, valid: Mask, cross: bool, weights: Floats) -> int:
    """Fill one side's marginal [R] from its attention [R]; return what _positive_weights says."""
    for i in range(weights.size):
        weights[i] = attention[i] if cross else np.float32(0)
    state: int = _positive_weights(valid, weights)
    return state


@compiled(inline="always")
def _copy(matrix: Floats, padded: Floats) -> None:
    """Copy a matrix [Rx, Rq] into the padded one."""
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            padded[i, j] = matrix[i, j]


@compiled(inline="always")
def _transpose(matrix: Floats, transposed: Floats) -> None:
    """Copy the transpose of a matrix [Rx, Rq] into the padded one."""
    for j in range(matrix.shape[1]):
        for i in range(matrix.shape[0]):
            transposed[j, i] = matrix[i, j]


@compiled(inline="always")
def _fill_plan(kernel: Floats, a: Floats, b: Floats, plan: Floats) -> None:
    """Fill plan [Rx, Rq] with a_i K_ij b_j."""
    for i in range(plan.shape[0]):
        for j in range(plan.shape[1]):
            plan[i, j] = a[i] * kernel[i, j] * b[j]


@compiled(inline="always")
def _dot(first: Floats, second: Floats) -> np.float32:
    """Return the inner product, summed in float64."""
    total = np.float64(0)
    for j in range(first.size):
        total += np.float64(first[j]) * np.float64(second[j])
    return np.float32(total)


@compiled()
def transport(
    similarities: Floats,
    image_attention: Floats,
    query_attention: Floats,
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

    Inputs as in products.Products; cross: weights by cross-correlation, else uniform.
    Outputs, zero on entry: structural float32 [N], iterations int32 [N], errors float32 [N], uniform bool [N, 2] (image
    side, query side fell back), and plans float32 [N, Rx, Rq], or [0, Rx, Rq] when no plan is wanted.
    """
    n, rx, rq = similarities.shape
    u, v = np.empty(rx, np.float32), np.empty(rq, np.float32)
    rows, columns = _padded(rx), _padded(rq)
    kernel, transposed = np.zeros((rows, columns), np.float32), np.zeros((columns, rows), np.float32)
    a, row_sums = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
    b, column_sums = np.zeros(columns, np.float32), np.zeros(columns, np.float32)
    flat = np.empty(rx * rq, np.float32)
    exponentials = flat.reshape(rx, rq)
    bits = np.empty(rx * rq, np.int32)
    whole = bits.view(np.float32)
    inverse = np.float32(1.0 / epsilon)
    for p in range(n):
        image_state = _weigh(image_attention[p], image_valid[p], cross, u)
        query_state = _weigh(query_attention[p], query_valid, cross, v)
        uniform[p, 0] = cross and image_state == UNIFORM
        uniform[p, 1] = cross and query_state == UNIFORM
        if NO_VALID_CELL in (image_state, query_state):
            continue
        similarity = similarities[p].reshape(-1)
        for k in range(flat.size):
            flat[k] = (similarity[k] - np.float32(1)) * inverse
        _exponentials(flat, bits, whole)
        _copy(exponentials, kernel)
        _transpose(exponentials, transposed)
        iterations[p], error = _sinkhorn(kernel, transposed, u, v, a, b, row_sums, tolerance, limit)
        errors[p] = np.float32(error)
        if plans.shape[0] > 0:
            _fill_plan(kernel, a, b, plans[p])
        # sum_ij a_i (K_ij S_ij) b_j; K itself is not needed any more.
        for k in range(flat.size):
            flat[k] *= similarity[k]
        _copy(exponentials, kernel)
        _add_scaled_rows(kernel, a, column_sums)
        structural[p] = _dot(column_sums, b)


@compiled()
def max_sim(
    similarities: Floats,
    query_attention: Floats,
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
    n, rx, rq = similarities.shape
    for p in range(n):
        state = _weigh(query_attention[p], query_valid, cross, query_weights[p])
        uniform[p, 0] = False
        uniform[p, 1] = cross and state == UNIFORM
        total = np.float64(0)
        for j in range(rq):
            best = np.float32(-np.inf)
            choices[p, j] = -1
            for i in range(rx):
                if image_valid[p, i] and similarities[p, i, j] > best:
                    best = similarities[p, i, j]
                    choices[p, j] = i
            if choices[p, j] >= 0:
                total += np.float64(query_weights[p, j]) * np.float64(best)
        structural[p] = np.float32(total)


@compiled()
def same_cell(similarities: Floats, image_valid: Mask, query_valid: Mask, structural: Floats) -> None:
    """Fill structural float32 [N] with the mean of S_ii over cells valid on both sides; inputs as in `transport`."""
    for p in range(similarities.shape[0]):
        total = np.float64(0)
        count = 0
        for i in range(similarities.shape[1]):
            if image_valid[p, i] and query_valid[i]:
                total += np.float64(similarities[p, i, i])
                count += 1
        structural[p] = np.float32(total / count) if count else np.float32(0)


@compiled()
def round_embeddings(embeddings: Floats, scales: Floats, rounded: Bytes, readable: Mask) -> None:
    """Fill rounded int8 [N, D] with embeddings float32 [N, D] scaled to a largest component of +-127.

    Zero vectors stay zero. Where an embedding or a scale float32 [N, R] is not finite, the image's vector and scales
    become zero and readable bool [N] false.
    """
    dim = embeddings.shape[1]
    whole = dim - dim % LANES
    peaks, zeros = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    bits = np.empty(dim, np.int32)
    shifted = bits.view(np.float32)
    for p in range(embeddings.shape[0]):
        peaks[:] = np.float32(0)
        # 0 * x is 0 unless x is not finite.
        zeros[:] = np.float32(0)
        for start in range(0, whole, LANES):
            for lane in range(LANES):
                size = abs(embeddings[p, start + lane])
                peaks[lane] = max(peaks[lane], size)
                zeros[lane] += size * np.float32(0)
        for k in range(whole, dim):
            size = abs(embeddings[p, k])
            peaks[0] = max(peaks[0], size)
            zeros[0] += size * np.float32(0)
        peak, zero = np.float32(0), np.float32(0)
        for i in range(scales.shape[1]):
            zero += scales[p, i] * np.float32(0)
        for lane in range(LANES):
            peak = max(peak, peaks[lane])
            zero += zeros[lane]
        readable[p] = zero == 0
        factor = np.float32(INT8_MAX) / peak if peak > 0 else np.float32(0)
        if readable[p]:
            for k in range(dim):
                shifted[k] = embeddings[p, k] * factor + ROUNDER
            for k in range(dim):
                rounded[p, k] = np.int8(bits[k] - ROUNDER_BITS)
        else:
            rounded[p] = 0
            scales[p] = np.float32(0)


@compiled()
def multiply_bytes(
    cells: Bytes,
    embeddings: Bytes,
    panels: Bytes,
    image_scales: Floats,
    query_scales: Floats,
    similarities: Floats,
    image_attention: Floats,
    query_attention: Floats,
) -> None:
    """Fill the outputs of products.Products from cells int8 [N, Rx, D], embeddings int8 [N, D] and the packed query.

    `panels` holds the query's Rq cells and its embedding, packed as in vnni.py, which says what this needs of the
    processor and of D.
    """
    n, rx, dim = cells.shape
    rq = query_scales.size
    width = panels.shape[0] * vnni.PANEL
    sums = np.empty((rx + 1, width), np.int32)
    sum_bytes, steps = width * 4, dim // vnni.BYTES_PER_STEP
    for p in range(n):
        for panel in range(panels.shape[0]):
            columns = panels.ctypes.data + panel * steps * vnni.PANEL_STEP_BYTES
            place = sums.ctypes.data + panel * vnni.PANEL * 4
            rows = cells.ctypes.data + p * rx * dim
            i = 0
            while i + 4 <= rx:
                vnni.multiply_four_rows(rows + i * dim, dim, columns, steps, place + i * sum_bytes, sum_bytes)
                i += 4
            while i < rx:
                vnni.multiply_row(rows + i * dim, dim, columns, steps, place + i * sum_bytes, sum_bytes)
                i += 1
            last = embeddings.ctypes.data + p * dim
            vnni.multiply_row(last, dim, columns, steps, place + rx * sum_bytes, sum_bytes)
        for i in range(rx):
            added = sums[i, width - 1]
            for j in range(rq):
                similarities[p, i, j] = np.float32(sums[i, j] - added) * image_scales[p, i] * query_scales[j]
            image_attention[p, i] = np.float32(sums[i, rq] - added) * image_scales[p, i]
        for j in range(rq):
            query_attention[p, j] = np.float32(sums[rx, j] - sums[rx, width - 1]) * query_scales[j]


@compiled()
def cosines(query: Floats, candidates: Floats, out: Floats) -> None:
    """Fill out float32 [N] with the inner products of query float32 [D] and candidates float32 [N, D].

    Summed in 16 interleaved lanes, whatever the machine's vectors are.
    """
    lanes = np.empty(LANES, np.float32)
    whole = query.size - query.size % LANES
    for p in range(candidates.shape[0]):
        lanes[:] = np.float32(0)
        for start in range(0, whole, LANES):
            for lane in range(LANES):
                lanes[lane] += query[start + lane] * candidates[p, start + lane]
        for k in range(whole, query.size):
            lanes[k - whole] += query[k] * candidates[p, k]
        total = np.float64(0)
        for lane in range(LANES):
            total += np.float64(lanes[lane])
        out[p] = np.float32(total)

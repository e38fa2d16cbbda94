"""Entropic transport, compiled: each pair is worked on alone, in one fixed order of operations. See compiling.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching import vectors
from matchflow_matching.compiling import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Integers = NDArray[np.int32]
    Mask = NDArray[np.bool_]

_padded = compiled(inline="always")(vectors.padded)

# What `weigh` says of a side.
ATTENTIVE, UNIFORM, NO_VALID_CELL = 0, 1, 2
# Over-relaxation starts after so many iterations, where the error still falls by less than this factor.
PLAIN_ITERATIONS, SLOW = 3, 0.6
# It ends for good at so many times the error with which it began.
DIVERGED = 4.0
# exp(-87), see vectors.py; and a share of the mass that no score shows.
SMALLEST_EXPONENTIAL, NEXT_TO_NOTHING = 1.7e-38, 1e-7


@compiled(inline="always")
def _exponentials(values: Floats) -> None:
    """Replace float32 values by their exponentials; their number is a multiple of 16."""
    vectors.exponentials(values.ctypes.data, values.size)


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


@compiled(inline="always")
def _divide_by_rows(matrix: Floats, factors: Floats, sums: Floats, targets: Floats, quotients: Floats) -> None:
    """Do as _add_scaled_rows, and fill quotients [C] with targets [C] / sums, 0 where a sum is 0."""
    rows, columns = matrix.shape
    row_bytes = columns * vectors.FLOAT_BYTES
    matrix_at, factors_at = matrix.ctypes.data, factors.ctypes.data
    sums_at, targets_at, out_at = sums.ctypes.data, targets.ctypes.data, quotients.ctypes.data
    j = 0
    while j + vectors.WIDE <= columns:
        at = j * vectors.FLOAT_BYTES
        vectors.wide_quotients(matrix_at + at, row_bytes, rows, factors_at, sums_at + at, targets_at + at, out_at + at)
        j += vectors.WIDE
    if j < columns:
        at = j * vectors.FLOAT_BYTES
        vectors.narrow_quotients(
            matrix_at + at, row_bytes, rows, factors_at, sums_at + at, targets_at + at, out_at + at
        )


@compiled(inline="always")
def _divide_relaxed(
    matrix: Floats, factors: Floats, sums: Floats, targets: Floats, before: Floats, quotients: Floats
) -> None:
    """Do as _divide_by_rows, and go half as far again from `before` [C]; see vectors.py."""
    rows, columns = matrix.shape
    row_bytes = columns * vectors.FLOAT_BYTES
    matrix_at, factors_at, sums_at = matrix.ctypes.data, factors.ctypes.data, sums.ctypes.data
    targets_at, before_at, out_at = targets.ctypes.data, before.ctypes.data, quotients.ctypes.data
    j = 0
    while j + vectors.WIDE <= columns:
        at = j * vectors.FLOAT_BYTES
        vectors.wide_relaxed_quotients(
            matrix_at + at, row_bytes, rows, factors_at, sums_at + at, targets_at + at, before_at + at, out_at + at
        )
        j += vectors.WIDE
    if j < columns:
        at = j * vectors.FLOAT_BYTES
        vectors.narrow_relaxed_quotients(
            matrix_at + at, row_bytes, rows, factors_at, sums_at + at, targets_at + at, before_at + at, out_at + at
        )


@compiled()
def _sinkhorn(
    kernel: Floats,
    transposed: Floats,
    u: Floats,
    v: Floats,
    a: Floats,
    b: Floats,
    scratch: Floats,
    tolerance: float,
    limit: int,
) -> tuple[int, float]:
    """Solve one pair in place; return (iterations, L1 violation of the rows). See reference.sinkhorn.

    Where plain updates converge slowly, they are over-relaxed with the exponent 1.5 (Thibault, Chizat, Dossal and
    Papadakis, Algorithms 14, 2021); should that not converge, plain ones go on. The last update of b is always plain.
    All is padded to multiples of 8 with zeros, which stay zero; scratch is float32 [3, padded Rx or Rq].
    """
    row_sums, column_sums, next_a = scratch[0], scratch[1], scratch[2]
    for j in range(v.size):
        b[j] = np.float32(1)
    _divide_by_rows(transposed, b, row_sums, u, a)
    iterations = 0
    relaxed, may_relax = False, True
    previous, start = np.inf, np.inf
    while True:
        iterations += 1
        # The last one is plain.
        relaxed = relaxed and iterations < limit
        if relaxed:
            _divide_relaxed(kernel, a, column_sums, v, b, b)
            _divide_relaxed(transposed, b, row_sums, u, a, next_a)
        else:
            _divide_by_rows(kernel, a, column_sums, v, b)
            _divide_by_rows(transposed, b, row_sums, u, next_a)
        error = _violation(a, row_sums, u)
        # The negation also stops on NaN, which could otherwise run to the limit.
        if not error > tolerance or iterations >= limit:
            if not relaxed:
                return iterations, error
            # Close enough to see whether a plain update of b ends it.
            relaxed = False
            continue
        if relaxed:
            relaxed = may_relax = error <= DIVERGED * start
        elif may_relax and iterations >= PLAIN_ITERATIONS and error > SLOW * previous:
            relaxed, start = True, error
        previous = error
        for i in range(a.size):
            a[i] = next_a[i]


@compiled(inline="always")
def weigh(attention: Floats, valid: Mask, cross: bool, weights: Floats) -> int:
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
    for j in range(second.size):
        total += np.float64(first[j]) * np.float64(second[j])
    return np.float32(total)


@compiled(inline="always")
def _carries(u: Floats, v: Floats, a: Floats, b: Floats) -> bool:
    """Tell whether float32 was enough for a pair.

    It was when every cell that weighs something has a scaling, and when what the smallest exponentials, which stand for
    smaller ones still, could carry between any two cells is next to nothing.
    """
    largest_a, largest_b = np.float64(0), np.float64(0)
    missing = False
    for i in range(u.size):
        missing |= u[i] > 0 and not a[i] > 0
        largest_a = max(largest_a, np.float64(a[i]))
    for j in range(v.size):
        missing |= v[j] > 0 and not b[j] > 0
        largest_b = max(largest_b, np.float64(b[j]))
    most = largest_a * largest_b * SMALLEST_EXPONENTIAL * (u.size * v.size)
    return bool(not missing and most < NEXT_TO_NOTHING)


@compiled()
def transport(
    similarities: Floats,
    image_attention: Floats,
    query_attention: Floats,
    image_valid: Mask,
    query_valid: Mask,
    skipped: Mask,
    cross: bool,
    epsilon: float,
    tolerance: float,
    limit: int,
    structural: Floats,
    iterations: Integers,
    errors: Floats,
    uniform: Mask,
    plans: Floats,
    carried: Mask,
) -> None:
    """Score N pairs by entropic transport.

    Inputs as in products.Products, the similarities less the penalties of a spatial weight; skipped bool [N]: pairs to
    leave alone; cross: weights by cross-correlation, else uniform.
    Outputs, zero on entry: structural float32 [N], iterations int32 [N], errors float32 [N], uniform bool [N, 2] (image
    side, query side fell back), and plans float32 [N, Rx, Rq], or [0, Rx, Rq] when no plan is wanted. carried bool [N],
    true on entry: false where float32 was not enough for the costs, and all the rest is worth nothing.
    """
    n, rx, rq = similarities.shape
    rows, columns = _padded(rx), _padded(rq)
    kernel, transposed = np.zeros((rows, columns), np.float32), np.zeros((columns, rows), np.float32)
    u, a = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
    v, b = np.zeros(columns, np.float32), np.zeros(columns, np.float32)
    scratch = np.zeros((3, max(rows, columns)), np.float32)
    flat = np.zeros(-(-rx * rq // vectors.WIDE) * vectors.WIDE, np.float32)
    exponentials = flat[: rx * rq].reshape(rx, rq)
    inverse = np.float32(1.0 / epsilon)
    for p in range(n):
        if skipped[p]:
            continue
        image_state = weigh(image_attention[p], image_valid[p], cross, u[:rx])
        query_state = weigh(query_attention[p], query_valid, cross, v[:rq])
        uniform[p, 0] = cross and image_state == UNIFORM
        uniform[p, 1] = cross and query_state == UNIFORM
        if NO_VALID_CELL in (image_state, query_state):
            continue
        similarity = similarities[p].reshape(-1)
        for k in range(similarity.size):
            flat[k] = (similarity[k] - np.float32(1)) * inverse
        _exponentials(flat)
        _copy(exponentials, kernel)
        _transpose(exponentials, transposed)
        iterations[p], error = _sinkhorn(kernel, transposed, u, v, a, b, scratch, tolerance, limit)
        errors[p] = np.float32(error)
        carried[p] = _carries(u, v, a, b)
        if plans.shape[0] > 0:
            _fill_plan(kernel, a, b, plans[p])
        # sum_ij a_i (K_ij S_ij) b_j; K itself is not needed any more.
        for k in range(similarity.size):
            flat[k] *= similarity[k]
        _copy(exponentials, kernel)
        _add_scaled_rows(kernel, a, scratch[1])
        structural[p] = _dot(scratch[1], b)

# Triton compiles these: its types are not Python's, and constants are in capitals.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: ANN001, ANN201, N803, N806, PLR0917, PLR2004, RUF005
"""The steps of triton_kernels.transport, on tensors [CN, XL, QN, YT] with one value per lane; see there."""

from __future__ import annotations

import triton
import triton.language as tl

from matchflow_matching import kernels

PLAIN_ITERATIONS = tl.constexpr(kernels.PLAIN_ITERATIONS)
SLOW = tl.constexpr(kernels.SLOW)
DIVERGED = tl.constexpr(kernels.DIVERGED)


@triton.jit
def reciprocal(x, FAST: tl.constexpr):
    """Return 1 / x to an ulp or so; denormal numbers count as 0."""
    if FAST:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def logarithm(x, FAST: tl.constexpr):
    """Return log2(x), likewise."""
    if FAST:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.log2(x)


@triton.jit
def square_root(x, FAST: tl.constexpr):
    """Return the square root, likewise."""
    if FAST:
        return tl.inline_asm_elementwise(
            "sqrt.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.sqrt(x)


@triton.jit
def further(quotients, before, targets, relaxed, FAST: tl.constexpr):
    """Return q^1.5 / before^0.5 [CN, XL, QN, YT, R] where `relaxed` [CN, XL, QN, YT], else q; 0 where the target is."""
    growth = square_root(quotients * reciprocal(before, FAST), FAST)
    return tl.where(relaxed[:, :, :, :, None] & (targets > 0), quotients * growth, quotients)


@triton.jit
def slices_of(x, LEVELS: tl.constexpr):
    """Return the 2^LEVELS tensors [...] that x [..., 2^LEVELS] consists of, in one order for all x."""
    slices = (x,)
    for _ in tl.static_range(LEVELS):
        finer = ()
        for k in tl.static_range(len(slices)):
            part = slices[k]
            if part.shape[-1] > 2:
                part = tl.reshape(part, part.shape[:-1] + (part.shape[-1] // 2, 2))
            low, high = tl.split(part)
            finer = finer + (low, high)
        slices = finer
    return slices


@triton.jit
def weighted(slices, weights):
    """Return sum_k slices_k [CN, XL, QN, YT, R] * weights_k [CN, XL, QN, YT], as one chain of fused additions."""
    total = slices[0] * weights[0][:, :, :, :, None]
    for k in tl.static_range(1, len(slices)):
        total = tl.fma(slices[k], weights[k][:, :, :, :, None], total)
    return total


@triton.jit
def summed(x, AXIS: tl.constexpr):
    """Return the sums over an axis, in every place of it."""
    return tl.broadcast_to(tl.sum(x, axis=AXIS, keep_dims=True), x.shape)


@triton.jit
def joined(first, second, lane, AXIS: tl.constexpr):
    """Return (d0 * 254 + d1) * 254 + d2 in every lane of an axis; lane 0 holds d0 and d1, lane 1 d2 and 0, others 0.

    Small sums are exact and large ones far from zero, so no sign is lost in rounding.
    """
    high = tl.fma(first.to(tl.float32), 254.0, second.to(tl.float32)) * 254.0
    return summed(tl.where(lane == 0, high, first.to(tl.float32)), AXIS)


@triton.jit
def row_sums(columns, weights, LEVELS: tl.constexpr, SLICED: tl.constexpr):
    """Return K b, in every lane of a row; columns: K in slices, or whole where a row is spread over warps."""
    if SLICED:
        return summed(weighted(columns, slices_of(weights, LEVELS)), 3)
    else:
        moved = tl.permute(columns[0] * weights[:, :, :, :, None, :], (0, 1, 2, 4, 3, 5))
        CN: tl.constexpr = moved.shape[0]
        XL: tl.constexpr = moved.shape[1]
        QN: tl.constexpr = moved.shape[2]
        XR: tl.constexpr = moved.shape[3]
        YT: tl.constexpr = moved.shape[4]
        sums = tl.sum(tl.reshape(moved, (CN, XL, QN, XR, YT * moved.shape[5])), axis=4)
        return tl.broadcast_to(sums[:, :, :, None, :], (CN, XL, QN, YT, XR))


@triton.jit
def largest(x, AXIS: tl.constexpr):
    """Return the maxima over an axis, in every place of it."""
    return tl.broadcast_to(tl.max(x, axis=AXIS, keep_dims=True), x.shape)


@triton.jit
def marginal(attention, valid, ATTENTIVE: tl.constexpr, LANES: tl.constexpr):
    """Return weights [CN, XL, QN, YT, R] that sum to 1 over R and the axis LANES, whether they fell back, and validity.

    attention in the same shape; valid: 1.0 where a cell counts, else 0.0. The last two are [CN, XL, QN, YT].
    """
    count = summed(tl.sum(valid, axis=4), LANES)
    if ATTENTIVE:
        positive = tl.maximum(attention, 0.0) * valid
        total = summed(tl.sum(positive, axis=4), LANES)
        attentive = total > 0
        positive = tl.where(attentive[:, :, :, :, None], positive, valid)
        total = tl.where(attentive, total, tl.maximum(count, 1.0))
        return positive * (1.0 / total)[:, :, :, :, None], (count > 0) & (attentive == 0), count > 0
    else:
        return valid * (1.0 / tl.maximum(count, 1.0))[:, :, :, :, None], count < 0, count > 0


@triton.jit
def solve(
    kernel,
    u,
    v,
    b,
    solvable,
    tolerance,
    limit,
    LXR: tl.constexpr,
    LYR: tl.constexpr,
    SLICED: tl.constexpr,
    FAST: tl.constexpr,
):
    """Return a and b, the plans' row sums, and each pair's iterations and L1 violation, by the updates of kernels.py.

    kernel [CN, XL, QN, YT, XR, YR]; b: 1.0 where there is a column; solvable: pairs to work on.
    """
    columns_of_k = slices_of(kernel, LYR) if SLICED else (kernel,)
    rows_of_k = slices_of(tl.permute(kernel, (0, 1, 2, 3, 5, 4)), LXR)
    a = u * reciprocal(row_sums(columns_of_k, b, LYR, SLICED), FAST)
    active = solvable
    iterations = tl.zeros(solvable.shape, tl.int32)
    error = tl.zeros(solvable.shape, tl.float32)
    row_totals = u
    # `relaxed` pairs go half as far again, where plain updates are slow.
    relaxed = iterations > 0
    may_relax = iterations == 0
    previous = error + float("inf")
    start = previous
    count = 0
    running = tl.max(active.to(tl.int32))
    while running > 0:
        count += 1
        relaxed = relaxed & (count < limit)
        following = v * reciprocal(summed(weighted(rows_of_k, slices_of(a, LXR)), 1), FAST)
        if running > 1:
            following = further(following, b, v, relaxed, FAST)
        b = following
        row_totals = row_sums(columns_of_k, b, LYR, SLICED)
        following = u * reciprocal(row_totals, FAST)
        if running > 1:
            following = further(following, a, u, relaxed, FAST)
        error = summed(tl.sum(tl.abs(tl.fma(a, row_totals, -u)), axis=4), 1)
        iterations += active.to(tl.int32)
        # The comparison also stops on NaN. A pair that is done keeps its a, and so its b and error; one that is close
        # enough but relaxed keeps it too, to see whether a plain update of b ends it.
        going = (error > tolerance) & (count < limit)
        a = tl.where(going[:, :, :, :, None], following, a)
        active = active & (going | relaxed)
        slow = may_relax & (count >= PLAIN_ITERATIONS) & (error > SLOW * previous)
        kept = error <= DIVERGED * start
        may_relax = may_relax & (kept | (going & relaxed == 0))
        start = tl.where(relaxed, start, error)
        previous = tl.where(going, error, previous)
        relaxed = active & going & tl.where(relaxed, kept, slow)
        running = tl.max(active.to(tl.int32) + relaxed.to(tl.int32))
    return a, b, row_totals, iterations, error


@triton.jit
def over_pair(x):
    """Return a pair's sums over XR, YR and its lanes, in every lane, of x [CN, XL, QN, YT, XR, YR]."""
    return summed(summed(tl.sum(tl.sum(x, axis=5), axis=4), 3), 1)


@triton.jit
def top_flow(left, plan, value, local, lane):
    """Return the place of the largest of `left`, its mass and value, whether there is any, and what is then left.

    All but `lane` are [CN, XL, QN, YT, XR, YR]. local + lane is the place; of equal ones the first counts.
    """
    best = largest(largest(tl.max(tl.max(left, axis=5), axis=4), 3), 1)
    ties = tl.where(left == best[:, :, :, :, None, None], -local, -(1 << 30))
    place = -largest(largest(tl.max(tl.max(ties, axis=5), axis=4) - lane, 3), 1)
    chosen = local == (place - lane)[:, :, :, :, None, None]
    found = best > float("-inf")
    mass = tl.where(found, over_pair(tl.where(chosen, plan, 0.0)), 0.0)
    worth = tl.where(found, over_pair(tl.where(chosen, value, 0.0)), 0.0)
    return place, mass, worth, found, tl.where(chosen, float("-inf"), left)

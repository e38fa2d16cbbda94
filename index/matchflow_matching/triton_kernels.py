# Triton compiles these: its types are not Python's, constants are in capitals, and a launch is one function.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: ANN001, ANN201, N803, N806, PLR0915, PLR2004, SIM108
"""Entropic transport of many queries against many candidates in one launch of one Triton kernel.

A program solves a tile of CN images and QN queries, and GROUPS such tiles with the same images, one after another. The
cells of the images are the rows of a product, those of the queries its columns, in such an order that the tensor cores'
output leaves each pair spread over XL x YT lanes, with XR x YR entries of its matrix in the registers of each:

    row m    = (cell // XL, image, cell % XL)                     8 lanes hold (image, cell % XL)
    column n = (cell // YL, query, cell // 2 % YT, cell % 2)      4 lanes hold (query, cell // 2 % YT);  YL = 2 YT

All of Sinkhorn then runs on what the product left in registers: sums over XR and YR within a lane, sums over XL and YT
by a shuffle or two, nothing in shared memory (pairs of over 4,096 entries share a few warps, and XR is spread over
them). In what follows tensors are [CN, XL, QN, YT], one value per lane, with XR or YR behind for what a lane holds of a
side. Each pair stops by itself; a tile ends when its last pair does.

Global vectors enter as three int8 digits (products.py), which are rows and columns of small products of their own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from matchflow_matching.triton_steps import joined, logarithm, marginal, slices_of, solve, summed, top_flow, weighted

# Digits stand for the embedding scaled to a largest component of 127, times 254^2; here for both sides.
PEAK_SCALE = tl.constexpr(1.0 / (127 * 254**2) ** 2)
UNIFORM = tl.constexpr(0)
CROSS = tl.constexpr(1)
SELF = tl.constexpr(2)


@triton.jit
def transport(
    image_cells,
    image_digits,
    image_scales,
    image_peaks,
    image_attention,
    image_readable,
    image_masks,
    query_cells,
    query_digits,
    query_scales,
    query_peaks,
    query_attention,
    query_masks,
    image_places,
    query_places,
    floats,
    iterations_out,
    flags,
    flow_cells,
    flow_values,
    images,
    queries,
    exponent_factor,
    value_factor,
    tolerance,
    global_weight,
    unreadable,
    limit,
    RX: tl.constexpr,
    RQ: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MARGINALS: tl.constexpr,
    SPATIAL: tl.constexpr,
    IMAGE_MASKED: tl.constexpr,
    QUERY_MASKED: tl.constexpr,
    FLOWS: tl.constexpr,
    LXR: tl.constexpr,
    LYR: tl.constexpr,
    XL: tl.constexpr,
    YL: tl.constexpr,
    SLICED: tl.constexpr,
    GROUPS: tl.constexpr,
    FAST: tl.constexpr,
):
    """Solve every pair of `images` and `queries`; arguments as triton_matching.launch passes them.

    exponent_factor = log2(e) / epsilon, value_factor = ln(2) * epsilon: K = 2^((V - 1) * exponent_factor) with V the
    similarities less the penalties, and V = 1 + value_factor * log2(K). The squared distances of places are penalties
    times exponent_factor. FAST: instructions that the interpreter lacks.
    """
    XR: tl.constexpr = 1 << LXR
    YR: tl.constexpr = 1 << LYR
    YT: tl.constexpr = YL // 2
    YH: tl.constexpr = YR // 2
    CN: tl.constexpr = 8 // XL
    QN: tl.constexpr = 8 // YL
    M: tl.constexpr = XR * 8
    N: tl.constexpr = YH * 8
    PADDED_RQ: tl.constexpr = YR * YT
    WHOLE: tl.constexpr = BLOCK_D == DIM

    first_image = tl.program_id(0).to(tl.int64) * CN
    last_image = (images - 1 - first_image).to(tl.int32)
    image_cells += first_image * RX * DIM
    image_digits += first_image * 3 * DIM
    d = tl.arange(0, BLOCK_D)

    # What lies beyond the last image or cell reads that last one; weights of zero keep it out.
    m = tl.arange(0, M)
    m_at = (tl.minimum(m // XL % CN, last_image) * RX + tl.minimum(m // 8 * XL + m % XL, RX - 1)) * DIM
    rows_at = m_at[:, None] + d[None, :]
    h = tl.arange(0, 16)
    h_digit = h // 8 + h % XL * 2
    h_at = (tl.minimum(h // XL % CN, last_image) * 3 + tl.minimum(h_digit, 2)) * DIM
    x_digits_at = h_at[:, None] + d[None, :]
    h_real = (h_digit < 3)[:, None]
    if WHOLE:
        rows = tl.load(image_cells + rows_at)
        x_digits = tl.load(image_digits + x_digits_at, mask=h_real, other=0)

    cn = tl.arange(0, CN)
    xl = tl.arange(0, XL)
    xr = tl.arange(0, XR)
    yt = tl.arange(0, YT)
    yr = tl.arange(0, YR)
    c_image = tl.minimum(cn, last_image)
    x_cell = xr[None, :] * XL + xl[:, None]
    y_cell = yr[None, :] // 2 * YL + yt[:, None] * 2 + yr[None, :] % 2
    x_at = first_image * RX + c_image[:, None, None] * RX + tl.minimum(x_cell, RX - 1)[None, :, :]
    x_scale = tl.load(image_scales + x_at)

    own_query = tl.program_id(1).to(tl.int64) * (GROUPS * QN)
    own_queries = tl.minimum(queries - own_query, GROUPS * QN).to(tl.int32)
    for step in range(0, own_queries, QN):
        first_query = own_query + step
        last_query = (queries - 1 - first_query).to(tl.int32)
        n = tl.arange(0, N)
        n_at = (tl.minimum(n // YL % QN, last_query) * RQ + tl.minimum(n // 8 * YL + n % YL, RQ - 1)) * DIM
        columns_at = n_at[None, :] + d[:, None]
        k = tl.arange(0, 8)
        k_at = (tl.minimum(k // YL, last_query) * 3 + tl.minimum(k % YL, 2)) * DIM
        q_digits_at = k_at[None, :] + d[:, None]
        k_real = (k % YL < 3)[None, :]
        if SLICED:
            sums = tl.zeros((M, N), tl.int32)
        else:
            # A batch of one keeps a Hopper to tensor-core instructions that spread warps over columns.
            sums = tl.zeros((1, M, N), tl.int32)
        x_sums = tl.zeros((M, 8), tl.int32)
        q_sums = tl.zeros((16, N), tl.int32)
        g_sums = tl.zeros((16, 8), tl.int32)
        for start in range(0, DIM, BLOCK_D):
            columns = tl.load(query_cells + (first_query * RQ * DIM + start) + columns_at)
            q_digits = tl.load(query_digits + (first_query * 3 * DIM + start) + q_digits_at, mask=k_real, other=0)
            if not WHOLE:
                rows = tl.load(image_cells + start + rows_at)
                x_digits = tl.load(image_digits + start + x_digits_at, mask=h_real, other=0)
            if SLICED:
                sums = tl.dot(rows, columns, sums, out_dtype=tl.int32)
            else:
                sums = tl.dot(rows[None, :, :], columns[None, :, :], sums, out_dtype=tl.int32)
            g_sums = tl.dot(x_digits, q_digits, g_sums, out_dtype=tl.int32)
            if MARGINALS == CROSS:
                x_sums = tl.dot(rows, q_digits, x_sums, out_dtype=tl.int32)
                q_sums = tl.dot(x_digits, columns, q_sums, out_dtype=tl.int32)

        qn = tl.arange(0, QN)
        c_query = tl.minimum(qn, last_query)
        y_at = first_query * RQ + c_query[:, None, None] * RQ + tl.minimum(y_cell, RQ - 1)[None, :, :]
        y_scale = tl.load(query_scales + y_at)
        x_valid = tl.where(x_cell < RX, 1.0, 0.0)[None, :, None, None, :]
        if IMAGE_MASKED:
            x_valid = x_valid * tl.load(image_masks + x_at).to(tl.float32)[:, :, None, None, :]
        x_valid = tl.broadcast_to(x_valid, (CN, XL, QN, YT, XR))
        y_real = tl.broadcast_to(tl.where(y_cell < RQ, 1.0, 0.0)[None, None, None, :, :], (CN, XL, QN, YT, YR))
        y_valid = y_real
        if QUERY_MASKED:
            y_valid = y_valid * tl.load(query_masks + y_at).to(tl.float32)[None, None, :, :, :]

        whole = tl.permute(tl.reshape(sums, (XR, CN, XL, YH, QN, YT, 2)), (1, 2, 4, 5, 0, 3, 6))
        whole = tl.reshape(whole, (CN, XL, QN, YT, XR, YR)).to(tl.float32)
        offset = -exponent_factor
        if SPATIAL:
            for axis in tl.static_range(2):
                x_place = tl.load(image_places + tl.minimum(x_cell, RX - 1) * 2 + axis)
                y_place = tl.load(query_places + tl.minimum(y_cell, RQ - 1) * 2 + axis)
                apart = x_place[None, :, None, None, :, None] - y_place[None, None, None, :, None, :]
                offset = tl.fma(-apart, apart, offset)
        scaled = whole * (x_scale * exponent_factor)[:, :, None, None, :, None]
        kernel = tl.exp2(tl.fma(scaled, y_scale[None, None, :, :, None, :], offset))

        if MARGINALS == CROSS:
            parts = tl.permute(tl.reshape(x_sums, (XR, CN, XL, QN, YT, 2)), (1, 2, 3, 4, 0, 5))
            high, low = tl.split(parts)
            u = joined(high, low, yt[None, None, None, :, None], 3) * x_scale[:, :, None, None, :]
            parts = tl.permute(tl.reshape(q_sums, (2, CN, XL, YH, QN, YT, 2)), (1, 2, 4, 5, 3, 6, 0))
            high, low = tl.split(tl.reshape(parts, (CN, XL, QN, YT, YR, 2)))
            v = joined(high, low, xl[None, :, None, None, None], 1) * y_scale[None, None, :, :, :]
        elif MARGINALS == SELF:
            u = tl.load(image_attention + x_at)[:, :, None, None, :]
            v = tl.load(query_attention + y_at)[None, None, :, :, :]
        else:
            u = x_valid
            v = y_valid
        u, x_uniform, x_some = marginal(u, x_valid, MARGINALS != UNIFORM, 1)
        v, y_uniform, y_some = marginal(v, y_valid, MARGINALS != UNIFORM, 3)

        solvable = x_some & y_some
        a, b, row_totals, iterations, error = solve(
            kernel, u, v, y_real, solvable, tolerance, limit, LXR, LYR, SLICED, FAST
        )

        # sum P V = sum P + value_factor * sum P log2(K).
        logarithms = tl.permute(kernel * logarithm(kernel, FAST), (0, 1, 2, 3, 5, 4))
        moved = b * weighted(slices_of(logarithms, LXR), slices_of(a, LXR))
        structural = summed(tl.sum(moved, axis=4), 3) * value_factor
        structural = summed(structural + tl.sum(a * row_totals, axis=4), 1)

        # The cosine, from digits times digits.
        parts = tl.permute(tl.reshape(g_sums, (2, CN, XL, QN, YT, 2)), (1, 2, 3, 4, 0, 5))
        high, low = tl.split(parts)
        high, low = tl.split(joined(high, low, yt[None, None, None, :, None], 3))
        cosine = joined(high, low, xl[None, :, None, None], 1) * PEAK_SCALE
        cosine = cosine * tl.load(image_peaks + first_image + c_image)[:, None, None, None]
        cosine = cosine * tl.load(query_peaks + first_query + c_query)[None, None, :, None]

        structural = tl.where(solvable, structural, 0.0)
        error = tl.where(solvable, error, 0.0)
        readable = tl.load(image_readable + first_image + c_image)[:, None, None, None] != 0
        readable = readable & (tl.abs(structural) < float("inf")) & (tl.abs(cosine) < float("inf"))
        structural = tl.where(readable, structural, unreadable)
        cosine = tl.where(readable, cosine, -1.0)
        error = tl.where(readable, error, 0.0)
        shown = (cn <= last_image)[:, None, None, None] & (qn <= last_query)[None, None, :, None]
        shown = shown & (xl == 0)[None, :, None, None] & (yt == 0)[None, None, None, :]
        at = (first_query + qn)[None, None, :, None] * images + (first_image + cn)[:, None, None, None]
        at = tl.broadcast_to(at, (CN, XL, QN, YT))
        pairs = images.to(tl.int64) * queries
        tl.store(floats + at, cosine, mask=shown)
        tl.store(floats + at + pairs, structural, mask=shown)
        tl.store(floats + at + pairs * 2, structural + global_weight * cosine, mask=shown)
        tl.store(floats + at + pairs * 3, error, mask=shown)
        tl.store(iterations_out + at, iterations, mask=shown)
        tl.store(flags + at, ((error <= tolerance) & readable).to(tl.int8), mask=shown)
        tl.store(flags + at + pairs, y_uniform.to(tl.int8), mask=shown)
        tl.store(flags + at + pairs * 2, x_uniform.to(tl.int8), mask=shown)

        if FLOWS > 0:
            plan = a[:, :, :, :, :, None] * kernel * b[:, :, :, :, None, :]
            plan = tl.where(solvable[:, :, :, :, None, None], plan, 0.0)
            value = tl.fma(logarithm(kernel, FAST), value_factor, 1.0)
            left = tl.where(plan > 0, plan * value, float("-inf"))
            # A cell pair's place in the padded matrix, apart into what each register and what each lane adds to it.
            local = (xr * (XL * PADDED_RQ))[:, None] + (yr // 2 * YL + yr % 2)[None, :]
            local = tl.broadcast_to(local[None, None, None, None, :, :], (CN, XL, QN, YT, XR, YR))
            lane = tl.broadcast_to(
                (xl * PADDED_RQ)[None, :, None, None] + (yt * 2)[None, None, None, :], (CN, XL, QN, YT)
            )
            for flow in range(FLOWS):
                place, mass, worth, found, left = top_flow(left, plan, value, local, lane)
                flow_at = at * FLOWS + flow
                place = tl.where(found, place // PADDED_RQ * RQ + place % PADDED_RQ, -1)
                tl.store(flow_cells + flow_at, place, mask=shown)
                tl.store(flow_values + flow_at, mass, mask=shown)
                tl.store(flow_values + pairs * FLOWS + flow_at, worth, mask=shown)

"""Compiled loops that make products: rounding, byte products and cosines. See compiling.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching import vnni
from matchflow_matching.compiling import ROUNDER, ROUNDER_BITS, compiled
from matchflow_matching.features import INT8_MAX

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.int8] | NDArray[np.uint8]
    Mask = NDArray[np.bool_]

# Sums that run side by side, so that the compiler may use vectors without reordering anything.
LANES = 16


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
def pack(columns: Bytes) -> Bytes:
    """Return columns int8 [C, D], D a multiple of 4, as panels uint8 [ceil((C + 1) / 32), D / 4, 32, 4]; see vnni.py.

    At least the last column of the last panel is zero before the offset.
    """
    count, dim = columns.shape
    panels = np.full((count // vnni.PANEL + 1, dim // 4, vnni.PANEL, 4), vnni.OFFSET, np.uint8)
    for column in range(count):
        panel, place = column // vnni.PANEL, column % vnni.PANEL
        for k in range(dim):
            panels[panel, k // 4, place, k % 4] = np.uint8(columns[column, k] + vnni.OFFSET)
    return panels


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

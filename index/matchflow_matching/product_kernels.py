"""Compiled loops that make products: digits, byte products and cosines. See compiling.py."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching import vnni, words
from matchflow_matching.compiling import ROUNDER, ROUNDER_BITS, compiled
from matchflow_matching.features import INT8_MAX

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.int8] | NDArray[np.uint8]
    Mask = NDArray[np.bool_]

# Sums that run side by side, so that the compiler may use vectors without reordering anything.
LANES = 16

# A global vector is d0 + d1 / 254 + d2 / 254^2 + d3 / 254^3, each digit from -127 to 127.
DIGITS, BASE = 4, 254
# Global vectors have unit length. What is far smaller is as good as zero; what is far larger is damaged, and would
# overflow before a score is reached.
SMALLEST_PEAK, LARGEST_PEAK = np.float32(1e-30), np.float32(1e15)


@compiled()
def split_embeddings(embeddings: Floats, scales: Floats, digits: Bytes, readable: Mask) -> None:
    """Fill digits int8 [N, 4, D] with embeddings float32 [N, D] times powers of two; see products.digits.

    Zero vectors stay zero. Where an embedding is beyond 1e15, or it or a scale float32 [N, R] is not finite, the
    image's vector and scales become zero and readable bool [N] false.
    """
    dim = embeddings.shape[1]
    whole = dim - dim % LANES
    peaks, zeros = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    bits = np.empty(dim, np.int32)
    shifted = bits.view(np.float32)
    rest = np.empty(dim, np.float32)
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
        readable[p] = zero == 0 and peak <= LARGEST_PEAK
        if not readable[p]:
            digits[p] = 0
            scales[p] = np.float32(0)
            continue
        # A power of two loses no bit. It takes the peak to between 63.5 and 127.
        factor = np.float32(0)
        if peak > SMALLEST_PEAK:
            fraction, exponent = math.frexp(peak)
            factor = np.float32(math.ldexp(1.0, 7 - exponent if fraction * 128 <= INT8_MAX else 6 - exponent))
        for k in range(dim):
            rest[k] = embeddings[p, k] * factor
        for digit in range(DIGITS):
            for k in range(dim):
                shifted[k] = rest[k] + ROUNDER
            for k in range(dim):
                digits[p, digit, k] = np.int8(bits[k] - ROUNDER_BITS)
            for k in range(dim):
                rest[k] = (rest[k] - (shifted[k] - ROUNDER)) * np.float32(BASE)


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
    """Fill the outputs of products.Products from cells int8 [N, Rx, D], embeddings int8 [N, 4, D] and the packed query.

    `panels` holds the query's Rq cells and its embedding's digits, packed as in vnni.py, which says what this needs of
    the processor and of D.
    """
    n, rx, dim = cells.shape
    rq = query_scales.size
    width = panels.shape[0] * vnni.PANEL
    sums = np.empty((rx + DIGITS, width), np.int32)
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
            last = embeddings.ctypes.data + p * DIGITS * dim
            vnni.multiply_four_rows(last, dim, columns, steps, place + rx * sum_bytes, sum_bytes)
        for i in range(rx):
            added = sums[i, width - 1]
            for j in range(rq):
                similarities[p, i, j] = np.float32(sums[i, j] - added) * image_scales[p, i] * query_scales[j]
            # Whole numbers below 2^53: float64 holds them without rounding.
            joined = np.float64(0)
            for digit in range(DIGITS):
                joined = joined * BASE + np.float64(sums[i, rq + digit] - added)
            image_attention[p, i] = np.float32(joined) * image_scales[p, i]
        for j in range(rq):
            joined = np.float64(0)
            for digit in range(DIGITS):
                joined = joined * BASE + np.float64(sums[rx + digit, j] - sums[rx + digit, width - 1])
            query_attention[p, j] = np.float32(joined) * query_scales[j]


@compiled()
def pack_words(columns: Bytes) -> NDArray[np.int16]:
    """Return columns int8 [C, D] as panels int16 [ceil(C / 8), ceil(D / 2), 8, 2], padded with zeros; see words.py."""
    count, dim = columns.shape
    steps = -(-dim // words.WORDS_PER_STEP)
    panels = np.zeros((-(-count // words.PANEL), steps, words.PANEL, words.WORDS_PER_STEP), np.int16)
    for column in range(count):
        panel, place = column // words.PANEL, column % words.PANEL
        for k in range(dim):
            panels[panel, k // 2, place, k % 2] = columns[column, k]
    return panels


@compiled()
def multiply_words(
    cells: Bytes,
    embeddings: Bytes,
    panels: NDArray[np.int16],
    image_scales: Floats,
    query_scales: Floats,
    similarities: Floats,
    image_attention: Floats,
    query_attention: Floats,
) -> None:
    """Fill the outputs of products.Products as multiply_bytes does, with `panels` packed by pack_words."""
    n, rx, dim = cells.shape
    rq = query_scales.size
    width, steps = panels.shape[0] * words.PANEL, panels.shape[1]
    height = -(-(rx + DIGITS) // words.ROWS) * words.ROWS
    sums = np.empty((height, width), np.int32)
    # Four rows at a time, which stay in the nearest cache while they meet all columns. What is beyond the rows does not
    # matter; what is beyond D is zero.
    rows = np.zeros((words.ROWS, steps * words.WORDS_PER_STEP), np.int16)
    row_bytes, sum_bytes, panel_bytes = rows.shape[1] * 2, width * 4, steps * words.STEP_BYTES
    for p in range(n):
        for first in range(0, rx + DIGITS, words.ROWS):
            for row in range(min(words.ROWS, rx + DIGITS - first)):
                source = cells[p, first + row] if first + row < rx else embeddings[p, first + row - rx]
                for k in range(dim):
                    rows[row, k] = source[k]
            rows_at, sums_at = rows.ctypes.data, sums.ctypes.data + first * sum_bytes
            panel = 0
            while panel + 2 <= panels.shape[0]:
                columns = panels.ctypes.data + panel * panel_bytes
                place = sums_at + panel * words.PANEL * 4
                words.multiply_two_panels(rows_at, row_bytes, columns, steps, place, sum_bytes)
                panel += 2
            if panel < panels.shape[0]:
                columns = panels.ctypes.data + panel * panel_bytes
                words.multiply_panel(rows_at, row_bytes, columns, steps, sums_at + panel * words.PANEL * 4, sum_bytes)
        for i in range(rx):
            for j in range(rq):
                similarities[p, i, j] = np.float32(sums[i, j]) * image_scales[p, i] * query_scales[j]
            joined = np.float64(0)
            for digit in range(DIGITS):
                joined = joined * BASE + np.float64(sums[i, rq + digit])
            image_attention[p, i] = np.float32(joined) * image_scales[p, i]
        for j in range(rq):
            joined = np.float64(0)
            for digit in range(DIGITS):
                joined = joined * BASE + np.float64(sums[rx + digit, j])
            query_attention[p, j] = np.float32(joined) * query_scales[j]


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


@compiled()
def self_attention(cells: Bytes, digits: Bytes, scales: Floats, attention: Floats) -> None:
    """Fill attention float32 [N, R] with <g, z[i]> of each image's own global vector and cells.

    From cells int8 [N, R, D], digits int8 [N, 4, D] of the global vectors and scales float32 [N, R]. In whole numbers,
    as multiply_bytes; each sum is kept in 32 bits so that the compiler uses vectors of them.
    """
    n, cell_count, dim = cells.shape
    for p in range(n):
        first, second, third, fourth = digits[p, 0], digits[p, 1], digits[p, 2], digits[p, 3]
        for i in range(cell_count):
            cell = cells[p, i]
            s0, s1, s2, s3 = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
            for k in range(dim):
                value = np.int32(cell[k])
                s0 = np.int32(s0 + value * np.int32(first[k]))
                s1 = np.int32(s1 + value * np.int32(second[k]))
                s2 = np.int32(s2 + value * np.int32(third[k]))
                s3 = np.int32(s3 + value * np.int32(fourth[k]))
            joined = ((np.float64(s0) * BASE + np.float64(s1)) * BASE + np.float64(s2)) * BASE + np.float64(s3)
            attention[p, i] = np.float32(joined) * scales[p, i]

"""Averages over parallel flows, compiled: a search explains ten hits, and each has two of them to take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching.compiling import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

SIDE, MIDDLE = np.float32(0.25), np.float32(0.5)


@compiled()
def average_parallel(parts: Floats, columns: int, query_columns: int, by_rows: Floats, averaged: Floats) -> None:
    """Fill averaged [Rx, Rq] with what `support.supported` says of parts [Rx, Rq]; by_rows [Rx, Rq] is scratch."""
    cells, query_cells = parts.shape
    for i in range(cells):
        for j in range(query_cells):
            total = np.float32(0)
            if i >= columns and j >= query_columns:
                total += SIDE * parts[i - columns, j - query_columns]
            total += MIDDLE * parts[i, j]
            if i + columns < cells and j + query_columns < query_cells:
                total += SIDE * parts[i + columns, j + query_columns]
            by_rows[i, j] = total
    for i in range(cells):
        for j in range(query_cells):
            column, query_column = i % columns, j % query_columns
            total = np.float32(0)
            if column > 0 and query_column > 0:
                total += SIDE * by_rows[i - 1, j - 1]
            total += MIDDLE * by_rows[i, j]
            if column + 1 < columns and query_column + 1 < query_columns:
                total += SIDE * by_rows[i + 1, j + 1]
            averaged[i, j] = total

"""The constant matrix between the backbone's map and the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchflow_exporter.pooling import axis_weights, pooling_matrix
from matchflow_matching.features import CellGrid

COUNTS = st.integers(1, 24)


@given(COUNTS, COUNTS)
def test_every_cell_is_a_mean_of_places(cells: int, positions: int) -> None:
    weights = axis_weights(cells, positions)
    assert weights.shape == (cells, positions)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1)


@given(COUNTS, COUNTS)
def test_cells_are_symmetric_left_and_right(cells: int, positions: int) -> None:
    weights = axis_weights(cells, positions)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)


@given(COUNTS, COUNTS)
def test_with_no_more_cells_than_places_every_place_counts_the_same(cells: int, positions: int) -> None:
    if cells <= positions:
        np.testing.assert_allclose(axis_weights(cells, positions).sum(axis=0), cells / positions)


@given(COUNTS)
def test_a_grid_of_the_maps_size_is_the_map(count: int) -> None:
    np.testing.assert_array_equal(axis_weights(count, count), np.eye(count))


def test_a_place_on_a_border_counts_by_its_share() -> None:
    np.testing.assert_allclose(axis_weights(2, 3), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]])


def test_a_finer_grid_interpolates_between_centres() -> None:
    wanted = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    np.testing.assert_allclose(axis_weights(4, 2), wanted)
    np.testing.assert_allclose(axis_weights(3, 1), [[1], [1], [1]])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
def test_whole_multiples_agree_with_torchs_average_pooling(rows: int, columns: int, high: int, wide: int) -> None:
    values = torch.rand(1, 1, rows * high, columns * wide, dtype=torch.float64)
    wanted = torch.nn.functional.adaptive_avg_pool2d(values, (rows, columns)).flatten().numpy()
    got = pooling_matrix(CellGrid(rows=rows, columns=columns), rows * high, columns * wide) @ values.flatten().numpy()
    np.testing.assert_allclose(got, wanted)


@pytest.mark.parametrize(("rows", "columns", "high", "wide"), [(8, 8, 4, 4), (7, 9, 3, 5), (6, 5, 2, 1)])
def test_finer_grids_agree_with_torchs_bilinear_interpolation(rows: int, columns: int, high: int, wide: int) -> None:
    values = torch.rand(1, 1, high, wide, dtype=torch.float64)
    wanted = torch.nn.functional.interpolate(values, (rows, columns), mode="bilinear", align_corners=False)
    got = pooling_matrix(CellGrid(rows=rows, columns=columns), high, wide) @ values.flatten().numpy()
    np.testing.assert_allclose(got, wanted.flatten().numpy())


def test_axes_are_independent_and_cells_row_major() -> None:
    matrix = pooling_matrix(CellGrid(rows=1, columns=2), 2, 4)
    left, right = [0.25, 0.25, 0.0, 0.0], [0.0, 0.0, 0.25, 0.25]
    np.testing.assert_allclose(matrix.reshape(2, 2, 4), np.array([[left, left], [right, right]]))

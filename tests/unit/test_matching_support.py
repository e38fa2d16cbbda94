"""Support of a flow: its contribution and those of the parallel flows next to it."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchflow_matching import CellGrid, FeatureBatch, Features, FeaturesInvalidError, dequantise
from matchflow_matching.support import shared, supported
from matching_strategies import random_batch

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS = {-1: 0.25, 0: 0.5, 1: 0.25}
grids = st.builds(CellGrid, rows=st.integers(1, 5), columns=st.integers(1, 5))


def by_loops(contributions: NDArray[np.float32], image: CellGrid, query: CellGrid) -> NDArray[np.float64]:
    """The definition, flow by flow."""
    result = np.zeros(contributions.shape)
    for i, j in product(range(image.size), range(query.size)):
        (ir, ic), (qr, qc) = divmod(i, image.columns), divmod(j, query.columns)
        for a, b in product(WEIGHTS, repeat=2):
            inside = 0 <= ir + a < image.rows and 0 <= qr + a < query.rows
            if inside and 0 <= ic + b < image.columns and 0 <= qc + b < query.columns:
                neighbour = contributions[(ir + a) * image.columns + ic + b, (qr + a) * query.columns + qc + b]
                result[i, j] += WEIGHTS[a] * WEIGHTS[b] * neighbour
    return result


def drawn(seed: int, image: CellGrid, query: CellGrid) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(image.size, query.size)).astype(np.float32)


@given(grids, grids, st.integers(0, 2**32))
def test_support_is_what_the_definition_says_on_any_two_grids(image: CellGrid, query: CellGrid, seed: int) -> None:
    contributions = drawn(seed, image, query)
    expected = by_loops(contributions, image, query)
    np.testing.assert_allclose(supported(contributions, image, query), expected, atol=1e-6)


@given(grids, grids, st.integers(0, 2**32))
def test_exchanging_the_sides_exchanges_rows_and_columns(image: CellGrid, query: CellGrid, seed: int) -> None:
    contributions = drawn(seed, image, query)
    there = supported(contributions, image, query)
    np.testing.assert_array_equal(supported(np.ascontiguousarray(contributions.T), query, image), there.T)


@given(grids, st.integers(0, 2**32))
def test_support_is_linear_and_changes_nothing_that_it_is_given(grid: CellGrid, seed: int) -> None:
    one, other = drawn(seed, grid, grid), drawn(seed + 1, grid, grid)
    kept = one.copy()
    summed = supported(one + 2 * other, grid)
    np.testing.assert_allclose(summed, supported(one, grid) + 2 * supported(other, grid), atol=1e-5)
    np.testing.assert_array_equal(one, kept)


def test_a_flow_far_from_every_border_keeps_a_quarter_and_gives_its_neighbours_the_rest() -> None:
    grid = CellGrid(rows=5, columns=5)
    lone = np.zeros((25, 25), np.float32)
    lone[12, 12] = 1
    support = supported(lone, grid)
    assert support[12, 12] == 0.25
    assert support.sum() == 1
    # Parallel flows only: row by row and column by column together.
    assert set(zip(*(side.tolist() for side in np.nonzero(support)), strict=True)) == {
        (cell, cell) for cell in (6, 7, 8, 11, 12, 13, 16, 17, 18)
    }


def test_flows_that_run_in_parallel_come_before_a_larger_lone_one() -> None:
    grid = CellGrid(rows=4, columns=4)
    contributions = np.zeros((16, 16), np.float32)
    # A block of 2 x 2 moves one column to the right; one corner goes to the opposite corner.
    for cell in (5, 9, 4, 8):
        contributions[cell + 1, cell] = 0.6
    contributions[0, 15] = 1.0
    support = supported(contributions, grid)
    assert contributions.argmax() == 15
    assert support[6, 5] > support[0, 15]
    assert divmod(int(support.argmax()), 16) in {(cell + 1, cell) for cell in (5, 9, 4, 8)}


@pytest.mark.parametrize("shape", [(15, 16), (16, 15), (256,), (1, 256)])
def test_a_shape_that_is_not_that_of_the_grids_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FeaturesInvalidError, match="expected contributions"):
        supported(np.zeros(shape, np.float32), CellGrid(rows=4, columns=4))


def image_of(seed: int, cells: int) -> Features:
    return random_batch(np.random.default_rng(seed), 1, cells, 8)[0]


@given(grids, st.integers(0, 2**32))
def test_shares_sum_to_what_the_contributions_sum_to(grid: CellGrid, seed: int) -> None:
    contributions = np.random.default_rng(seed).normal(size=grid.size).astype(np.float32)
    parts = shared(contributions, image_of(seed, grid.size), grid)
    assert parts.sum(dtype=np.float64) == pytest.approx(contributions.sum(dtype=np.float64), abs=1e-5)


@given(grids, st.integers(0, 2**32))
def test_shares_are_what_the_definition_says(grid: CellGrid, seed: int) -> None:
    image = image_of(seed, grid.size)
    contributions = np.random.default_rng(seed).random(grid.size).astype(np.float32)
    cells = dequantise(FeatureBatch.stack([image]))[0].astype(np.float64)
    expected = np.zeros(grid.size)
    for j in range(grid.size):
        (row, column), weights = divmod(j, grid.columns), np.zeros(grid.size)
        for k in range(grid.size):
            square = (k // grid.columns - row) ** 2 + (k % grid.columns - column) ** 2
            weights[k] = 1 if k == j else max(0.0, cells[j] @ cells[k]) * np.exp(-square / 2)
        expected += contributions[j] * weights / weights.sum()
    # The definition's tail beyond 5 cells, below 4e-6, is left out.
    np.testing.assert_allclose(shared(contributions, image, grid), expected, atol=1e-4)


def test_cells_that_have_nothing_in_common_share_nothing() -> None:
    grid = CellGrid(rows=2, columns=2)
    image = Features(
        embedding=np.eye(4, dtype=np.float32)[0],
        cells=np.diag([127] * 4).astype(np.int8),
        scales=np.full(4, 1 / 127, np.float16),
    )
    contributions = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    np.testing.assert_allclose(shared(contributions, image, grid), contributions, rtol=1e-6)


def test_a_cell_without_a_feature_keeps_what_it_has() -> None:
    grid = CellGrid(rows=2, columns=2)
    image = Features(
        embedding=np.eye(4, dtype=np.float32)[0], cells=np.zeros((4, 4), np.int8), scales=np.zeros(4, np.float16)
    )
    contributions = np.array([0.0, 0.3, -0.2, 0.1], np.float32)
    np.testing.assert_allclose(shared(contributions, image, grid), contributions, rtol=1e-6)


def test_equal_cells_give_more_to_those_next_to_them() -> None:
    grid = CellGrid(rows=1, columns=5)
    image = Features(
        embedding=np.full(4, 0.5, np.float32),
        cells=np.full((5, 4), 127, np.int8),
        scales=np.full(5, 0.5 / 127, np.float16),
    )
    parts = shared(np.array([0, 0, 1, 0, 0], np.float32), image, grid)
    assert parts[2] > parts[1] == parts[3] > parts[0] == parts[4] > 0


@pytest.mark.parametrize(("contributions", "cells"), [(15, 16), (16, 15)])
def test_sharing_refuses_what_is_not_on_the_grid(contributions: int, cells: int) -> None:
    with pytest.raises(FeaturesInvalidError, match="expected contributions and cells"):
        shared(np.zeros(contributions, np.float32), image_of(0, cells), CellGrid(rows=4, columns=4))

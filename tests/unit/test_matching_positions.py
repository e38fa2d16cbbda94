"""Where cells lie: distances, and transport that knows them, against the float64 reference."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchflow_matching import (
    CellGrid,
    FeatureBatch,
    Features,
    FeaturesInvalidError,
    Marginals,
    MatchMode,
    MatchSettings,
    explain,
    match,
    top_flows,
)
from matchflow_matching.positions import squared_distances
from matching_strategies import SETTINGS, random_batch, reference_pair

few = settings(max_examples=40, deadline=None)
grids = st.builds(CellGrid, rows=st.integers(1, 5), columns=st.integers(1, 5))
GRID = CellGrid(rows=4, columns=4)
POSITION_AWARE = replace(SETTINGS, mode=MatchMode.POSITION_AWARE, spatial_weight=1.0)


@given(grid=grids)
def test_distances_of_one_grid_count_cells_against_its_diagonal(grid: CellGrid) -> None:
    found = squared_distances(grid, grid)
    diagonal = max(1, (grid.rows - 1) ** 2 + (grid.columns - 1) ** 2)
    for i in range(grid.size):
        for j in range(grid.size):
            rows = i // grid.columns - j // grid.columns
            columns = i % grid.columns - j % grid.columns
            assert found[i, j] == pytest.approx((rows**2 + columns**2) / diagonal, abs=1e-6)


@given(image=grids, query=grids)
def test_distances_are_from_0_to_1_and_those_of_mirrored_images_too(image: CellGrid, query: CellGrid) -> None:
    found = squared_distances(image, query)
    assert found.shape == (image.size, query.size)
    assert found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1
    # Turning both images by 180 degrees moves nothing.
    np.testing.assert_allclose(found[::-1, ::-1], found, atol=1e-6)


@given(image=grids, query=grids)
def test_corners_lie_on_corners(image: CellGrid, query: CellGrid) -> None:
    found = squared_distances(image, query)
    if image.rows > 1 and image.columns > 1 and query.size > 1:
        assert found[0, 0] == found[-1, -1] == 0
        assert found[0, -1] == pytest.approx(1)


@few
@given(
    seed=st.integers(0, 2**32),
    image=grids,
    query=grids,
    weight=st.sampled_from([0.0, 0.1, 1.0, 1.3]),
    marginals=st.sampled_from(Marginals),
)
def test_position_aware_transport_agrees_with_the_reference(
    seed: int, image: CellGrid, query: CellGrid, weight: float, marginals: Marginals
) -> None:
    rng = np.random.default_rng(seed)
    one, candidates = random_batch(rng, 1, query.size, 16)[0], random_batch(rng, 3, image.size, 16)
    chosen = replace(POSITION_AWARE, spatial_weight=weight, marginals=marginals)
    matches = match(one, candidates, chosen, grid=query, image_grid=image)
    distances = squared_distances(image, query).astype(np.float64)
    for n in range(3):
        expected = reference_pair(one, candidates[n], chosen, distances=distances)
        # The reference's plain updates may need more than its 10,000 iterations where the kernel's do not.
        off = 2e-5 if expected.plan.converged else 2e-5 + 2 * expected.plan.marginal_error
        assert matches.structural[n] == pytest.approx(expected.structural, abs=off)


def test_without_a_weight_it_is_the_papers_transport_bit_for_bit() -> None:
    batch = random_batch(np.random.default_rng(0), 9, 16, 64)
    aware = match(batch[0], batch, replace(POSITION_AWARE, spatial_weight=0.0))
    assert np.array_equal(aware.score, match(batch[0], batch, SETTINGS).score)


def test_a_heavy_weight_keeps_every_part_where_it_is() -> None:
    batch = random_batch(np.random.default_rng(0), 2, 16, 64)
    chosen = replace(POSITION_AWARE, spatial_weight=100.0, marginals=Marginals.UNIFORM)
    flow = explain(batch[0], batch[1], chosen, grid=GRID)
    np.testing.assert_allclose(flow.plan, np.eye(16) / 16, atol=1e-6)
    control = match(batch[0], batch, MatchSettings(mode=MatchMode.SAME_CELL))
    aware = match(batch[0], batch, chosen, grid=GRID)
    np.testing.assert_allclose(aware.structural, control.structural, atol=1e-5)


@few
@given(seed=st.integers(0, 2**32))
def test_the_mean_distance_moved_falls_with_the_weight(seed: int) -> None:
    batch = random_batch(np.random.default_rng(seed), 2, 16, 32, 3.0)
    distances = squared_distances(GRID, GRID)
    moved = [
        float((explain(batch[0], batch[1], chosen, grid=GRID).plan.astype(np.float64) * distances).sum())
        for chosen in (replace(POSITION_AWARE, spatial_weight=w) for w in (0.0, 0.2, 1.0, 5.0))
    ]
    assert all(later <= earlier + 1e-5 for earlier, later in itertools.pairwise(moved))


def test_a_part_that_moved_contributes_its_similarity_less_the_penalty() -> None:
    batch = random_batch(np.random.default_rng(0), 2, 16, 64)
    flow = explain(batch[0], batch[1], POSITION_AWARE, grid=GRID)
    np.testing.assert_allclose(flow.penalties, squared_distances(GRID, GRID), atol=1e-6)
    for each in top_flows(flow, 256):
        assert each.penalty == flow.penalties[each.image_cell, each.query_cell]
        assert each.contribution == each.mass * (each.similarity - each.penalty)


@pytest.mark.parametrize("mode", [MatchMode.POSITION_AWARE, MatchMode.MAX_SIM, MatchMode.CHAMFER])
def test_a_spatial_weight_needs_a_grid(mode: MatchMode) -> None:
    batch = random_batch(np.random.default_rng(0), 2, 4, 8)
    chosen = MatchSettings(mode=mode, spatial_weight=0.5)
    with pytest.raises(FeaturesInvalidError, match="needs the grids of both sides"):
        match(batch[0], batch, chosen)
    assert match(batch[0], batch, chosen, grid=CellGrid(rows=2, columns=2)).solved.all()


def test_a_grid_of_another_size_is_refused() -> None:
    batch = random_batch(np.random.default_rng(0), 2, 4, 8)
    with pytest.raises(FeaturesInvalidError, match="the image has 4 cells; its grid of 3 x 2 has 6"):
        match(batch[0], batch, SETTINGS, grid=CellGrid(rows=3, columns=2))
    with pytest.raises(FeaturesInvalidError, match="the query has 4 cells; its grid of 1 x 3 has 3"):
        match(batch[0], batch, SETTINGS, grid=CellGrid(rows=1, columns=3), image_grid=CellGrid(rows=2, columns=2))


@few
@given(seed=st.integers(0, 2**32), spatial_weight=st.sampled_from([0.0, 0.3]))
def test_max_sim_and_chamfer_take_the_partner_of_least_cost(seed: int, spatial_weight: float) -> None:
    batch = random_batch(np.random.default_rng(seed), 2, 16, 32)
    flow = explain(batch[0], batch[1], MatchSettings(), grid=GRID)
    cost = 1 - flow.similarities + spatial_weight * squared_distances(GRID, GRID)
    weights = reference_pair(batch[0], batch[1])
    of_query, of_image = np.zeros((16, 16)), np.zeros((16, 16))
    of_query[cost.argmin(axis=0), np.arange(16)] = weights.query_weights
    of_image[np.arange(16), cost.argmin(axis=1)] = weights.image_weights
    for mode, plan in ((MatchMode.MAX_SIM, of_query), (MatchMode.CHAMFER, (of_query + of_image) / 2)):
        chosen = MatchSettings(mode=mode, spatial_weight=spatial_weight)
        np.testing.assert_allclose(explain(batch[0], batch[1], chosen, grid=GRID).plan, plan, atol=1e-6)
        structural = match(batch[0], batch, chosen, grid=GRID).structural[1]
        assert structural == pytest.approx(float((plan * (1 - cost)).sum()), abs=1e-6)


@few
@given(seed=st.integers(0, 2**32), data=st.data())
def test_chamfer_does_not_mind_which_side_is_the_query(seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    first, second = random_batch(rng, 1, 6, 16)[0], random_batch(rng, 1, 9, 16)[0]
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=6, max_size=6)))
    chosen = MatchSettings(mode=MatchMode.CHAMFER)
    here = match(first, one(second), chosen, query_mask=mask).structural[0]
    there = match(second, one(first), chosen, image_masks=mask[None]).structural[0]
    assert here == pytest.approx(there, abs=1e-6)


def one(image: Features) -> FeatureBatch:
    return FeatureBatch.stack([image])

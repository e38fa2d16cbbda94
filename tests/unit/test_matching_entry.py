"""match, explain and top_flows as their callers see them: modes, mixes, refusals and additivity."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchflow_matching import (
    CellGrid,
    FeatureBatch,
    Features,
    FeaturesInvalidError,
    MatchMode,
    MatchSettings,
    SettingsInvalidError,
    cell_shares,
    explain,
    global_cosines,
    match,
    top_flows,
    warm_up,
)
from matchflow_matching.matchers import MATCHERS
from matchflow_matching.settings import SPATIAL_MODES
from matchflow_matching.support import supported
from matching_strategies import pairs, random_batch

few = settings(max_examples=40, deadline=None)


@few
@given(pair=pairs(), mode=st.sampled_from(sorted(MATCHERS)), count=st.integers(0, 500))
def test_contributions_and_residual_sum_to_the_structural_score(
    pair: tuple[Features, FeatureBatch], mode: MatchMode, count: int
) -> None:
    query, candidates = pair
    if mode is MatchMode.SAME_CELL:
        candidates = FeatureBatch.stack([query])
    image = candidates[0]
    # Columns of one cell, so that every mode has the grids that it wants.
    grid = CellGrid(rows=len(query.cells), columns=1)
    image_grid = CellGrid(rows=len(image.cells), columns=1)
    structural = float(match(query, candidates, MatchSettings.of(mode), grid=grid, image_grid=image_grid).structural[0])
    flow = explain(query, image, MatchSettings.of(mode), grid=grid, image_grid=image_grid)
    every = top_flows(flow, flow.plan.size)
    assert sum(f.contribution for f in every) == pytest.approx(structural, abs=2e-6)
    best = top_flows(flow, count)
    assert best == every[:count]
    assert all(f.contribution == f.mass * (f.similarity - f.penalty) and f.mass > 0 for f in best)
    support = supported(flow.plan * (flow.similarities - flow.penalties), image_grid, grid)
    ranks = [(-support[f.image_cell, f.query_cell], -f.contribution, f.image_cell, f.query_cell) for f in best]
    assert ranks == sorted(ranks)
    # Who says nothing of grids gets the same flows, by contribution.
    plain = top_flows(replace(flow, image_grid=None, query_grid=None), flow.plan.size)
    assert set(plain) == set(every)
    assert [f.contribution for f in plain] == sorted((f.contribution for f in every), reverse=True)
    for shares, cells in zip(cell_shares(flow, query, image), (query.cells, image.cells), strict=True):
        assert shares.shape == (len(cells),)
        assert shares.dtype == np.float32
        assert float(shares.sum(dtype=np.float64)) == pytest.approx(structural, abs=1e-5)


def test_flows_that_run_in_parallel_come_before_a_larger_lone_one() -> None:
    grid = CellGrid(rows=4, columns=4)
    batch = random_batch(np.random.default_rng(0), 1, 16, 8)
    flow = explain(batch[0], batch[0], MatchSettings(mode=MatchMode.SAME_CELL), grid=grid)
    plan = np.zeros_like(flow.plan)
    # Four cells in a block move one column to the right; one corner goes to the opposite corner.
    parallel = {(cell + 1, cell) for cell in (4, 5, 8, 9)}
    for there, here in parallel:
        plan[there, here] = 0.2
    plan[0, 15] = 0.3
    flow = replace(flow, plan=plan, similarities=np.ones_like(plan))
    assert {(each.image_cell, each.query_cell) for each in top_flows(flow, 4)} == parallel
    last = top_flows(flow, 5)[4]
    assert (last.image_cell, last.query_cell, last.contribution) == (0, 15, plan[0, 15])
    (first,) = top_flows(replace(flow, query_grid=None), 1)
    assert (first.image_cell, first.query_cell) == (0, 15)


def test_cell_shares_are_each_side_by_its_own_features() -> None:
    grid, image_grid = CellGrid(rows=1, columns=4), CellGrid(rows=3, columns=1)
    rng = np.random.default_rng(0)
    query, image = random_batch(rng, 1, 4, 8)[0], random_batch(rng, 1, 3, 8)[0]
    there = explain(query, image, MatchSettings(), grid=grid, image_grid=image_grid)
    turned = replace(
        there,
        plan=there.plan.T,
        similarities=there.similarities.T,
        penalties=there.penalties.T,
        image_grid=grid,
        query_grid=image_grid,
    )
    expected = cell_shares(there, query, image)
    for shares, others in zip(cell_shares(turned, image, query), expected[::-1], strict=True):
        np.testing.assert_allclose(shares, others, atol=1e-6)
    with pytest.raises(FeaturesInvalidError, match="expected contributions and cells"):
        cell_shares(there, image, query)


@pytest.mark.parametrize("missing", ["image", "query"])
def test_cell_shares_need_both_grids(missing: str) -> None:
    batch = random_batch(np.random.default_rng(0), 2, 4, 8)
    flow = explain(batch[0], batch[1], MatchSettings(), grid=CellGrid(rows=2, columns=2))
    spoiled = replace(flow, image_grid=None) if missing == "image" else replace(flow, query_grid=None)
    with pytest.raises(FeaturesInvalidError, match="expected a flow with the grids of both sides; got"):
        cell_shares(spoiled, batch[0], batch[1])


def test_an_image_that_can_not_be_read_shares_nothing() -> None:
    batch = random_batch(np.random.default_rng(0), 2, 4, 8)
    spoiled = replace(batch[1], scales=np.full(4, np.inf, np.float16))
    flow = explain(batch[0], spoiled, MatchSettings(), grid=CellGrid(rows=2, columns=2))
    for shares in cell_shares(flow, batch[0], spoiled):
        assert shares.tolist() == [0] * 4


def test_a_flow_names_the_cells_that_match() -> None:
    rng = np.random.default_rng(0)
    image = random_batch(rng, 1, 6, 64, 10.0)[0]
    order = np.array([3, 0, 5, 1, 4, 2])
    query = Features(embedding=image.embedding, cells=image.cells[order], scales=image.scales[order])
    flows = top_flows(explain(query, image, MatchSettings()), 6)
    assert {(f.query_cell, f.image_cell) for f in flows} == set(enumerate(order.tolist()))


def test_top_flows_refuses_a_negative_count() -> None:
    batch = random_batch(np.random.default_rng(0), 2, 2, 4)
    with pytest.raises(SettingsInvalidError, match="at least 0; got -1"):
        top_flows(explain(batch[0], batch[1], MatchSettings()), -1)


@few
@given(pair=pairs(), weight=st.just(0.0) | st.floats(1e-6, 10))
def test_the_final_score_mixes_structural_and_cosine(pair: tuple[Features, FeatureBatch], weight: float) -> None:
    query, candidates = pair
    matches = match(query, candidates, MatchSettings(global_weight=weight))
    expected = matches.structural.astype(np.float64) + weight * matches.cosine.astype(np.float64)
    np.testing.assert_allclose(matches.score, expected, atol=1e-5)


@few
@given(pair=pairs())
def test_the_cosine_is_that_of_the_global_vectors(pair: tuple[Features, FeatureBatch]) -> None:
    query, candidates = pair
    expected = candidates.embeddings.astype(np.float64) @ query.embedding.astype(np.float64)
    matches = match(query, candidates, MatchSettings(mode=MatchMode.COSINE))
    np.testing.assert_allclose(matches.cosine, expected, atol=1e-6)
    assert np.array_equal(global_cosines(query.embedding, candidates.embeddings), matches.cosine)
    assert not matches.structural.any()
    assert matches.converged.all()


def test_cosine_mode_shows_no_flow() -> None:
    batch = random_batch(np.random.default_rng(0), 2, 4, 8)
    flow = explain(batch[0], batch[1], MatchSettings(mode=MatchMode.COSINE))
    assert not flow.plan.any()
    assert top_flows(flow, 5) == []


def test_same_cell_is_the_mean_cosine_of_equal_positions() -> None:
    batch = random_batch(np.random.default_rng(0), 2, 9, 32)
    flow = explain(batch[0], batch[1], MatchSettings(mode=MatchMode.SAME_CELL))
    structural = match(batch[0], batch, MatchSettings(mode=MatchMode.SAME_CELL)).structural[1]
    assert structural == pytest.approx(float(np.diagonal(flow.similarities).mean()), abs=1e-6)
    np.testing.assert_allclose(flow.plan, np.eye(9) / 9, atol=1e-7)


def test_same_cell_counts_only_cells_valid_on_both_sides() -> None:
    batch = random_batch(np.random.default_rng(0), 2, 4, 32)
    query_mask = np.array([True, True, False, True])
    image_mask = np.array([True, False, True, True])
    chosen = MatchSettings(mode=MatchMode.SAME_CELL)
    flow = explain(batch[0], batch[1], chosen, query_mask=query_mask, image_mask=image_mask)
    assert np.diagonal(flow.plan).tolist() == [0.5, 0, 0, 0.5]


def test_same_cell_refuses_grids_of_different_size() -> None:
    rng = np.random.default_rng(0)
    query, candidates = random_batch(rng, 1, 4, 8)[0], random_batch(rng, 1, 5, 8)
    with pytest.raises(FeaturesInvalidError, match="as many image cells as query cells; got 5 and 4"):
        match(query, candidates, MatchSettings(mode=MatchMode.SAME_CELL))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epsilon", 0.0),
        ("epsilon", 0.0049),
        ("epsilon", 11.0),
        ("epsilon", float("nan")),
        ("tolerance", 0.0),
        ("tolerance", 2.0),
        ("spatial_weight", -0.1),
        ("spatial_weight", 101.0),
        ("matched_mass", 0.0),
        ("matched_mass", 1.1),
        ("matched_mass", float("nan")),
        ("max_iterations", 0),
        ("max_iterations", 10_001),
        ("global_weight", -0.1),
        ("global_weight", float("inf")),
    ],
)
def test_settings_out_of_range_are_refused_with_the_range(name: str, value: float) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(SettingsInvalidError, match=f"{name} must be from .* to .*; got") as caught:
        MatchSettings(**arguments)
    assert caught.value.field == name


@pytest.mark.parametrize("mode", sorted(set(MatchMode) - SPATIAL_MODES))
def test_a_spatial_weight_is_refused_where_it_would_be_ignored(mode: MatchMode) -> None:
    with pytest.raises(SettingsInvalidError, match=f"spatial_weight must be 0 with {mode}; got 0.5") as caught:
        MatchSettings(mode=mode, spatial_weight=0.5)
    assert caught.value.field == "spatial_weight"


@pytest.mark.parametrize("mode", sorted(set(MatchMode) - {MatchMode.PARTIAL}))
def test_a_matched_mass_is_refused_where_it_would_be_ignored(mode: MatchMode) -> None:
    with pytest.raises(SettingsInvalidError, match=f"matched_mass must be 1 with {mode}; got 0.5") as caught:
        MatchSettings(mode=mode, matched_mass=0.5)
    assert caught.value.field == "matched_mass"


@pytest.mark.parametrize("mode", MatchMode)
def test_recommended_settings_are_valid_and_give_way_to_what_is_given(mode: MatchMode) -> None:
    assert MatchSettings.of(mode).mode is mode
    assert MatchSettings.of(mode, global_weight=0.25, epsilon=0.1).global_weight == 0.25
    assert MatchSettings.of(MatchMode.STRUCTURAL) == MatchSettings()


@pytest.mark.parametrize(
    "change",
    [
        {"embedding": np.ones(7, np.float32)},
        {"cells": np.ones((4, 7), np.int8)},
        {"scales": np.ones(3, np.float16)},
        {"cells": np.ones((0, 8), np.int8), "scales": np.ones(0, np.float16)},
        {"embedding": np.full(8, np.nan, np.float32)},
        {"scales": np.full(4, np.inf, np.float16)},
    ],
)
def test_a_query_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    batch = random_batch(np.random.default_rng(0), 2, 4, 8)
    with pytest.raises(FeaturesInvalidError):
        match(replace(batch[0], **change), batch, MatchSettings())


@pytest.mark.parametrize(
    "change",
    [
        {"embeddings": np.ones((3, 8), np.float32)},
        {"cells": np.ones((2, 5, 8), np.int8)},
        {"scales": np.ones((2, 5), np.float16)},
    ],
)
def test_candidates_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    batch = random_batch(np.random.default_rng(0), 2, 4, 8)
    with pytest.raises(FeaturesInvalidError, match=r"expected . candidates of dimension 8"):
        match(batch[0], replace(batch, **change), MatchSettings())


@pytest.mark.parametrize("mask", [np.ones(3, np.bool_), np.ones(4, np.int8)])
def test_a_mask_of_another_shape_or_type_is_refused(mask: np.ndarray) -> None:
    batch = random_batch(np.random.default_rng(0), 2, 4, 8)
    with pytest.raises(FeaturesInvalidError, match=r"query_mask must be bool \[4\]; got"):
        match(batch[0], batch, MatchSettings(), query_mask=mask)


def test_no_candidates_give_no_matches() -> None:
    batch = random_batch(np.random.default_rng(0), 1, 4, 8)
    matches = match(batch[0], batch.take(slice(0, 0)), MatchSettings())
    assert len(matches.score) == 0


def test_more_than_1040_dimensions_still_multiply_exactly() -> None:
    rng = np.random.default_rng(0)
    dim = 2048
    cells = np.where(rng.random((2, 3, dim)) < 0.5, -127, 127).astype(np.int8)
    embedding = np.full((2, dim), dim**-0.5, np.float32)
    batch = FeatureBatch(embeddings=embedding, cells=cells, scales=np.full((2, 3), 2**-13, np.float16))
    flow = explain(batch[0], batch[1], MatchSettings(mode=MatchMode.SAME_CELL))
    exact = cells[1].astype(np.int64) @ cells[0].astype(np.int64).T
    assert np.array_equal(flow.similarities, (exact * 2.0**-26).astype(np.float32))


def test_warming_up_twice_is_harmless() -> None:
    warm_up()
    warm_up()


def test_after_warming_up_no_request_compiles_anything() -> None:
    probe = Path(__file__).parent.parent / "warm_up_probe.py"
    ran = subprocess.run([sys.executable, str(probe)], check=True, capture_output=True, text=True)
    assert ran.stdout == "compiled by a request: []\n"

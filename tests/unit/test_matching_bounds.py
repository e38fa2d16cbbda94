"""Bounds and the floor: what is skipped is below it, what is solved is what it would have been."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchflow_matching import (
    CellGrid,
    FeatureBatch,
    Features,
    MatchMode,
    MatchSettings,
    explain,
    explain_batch,
    match,
    matchers,
    top_flows,
)
from matchflow_matching.matchers import BOUNDS, MATCHERS
from matching_strategies import SETTINGS, pairs, random_batch

few = settings(max_examples=40, deadline=None)
GRID = CellGrid(rows=4, columns=4)
MODES = sorted(MATCHERS)


@few
@given(
    seed=st.integers(0, 2**32),
    mode=st.sampled_from(MODES),
    spread=st.sampled_from([0.0, 0.3, 1.0, 10.0]),
    limit=st.sampled_from([1, 2, 200]),
    rank=st.integers(0, 23),
)
def test_a_floor_skips_only_pairs_below_it_and_changes_no_bit_of_the_others(
    seed: int, mode: MatchMode, spread: float, limit: int, rank: int
) -> None:
    batch = random_batch(np.random.default_rng(seed), 24, 16, 32, spread)
    chosen = MatchSettings.of(mode, max_iterations=limit)
    whole = match(batch[0], batch, chosen, grid=GRID)
    floor = float(np.sort(whole.score)[rank])
    some = match(batch[0], batch, chosen, grid=GRID, floor=floor)
    assert (whole.score[~some.solved] < floor).all()
    for name in ("structural", "score", "iterations", "marginal_error", "converged"):
        assert np.array_equal(getattr(some, name)[some.solved], getattr(whole, name)[some.solved])
    assert (some.upper_bound >= whole.score).all()
    assert np.array_equal(some.score[~some.solved], some.upper_bound[~some.solved])
    assert whole.solved.all()
    assert np.array_equal(whole.upper_bound, whole.score)


@few
@given(pair=pairs(), limit=st.sampled_from([1, 3, 10_000]))
def test_the_column_bound_holds_before_convergence(pair: tuple[Features, FeatureBatch], limit: int) -> None:
    query, candidates = pair
    chosen = replace(SETTINGS, max_iterations=limit)
    bounded = match(query, candidates, chosen, floor=-1e9)
    assert bounded.solved.all()
    assert (bounded.score <= bounded.upper_bound).all()


@pytest.mark.parametrize("mode", sorted(BOUNDS))
def test_a_high_floor_skips_everything_and_a_bound_too_low_is_noticed(
    mode: MatchMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = random_batch(np.random.default_rng(0), 10, 16, 32)
    chosen = MatchSettings.of(mode)
    none = match(batch[0], batch, chosen, grid=GRID, floor=20.0)
    assert not none.solved.any()
    assert not none.iterations.any()
    whole = match(batch[0], batch, chosen, grid=GRID)
    wrong = {mode: lambda problem: BOUNDS[mode](problem) - np.float32(0.5)}
    monkeypatch.setattr("matchflow_matching.matching.BOUNDS", wrong)
    found = match(batch[0], batch, chosen, grid=GRID, floor=float(whole.score[0]))
    assert not found.solved[0]


def test_a_damaged_candidate_is_not_lifted_by_a_floor() -> None:
    batch = random_batch(np.random.default_rng(0), 4, 16, 32)
    batch.scales[2] = np.nan
    for floor in (-5.0, 0.5, 5.0):
        matches = match(batch[0], batch, MatchSettings(), floor=floor)
        assert matches.structural[2] == matches.cosine[2] == -1
        assert np.isfinite(matches.upper_bound).all()


def test_the_slack_grows_with_the_cells_and_stays_small() -> None:
    assert matchers.bound_slack(16) < matchers.bound_slack(128) < 1e-4


@few
@given(seed=st.integers(0, 2**32), mode=st.sampled_from(MODES), n=st.integers(0, 5))
def test_plans_of_a_batch_are_those_of_its_pairs(seed: int, mode: MatchMode, n: int) -> None:
    batch = random_batch(np.random.default_rng(seed), 6, 16, 32)
    chosen = MatchSettings.of(mode)
    masks = np.random.default_rng(seed).random((n, 16)) < 0.8
    together = explain_batch(batch[5], batch.take(slice(0, n)), chosen, grid=GRID, image_masks=masks)
    assert len(together) == n
    for k, flow in enumerate(together):
        alone = explain(batch[5], batch[k], chosen, grid=GRID, image_mask=masks[k])
        assert np.array_equal(flow.plan, alone.plan)
        assert np.array_equal(flow.similarities, alone.similarities)


@few
@given(seed=st.integers(0, 2**32), mode=st.sampled_from(MODES), spread=st.sampled_from([0.1, 1.0, 10.0]))
def test_every_score_is_the_sum_of_its_contributions(seed: int, mode: MatchMode, spread: float) -> None:
    batch = random_batch(np.random.default_rng(seed), 4, 16, 32, spread)
    chosen = MatchSettings.of(mode)
    rng = np.random.default_rng(seed)
    masks, mask = rng.random((4, 16)) < 0.8, rng.random(16) < 0.8
    matches = match(batch[0], batch, chosen, grid=GRID, query_mask=mask, image_masks=masks)
    flows = explain_batch(batch[0], batch, chosen, grid=GRID, query_mask=mask, image_masks=masks)
    for n, flow in enumerate(flows):
        total = sum(each.contribution for each in top_flows(flow, flow.plan.size))
        assert total == pytest.approx(matches.structural[n], abs=2e-6)
        assert (flow.plan >= 0).all()
        assert flow.plan.sum() <= 1 + 1e-5
        assert not flow.plan[~masks[n]].any()
        assert not flow.plan[:, ~mask].any()
        assert matches.structural[n] <= flow.similarities.max() + 1e-6

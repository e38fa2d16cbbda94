"""Transport at costs that float32 kernels can't carry: small epsilon, heavy spatial weights, extreme masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchflow_matching import (
    CellGrid,
    FeatureBatch,
    Features,
    Marginals,
    MatchMode,
    MatchSettings,
    explain,
    kernels,
    log_kernels,
    match,
)
from matchflow_matching.matchers import FLOAT32_EPSILONS
from matchflow_matching.positions import squared_distances
from matching_strategies import SETTINGS, pairs, random_batch, reference_pair

few = settings(max_examples=25, deadline=None)
GRID = CellGrid(rows=4, columns=4)


@few
@given(pair=pairs())
def test_both_domains_give_the_same_scores_where_both_can(pair: tuple[Features, FeatureBatch]) -> None:
    query, candidates = pair
    fast = match(query, candidates, SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "transport", lambda *arguments: log_kernels.transport(*arguments[:-1]))
        slow = match(query, candidates, SETTINGS)
    np.testing.assert_allclose(fast.structural, slow.structural, atol=1e-5)
    assert np.array_equal(fast.query_uniform, slow.query_uniform)
    assert np.array_equal(fast.image_uniform, slow.image_uniform)


@few
@given(seed=st.integers(0, 2**32), epsilon=st.sampled_from([0.005, 0.01, 0.029]))
def test_a_small_epsilon_gives_the_plan_of_pot(seed: int, epsilon: float) -> None:
    batch = random_batch(np.random.default_rng(seed), 2, 8, 32)
    chosen = replace(SETTINGS, epsilon=epsilon)
    expected = reference_pair(batch[0], batch[1])
    plan = ot.sinkhorn(
        expected.image_weights,
        expected.query_weights,
        1 - expected.similarity,
        epsilon,
        method="sinkhorn_log",
        stopThr=1e-9,
        numItermax=100_000,
        warn=False,
    )
    matches = match(batch[0], batch, chosen)
    if matches.converged[1]:
        assert matches.structural[1] == pytest.approx(float((plan * expected.similarity).sum()), abs=1e-4)
    assert matches.marginal_error[1] <= 1e-6 or not matches.converged[1]


def test_the_score_approaches_the_exact_one_as_epsilon_falls() -> None:
    batch = random_batch(np.random.default_rng(4), 2, 8, 32)
    expected = reference_pair(batch[0], batch[1])
    exact = 1 - ot.emd2(expected.image_weights, expected.query_weights, 1 - expected.similarity)
    gaps = [
        exact - float(match(batch[0], batch, replace(SETTINGS, epsilon=epsilon)).structural[1])
        for epsilon in (0.3, 0.1, 0.03, 0.01, 0.005)
    ]
    assert all(gap >= -1e-5 for gap in gaps)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 5e-3


@few
@given(
    seed=st.integers(0, 2**32),
    weight=st.sampled_from([2.0, 10.0, 100.0]),
    query_cell=st.integers(0, 15),
    image_cell=st.integers(0, 15),
)
def test_one_cell_masks_leave_one_plan_however_far_apart(
    seed: int, weight: float, query_cell: int, image_cell: int
) -> None:
    batch = random_batch(np.random.default_rng(seed), 2, 16, 32)
    chosen = replace(SETTINGS, mode=MatchMode.POSITION_AWARE, spatial_weight=weight, marginals=Marginals.UNIFORM)
    masks = np.zeros((2, 16), np.bool_)
    masks[:, image_cell] = True
    only = np.zeros(16, np.bool_)
    only[query_cell] = True
    both = match(batch[0], batch, chosen, grid=GRID, query_mask=only, image_masks=masks)
    flow = explain(batch[0], batch[1], chosen, grid=GRID)
    similarity = flow.similarities - flow.penalties
    assert both.structural[1] == pytest.approx(similarity[image_cell, query_cell], abs=1e-6)
    assert both.converged.all()
    rows = match(batch[0], batch, chosen, grid=GRID, image_masks=masks)
    assert rows.structural[1] == pytest.approx(similarity[image_cell].mean(), rel=1e-5, abs=1e-5)
    columns = match(batch[0], batch, chosen, grid=GRID, query_mask=only)
    assert columns.structural[1] == pytest.approx(similarity[:, query_cell].mean(), rel=1e-5, abs=1e-5)


@few
@given(seed=st.integers(0, 2**32), epsilon=st.sampled_from([0.03, 0.05, 0.2]), extra=st.booleans())
def test_nothing_jumps_where_the_domain_changes(seed: int, epsilon: float, extra: bool) -> None:
    batch = random_batch(np.random.default_rng(seed), 2, 16, 32)
    border = FLOAT32_EPSILONS * epsilon - 2
    weight = max(0.0, border * (1.001 if extra else 0.999))
    chosen = replace(SETTINGS, mode=MatchMode.POSITION_AWARE, epsilon=epsilon, spatial_weight=weight)
    distances = squared_distances(GRID, GRID).astype(np.float64)
    expected = reference_pair(batch[0], batch[1], chosen, distances=distances)
    found = match(batch[0], batch, chosen, grid=GRID)
    assert found.structural[1] == pytest.approx(expected.structural, abs=3e-5)


def test_no_valid_cell_scores_zero_in_the_log_domain_too() -> None:
    batch = random_batch(np.random.default_rng(0), 3, 4, 8)
    masks = np.ones((3, 4), np.bool_)
    masks[1] = False
    matches = match(batch[0], batch, MatchSettings(epsilon=0.01), image_masks=masks)
    assert matches.structural[1] == 0
    assert matches.structural[0] > 0
    assert not match(batch[0], batch, MatchSettings(epsilon=0.01), query_mask=masks[1]).structural.any()


@few
@given(
    seed=st.integers(0, 2**32),
    weight=st.sampled_from([1.5, 2.0, 4.0, 20.0, 100.0]),
    epsilon=st.sampled_from([0.02, 0.05]),
    marginals=st.sampled_from(Marginals),
    kept=st.sampled_from([0.2, 0.6, 1.0]),
)
def test_what_float32_carries_beyond_its_range_is_what_the_log_domain_says(
    seed: int, weight: float, epsilon: float, marginals: Marginals, kept: float
) -> None:
    rng = np.random.default_rng(seed)
    batch = random_batch(rng, 6, 16, 32)
    chosen = replace(
        SETTINGS,
        mode=MatchMode.POSITION_AWARE,
        spatial_weight=weight,
        epsilon=epsilon,
        marginals=marginals,
        max_iterations=1000,
    )
    masks, mask = rng.random((6, 16)) < kept, rng.random(16) < kept
    found = match(batch[0], batch, chosen, grid=GRID, query_mask=mask, image_masks=masks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "transport", lambda *arguments: arguments[-1].fill(False))
        slow = match(batch[0], batch, chosen, grid=GRID, query_mask=mask, image_masks=masks)
    both = found.converged & slow.converged
    np.testing.assert_allclose(found.structural[both], slow.structural[both], rtol=1e-5, atol=2e-5)
    assert np.isfinite(found.structural).all()
    assert found.converged.sum() >= slow.converged.sum()


def test_a_pair_goes_to_the_log_domain_whatever_else_is_in_the_batch() -> None:
    batch = random_batch(np.random.default_rng(0), 8, 16, 32)
    masks = np.ones((8, 16), np.bool_)
    masks[::2] = False
    masks[::2, 15] = True
    chosen = replace(SETTINGS, mode=MatchMode.POSITION_AWARE, spatial_weight=6.0)
    whole = match(batch[1], batch, chosen, grid=GRID, image_masks=masks)
    for n in range(8):
        alone = match(batch[1], batch.take(slice(n, n + 1)), chosen, grid=GRID, image_masks=masks[n : n + 1])
        assert alone.score[0] == whole.score[n]
        assert alone.iterations[0] == whole.iterations[n]

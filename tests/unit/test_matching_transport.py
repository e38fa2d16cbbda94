"""The compiled transport against the float64 reference and against POT, and the corrections of the released code."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

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
    match,
    quantise,
    reference,
)
from matchflow_matching.matchers import MATCHERS
from matchflow_matching.positions import squared_distances
from matching_strategies import SETTINGS, pairs, random_batch, reference_pair

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

few = settings(max_examples=40, deadline=None)


def one(image: Features) -> FeatureBatch:
    return FeatureBatch.stack([image])


def unit(rows: ArrayLike) -> NDArray[np.float32]:
    array = np.array(rows, np.float64)
    normalised: NDArray[np.float64] = array / np.linalg.norm(array, axis=-1, keepdims=True)
    return normalised.astype(np.float32)


@few
@given(pair=pairs(), marginals=st.sampled_from(Marginals), epsilon=st.sampled_from([0.03, 0.05, 0.5]))
def test_the_kernel_agrees_with_the_float64_reference(
    pair: tuple[Features, FeatureBatch], marginals: Marginals, epsilon: float
) -> None:
    query, candidates = pair
    chosen = replace(SETTINGS, marginals=marginals, epsilon=epsilon)
    matches = match(query, candidates, chosen)
    for n in range(len(candidates)):
        expected = reference_pair(query, candidates[n], chosen)
        # Both stop within the tolerance, not at the same point: a violation of 1e-6 moves the score by at most 2e-6.
        assert matches.structural[n] == pytest.approx(expected.structural, abs=1e-5)
        assert bool(matches.image_uniform[n]) == expected.image_uniform
        assert bool(matches.query_uniform[n]) == expected.query_uniform


@few
@given(seed=st.integers(0, 2**32), cells=st.integers(2, 16))
def test_pot_finds_the_same_plan(seed: int, cells: int) -> None:
    batch = random_batch(np.random.default_rng(seed), 2, cells, 32)
    expected = reference_pair(batch[0], batch[1])
    plan = ot.sinkhorn(
        expected.image_weights,
        expected.query_weights,
        1 - expected.similarity,
        SETTINGS.epsilon,
        method="sinkhorn_log",
        stopThr=1e-10,
        numItermax=20_000,
    )
    flow = explain(batch[0], batch[1], SETTINGS)
    np.testing.assert_allclose(flow.plan, plan, atol=5e-6)


@few
@given(pair=pairs())
def test_scores_respect_the_chain_of_bounds(pair: tuple[Features, FeatureBatch]) -> None:
    query, candidates = pair
    structural = match(query, candidates, SETTINGS).structural
    max_sim = match(query, candidates, replace(SETTINGS, mode=MatchMode.MAX_SIM)).structural
    for n in range(len(candidates)):
        expected = reference_pair(query, candidates[n])
        independent = expected.image_weights @ expected.similarity @ expected.query_weights
        exact = 1 - ot.emd2(expected.image_weights, expected.query_weights, 1 - expected.similarity)
        assert independent - 1e-5 <= structural[n] <= exact + 1e-5
        assert structural[n] <= max_sim[n] + 1e-5
        assert max_sim[n] == pytest.approx(
            reference.max_sim(expected.similarity, expected.query_weights, np.ones(len(candidates[n].cells), np.bool_)),
            abs=1e-6,
        )


@few
@given(pair=pairs(), data=st.data())
def test_a_pair_scores_bit_equal_whatever_else_is_in_the_batch(
    pair: tuple[Features, FeatureBatch], data: st.DataObject
) -> None:
    query, candidates = pair
    whole = match(query, candidates, MatchSettings())
    order = np.array(data.draw(st.permutations(range(len(candidates)))))
    shuffled = match(query, candidates.take(order), MatchSettings())
    for position, n in enumerate(order):
        alone = match(query, one(candidates[int(n)]), MatchSettings())
        for name in ("cosine", "structural", "score", "iterations", "marginal_error", "converged"):
            assert getattr(whole, name)[n] == getattr(alone, name)[0] == getattr(shuffled, name)[position]


def test_a_pair_scores_bit_equal_in_a_batch_of_a_thousand_and_in_many_threads() -> None:
    rng = np.random.default_rng(5)
    candidates = random_batch(rng, 1000, 16, 128)
    query = random_batch(rng, 1, 16, 128)[0]
    expected = match(query, candidates, MatchSettings()).score
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(match(query, candidates.take(slice(100, 300)), MatchSettings()).score)
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(np.array_equal(score, expected[100:300]) for score in found)


def test_a_slow_pair_does_not_change_how_long_a_quick_one_runs() -> None:
    rng = np.random.default_rng(1)
    quick, slow = random_batch(rng, 1, 9, 64, 0.2), random_batch(rng, 1, 9, 64, 20.0)
    query = random_batch(rng, 1, 9, 64, 20.0)[0]
    both = FeatureBatch.stack([quick[0], slow[0]])
    iterations = match(query, both, SETTINGS).iterations
    assert iterations[0] == match(query, quick, SETTINGS).iterations[0]
    assert iterations[0] != iterations[1]


@few
@given(pair=pairs(), tolerance=st.sampled_from([1e-2, 1e-4, 1e-6]), limit=st.sampled_from([1, 3, 200]))
def test_the_certificate_tells_the_truth(pair: tuple[Features, FeatureBatch], tolerance: float, limit: int) -> None:
    query, candidates = pair
    chosen = MatchSettings(tolerance=tolerance, max_iterations=limit)
    matches = match(query, candidates, chosen)
    for n in range(len(candidates)):
        weights = reference_pair(query, candidates[n])
        plan = explain(query, candidates[n], chosen).plan.astype(np.float64)
        violation = np.abs(plan.sum(axis=1) - weights.image_weights).sum()
        assert violation == pytest.approx(matches.marginal_error[n], abs=2e-6)
        assert bool(matches.converged[n]) == (matches.marginal_error[n] <= np.float32(tolerance))
        assert 1 <= matches.iterations[n] <= limit
        assert matches.converged[n] or matches.iterations[n] == limit
        np.testing.assert_allclose(plan.sum(axis=0), weights.query_weights, atol=2e-6)


@few
@given(pair=pairs())
def test_masses_sum_to_one_on_both_sides(pair: tuple[Features, FeatureBatch]) -> None:
    query, candidates = pair
    flow = explain(query, candidates[0], SETTINGS)
    assert float(flow.plan.astype(np.float64).sum()) == pytest.approx(1, abs=1e-6)
    assert float(flow.image_weights.astype(np.float64).sum()) == pytest.approx(1, abs=1e-6)
    assert float(flow.query_weights.astype(np.float64).sum()) == pytest.approx(1, abs=1e-6)


def test_no_attention_falls_back_to_uniform_weights_and_says_so() -> None:
    embedding = unit([[1.0, 0.0]])
    away = quantise(embedding, unit([[[-1.0, 0.1], [-1.0, -0.1], [-1.0, 0.3]]]))
    towards = quantise(embedding, unit([[[1.0, 0.1], [1.0, -0.1], [1.0, 0.3]]]))
    both = FeatureBatch.stack([away[0], towards[0]])
    matches = match(towards[0], both, MatchSettings())
    assert matches.image_uniform.tolist() == [True, False]
    assert matches.query_uniform.tolist() == [False, False]
    assert match(away[0], towards, MatchSettings()).query_uniform.tolist() == [True]
    np.testing.assert_allclose(explain(towards[0], away[0], SETTINGS).image_weights, np.full(3, 1 / 3), atol=1e-6)
    assert np.isfinite(matches.score).all()
    assert matches.score[0] < matches.score[1]


def test_uniform_weights_that_were_asked_for_are_no_fallback() -> None:
    batch = random_batch(np.random.default_rng(0), 2, 4, 8)
    matches = match(batch[0], batch, MatchSettings(marginals=Marginals.UNIFORM))
    assert not matches.image_uniform.any()
    assert not matches.query_uniform.any()


@pytest.mark.parametrize("mode", [MatchMode.STRUCTURAL, MatchMode.MAX_SIM, MatchMode.SAME_CELL])
@pytest.mark.parametrize("side", ["query", "image", "both"])
def test_without_a_valid_cell_the_structural_score_is_zero(mode: MatchMode, side: str) -> None:
    batch = random_batch(np.random.default_rng(0), 3, 4, 8)
    none, every = np.zeros(4, np.bool_), np.ones(4, np.bool_)
    query_mask = none if side in {"query", "both"} else every
    image_mask = none if side in {"image", "both"} else every
    chosen = MatchSettings(mode=mode)
    matches = match(batch[0], batch, chosen, query_mask=query_mask, image_masks=np.tile(image_mask, (3, 1)))
    assert matches.structural.tolist() == [0, 0, 0]
    assert np.array_equal(matches.score, matches.cosine)
    flow = explain(batch[0], batch[1], chosen, query_mask=query_mask, image_mask=image_mask)
    assert not (flow.plan * flow.similarities).any()


@few
@given(pair=pairs(), data=st.data(), mode=st.sampled_from([MatchMode.STRUCTURAL, MatchMode.MAX_SIM]))
def test_masked_cells_might_as_well_not_exist(
    pair: tuple[Features, FeatureBatch], data: st.DataObject, mode: MatchMode
) -> None:
    query, candidates = pair
    image = candidates[0]

    def mask(size: int) -> np.ndarray:
        kept = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
        return np.isin(np.arange(size), list(kept))

    query_mask, image_mask = mask(len(query.cells)), mask(len(image.cells))

    def keep(f: Features, m: np.ndarray) -> Features:
        return Features(embedding=f.embedding, cells=f.cells[m], scales=f.scales[m])

    chosen = replace(SETTINGS, mode=mode)
    masked = match(query, one(image), chosen, query_mask=query_mask, image_masks=image_mask[None])
    cut = match(keep(query, query_mask), one(keep(image, image_mask)), chosen)
    assert masked.structural[0] == pytest.approx(cut.structural[0], abs=1e-5)
    flow = explain(query, image, chosen, query_mask=query_mask, image_mask=image_mask)
    assert not flow.plan[~image_mask].any()
    assert not flow.plan[:, ~query_mask].any()


def test_grids_of_both_sides_may_differ() -> None:
    rng = np.random.default_rng(2)
    query, image = random_batch(rng, 1, 6, 16)[0], random_batch(rng, 1, 35, 16)[0]
    assert explain(query, image, MatchSettings()).plan.shape == (35, 6)
    assert match(query, one(image), SETTINGS).structural[0] == pytest.approx(
        reference_pair(query, image).structural, abs=1e-5
    )


def test_opposite_vectors_do_not_underflow() -> None:
    embedding = unit([[1.0, 0.0], [1.0, 0.0]])
    batch = quantise(embedding, unit([[[1.0, 0.0], [1.0, 0.0]], [[-1.0, 0.0], [-1.0, 0.0]]]))
    matches = match(batch[0], batch, SETTINGS)
    assert matches.structural.tolist() == pytest.approx([1, -1], abs=1e-3)
    assert matches.converged.all()


def test_an_image_matches_itself_best() -> None:
    batch = random_batch(np.random.default_rng(3), 50, 16, 128, 3.0)
    for n in range(50):
        assert int(np.argmax(match(batch[n], batch, MatchSettings()).score)) == n


@few
@given(
    pair=pairs(),
    poison=st.sampled_from([np.nan, np.inf, -np.inf, 3e38, 65504.0]),
    where=st.sampled_from(["embeddings", "scales"]),
    mode=st.sampled_from(sorted(MATCHERS)),
)
def test_a_damaged_candidate_never_gives_a_number_that_is_not_finite(
    pair: tuple[Features, FeatureBatch], poison: float, where: str, mode: MatchMode
) -> None:
    query, candidates = pair
    if mode is MatchMode.SAME_CELL and len(query.cells) != candidates.cells.shape[1]:
        candidates = one(query)
    grid, image_grid = CellGrid(rows=len(query.cells), columns=1), CellGrid(rows=candidates.cells.shape[1], columns=1)
    sound = match(query, candidates, MatchSettings.of(mode), grid=grid, image_grid=image_grid)
    damaged = FeatureBatch.stack([candidates[n] for n in range(len(candidates))])
    with np.errstate(over="ignore"):
        getattr(damaged, where)[0, ...] = np.array(poison).astype(getattr(damaged, where).dtype)
    matches = match(query, damaged, MatchSettings.of(mode), grid=grid, image_grid=image_grid)
    for name in ("cosine", "structural", "score"):
        assert np.isfinite(getattr(matches, name)).all()
        assert np.array_equal(getattr(matches, name)[1:], getattr(sound, name)[1:])
    if not np.isfinite(getattr(damaged, where)[0]).all():
        assert matches.cosine[0] == -1
        assert matches.structural[0] == -1 - MatchSettings.of(mode).spatial_weight
        assert not matches.converged[0]


@few
@given(seed=st.integers(0, 2**32), weight=st.sampled_from([0.0, 0.3, 1.0]), limit=st.integers(1, 40))
def test_over_relaxed_updates_end_with_a_plain_one_wherever_they_are_cut_off(
    seed: int, weight: float, limit: int
) -> None:
    batch = random_batch(np.random.default_rng(seed), 4, 16, 32, 3.0)
    chosen = MatchSettings.of(MatchMode.POSITION_AWARE, spatial_weight=weight, max_iterations=limit, tolerance=1e-6)
    matches = match(batch[0], batch, chosen, grid=CellGrid(rows=4, columns=4))
    for n in range(4):
        plan = explain(batch[0], batch[n], chosen, grid=CellGrid(rows=4, columns=4)).plan.astype(np.float64)
        weights = reference_pair(batch[0], batch[n], chosen)
        np.testing.assert_allclose(plan.sum(axis=0), weights.query_weights, atol=2e-6)
        violation = np.abs(plan.sum(axis=1) - weights.image_weights).sum()
        assert violation == pytest.approx(matches.marginal_error[n], abs=3e-6)
        assert matches.iterations[n] <= limit


def test_over_relaxation_halves_the_iterations_of_slow_pairs() -> None:
    batch = random_batch(np.random.default_rng(0), 60, 16, 32, 3.0)
    chosen = MatchSettings.of(MatchMode.POSITION_AWARE, tolerance=1e-5, max_iterations=10_000)
    distances = squared_distances(CellGrid(rows=4, columns=4), CellGrid(rows=4, columns=4)).astype(np.float64)
    matches = match(batch[0], batch, chosen, grid=CellGrid(rows=4, columns=4))
    plain = np.array(
        [reference_pair(batch[0], batch[n], chosen, distances=distances).plan.iterations for n in range(60)]
    )
    slow = plain > 20
    assert slow.any()
    assert matches.iterations[slow].mean() < plain[slow].mean() / 2

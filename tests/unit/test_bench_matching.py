"""The yardsticks, the float64 reference and the adversarial pairs of `make bench-matching`."""

from __future__ import annotations

import importlib
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import ot
import pytest
import torch

from matchflow_matching import (
    CellGrid,
    FeatureBatch,
    FeaturesInvalidError,
    Marginals,
    Matches,
    MatchMode,
    MatchSettings,
    dequantise,
    match,
    positions,
    quantise,
    reference,
)
from matching_strategies import random_batch, reference_pair

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
GRID = CellGrid(rows=4, columns=4)
TIGHT = MatchSettings(tolerance=1e-6, max_iterations=10_000)
FAMILIES = (
    "real",
    "real_at_random",
    "masked",
    "one_cell_of_query",
    "one_cell_of_image",
    "one_cell_of_both",
    "identical",
    "near_duplicates",
    "opposite",
    "constant_maps",
    "zero_cells",
    "own_axes",
    "one_bright_cell",
    "hardly_attentive",
    "scattered",
)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    # Benchmarks are scripts: each finds its neighbours in its own folder.
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = ("released", "matching", "matching_errors", "matching_shapes", "adversarial")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture
def released(bench: SimpleNamespace) -> ModuleType:
    module: ModuleType = bench.released
    return module


@pytest.fixture(scope="module")
def images() -> FeatureBatch:
    """Images that resemble each other, so that all cells attend; real ones take a model."""
    return random_batch(np.random.default_rng(0), 120, GRID.size, 32, 1.0)


def batch_of(images: FeatureBatch, *indices: int) -> FeatureBatch:
    return images.take(np.array(indices))


def test_the_released_algorithm_run_to_its_end_finds_pots_plan(released: ModuleType, images: FeatureBatch) -> None:
    result = released.Released.of(images[0], batch_of(images, 1, 2, 3)).score(early_stop=False, most_iterations=5_000)
    assert result.iterations == 5_000
    for n in range(3):
        expected = reference_pair(images[0], images[n + 1])
        plan = ot.sinkhorn(
            expected.image_weights,
            expected.query_weights,
            1 - expected.similarity,
            released.EPSILON,
            method="sinkhorn_log",
            stopThr=1e-10,
            numItermax=20_000,
        )
        np.testing.assert_allclose(result.plans[n].numpy(), plan, atol=2e-5)


def test_the_released_algorithm_run_to_its_end_gives_our_scores(released: ModuleType, images: FeatureBatch) -> None:
    candidates = images.take(slice(1, None))
    result = released.Released.of(images[0], candidates).score(early_stop=False)
    assert result.iterations == released.MOST_ITERATIONS == 100
    np.testing.assert_allclose(result.scores.numpy(), match(images[0], candidates, TIGHT).score, atol=1e-4)


def test_the_released_stop_makes_a_score_depend_on_the_rest_of_the_batch(
    released: ModuleType, images: FeatureBatch
) -> None:
    candidates = images.take(slice(1, 31))

    def scores(*, early_stop: bool) -> tuple[np.ndarray, np.ndarray]:
        crowd = released.Released.of(images[0], candidates).score(early_stop=early_stop).scores
        alone = [
            released.Released.of(images[0], batch_of(candidates, n)).score(early_stop=early_stop) for n in range(30)
        ]
        return crowd.numpy(), np.array([float(result.scores[0]) for result in alone])

    crowd, alone = scores(early_stop=True)
    assert np.abs(crowd - alone).max() > 1e-4
    # Without that stop, and with ours, the rest makes no difference.
    crowd, alone = scores(early_stop=False)
    np.testing.assert_allclose(crowd, alone, atol=1e-6)
    ours = match(images[0], candidates, MatchSettings()).score
    assert [match(images[0], batch_of(candidates, n), MatchSettings()).score[0] for n in range(30)] == ours.tolist()


def test_the_released_stop_comes_when_the_mean_change_is_below_a_tenth(
    released: ModuleType, images: FeatureBatch
) -> None:
    candidates = images.take(slice(1, 40))
    stopped = released.Released.of(images[0], candidates).score(early_stop=True)
    scaling = np.ones((39, 16))
    changes = []
    pairs = [reference_pair(images[0], candidates[n]) for n in range(39)]
    columns = np.ones((39, 16))
    for _ in range(stopped.iterations):
        before = scaling.copy()
        for n, pair in enumerate(pairs):
            kernel = np.exp((pair.similarity - 1) / released.EPSILON)
            scaling[n] = pair.image_weights / (kernel @ columns[n])
            columns[n] = pair.query_weights / (kernel.T @ scaling[n])
        changes.append(np.abs(scaling - before).mean())
    assert changes[-1] < released.MEAN_CHANGE
    assert all(change >= released.MEAN_CHANGE for change in changes[:-1])


def test_the_released_algorithm_knows_no_pair_without_attention(released: ModuleType) -> None:
    axis = np.eye(4, dtype=np.float32)
    away = quantise(axis[:1], -axis[None, [0, 0]])
    result = released.Released.of(quantise(axis[:1], axis[None, [0, 0]])[0], away).score(early_stop=True)
    assert not torch.isfinite(result.scores).all() or not result.plans.any()
    assert np.isfinite(match(quantise(axis[:1], axis[None, [0, 0]])[0], away, MatchSettings()).score).all()


def test_the_corrected_yardstick_gives_our_scores(bench: SimpleNamespace, images: FeatureBatch) -> None:
    candidates = images.take(slice(1, None))
    scores, steps = bench.matching.TorchYardstick(images[0], candidates, 0.05).score(1e-5, 1000)
    ours = match(images[0], candidates, replace(TIGHT, tolerance=1e-5))
    assert 1 < steps < 1000
    np.testing.assert_allclose(scores.numpy(), ours.score, atol=2e-5)


def test_the_bare_product_has_the_shapes_of_a_match(bench: SimpleNamespace, images: FeatureBatch) -> None:
    candidates = images.take(slice(1, 11))
    product = bench.matching.BareProduct(images[0], candidates)
    product.multiply()
    assert product.out.shape == (10 * 17, 17)
    found = product.out.reshape(10, 17, 17)
    similarities = dequantise(candidates) @ dequantise(FeatureBatch.stack([images[0]]))[0].T
    np.testing.assert_allclose(found[:, :16, :16], similarities, atol=1e-5)
    np.testing.assert_allclose(found[:, 16, 16], candidates.embeddings @ images[0].embedding, atol=1e-5)


@pytest.mark.parametrize("marginals", Marginals)
def test_many_pairs_at_once_get_the_scores_of_the_reference(
    bench: SimpleNamespace, images: FeatureBatch, marginals: Marginals
) -> None:
    rng = np.random.default_rng(1)
    case = bench.adversarial.masked(rng, images, GRID)
    found = bench.matching_errors.reference_scores(case, replace(TIGHT, marginals=marginals))
    z_q = dequantise(FeatureBatch.stack([case.query]))[0].astype(np.float64)
    g_q = case.query.embedding.astype(np.float64)
    for n in range(len(case.candidates)):
        image = case.candidates[n]
        z_x, g_x = dequantise(case.candidates)[n].astype(np.float64), image.embedding.astype(np.float64)
        towards_x, towards_q = {
            Marginals.CROSS_CORRELATION: (g_q, g_x),
            Marginals.SELF_CORRELATION: (g_x, g_q),
            Marginals.UNIFORM: (0 * g_q, 0 * g_x),
        }[marginals]
        u = reference.correlation_weights(z_x, towards_x, case.image_masks[n])[0]
        v = reference.correlation_weights(z_q, towards_q, case.query_mask)[0]
        similarity = reference.similarities(z_x, z_q)
        plan = reference.sinkhorn(similarity, u, v, epsilon=0.05, tolerance=1e-6, limit=10_000).plan
        assert found.scores[n] == pytest.approx((plan * similarity).sum() + g_q @ g_x, abs=1e-12)
    assert found.converged.all()


def test_pairs_that_run_to_the_limit_are_cut_there_and_said_to_be(bench: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    kernels, u, v = np.exp(-20 * rng.random((9, 4, 5))), rng.random((9, 4)), rng.random((9, 5))
    u, v = u / u.sum(axis=1, keepdims=True), v / v.sum(axis=1, keepdims=True)
    cut, cut_converged = bench.matching_errors.entropic_plans(kernels, u, v, 1e-9, 3)
    plans, converged = bench.matching_errors.entropic_plans(kernels, u, v, 1e-9, 100_000)
    assert converged.all()
    assert not cut_converged.all()
    np.testing.assert_allclose(plans.sum(axis=2), u, atol=2e-9)
    np.testing.assert_allclose(cut.sum(axis=1), v, atol=1e-12)
    for n in range(9):
        similarity = np.log(kernels[n]) * 0.05 + 1
        alone = reference.sinkhorn(similarity, u[n], v[n], epsilon=0.05, tolerance=1e-9, limit=100_000)
        np.testing.assert_allclose(plans[n], alone.plan, atol=1e-12)


@pytest.mark.parametrize("shapes", [((4, 4), (4, 4)), ((1, 1), (3, 2)), ((7, 2), (1, 5))])
def test_the_distances_written_cell_by_cell_are_those_of_the_product(
    bench: SimpleNamespace, shapes: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    image_grid, query_grid = (CellGrid(rows=rows, columns=columns) for rows, columns in shapes)
    found = bench.matching_errors.squared_distances(image_grid, query_grid)
    np.testing.assert_allclose(found, positions.squared_distances(image_grid, query_grid), atol=1e-6)


def test_there_is_a_family_for_everything_that_was_asked_for(bench: SimpleNamespace, images: FeatureBatch) -> None:
    assert tuple(bench.adversarial.FAMILIES) == FAMILIES
    chosen = bench.adversarial.cases(np.random.default_rng(0), images, GRID, 3_000)
    assert sum(len(case.candidates) for _, case in chosen) == 3_000
    assert {name for name, _ in chosen} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_makes_pairs_that_can_be_matched(bench: SimpleNamespace, images: FeatureBatch, family: str) -> None:
    case = bench.adversarial.FAMILIES[family](np.random.default_rng(2), images, GRID)
    assert len(case.candidates) == bench.adversarial.PAIRS
    assert case.query_mask.shape == case.query.scales.shape == (case.query_grid.size,)
    assert case.image_masks.shape == case.candidates.scales.shape == (50, case.image_grid.size)
    assert bench.adversarial.is_finite(case.query)
    lengths = np.linalg.norm(case.candidates.embeddings, axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-3)


def test_the_families_are_what_they_are_called(bench: SimpleNamespace, images: FeatureBatch) -> None:
    made = {name: family(np.random.default_rng(4), images, GRID) for name, family in bench.adversarial.FAMILIES.items()}
    assert made["one_cell_of_query"].query_mask.sum() == 1
    assert (made["one_cell_of_image"].image_masks.sum(axis=1) == 1).all()
    both = made["one_cell_of_both"]
    assert both.query_mask.sum() == 1
    assert (both.image_masks.sum(axis=1) == 1).all()
    assert (made["identical"].candidates.cells == made["identical"].query.cells).all()
    steps = made["near_duplicates"].candidates.cells.astype(int) - made["near_duplicates"].query.cells
    assert np.abs(steps).max() == 1
    turned = made["opposite"]
    assert (turned.candidates.cells[0] == -turned.query.cells).all()
    flat = made["constant_maps"].candidates.cells
    assert (flat == flat[:, :1]).all()
    assert not dequantise(made["zero_cells"].candidates)[:3].any()
    axes = made["own_axes"]
    similarities = dequantise(axes.candidates) @ dequantise(FeatureBatch.stack([axes.query]))[0].T
    assert np.abs(similarities - np.rint(similarities)).max() < 1e-3
    assert set(np.rint(similarities).ravel().tolist()) == {-1, 0, 1}
    bright = made["one_bright_cell"]
    weights = bench.matching_errors.weights(dequantise(bright.candidates) @ bright.query.embedding, bright.image_masks)
    assert weights[0].max() > 0.5


def test_damage_is_done_to_some_images_and_the_others_stay_as_they_were(
    bench: SimpleNamespace, images: FeatureBatch
) -> None:
    broken = bench.adversarial.damaged(np.random.default_rng(0), images)
    changed = [
        any((getattr(broken, name)[n] != getattr(images, name)[n]).any() for name in ("embeddings", "cells", "scales"))
        for n in range(len(images))
    ]
    assert 0.2 < np.mean(changed) < 0.5
    unreadable = [not bench.adversarial.is_finite(broken[n]) for n in range(len(images))]
    assert 0 < sum(unreadable) < sum(changed)


def test_an_error_planted_in_a_score_shows(
    bench: SimpleNamespace, images: FeatureBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = bench.adversarial.cases(np.random.default_rng(0), images, GRID, 100)
    modes = [MatchMode.STRUCTURAL, MatchMode.POSITION_AWARE]
    sound = bench.matching_errors.score_errors(chosen, modes)
    assert sound["pairs"] == 100
    assert set(sound["by_family"]) == {"structural", "position_aware"}
    assert sound["max_score_error"] < 1e-5

    def off(*arguments: Any, **given: Any) -> Any:
        found = match(*arguments, **given)
        found.score[7] += 1e-3
        return found

    monkeypatch.setattr(bench.matching_errors, "match", off)
    assert bench.matching_errors.score_errors(chosen, modes)["max_score_error"] == pytest.approx(1e-3, abs=1e-5)


def test_a_number_that_is_not_finite_is_counted(
    bench: SimpleNamespace, images: FeatureBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [("real", bench.adversarial.real(np.random.default_rng(0), images, GRID))]
    monkeypatch.setattr(bench.matching_errors, "damaged", lambda _rng, batch: batch)
    count = bench.matching_errors.non_finite_numbers
    assert count(np.random.default_rng(0), chosen, list(MatchMode))["non_finite_out"] == 0

    def spoiled(*arguments: Any, **given: Any) -> Any:
        found = match(*arguments, **given)
        found.marginal_error[3:5] = np.nan
        return found

    monkeypatch.setattr(bench.matching_errors, "match", spoiled)
    assert count(np.random.default_rng(0), chosen, [MatchMode.STRUCTURAL])["non_finite_out"] == 2


def test_a_query_that_is_not_finite_counts_as_handled_when_it_is_refused(
    bench: SimpleNamespace, images: FeatureBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(_rng: np.random.Generator, batch: FeatureBatch) -> FeatureBatch:
        # Queries are drawn from eight damaged ones.
        return replace(batch, embeddings=np.full_like(batch.embeddings, np.inf)) if len(batch) == 8 else batch

    monkeypatch.setattr(bench.matching_errors, "damaged", poisoned)
    case = bench.adversarial.case(images[0], images.take(slice(1, 5)), GRID)
    count, rng = bench.matching_errors.non_finite_numbers, np.random.default_rng(1)
    counts = count(rng, [("real", case)], [MatchMode.STRUCTURAL], 1.0)
    assert counts == {"non_finite_out": 0, "pairs": 4, "refused_queries": 2}
    monkeypatch.setattr(bench.matching_errors, "match", lambda *_, **__: match(images[0], images, MatchSettings()))
    counts = count(rng, [("real", case)], [MatchMode.STRUCTURAL], 1.0)
    assert counts["non_finite_out"] == len(fields(Matches)) * len(images)


def test_a_sound_query_that_is_refused_stops_the_benchmark(
    bench: SimpleNamespace, images: FeatureBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object, **__: object) -> None:
        raise FeaturesInvalidError("no reason")

    monkeypatch.setattr(bench.matching_errors, "match", refusing)
    case = bench.adversarial.case(images[0], images.take(slice(1, 5)), GRID)
    with pytest.raises(FeaturesInvalidError, match="no reason"):
        bench.matching_errors.non_finite_numbers(
            np.random.default_rng(0), [("real", case)], [MatchMode.STRUCTURAL], 0.0
        )


@pytest.mark.parametrize("mode", MatchMode)
def test_settings_drawn_for_damage_reach_the_ends_of_their_ranges(bench: SimpleNamespace, mode: MatchMode) -> None:
    rng = np.random.default_rng(0)
    drawn = [bench.matching_errors.drawn_settings(rng, mode) for _ in range(100)]
    assert {each.mode for each in drawn} == {mode}
    assert {each.marginals for each in drawn} == set(Marginals)
    assert {each.global_weight for each in drawn} == {0, 1, 10}
    assert {each.epsilon for each in drawn} == {0.005, 0.05, 10}
    assert {each.spatial_weight for each in drawn} <= {0, 1, 100}


def test_a_run_gives_every_figure(bench: SimpleNamespace, images: FeatureBatch) -> None:
    rng = np.random.default_rng(0)
    found = {"4x4x128": bench.matching_shapes.shortlists(images, GRID, 2)}
    for name, shape in bench.matching_shapes.OTHER_SHAPES.items():
        batch = random_batch(rng, 5, shape.grid.size, shape.dim)
        found[name] = bench.matching_shapes.shortlists(batch, shape.grid, 1)
    figures, details = bench.matching.run(found, error_pairs=50, damaged_pairs=50, turns=1)
    assert set(figures) == {
        "ms_4x4x128",
        "ms_4x4x128_default_tolerance",
        "speedup_vs_released_full_4x4x128",
        "speedup_vs_released_4x4x128",
        "speedup_vs_released_7x7x128",
        "speedup_vs_released_8x4x512",
        "over_blas_4x4x128",
        "over_blas_7x7x128",
        "speedup_vs_torch_same_tolerance",
        "largest_score_difference",
        "max_score_error",
        "non_finite_out",
    }
    assert all(np.isfinite(value) for value in figures.values())
    assert details["queries"] == {"4x4x128": 2, "7x7x128": 1, "8x4x512": 1}


def test_a_shortlist_is_the_best_by_the_global_vector_without_the_query(
    bench: SimpleNamespace, images: FeatureBatch
) -> None:
    lists = bench.matching_shapes.shortlists(images, GRID, 3)
    assert len(lists) == 3
    for number, each in zip((0, 40, 80), lists, strict=True):
        cosines = images.embeddings @ images.embeddings[number]
        expected = np.sort(np.delete(cosines, number))[::-1][:100]
        np.testing.assert_allclose(each.candidates.embeddings @ each.query.embedding, expected, atol=1e-6)
        assert (each.query.embedding == images.embeddings[number]).all()
    distinct = bench.matching.distinct_candidates(lists)
    assert len(np.unique(distinct.embeddings, axis=0)) == len(distinct) > 100


def test_features_of_another_shape_are_made_once(
    bench: SimpleNamespace, images: FeatureBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.matching_shapes, "features_of_samples", lambda _shape: images)
    bench.matching_shapes.kept_features("7x7x128", tmp_path)
    monkeypatch.setattr(bench.matching_shapes, "features_of_samples", lambda _shape: pytest.fail("made again"))
    kept = bench.matching_shapes.kept_features("7x7x128", tmp_path)
    assert (kept.cells == images.cells).all()
    assert [path.name for path in tmp_path.iterdir()] == ["features-7x7x128.npz"]


def test_real_features_of_another_shape_are_unit_cells_on_its_grid(bench: SimpleNamespace) -> None:
    shape = bench.matching_shapes.Shape(grid=CellGrid(rows=2, columns=3), dim=8, height_px=64, width_px=96)
    # Channels that never fire have tiny values that round to zero.
    with np.errstate(under="ignore"):
        made = bench.matching_shapes.features_of_samples(shape, 6)
    assert made.cells.shape == (6, 6, 8)
    np.testing.assert_allclose(np.linalg.norm(dequantise(made), axis=2), 1, atol=0.02)
    np.testing.assert_allclose(np.linalg.norm(made.embeddings, axis=1), 1, atol=1e-5)


def test_calls_are_timed_in_turns_and_long_ones_less_often(bench: SimpleNamespace) -> None:
    calls: list[str] = []
    times = bench.matching.median_ms(lambda: calls.append("a"), lambda: calls.append("b"), turns=2)
    assert len(times) == 2
    assert calls == (["a"] * 6 + ["b"] * 6) * 2

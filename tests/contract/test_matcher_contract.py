"""What every matcher must do. An implementation joins by adding the way to open it to MATCHERS.

Scores agree with the float64 reference to 1e-5. Sinkhorn runs at a tolerance of 1e-6, so stopping an iteration or two
apart moves a score by far less. The reference makes plain updates, so only what has converged is comparable.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from matchers_under_test import ENTROPIC, Answer, Interpreted, OnDevice, Processor, Reference, Work, some_of

from matchflow_bundle import Encoder, decode_image
from matchflow_matching import (
    CellGrid,
    FeatureBatch,
    FeaturesInvalidError,
    Marginals,
    MatchMode,
    MatchSettings,
    SettingsInvalidError,
    quantise,
)
from matching_strategies import random_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from matchers_under_test import Matcher

    from matchflow_bundle import Bundle

AGREEMENT = 1e-5
MATCHERS: dict[str, Callable[[], Matcher]] = {
    "processor": Processor,
    "torch on the processor": lambda: OnDevice(device="cpu", engine="torch"),
    "torch in small chunks": lambda: OnDevice(device="cpu", engine="torch", memory_bytes=60_000),
    "Triton interpreted": Interpreted,
    "torch on CUDA": lambda: OnDevice(device="cuda", engine="torch"),
    "Triton on CUDA": lambda: OnDevice(device="cuda", engine="triton"),
}


@pytest.fixture(scope="module", params=MATCHERS)
def matcher(request: pytest.FixtureRequest) -> Iterator[Matcher]:
    if "CUDA" in request.param and not torch.cuda.is_available():
        pytest.skip("no CUDA device is at hand")
    opened = MATCHERS[request.param]()
    yield opened
    if isinstance(opened, Interpreted):
        opened.close()


@cache
def referred(case: str, mode: MatchMode) -> tuple[Work, Answer]:
    """Return a case in a mode, and what the reference says."""
    work = CASES[case](mode)
    return work, referee(work)


def chosen(mode: MatchMode, **given: object) -> MatchSettings:
    return MatchSettings.of(mode, **({"tolerance": 1e-6, "max_iterations": 150} | given))


def referee(work: Work) -> Answer:
    """Return what the reference says when it may take as long as it needs."""
    return Reference().match(replace(work, settings=replace(work.settings, max_iterations=10_000)))


def near_the_reference(answer: Answer, expected: Answer, settings: MatchSettings) -> None:
    for name in ("cosine", "structural", "score"):
        np.testing.assert_allclose(getattr(answer, name), getattr(expected, name), atol=AGREEMENT, rtol=0, err_msg=name)
    for name in ("query_uniform", "image_uniform"):
        np.testing.assert_array_equal(getattr(answer, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(answer.converged, answer.marginal_error <= np.float32(settings.tolerance))
    # Where rounding keeps the violation above the tolerance, it is not far above.
    assert (answer.marginal_error <= 10 * settings.tolerance).all()
    assert ((answer.iterations == settings.max_iterations) | answer.converged).all()
    np.testing.assert_array_equal(answer.iterations == 0, expected.iterations == 0)


def random_work(mode: MatchMode, queries: tuple[int, CellGrid], images: tuple[int, CellGrid], dim: int) -> Work:
    rng = np.random.default_rng(dim)
    return Work(
        queries=random_batch(rng, queries[0], queries[1].size, dim),
        candidates=random_batch(rng, images[0], images[1].size, dim),
        settings=chosen(mode),
        grid=queries[1],
        image_grid=images[1],
    )


def masked_work(mode: MatchMode) -> Work:
    """Grids that differ, masks on both sides: some cells, one cell, none."""
    work = random_work(mode, (2, CellGrid(rows=3, columns=2)), (4, CellGrid(rows=4, columns=5)), 24)
    rng = np.random.default_rng(1)
    query_masks, image_masks = rng.random((2, 6)) > 0.3, rng.random((4, 20)) > 0.3
    query_masks[1], image_masks[1], image_masks[2], image_masks[3] = False, True, False, False
    query_masks[1, 4] = image_masks[2, 7] = True
    return replace(work, query_masks=query_masks, image_masks=image_masks)


def without_a_valid_query_cell(mode: MatchMode) -> Work:
    work = random_work(mode, (2, CellGrid(rows=2, columns=2)), (2, CellGrid(rows=2, columns=2)), 8)
    return replace(work, query_masks=np.array([[False] * 4, [True] * 4]))


def adversarial_work(mode: MatchMode) -> Work:
    """The query itself, its opposite, a constant map, zero cells, and cells that never look at the other image."""
    rng = np.random.default_rng(5)
    query = random_batch(rng, 1, 4, 16)
    cells, g = query.cells[0], query.embeddings[0]
    across = np.zeros(16, np.float32)
    across[0] = 1.0
    constant = np.broadcast_to(cells[0], cells.shape)
    images = [
        (g, cells, query.scales[0]),
        (-g, -cells, query.scales[0]),
        (g, constant, query.scales[0]),
        (g, cells, np.zeros(4, np.float16)),
        (np.zeros(16, np.float32), cells, query.scales[0]),
        (-g, cells, query.scales[0]),
        (across, np.where(np.arange(16) == 0, np.int8(127), np.int8(0)) * np.ones((4, 1), np.int8), query.scales[0]),
    ]
    candidates = FeatureBatch(
        embeddings=np.stack([image[0] for image in images]),
        cells=np.stack([image[1] for image in images]),
        scales=np.stack([image[2] for image in images]),
    )
    # With more weight on the distance, these pairs take thousands of iterations.
    weight = {"spatial_weight": 0.25} if mode is MatchMode.POSITION_AWARE else {}
    return Work(queries=query, candidates=candidates, settings=chosen(mode, **weight), grid=CellGrid(rows=2, columns=2))


GRID = CellGrid
CASES: dict[str, Callable[[MatchMode], Work]] = {
    "7 x 7 cells": lambda mode: random_work(mode, (1, GRID(rows=7, columns=7)), (1, GRID(rows=7, columns=7)), 33),
    "8 x 4 cells of 512": lambda mode: random_work(
        mode, (1, GRID(rows=8, columns=4)), (2, GRID(rows=8, columns=4)), 512
    ),
    "one cell against many": lambda mode: random_work(
        mode, (1, GRID(rows=1, columns=1)), (3, GRID(rows=2, columns=5)), 2
    ),
    "masks and other grids": masked_work,
    "no valid query cell": without_a_valid_query_cell,
    "adversarial": adversarial_work,
}


OF_DIFFERENT_GRIDS = {"one cell against many", "masks and other grids"}


@pytest.mark.parametrize("mode", sorted(Processor.modes))
@pytest.mark.parametrize("case", CASES)
def test_scores_and_certificates_are_those_of_the_reference(matcher: Matcher, case: str, mode: MatchMode) -> None:
    if mode not in matcher.modes:
        pytest.skip(f"{mode} is not there")
    if mode is MatchMode.SAME_CELL and case in OF_DIFFERENT_GRIDS:
        with pytest.raises(FeaturesInvalidError):
            matcher.match(CASES[case](mode))
        return
    work, expected = referred(case, mode)
    near_the_reference(matcher.match(work), expected, work.settings)


@pytest.mark.parametrize("marginals", Marginals)
@pytest.mark.parametrize("epsilon", [0.035, 1.0])
def test_marginals_and_epsilons_are_those_of_the_reference(
    matcher: Matcher, marginals: Marginals, epsilon: float
) -> None:
    grid = CellGrid(rows=2, columns=3)
    work = random_work(MatchMode.STRUCTURAL, (1, grid), (4, grid), 40)
    settings = replace(work.settings, marginals=marginals, epsilon=epsilon, global_weight=0.25)
    work = replace(work, settings=settings)
    near_the_reference(matcher.match(work), referee(work), settings)


def test_costs_too_far_apart_for_float32_are_carried_or_refused(matcher: Matcher) -> None:
    grid = CellGrid(rows=2, columns=2)
    work = random_work(MatchMode.POSITION_AWARE, (2, grid), (3, grid), 64)
    # Equal weights, or these would take ten thousand iterations.
    far = replace(work.settings, marginals=Marginals.UNIFORM, epsilon=0.02, max_iterations=2_000)
    work = replace(work, settings=far)
    if matcher.modes == ENTROPIC:
        with pytest.raises(SettingsInvalidError, match="float32"):
            matcher.match(work)
    else:
        near_the_reference(matcher.match(work), referee(work), work.settings)


@pytest.fixture(scope="module")
def sample_features(sample_bundle: Bundle, sample_images: dict[str, list[Path]]) -> FeatureBatch:
    paths = [paths[at] for paths in sample_images.values() for at in (3, 40)]
    inputs = np.stack([sample_bundle.manifest.preprocessing.apply(decode_image(path.read_bytes())) for path in paths])
    return quantise(*Encoder.open(sample_bundle).encode(inputs))


@pytest.mark.parametrize("mode", sorted(ENTROPIC))
def test_scores_of_real_features_are_those_of_the_reference(
    matcher: Matcher, sample_features: FeatureBatch, mode: MatchMode
) -> None:
    work = Work(
        queries=sample_features.take(slice(0, 2)),
        candidates=sample_features.take(slice(0, 6)),
        settings=chosen(mode),
        grid=CellGrid(rows=4, columns=4),
    )
    answer = matcher.match(work)
    near_the_reference(answer, referee(work), work.settings)
    assert (answer.score.argmax(axis=1) == np.arange(2)).all()


def test_slow_pairs_are_hurried_as_on_the_processor(matcher: Matcher) -> None:
    grid = CellGrid(rows=3, columns=3)
    work = random_work(MatchMode.POSITION_AWARE, (2, grid), (4, grid), 32)
    work = replace(work, settings=replace(work.settings, tolerance=1e-4))
    counts, expected = matcher.match(work).iterations, Processor().match(work).iterations
    plain = Reference().match(replace(work, settings=replace(work.settings, max_iterations=10_000))).iterations
    assert expected.mean() < 0.8 * plain.mean()
    # Rounding may carry a pair over the tolerance an iteration earlier or later.
    assert (np.abs(counts - expected) <= 1).all()


def test_a_pair_does_not_see_its_batch(matcher: Matcher) -> None:
    grid = CellGrid(rows=3, columns=3)
    work = random_work(MatchMode.POSITION_AWARE, (3, grid), (7, grid), 32)
    work = replace(work, settings=replace(work.settings, tolerance=1e-3), flows=2)
    answer = matcher.match(work)
    queries, candidates = [2, 0], [6, 1, 3]
    part = matcher.match(some_of(work, queries, candidates))
    for field in fields(Answer):
        whole = getattr(answer, field.name)[np.ix_(queries, candidates)]
        if matcher.exactly:
            np.testing.assert_array_equal(getattr(part, field.name), whole, err_msg=field.name)
        elif field.name != "iterations":
            np.testing.assert_allclose(getattr(part, field.name), whole, atol=1e-5, err_msg=field.name)


@pytest.mark.parametrize("limit", [1, 3])
def test_the_limit_of_iterations_is_kept_and_told(matcher: Matcher, limit: int) -> None:
    grid = CellGrid(rows=2, columns=2)
    work = random_work(MatchMode.STRUCTURAL, (1, grid), (3, grid), 16)
    work = replace(work, settings=replace(work.settings, max_iterations=limit))
    answer, expected = matcher.match(work), Reference().match(work)
    assert (answer.iterations == limit).all()
    assert not answer.converged.any()
    assert (answer.marginal_error > work.settings.tolerance).all()
    np.testing.assert_allclose(answer.marginal_error, expected.marginal_error, atol=1e-6)
    np.testing.assert_allclose(answer.structural, expected.structural, atol=AGREEMENT)


@pytest.mark.parametrize("spatial_weight", [0.0, 0.5])
def test_candidates_that_are_not_finite_come_last_and_spoil_no_other(matcher: Matcher, spatial_weight: float) -> None:
    grid = CellGrid(rows=2, columns=2)
    clean = random_work(MatchMode.POSITION_AWARE, (2, grid), (4, grid), 12)
    chosen_here = replace(clean.settings, spatial_weight=spatial_weight, global_weight=1.0, tolerance=1e-3)
    clean = replace(clean, settings=chosen_here)
    embeddings, scales = clean.candidates.embeddings.copy(), clean.candidates.scales.copy()
    embeddings[0, 3], embeddings[1, 0], scales[2, 1] = math.nan, math.inf, math.inf
    spoiled = replace(clean, candidates=replace(clean.candidates, embeddings=embeddings, scales=scales))
    answer, other = (matcher.match(replace(work, flows=3)) for work in (spoiled, clean))
    for field in fields(Answer):
        assert np.isfinite(getattr(answer, field.name)).all(), field.name
        np.testing.assert_array_equal(getattr(answer, field.name)[:, 3], getattr(other, field.name)[:, 3])
    assert answer.flows is not None
    assert (answer.flows[:, :3, :, 0] == -1).all()
    assert (answer.flows[:, :3, :, 2:] == 0).all()
    assert (answer.cosine[:, :3] == -1).all()
    assert (answer.structural[:, :3] == np.float32(-1 - spatial_weight)).all()
    assert not answer.converged[:, :3].any()


@pytest.mark.parametrize("marginals", list(Marginals))
def test_finite_numbers_far_from_any_unit_vector_give_finite_answers(matcher: Matcher, marginals: Marginals) -> None:
    grid = CellGrid(rows=2, columns=2)
    work = random_work(MatchMode.STRUCTURAL, (2, grid), (3, grid), 12)
    chosen_here = replace(work.settings, marginals=marginals, global_weight=10.0)
    scales, image_scales = work.queries.scales.copy(), work.candidates.scales.copy()
    scales[0, 1], image_scales[1, 2] = np.float16(65504), np.float16(65504)
    answer = matcher.match(
        replace(
            work,
            queries=replace(work.queries, scales=scales),
            candidates=replace(work.candidates, scales=image_scales),
            settings=chosen_here,
            flows=4,
        )
    )
    for field in fields(Answer):
        assert np.isfinite(getattr(answer, field.name)).all(), field.name


def test_a_query_that_is_not_finite_is_refused(matcher: Matcher) -> None:
    grid = CellGrid(rows=2, columns=2)
    work = random_work(MatchMode.STRUCTURAL, (2, grid), (1, grid), 8)
    embeddings = work.queries.embeddings.copy()
    embeddings[1, 2] = math.nan
    with pytest.raises(FeaturesInvalidError, match="not finite"):
        matcher.match(replace(work, queries=replace(work.queries, embeddings=embeddings)))


@pytest.mark.parametrize("mode", sorted(ENTROPIC))
def test_top_flows_are_those_of_the_plan_that_is_shown(matcher: Matcher, mode: MatchMode) -> None:
    work = replace(masked_work(mode), flows=4)
    answer, expected = matcher.match(work), Processor().match(work)
    assert answer.flows is not None
    assert expected.flows is not None
    np.testing.assert_array_equal(answer.flows[..., :2], expected.flows[..., :2])
    np.testing.assert_allclose(answer.flows[..., 2:], expected.flows[..., 2:], atol=AGREEMENT)

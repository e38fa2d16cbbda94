"""Matching on torch devices: what is its own beside the contract of every matcher."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matchers_under_test import OnDevice, Processor, Work

from matchflow_matching import (
    CellGrid,
    FeatureBatch,
    FeaturesInvalidError,
    Marginals,
    MatchMode,
    MatchSettings,
    SettingsInvalidError,
)
from matchflow_matching.positions import coordinates, squared_distances
from matchflow_matching.torch_matchers import whole_products
from matchflow_matching.torch_matching import DeviceBatch, match_many
from matchflow_matching.torch_values import three_digits
from matching_strategies import pairs, random_batch

if TYPE_CHECKING:
    from matchflow_matching import Features

GRIDS = st.builds(CellGrid, rows=st.integers(1, 9), columns=st.integers(1, 9))
GRID = CellGrid(rows=2, columns=3)


def a_batch(count: int, cells: int = GRID.size, dim: int = 10, seed: int = 0) -> DeviceBatch:
    return DeviceBatch.upload(random_batch(np.random.default_rng(seed), count, cells, dim))


@settings(deadline=None, max_examples=60)
@given(
    pair=pairs(),
    mode=st.sampled_from(sorted(OnDevice(device="cpu", engine="torch").modes - {MatchMode.SAME_CELL})),
    marginals=st.sampled_from(Marginals),
    epsilon=st.sampled_from([0.02, 0.05, 2.0]),
)
def test_scores_on_a_device_are_those_of_match(
    pair: tuple[Features, FeatureBatch], mode: MatchMode, marginals: Marginals, epsilon: float
) -> None:
    query, candidates = pair
    chosen = MatchSettings(mode=mode, marginals=marginals, epsilon=epsilon, tolerance=1e-6, max_iterations=60)
    work = Work(queries=FeatureBatch.stack([query]), candidates=candidates, settings=chosen)
    ours, theirs = OnDevice(device="cpu", engine="torch").match(work), Processor().match(work)
    # Where neither converged, rounding may have sent the two different ways.
    comparable = ours.converged & theirs.converged
    for name in ("cosine", "structural", "score"):
        difference = np.abs(getattr(ours, name) - getattr(theirs, name))
        assert difference[comparable].max(initial=0) <= 1e-5, name
    np.testing.assert_array_equal(ours.query_uniform, theirs.query_uniform)
    np.testing.assert_array_equal(ours.image_uniform, theirs.image_uniform)


@given(dim=st.sampled_from([1, 7, 1040, 1041, 2500]), seed=st.integers(0, 2**32 - 1))
def test_whole_products_are_exact_in_every_dimension(dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = (rng.choice(np.array([-127, 126, 127], np.int8), (3, dim)) for _ in range(2))
    found = whole_products(torch.from_numpy(left), torch.from_numpy(right))
    np.testing.assert_array_equal(found.numpy(), left.astype(np.int64) @ right.T.astype(np.int64))


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1e-30, 1.0, 1e18]))
def test_three_digits_say_the_vector_to_float32(seed: int, size: float) -> None:
    vectors = (size * np.random.default_rng(seed).normal(size=(2, 20))).astype(np.float32)
    split = three_digits(vectors).astype(np.float64)
    said = split[:, 0] + split[:, 1] / 254 + split[:, 2] / 254**2
    peaks = np.abs(vectors).max(axis=1, keepdims=True)
    np.testing.assert_allclose(said, 127.0 * vectors / peaks, atol=8e-6)


@given(image=GRIDS, query=GRIDS)
def test_squared_distances_are_those_of_the_coordinates(image: CellGrid, query: CellGrid) -> None:
    apart = coordinates(image, query)[:, None] - coordinates(query, query)[None]
    np.testing.assert_allclose((apart**2).sum(axis=2), squared_distances(image, query), atol=1e-6)


@pytest.mark.parametrize("memory_bytes", [1, 20_000, 100_000])
def test_chunks_change_no_bit(memory_bytes: int) -> None:
    queries, candidates = a_batch(3), a_batch(17, seed=1)
    chosen = MatchSettings.of(MatchMode.POSITION_AWARE)
    whole = match_many(queries, candidates, chosen, grid=GRID, flows=3, engine="torch")
    parts = match_many(queries, candidates, chosen, grid=GRID, flows=3, engine="torch", memory_bytes=memory_bytes)
    for field in fields(whole):
        if field.name != "flows":
            assert torch.equal(getattr(parts, field.name), getattr(whole, field.name)), field.name
    assert whole.flows is not None
    assert parts.flows is not None
    for field in fields(whole.flows):
        assert torch.equal(getattr(parts.flows, field.name), getattr(whole.flows, field.name)), field.name


@pytest.mark.parametrize(("q", "n"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_against_something_is_nothing(q: int, n: int) -> None:
    queries, candidates = a_batch(2), a_batch(3, seed=1)
    some_queries = replace(queries, **{name: getattr(queries, name)[:q] for name in arrays(queries)})
    some_candidates = replace(candidates, **{name: getattr(candidates, name)[:n] for name in arrays(candidates)})
    found = match_many(some_queries, some_candidates, MatchSettings(), flows=2, engine="torch")
    assert found.score.shape == (q, n)
    assert found.flows is not None
    assert found.flows.masses.shape == (q, n, 2)


def arrays(batch: DeviceBatch) -> list[str]:
    return [field.name for field in fields(batch) if field.name != "all_readable"]


@pytest.mark.parametrize("mode", [MatchMode.EARTH_MOVER, MatchMode.PARTIAL, MatchMode.STRIPES])
def test_modes_that_are_not_there_are_refused_by_name(mode: MatchMode) -> None:
    with pytest.raises(SettingsInvalidError, match="structural") as raised:
        match_many(a_batch(1), a_batch(1), MatchSettings.of(mode), grid=GRID)
    assert raised.value.field == "mode"
    assert mode.value in str(raised.value)


@pytest.mark.parametrize(
    "chosen", [MatchSettings(), MatchSettings(mode=MatchMode.CHAMFER), MatchSettings(epsilon=0.01)]
)
def test_triton_is_refused_where_it_cannot_run(chosen: MatchSettings) -> None:
    with pytest.raises(SettingsInvalidError, match="Triton"):
        match_many(a_batch(1), a_batch(1), chosen, engine="triton")


def test_a_negative_number_of_flows_is_refused() -> None:
    with pytest.raises(SettingsInvalidError, match="-1"):
        match_many(a_batch(1), a_batch(1), MatchSettings(), flows=-1)


def test_dimensions_that_disagree_are_refused() -> None:
    with pytest.raises(FeaturesInvalidError, match="dimension 10, candidates 12"):
        match_many(a_batch(1), a_batch(1, dim=12), MatchSettings())


def test_devices_that_disagree_are_refused() -> None:
    elsewhere = a_batch(1)
    moved = replace(elsewhere, embeddings=elsewhere.embeddings.to("meta"))
    with pytest.raises(FeaturesInvalidError, match="meta"):
        match_many(a_batch(1), moved, MatchSettings())


@pytest.mark.parametrize("mask", [np.ones((1, 5), np.bool_), np.ones((1, GRID.size), np.int8)])
def test_masks_of_another_shape_or_type_are_refused(mask: np.ndarray) -> None:
    with pytest.raises(FeaturesInvalidError, match="query_masks must be bool"):
        match_many(a_batch(1), a_batch(1), MatchSettings(), query_masks=mask)


def test_a_spatial_weight_needs_a_grid() -> None:
    with pytest.raises(FeaturesInvalidError, match="grid"):
        match_many(a_batch(1), a_batch(1), MatchSettings.of(MatchMode.POSITION_AWARE))


def test_features_whose_shapes_disagree_are_not_uploaded() -> None:
    batch = random_batch(np.random.default_rng(0), 2, 4, 8)
    with pytest.raises(FeaturesInvalidError, match="expected embeddings"):
        DeviceBatch.upload(replace(batch, scales=batch.scales[:, :3]))


def test_matching_on_processors_imports_neither_torch_nor_triton() -> None:
    check = "import sys, matchflow_matching; sys.exit(bool({'torch', 'triton'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0

"""Quantisation, batches and grids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchflow_matching import CellGrid, FeatureBatch, FeaturesInvalidError, check_unit_length, dequantise, quantise
from matchflow_matching.products import digits
from matching_strategies import random_batch


def model_output(seed: int, n: int = 3, cells: int = 5, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(n, cells, dim))
    raw /= np.linalg.norm(raw, axis=2, keepdims=True)
    mean = raw.mean(axis=1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    return mean.astype(np.float32), raw.astype(np.float32)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), dim=st.integers(1, 200))
def test_quantised_cells_are_within_half_a_step(seed: int, dim: int) -> None:
    embeddings, cells = model_output(seed, dim=dim)
    batch = quantise(embeddings, cells)
    # float16 scales may round down by 2^-11, which costs the largest component up to that share of itself.
    step = batch.scales.astype(np.float32)[:, :, None]
    assert (np.abs(dequantise(batch) - cells) <= step / 2 + np.abs(cells) * 2**-10).all()
    assert np.array_equal(batch.embeddings, embeddings)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_quantising_a_batch_is_quantising_each_image(seed: int) -> None:
    embeddings, cells = model_output(seed)
    whole = quantise(embeddings, cells)
    for n in range(3):
        alone = quantise(embeddings[n : n + 1], cells[n : n + 1])[0]
        assert np.array_equal(alone.cells, whole[n].cells)
        assert np.array_equal(alone.scales, whole[n].scales)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_quantising_what_was_dequantised_changes_nothing(seed: int) -> None:
    first = quantise(*model_output(seed))
    second = quantise(first.embeddings, dequantise(first))
    np.testing.assert_allclose(dequantise(second), dequantise(first), atol=2e-3)


def test_a_zero_cell_stays_zero() -> None:
    embeddings, cells = model_output(0)
    cells[1, 2] = 0
    batch = quantise(embeddings, cells)
    assert not batch.cells[1, 2].any()
    assert batch.scales[1, 2] == 0


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_numbers_that_are_not_finite_are_refused(poison: float, side: int) -> None:
    output = model_output(0)
    output[side][0, 0] = poison
    with pytest.raises(FeaturesInvalidError, match="not finite"):
        quantise(*output)


@pytest.mark.parametrize(
    ("embeddings", "cells"),
    [((3, 16), (3, 5, 15)), ((3, 16), (2, 5, 16)), ((16,), (3, 5, 16)), ((3, 16), (3, 16)), ((3, 16), (3, 0, 16))],
)
def test_shapes_that_disagree_are_refused(embeddings: tuple[int, ...], cells: tuple[int, ...]) -> None:
    with pytest.raises(FeaturesInvalidError, match="expected embeddings"):
        quantise(np.ones(embeddings, np.float32), np.ones(cells, np.float32))


def test_an_embedding_that_is_not_of_unit_length_is_refused() -> None:
    embeddings, cells = model_output(0)
    embeddings[1] *= 1.01
    with pytest.raises(FeaturesInvalidError, match=r"unit length; one is off by 0.01"):
        quantise(embeddings, cells)


@pytest.mark.parametrize("vector", [[np.nan, 0], [np.inf, 0], [0, 0], [1e38, 1e38]])
def test_unit_length_is_checked_without_overflow(vector: list[float]) -> None:
    with pytest.raises(FeaturesInvalidError):
        check_unit_length(np.array([vector], np.float32))


def test_batches_take_stack_and_index() -> None:
    batch = random_batch(np.random.default_rng(0), 4, 3, 8)
    assert len(batch) == 4
    again = FeatureBatch.stack([batch[n] for n in (2, 0)])
    taken = batch.take(np.array([2, 0]))
    for name in ("embeddings", "cells", "scales"):
        assert np.array_equal(getattr(again, name), getattr(taken, name))


def test_boxes_tile_the_image() -> None:
    grid = CellGrid(rows=2, columns=3)
    assert grid.size == 6
    assert grid.box(0) == (0, 0, 1 / 3, 1 / 2)
    assert grid.box(5) == (2 / 3, 1 / 2, 1, 1)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in map(grid.box, range(6))]
    assert sum(areas) == pytest.approx(1)


@pytest.mark.parametrize(("rows", "columns"), [(0, 1), (1, 0), (-1, 4)])
def test_a_grid_without_cells_is_refused(rows: int, columns: int) -> None:
    with pytest.raises(FeaturesInvalidError, match="at least 1 x 1"):
        CellGrid(rows=rows, columns=columns)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), dim=st.integers(1, 40), size=st.sampled_from([1e-20, 1.0, 1e14]))
def test_four_digits_hold_a_vector_more_precisely_than_float32(seed: int, dim: int, size: float) -> None:
    vectors = (size * np.random.default_rng(seed).normal(size=(3, dim))).astype(np.float32)
    split = digits(vectors).astype(np.float64)
    found = split.transpose(0, 2, 1) @ 254.0 ** -np.arange(4)
    peaks = np.abs(vectors).max(axis=1).astype(np.float64)
    factor = 2.0 ** np.round(np.log2(np.abs(found).max(axis=1) / peaks))[:, None]
    np.testing.assert_allclose(found, vectors * factor, rtol=0, atol=6e-8)
    assert ((np.abs(found).max(axis=1) > 63.4) & (np.abs(found).max(axis=1) <= 127)).all()


def test_digits_of_a_vector_that_is_as_good_as_zero_are_zero() -> None:
    assert digits(np.array([[0.1, -0.2], [0, 0]], np.float32))[:, 0].tolist() == [[51, -102], [0, 0]]
    assert not digits(np.zeros((1, 5), np.float32)).any()
    assert not digits(np.full((1, 5), 1e-40, np.float32)).any()

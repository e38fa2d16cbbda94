"""The exact products and the compiled vectors below the kernels: every way to multiply gives the same bits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchflow_matching import (
    CellGrid,
    FeatureBatch,
    MatchMode,
    MatchSettings,
    kernels,
    match,
    product_kernels,
    vectors,
    vnni,
    words,
)
from matchflow_matching.compiling import compiled
from matchflow_matching.matchers import MATCHERS
from matchflow_matching.products import Operands, by_bytes, by_words
from matching_strategies import random_batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from matchflow_matching.products import Scaled

GRID = CellGrid(rows=4, columns=4)
few = settings(max_examples=60, deadline=None)
needs_vnni = pytest.mark.skipif(not vnni.is_available(), reason="this processor has no AVX512-VNNI")


def random_bytes(rng: np.random.Generator, *shape: int) -> NDArray[np.int8]:
    return rng.integers(-127, 128, shape).astype(np.int8)


def unpacked(panels: NDArray[np.uint8], columns: int) -> NDArray[np.int16]:
    """Read panels [panels, D / 4, 32, 4] back into columns [C, D]."""
    flat = panels.transpose(0, 2, 1, 3).reshape(len(panels) * vnni.PANEL, -1).astype(np.int16) - vnni.OFFSET
    assert not flat[columns:].any()
    assert len(flat) > columns
    return flat[:columns]


def random_operands(seed: int, n: int, rows: int, columns: int, dim: int) -> Operands:
    rng = np.random.default_rng(seed)
    return Operands(
        cells=random_bytes(rng, n, rows, dim),
        embeddings=random_bytes(rng, n, 4, dim),
        columns=random_bytes(rng, columns + 4, dim),
        image_scales=rng.random((n, rows)).astype(np.float32),
        query_scales=rng.random(columns).astype(np.float32),
    )


@few
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(0, 4),
    rows=st.integers(1, 20),
    columns=st.integers(1, 70),
    dim=st.integers(1, 40),
)
def test_words_multiply_whole_numbers_exactly(seed: int, n: int, rows: int, columns: int, dim: int) -> None:
    operands = replace(
        random_operands(seed, n, rows, columns, dim),
        image_scales=np.ones((n, rows), np.float32),
        query_scales=np.ones(columns, np.float32),
    )
    similarities, image_attention, query_attention = by_words(operands)
    cells, right = operands.cells.astype(np.int64), operands.columns.astype(np.int64)
    places = np.array([254**3, 254**2, 254, 1])
    digits = operands.embeddings.astype(np.int64)
    assert np.array_equal(similarities, cells @ right[:-4].T)
    assert np.array_equal(image_attention, (cells @ right[-4:].T @ places).astype(np.float32))
    assert np.array_equal(query_attention, (places @ (digits @ right[:-4].T)).astype(np.float32))


@needs_vnni
@few
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(0, 4),
    rows=st.integers(1, 20),
    columns=st.integers(1, 70),
    steps=st.integers(1, 40),
)
def test_bytes_multiply_to_the_bits_that_words_give(seed: int, n: int, rows: int, columns: int, steps: int) -> None:
    operands = random_operands(seed, n, rows, columns, steps * vnni.BYTES_PER_STEP)
    for ours, theirs in zip(by_bytes(operands), by_words(operands), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    "multiply", [by_words, pytest.param(by_bytes, marks=needs_vnni)], ids=lambda function: function.__name__
)
@pytest.mark.parametrize("dim", [4, 1040, 2048, 4096])
def test_products_are_exact_at_the_extremes(multiply: Callable[[Operands], Scaled], dim: int) -> None:
    for left, right in ((127, 127), (-127, 127), (127, -127), (-127, -127), (-128, -128), (-128, 127)):
        operands = Operands(
            cells=np.full((2, 5, dim), left, np.int8),
            embeddings=np.full((2, 4, dim), left, np.int8),
            columns=np.full((20, dim), right, np.int8),
            image_scales=np.ones((2, 5), np.float32),
            query_scales=np.ones(16, np.float32),
        )
        similarities, image_attention, query_attention = multiply(operands)
        assert (similarities == left * right * dim).all()
        attention = np.float32(left * right * dim * (254**3 + 254**2 + 254 + 1))
        assert (image_attention == attention).all()
        assert (query_attention == attention).all()


@few
@given(seed=st.integers(0, 2**32), columns=st.integers(1, 40), dim=st.integers(1, 21))
def test_packing_words_keeps_every_column_and_pads_with_zeros(seed: int, columns: int, dim: int) -> None:
    original = random_bytes(np.random.default_rng(seed), columns, dim)
    panels = product_kernels.pack_words(original)
    flat = panels.transpose(0, 2, 1, 3).reshape(len(panels) * words.PANEL, -1)
    assert np.array_equal(flat[:columns, :dim], original)
    assert not flat[columns:].any()
    assert not flat[:, dim:].any()


@few
@given(seed=st.integers(0, 2**32), columns=st.integers(1, 100), steps=st.integers(1, 9))
def test_packing_keeps_every_column_and_adds_a_column_of_zeros(seed: int, columns: int, steps: int) -> None:
    original = random_bytes(np.random.default_rng(seed), columns, steps * vnni.BYTES_PER_STEP)
    assert np.array_equal(unpacked(product_kernels.pack(original), columns), original)


@pytest.mark.parametrize("mode", MATCHERS)
def test_scores_are_the_same_bits_with_and_without_byte_products(
    mode: MatchMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = random_batch(np.random.default_rng(0), 40, 16, 128)
    here = match(batch[0], batch, MatchSettings.of(mode), grid=GRID)
    monkeypatch.setattr(vnni, "is_available", lambda: False)
    elsewhere = match(batch[0], batch, MatchSettings.of(mode), grid=GRID)
    assert np.array_equal(here.score, elsewhere.score)
    assert np.array_equal(here.marginal_error, elsewhere.marginal_error)


@few
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 8), columns=st.integers(1, 8))
def test_the_compiled_product_with_a_vector_is_that_of_numpy(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.random((8 * rows, 8 * columns)).astype(np.float32)
    factors = rng.random(8 * rows).astype(np.float32)
    guarded = np.full(8 * columns + 8, 7, np.float32)
    kernels._add_scaled_rows(matrix, factors, guarded[: 8 * columns])
    np.testing.assert_allclose(guarded[: 8 * columns], factors @ matrix, rtol=1e-5)
    assert (guarded[8 * columns :] == 7).all()


@pytest.mark.parametrize(("size", "expected"), [(1, 8), (8, 8), (9, 16), (16, 16), (49, 56)])
def test_sizes_are_padded_to_multiples_of_eight(size: int, expected: int) -> None:
    assert vectors.padded(size) == expected


@few
@given(seed=st.integers(0, 2**32), blocks=st.integers(1, 20))
def test_the_compiled_exponential_is_within_a_few_units_of_the_last_place(seed: int, blocks: int) -> None:
    values = np.random.default_rng(seed).uniform(-87, 80, 16 * blocks).astype(np.float32)
    expected = np.exp(values.astype(np.float64))
    kernels._exponentials(values)
    np.testing.assert_allclose(values, expected, rtol=5e-7)


def test_an_exponential_beyond_the_range_is_that_of_the_range() -> None:
    values = np.array([-1e30, -90, -np.inf, np.nan, 90, 1e30, np.inf, 0] * 2, np.float32)
    kernels._exponentials(values)
    low, high = pytest.approx(np.exp(-87), rel=1e-6), pytest.approx(np.exp(80), rel=1e-6)
    assert values[:8].tolist() == [low, low, low, low, high, high, high, 1]


@few
@given(seed=st.integers(0, 2**32), dim=st.integers(1, 40), poison=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_only_the_images_with_numbers_that_are_not_finite_are_unreadable(seed: int, dim: int, poison: float) -> None:
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(5, dim)).astype(np.float32)
    scales = rng.random((5, 19)).astype(np.float32)
    embeddings[1, rng.integers(dim)] = poison
    scales[3, rng.integers(19)] = poison
    digits, readable = np.empty((5, 4, dim), np.int8), np.empty(5, np.bool_)
    product_kernels.split_embeddings(embeddings, scales, digits, readable)
    assert readable.tolist() == [True, False, True, False, True]
    assert not digits[[1, 3]].any()
    assert not scales[[1, 3]].any()
    for p in (0, 2, 4):
        assert 63 <= np.abs(digits[p, 0]).max() <= 127


def test_without_a_folder_to_keep_it_in_a_kernel_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object, **__: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(numba.core.dispatcher.Dispatcher, "enable_caching", nowhere)
    assert compiled()(lambda value: value / 0.0)(1.0) == np.inf


def test_candidates_of_any_memory_layout_score_alike() -> None:
    batch = random_batch(np.random.default_rng(1), 6, 8, 32)
    turned = FeatureBatch(
        embeddings=np.asfortranarray(batch.embeddings),
        cells=np.asfortranarray(batch.cells),
        scales=np.asfortranarray(batch.scales),
    )
    expected = match(batch[0], batch, MatchSettings()).score
    assert np.array_equal(match(batch[0], turned, MatchSettings()).score, expected)

"""Monotone alignment of stripes: against the recursion, and what must hold of it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchflow_matching import CellGrid, reference, reference_exact
from matchflow_matching.stripe_kernels import align_stripes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Mask = NDArray[np.bool_]

few = settings(max_examples=60, deadline=None)
CLOSE = 1e-6
kinds = st.sampled_from(["random", "few levels", "constant", "negative"])


def align(
    similarities: Floats, columns: int, image_valid: Mask | None = None, query_valid: Mask | None = None
) -> tuple[Floats, Floats]:
    """Scores and plans of N pairs; all cells are valid unless said."""
    n, rx, rq = similarities.shape
    scores, plans = np.zeros(n, np.float32), np.zeros((n, rx, rq), np.float32)
    align_stripes(
        similarities,
        np.ones((n, rx), np.bool_) if image_valid is None else image_valid,
        np.ones(rq, np.bool_) if query_valid is None else query_valid,
        columns,
        scores,
        plans,
    )
    return scores, plans


def draw_similarities(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> Floats:
    makers: dict[str, Callable[[], NDArray[np.float64]]] = {
        "random": lambda: rng.uniform(-1, 1, shape),
        "few levels": lambda: rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0], shape),
        "constant": lambda: np.full(shape, 0.3),
        "negative": lambda: rng.uniform(-1, -0.5, shape),
    }
    return makers[kind]().astype(np.float32)


def unit(rng: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    z: NDArray[np.float64] = rng.normal(size=shape)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return z


def steps(plan: Floats, columns: int) -> list[tuple[int, int]]:
    """The pairs of stripes between which mass moves, from top to bottom."""
    blocks = plan.reshape(plan.shape[0] // columns, columns, plan.shape[1] // columns, columns)
    return [(int(a), int(b)) for a, b in np.argwhere(blocks.sum(axis=(1, 3)) > 0)]


@few
@given(
    seed=st.integers(0, 2**32),
    kind=kinds,
    rows=st.integers(1, 7),
    query_rows=st.integers(1, 7),
    columns=st.integers(1, 4),
    share=st.sampled_from([1.0, 0.7, 0.3, 0.0]),
)
def test_the_kernel_finds_the_score_of_the_recursion(
    *, seed: int, kind: str, rows: int, query_rows: int, columns: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    image_grid, query_grid = CellGrid(rows=rows, columns=columns), CellGrid(rows=query_rows, columns=columns)
    similarities = draw_similarities(rng, kind, (3, image_grid.size, query_grid.size))
    image_valid, query_valid = rng.random((3, image_grid.size)) < share, rng.random(query_grid.size) < share
    scores, plans = align(similarities, columns, image_valid, query_valid)
    for n in range(3):
        expected = reference_exact.stripes(
            similarities[n].astype(np.float64), image_valid[n], query_valid, image_grid, query_grid
        )
        assert scores[n] == pytest.approx(expected, abs=CLOSE)
        assert (plans[n].astype(np.float64) * similarities[n]).sum() == pytest.approx(scores[n], abs=CLOSE)
        assert not plans[n][~image_valid[n]].any()
        assert not plans[n][:, ~query_valid].any()
        assert plans[n].sum() <= 1 + CLOSE
        assert (plans[n] >= 0).all()


@few
@given(
    seed=st.integers(0, 2**32),
    kind=kinds,
    rows=st.integers(1, 8),
    query_rows=st.integers(1, 8),
    columns=st.integers(1, 3),
)
def test_an_alignment_goes_from_the_top_pair_to_the_bottom_pair_without_crossings(
    seed: int, kind: str, rows: int, query_rows: int, columns: int
) -> None:
    rng = np.random.default_rng(seed)
    similarities = draw_similarities(rng, kind, (1, rows * columns, query_rows * columns))
    scores, plans = align(similarities, columns)
    path = steps(plans[0], columns)
    assert path[0] == (0, 0)
    assert path[-1] == (rows - 1, query_rows - 1)
    assert {(c - a, d - b) for (a, b), (c, d) in pairwise(path)} <= {(0, 1), (1, 0), (1, 1)}
    assert plans.sum() == pytest.approx(1, abs=CLOSE)
    assert similarities.min() - CLOSE <= scores[0] <= similarities.max() + CLOSE
    # Within a pair of stripes a column matches itself alone.
    cells = np.argwhere(plans[0] > 0)
    assert (cells[:, 0] % columns == cells[:, 1] % columns).all()


@few
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 6), query_rows=st.integers(1, 6), columns=st.integers(1, 3))
def test_exchanging_image_and_query_mirrors_the_plan(seed: int, rows: int, query_rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    similarities = draw_similarities(rng, "random", (1, rows * columns, query_rows * columns))
    image_valid, query_valid = rng.random(rows * columns) < 0.8, rng.random(query_rows * columns) < 0.8
    scores, plans = align(similarities, columns, image_valid[None], query_valid)
    mirrored = np.ascontiguousarray(similarities.transpose(0, 2, 1))
    mirrored_scores, mirrored_plans = align(mirrored, columns, query_valid[None], image_valid)
    assert scores[0] == mirrored_scores[0]
    # Where a pair of stripes shares no valid column it adds 0 whichever way the path goes: then there may be ties.
    if image_valid.all() and query_valid.all():
        assert np.array_equal(plans[0].T, mirrored_plans[0])


@few
@given(seed=st.integers(0, 2**32), kind=kinds, rows=st.integers(1, 8), columns=st.integers(1, 4))
def test_images_of_one_grid_score_no_less_than_cell_by_cell(seed: int, kind: str, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    similarities = draw_similarities(rng, kind, (2, rows * columns, rows * columns))
    scores, _ = align(similarities, columns)
    every = np.ones(rows * columns, np.bool_)
    for n in range(2):
        assert scores[n] >= reference.same_cell(similarities[n].astype(np.float64), every, every) - CLOSE


def test_identical_images_are_aligned_stripe_by_stripe_and_score_one() -> None:
    z = unit(np.random.default_rng(0), 12, 32)
    scores, plans = align((z @ z.T).astype(np.float32)[None], 3)
    assert scores[0] == pytest.approx(1, abs=CLOSE)
    np.testing.assert_allclose(plans[0], np.eye(12) / 12, atol=CLOSE)


def test_a_person_one_stripe_lower_is_found_where_cell_by_cell_fails() -> None:
    z = unit(np.random.default_rng(1), 6, 2, 64)
    image, query = z[[0, 0, 1, 2, 3, 4]].reshape(12, 64), z[:5].reshape(10, 64)
    scores, plans = align((image @ query.T).astype(np.float32)[None], 2)
    assert scores[0] == pytest.approx(1, abs=CLOSE)
    assert steps(plans[0], 2) == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (5, 4)]


def test_stripes_out_of_order_are_not_matched_crosswise() -> None:
    z = unit(np.random.default_rng(2), 4, 64)
    scores, plans = align((z @ z[::-1].T).astype(np.float32)[None], 1)
    assert scores[0] < 0.6
    assert steps(plans[0], 1)[0] == (0, 0)


def test_a_worked_example() -> None:
    # Down and then right: (2 * 0.5 + 1 * 0.9 + 1 * 0.1) / 4 = 0.5; both at once: (2 * 0.5 + 2 * 0.1) / 4 = 0.3.
    similarities = np.array([[[0.5, -0.2], [0.9, 0.1]]], np.float32)
    scores, plans = align(similarities, 1)
    assert scores[0] == pytest.approx(0.5, abs=CLOSE)
    np.testing.assert_allclose(plans[0], [[0.5, 0], [0.25, 0.25]], atol=CLOSE)


def test_one_stripe_matches_every_stripe_and_one_cell_is_its_own_score() -> None:
    similarities = np.array([[[0.2, -0.4, 0.8]]], np.float32)
    scores, plans = align(similarities, 1)
    # The start weighs 2 and the others 1, of 4.
    np.testing.assert_allclose(plans[0], [[0.5, 0.25, 0.25]], atol=CLOSE)
    assert scores[0] == pytest.approx((2 * 0.2 - 0.4 + 0.8) / 4, abs=CLOSE)
    single, plan = align(np.array([[[-0.7]]], np.float32), 1)
    assert single[0] == np.float32(-0.7)
    assert plan.tolist() == [[[1.0]]]


def test_a_stripe_without_a_valid_cell_is_left_out() -> None:
    rng = np.random.default_rng(3)
    similarities = draw_similarities(rng, "random", (1, 12, 9))
    valid = np.ones((1, 12), np.bool_)
    valid[0, 3:6] = False
    scores, plans = align(similarities, 3, valid)
    kept = valid[0]
    without, plans_without = align(np.ascontiguousarray(similarities[:, kept]), 3)
    assert scores[0] == without[0]
    assert np.array_equal(plans[0][kept], plans_without[0])


@pytest.mark.parametrize("side", ["image", "query", "both"])
def test_without_a_stripe_on_a_side_the_score_is_zero(side: str) -> None:
    similarities = np.ones((2, 6, 6), np.float32)
    image_valid, query_valid = np.ones((2, 6), np.bool_), np.ones(6, np.bool_)
    image_valid[0] = side == "query"
    query_valid[:] = side == "image"
    scores, plans = align(similarities, 2, image_valid, query_valid)
    assert scores[0] == 0
    assert not plans[0].any()
    assert scores[1] == (1 if side == "image" else 0)


def test_stripes_that_share_no_valid_column_move_no_mass() -> None:
    similarities = np.ones((1, 4, 4), np.float32)
    image_valid, query_valid = np.array([[True, False, True, True]]), np.array([False, True, True, True])
    scores, plans = align(similarities, 2, image_valid, query_valid)
    # The first pair of stripes weighs 2 of 4 on every path, and is lost.
    assert scores[0] == pytest.approx(0.5, abs=CLOSE)
    assert plans[0].sum() == pytest.approx(0.5, abs=CLOSE)


def test_a_pair_is_bit_equal_whatever_else_is_in_the_batch_and_without_plans() -> None:
    rng = np.random.default_rng(4)
    similarities, valid = draw_similarities(rng, "random", (20, 16, 12)), rng.random((20, 16)) < 0.9
    scores, plans = align(similarities, 4, valid)
    order = rng.permutation(20)
    shuffled, shuffled_plans = align(similarities[order], 4, valid[order])
    assert np.array_equal(scores[order], shuffled)
    assert np.array_equal(plans[order], shuffled_plans)
    without = np.zeros(20, np.float32)
    align_stripes(similarities, valid, np.ones(12, np.bool_), 4, without, np.zeros((0, 16, 12), np.float32))
    assert np.array_equal(scores, without)

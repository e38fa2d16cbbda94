"""What an image scores at most without being matched, and what a shortlist says of the images that are not in it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from index_samples import DIM, GRID, Shelved, gallery_spec, new_image, new_images, sample_features

from matchflow_index import GalleryStore, ImageFilter, SearchQuery
from matchflow_index.cell_norms import row_cell_norms
from matchflow_index.limits import holds_all, longest_cell, score_limits, unmatched_limit
from matchflow_index.records import RowLayout
from matchflow_index.shortlist import propose, summation_error
from matchflow_matching import CellGrid, FeatureBatch, Features, MatchMode, MatchSettings, global_cosines, match
from matching_strategies import random_batch

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LAYOUT = RowLayout(cells=GRID.size, dim=DIM)
MODES = [mode for mode in MatchMode if mode is not MatchMode.COSINE]


def packed(batch: FeatureBatch, layout: RowLayout) -> NDArray[np.uint8]:
    return np.stack([np.frombuffer(layout.pack(batch[k]), np.uint8) for k in range(len(batch))])


def true_lengths(batch: FeatureBatch) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(batch.cells.astype(np.float64), axis=2)
    longest: NDArray[np.float64] = (lengths * np.abs(batch.scales.astype(np.float64))).max(axis=1)
    return longest


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 9),
    cells=st.integers(1, 20),
    dim=st.sampled_from([1, 3, 8, 33, 128]),
)
@settings(deadline=None)
def test_lengths_of_rows_are_those_of_their_longest_cells(seed: int, count: int, cells: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    batch = FeatureBatch(
        embeddings=np.zeros((count, dim), np.float32),
        cells=rng.integers(-128, 128, (count, cells, dim)).astype(np.int8),
        scales=rng.uniform(1e-3, 1, (count, cells)).astype(np.float16),
    )
    lengths = row_cell_norms(packed(batch, RowLayout(cells=cells, dim=dim)), RowLayout(cells=cells, dim=dim))
    expected = true_lengths(batch)
    assert lengths.dtype == np.float32
    assert (lengths >= expected).all()
    np.testing.assert_allclose(lengths, expected, rtol=1e-6)
    assert math.isclose(longest_cell(batch[0]), expected[0], rel_tol=1e-12)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_row_that_cannot_be_read_has_no_length_and_hides_no_other(wrong: float) -> None:
    batch = sample_features(3)
    batch.scales[1, 2] = wrong
    batch.cells[1] = 0
    lengths = row_cell_norms(packed(batch, LAYOUT), LAYOUT)
    assert lengths[1] == 0
    np.testing.assert_allclose(lengths[[0, 2]], true_lengths(batch.take(np.array([0, 2]))), rtol=1e-6)


def test_lengths_follow_what_is_put_replaced_and_deleted(tmp_path: Path) -> None:
    images = new_images(6)
    long = replace(images[2].features, scales=images[2].features.scales * np.float16(3))
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        shelf = gallery._shelf
        assert shelf.longest_cell == 0
        gallery.put(images)
        lengths = true_lengths(FeatureBatch.stack([image.features for image in images]))
        np.testing.assert_allclose(shelf.cell_norms, lengths, rtol=1e-6)
        assert math.isclose(shelf.longest_cell, lengths.max(), rel_tol=1e-6)
        gallery.put([new_image("long", long)])
        assert math.isclose(shelf.longest_cell, lengths[2] * 3, rel_tol=1e-3)
        gallery.put([new_image("long", images[0].features)])
        assert math.isclose(shelf.longest_cell, lengths.max(), rel_tol=1e-6)
        assert shelf.cell_norms[6] == 0
        gallery.put([new_image("longer", long)])
        gallery.delete([image.image_id for image in images])
    with GalleryStore.open(tmp_path) as store:
        shelf = store.gallery("demo")._shelf
        assert math.isclose(shelf.longest_cell, lengths[2] * 3, rel_tol=1e-3)
        store.gallery("demo").delete(["longer"])
        assert math.isclose(shelf.longest_cell, lengths[0], rel_tol=1e-6)
        store.gallery("demo").delete(["long"])
        assert shelf.longest_cell == 0


@st.composite
def stretched(draw: st.DrawFn) -> tuple[Features, FeatureBatch]:
    """Draw a query and 8 images of 2 x 2 cells that are long, short, equal to the query, opposite or constant."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    batch = random_batch(rng, 9, GRID.size, draw(st.sampled_from([4, 8, 33])), draw(st.sampled_from([0.0, 0.3, 10.0])))
    scales = batch.scales * rng.choice(np.array([0, 0.5, 1, 2.5], np.float16), size=batch.scales.shape)
    cells = batch.cells.copy()
    cells[1], scales[1] = cells[0], scales[0]
    cells[2] = -np.maximum(cells[0], -127)
    cells[3] = cells[3, 0]
    return (
        Features(embedding=batch.embeddings[0], cells=cells[0], scales=scales[0]),
        FeatureBatch(embeddings=batch.embeddings[1:], cells=cells[1:], scales=scales[1:]),
    )


def overshoot(pair: tuple[Features, FeatureBatch], chosen: MatchSettings, tightened: float = 0.0) -> float:
    """Return by how much the worst score passes its limit."""
    query, images = pair
    limits = score_limits(query, chosen, true_lengths(images), global_cosines(query.embedding, images.embeddings))
    scores = match(query, images, chosen, grid=GRID).score
    return float((scores - limits + tightened).max())


@given(
    pair=stretched(),
    mode=st.sampled_from(MODES),
    weight=st.sampled_from([0.0, 1.0, 10.0]),
    iterations=st.sampled_from([1, 3, 200]),
)
@settings(deadline=None, max_examples=150)
def test_no_image_scores_more_than_its_limit(
    pair: tuple[Features, FeatureBatch], mode: MatchMode, weight: float, iterations: int
) -> None:
    chosen = MatchSettings.of(mode, global_weight=weight, max_iterations=iterations)
    assert overshoot(pair, chosen) <= 0


@pytest.mark.parametrize("mode", MODES)
def test_the_limit_is_reached_by_an_image_that_is_equal_to_the_query_everywhere(mode: MatchMode) -> None:
    """So a limit that is lower by 1e-3 would be a wrong one, and the test above would find it."""
    one = sample_features(1)[0]
    cells = np.repeat(one.cells[:1], GRID.size, axis=0)
    query = Features(embedding=one.embedding, cells=cells, scales=np.repeat(one.scales[:1], GRID.size))
    chosen = MatchSettings.of(mode, global_weight=1)
    assert overshoot((query, FeatureBatch.stack([query])), chosen) <= 0
    assert overshoot((query, FeatureBatch.stack([query])), chosen, tightened=1e-3) > 0


@given(seed=st.integers(0, 2**32), dim=st.sampled_from([1, 7, 8, 128, 129, 512, 2048]))
@settings(deadline=None, max_examples=50)
def test_two_sums_are_never_further_apart_than_allowed(seed: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(40, dim)) * rng.choice([1.0, 1e-3, 30.0], size=(40, dim))
    vectors = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    index = faiss.IndexFlatIP(dim)
    index.add(vectors)
    values, slots = index.search(vectors[:1], len(vectors))
    ours = global_cosines(vectors[0], vectors)[slots[0]]
    assert np.abs(values[0] - ours).max() <= summation_error(dim)


@given(data=st.data(), count=st.integers(1, 80), copies=st.integers(1, 64))
@settings(deadline=None, max_examples=60)
def test_what_a_shortlist_says_of_all_others_is_true(data: st.DataObject, count: int, copies: int) -> None:
    names = [f"{k:02}" for k in range(64)]
    excluded = data.draw(st.frozensets(st.sampled_from(names)))
    gone = data.draw(st.lists(st.sampled_from(names), unique=True))
    source = sample_features(copies, seed=data.draw(st.integers(0, 99)))
    with Shelved.of({name: source[k % copies] for k, name in enumerate(names)}, deleted=gone) as shelved:
        query = sample_features(1, seed=5)[0]
        shortlist = propose(shelved.sight, SearchQuery(features=query, filter=ImageFilter(exclude=excluded)), count)
        inside = shelved.images.keys() - excluded
        others = inside - set(shortlist.image_ids)
        assert shortlist.total == len(inside)
        assert (shortlist.outside == -math.inf) == (not others)
        for name in others:
            cosine = global_cosines(query.embedding, shelved.images[name].embedding[None])[0]
            assert cosine <= shortlist.outside
        lengths = true_lengths(FeatureBatch.stack([*shelved.images.values(), query]))[:-1]
        assert shortlist.longest_cell >= lengths.max(initial=0)


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_the_limit_of_the_unmatched_is_above_each_of_their_scores(data: st.DataObject) -> None:
    names = [f"{k:02}" for k in range(48)]
    source = sample_features(48, seed=data.draw(st.integers(0, 99)))
    mode, weight = data.draw(st.sampled_from(MODES)), data.draw(st.sampled_from([0.0, 0.5, 1.0, 10.0]))
    chosen = MatchSettings.of(mode, global_weight=weight)
    with Shelved.of(dict(zip(names, (source[k] for k in range(48)), strict=True))) as shelved:
        query = SearchQuery(features=sample_features(1, seed=5)[0], settings=chosen)
        shortlist = propose(shelved.sight, query, data.draw(st.integers(1, 60)))
        matched = data.draw(st.integers(0, len(shortlist.image_ids)))
        limit = unmatched_limit(query, chosen, shortlist, matched)
        known = set(shortlist.image_ids[:matched])
        assume(len(known) < 48)
        rest = FeatureBatch.stack([shelved.images[name] for name in names if name not in known])
        assert match(query.features, rest, chosen, grid=GRID).score.max() <= limit
        assert unmatched_limit(query, chosen, propose(shelved.sight, query, 48), 48) == (-math.inf)


@pytest.mark.parametrize("where", ["embedding", "scales"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_leave_the_limits_of_others_alone(where: str, wrong: float) -> None:
    """No such row can be put; the test plants them where a damaged store might hold them."""
    batch = sample_features(30)
    images = {f"{k:02}": batch[k] for k in range(30)}
    getattr(images["07"], where)[0] = wrong
    getattr(images["21"], where)[-1] = wrong
    query = SearchQuery(features=sample_features(1, seed=5)[0], settings=MatchSettings())
    with Shelved.of(images) as shelved:
        shortlist = propose(shelved.sight, query, 10)
        assert math.isclose(shortlist.longest_cell, 1, rel_tol=0.05)
        assert np.isfinite(shortlist.cosines).all()
        assert math.isfinite(unmatched_limit(query, MatchSettings(), shortlist, 10))
        everything = propose(shelved.sight, query, 40)
        assert everything.total == 30
        # What FAISS cannot read it does not propose; the shortlist does not claim to be complete then.
        assert (everything.outside == -math.inf) == (len(everything.image_ids) == 30)


@pytest.mark.parametrize(
    ("scores", "limit", "change", "expected"),
    [
        ([0.9, 0.5], 0.4, {}, True),
        ([0.9, 0.5], 0.5, {}, False),
        ([0.9, 0.5], 0.6, {}, False),
        ([0.9], 0.1, {}, False),
        ([0.9], -math.inf, {}, True),
        ([], -math.inf, {}, True),
        ([], 0.1, {}, False),
        ([0.9], 0.1, {"min_score": 0.2}, True),
        ([0.9], 0.2, {"min_score": 0.2}, False),
        ([], 0.1, {"min_score": 0.2}, True),
        ([0.9, 0.5], 0.6, {"min_score": 0.2}, False),
    ],
)
def test_hits_are_all_there_is_when_nothing_else_can_reach_the_last(
    scores: list[float], limit: float, change: dict[str, Any], *, expected: bool
) -> None:
    query = SearchQuery(features=sample_features(1)[0], top_k=2, **change)
    assert holds_all(scores, query, limit) is expected


def test_a_limit_needs_no_square_grid() -> None:
    rng = np.random.default_rng(3)
    batch = random_batch(rng, 5, 6, 16)
    chosen = MatchSettings.of(MatchMode.EARTH_MOVER)
    scores = match(batch[0], batch, chosen, grid=CellGrid(rows=3, columns=2)).score
    limits = score_limits(batch[0], chosen, true_lengths(batch), np.zeros(5))
    assert (scores <= limits).all()

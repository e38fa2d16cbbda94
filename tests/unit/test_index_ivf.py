"""The coarse index of large galleries: lists of quantised vectors, with the recall that was measured."""

from __future__ import annotations

import doctest
from typing import TYPE_CHECKING

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import naive_search, new_image

from matchflow_index import GallerySpec, GalleryStore, ImageFilter, LabelCondition, SearchQuery, coarse, ivf_index
from matchflow_index import shortlist as shortlist_module
from matchflow_index.coarse import decode_coarse, encode_coarse, trained, wanted_lists
from matchflow_index.errors import CacheDamagedError
from matchflow_index.flat_index import FlatIndex
from matchflow_index.ivf_index import IvfIndex, best_by_cosine, lists_for, training_slots
from matchflow_index.records import RowLayout
from matchflow_index.slab import CellSlab
from matchflow_matching import CellGrid, FeatureBatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from matchflow_index import Gallery, NewImage

DIM, CLUSTERS = 16, 40
COUNT = 3_000


def clustered(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Return unit vectors float32 [count, DIM] around a few centres, as features of real images are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLUSTERS, DIM))
    raw = centres[rng.integers(0, CLUSTERS, count)] + 0.4 * rng.normal(size=(count, DIM))
    unit: NDArray[np.float32] = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    return unit


def batch_of(vectors: NDArray[np.float32]) -> FeatureBatch:
    """Return features of one cell with those global vectors."""
    cells = np.clip(np.round(vectors[:, None] * 127), -127, 127).astype(np.int8)
    return FeatureBatch(embeddings=vectors, cells=cells, scales=np.full((len(vectors), 1), 1 / 127, np.float16))


def slab_of(vectors: NDArray[np.float32]) -> CellSlab:
    layout = RowLayout(cells=1, dim=DIM)
    slab, batch = CellSlab.private(layout), batch_of(vectors)
    slab.append([layout.pack(batch[k]) for k in range(len(batch))])
    return slab


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    return clustered(COUNT)


@pytest.fixture(scope="module")
def slab(vectors: NDArray[np.float32]) -> Iterator[CellSlab]:
    slab = slab_of(vectors)
    yield slab
    slab.close()


@pytest.fixture(scope="module")
def lists(slab: CellSlab) -> IvfIndex:
    return trained(slab, np.arange(COUNT), COUNT)


def true_best(vectors: NDArray[np.float32], query: NDArray[np.float32], allowed: NDArray[np.bool_], k: int) -> set[int]:
    slots = np.flatnonzero(allowed)
    return set(slots[np.argsort(-(vectors[slots] @ query))][:k].tolist())


def measured(index: IvfIndex, vectors: NDArray[np.float32], allowed: NDArray[np.bool_] | None, k: int) -> float:
    """Return the share of the true best that is proposed, over new queries."""
    mask = np.ones(len(vectors), np.bool_) if allowed is None else allowed
    shares = []
    for query in clustered(60, seed=5):
        true = true_best(vectors, query, mask, k)
        shares.append(len(true & set(index.propose(query, 2 * k, allowed)[0].tolist())) / max(1, len(true)))
    return float(np.mean(shares))


def test_the_recall_is_what_was_aimed_at_and_what_is_measured_of_others(
    lists: IvfIndex, vectors: NDArray[np.float32]
) -> None:
    training = lists.training
    assert training.recall >= coarse.RECALL_AIM
    assert (training.images, training.queries, training.lists) == (COUNT, 200, lists_for(COUNT))
    assert training.nprobe < training.lists
    assert measured(lists, vectors, None, 100) >= 0.97


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("how", ["random", "clusters"])
def test_filters_of_any_share_keep_the_recall(
    lists: IvfIndex, vectors: NDArray[np.float32], share: float, how: str
) -> None:
    if how == "random":
        allowed = np.random.default_rng(1).random(COUNT) < share
    else:
        allowed = vectors @ clustered(1, seed=8)[0] > np.quantile(vectors @ clustered(1, seed=8)[0], 1 - share)
    assert measured(lists, vectors, allowed, 10) >= 0.97
    for query in clustered(20, seed=6):
        slots, values = lists.propose(query, 40, allowed)
        assert allowed[slots].all()
        assert len(set(slots.tolist())) == len(slots) >= min(40, int(allowed.sum()))
        assert (np.diff(values) <= 0).all()


def test_all_there_is_is_proposed_where_so_many_are_asked_for(lists: IvfIndex) -> None:
    slots, _ = lists.propose(clustered(1)[0], 10 * COUNT, None)
    assert sorted(slots.tolist()) == list(range(COUNT))


@given(gone=st.frozensets(st.integers(0, 399), max_size=399), more=st.integers(0, 50))
@settings(deadline=None, max_examples=25)
def test_what_was_removed_is_never_proposed_and_all_else_is(gone: frozenset[int], more: int) -> None:
    first, second = clustered(400), clustered(more, seed=3)
    index = IvfIndex.train(first, 400)
    index.add(first)
    index.remove(np.array(sorted(gone), np.int64))
    index.add(second)
    again = decode_coarse(encode_coarse(index), size=400 + more, dim=DIM)
    live = [slot for slot in range(400 + more) if slot not in gone]
    for each in (index, again):
        assert each.size == 400 + more
        assert sorted(each.propose(first[0], 1000, None)[0].tolist()) == live
        each.remove(np.array(live, np.int64))
        assert not len(each.propose(first[0], 1000, None)[0])


def test_an_index_is_read_as_it_was_written(lists: IvfIndex) -> None:
    again = IvfIndex.decode(lists.encode(), size=COUNT, dim=DIM)
    assert again.training == lists.training
    for query in clustered(10, seed=2):
        for one, other in zip(again.propose(query, 50, None), lists.propose(query, 50, None), strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_emptied_index_has_the_lists_and_nothing_in_them(lists: IvfIndex, vectors: NDArray[np.float32]) -> None:
    empty = lists.emptied()
    assert (empty.size, empty.training) == (0, lists.training)
    assert not len(empty.propose(vectors[0], 10, None)[0])
    empty.add(vectors)
    for query in clustered(10, seed=2):
        assert set(empty.propose(query, 50, None)[0]) == set(lists.propose(query, 50, None)[0])
    assert lists.size == COUNT


@pytest.mark.parametrize(("size", "dim"), [(COUNT - 1, DIM), (COUNT, DIM + 1)])
def test_an_index_of_another_size_is_refused(lists: IvfIndex, size: int, dim: int) -> None:
    with pytest.raises(CacheDamagedError, match="expected an IVF index"):
        IvfIndex.decode(lists.encode(), size=size, dim=dim)


@pytest.mark.parametrize("length", [0, 3, 4, 40, 1000, -1])
def test_an_index_that_is_cut_off_is_refused(lists: IvfIndex, length: int) -> None:
    with pytest.raises(CacheDamagedError):
        IvfIndex.decode(lists.encode()[:length], size=COUNT, dim=DIM)


def test_another_kind_of_index_is_refused(lists: IvfIndex) -> None:
    data = lists.encode()
    head = data[: 4 + int.from_bytes(data[:4], "little")]
    other = faiss.serialize_index(faiss.IndexFlatIP(DIM)).tobytes()
    with pytest.raises(CacheDamagedError, match="expected an IVF index"):
        IvfIndex.decode(head + other, size=COUNT, dim=DIM)


def test_the_true_best_do_not_depend_on_how_they_are_read(vectors: NDArray[np.float32]) -> None:
    queries = clustered(7, seed=4)
    slots = np.arange(COUNT)
    whole = best_by_cosine(queries, [(slots, vectors)], 20)
    pieces = best_by_cosine(queries, ((slots[at : at + 77], vectors[at : at + 77]) for at in range(0, COUNT, 77)), 20)
    for query, one, other in zip(queries, whole, pieces, strict=True):
        assert set(one) == set(other) == true_best(vectors, query, np.ones(COUNT, np.bool_), 20)


def test_lists_suit_the_size_and_training_takes_some_of_the_live() -> None:
    assert [lists_for(images) for images in (1, 50_000, 10**6, 10**9)] == [16, 512, 2048, 4096]
    live = np.arange(0, 100_000, 2)
    chosen = training_slots(live, 0)
    assert len(chosen) == len(set(chosen.tolist())) == 40 * lists_for(50_000)
    assert np.isin(chosen, live).all()
    assert (np.diff(chosen) > 0).all()
    assert training_slots(live[:50], 0).tolist() == live[:50].tolist()


def test_lists_are_wanted_by_the_large_the_grown_and_the_drifted(slab: CellSlab, lists: IvfIndex) -> None:
    live, flat = np.arange(COUNT), FlatIndex(DIM)
    assert not wanted_lists(flat, slab, live)
    assert not wanted_lists(lists, slab, live, largest_flat=100)
    assert "too many" in wanted_lists(flat, slab, live, largest_flat=100)
    few = trained(slab, live[:900], 900)
    assert "the lists were made for 900" in wanted_lists(few, slab, live, largest_flat=100)


def test_vectors_of_another_kind_are_noticed(vectors: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "LATEST", 500)
    rng = np.random.default_rng(0)
    other = rng.normal(size=(500, DIM)).astype(np.float32)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    slab = slab_of(np.concatenate([vectors, other]))
    lists = trained(slab, np.arange(COUNT), COUNT)
    assert "the latest vectors" in wanted_lists(lists, slab, np.arange(COUNT + 500), largest_flat=100)
    slab.close()


# In a gallery


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Gallery, list[NewImage]]]:
    """A gallery with lists, every tenth image of which was removed."""
    monkeypatch.setattr("matchflow_index.coarse.wanted_lists.__defaults__", (500,))
    monkeypatch.setattr(shortlist_module, "FEW_ROWS", 50)
    batch = batch_of(clustered(1500))
    images = [new_image(f"image-{k:04}", batch[k], {"tenth": str(k % 10), "k": float(k)}) for k in range(1500)]
    spec = GallerySpec(
        gallery_id="demo",
        model="tiny",
        bundle_digest="sha256:tiny",
        grid=CellGrid(rows=1, columns=1),
        embedding_dim=DIM,
        keep_thumbnails=False,
        create_time_s=0.0,
    )
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(spec)
        gallery.put(images)
        gallery.maintain()
        assert isinstance(gallery._shelf.coarse, IvfIndex)
        gallery.delete([image.image_id for image in images[::10]])
        yield gallery, [image for k, image in enumerate(images) if k % 10]


def recall_of(gallery: Gallery, images: list[NewImage], **asked: object) -> float:
    shares = []
    for vector in clustered(25, seed=7):
        query = SearchQuery(features=batch_of(vector[None])[0], settings=None, **asked)  # type: ignore[arg-type]
        answer = gallery.search(query)
        expected = naive_search(images, query, grid=CellGrid(rows=1, columns=1))
        assert len(answer.hits) == len(expected)
        true = {name for name, _ in expected}
        shares.append(len(true & {hit.record.image_id for hit in answer.hits}) / max(1, len(true)))
        assert not answer.exact or [hit.record.image_id for hit in answer.hits] == [name for name, _ in expected]
    return float(np.mean(shares))


def test_searches_with_lists_find_nearly_all_and_say_so(large: tuple[Gallery, list[NewImage]]) -> None:
    gallery, images = large
    assert gallery.recall >= coarse.RECALL_AIM
    assert recall_of(gallery, images) >= 0.98
    third = LabelCondition(field="tenth", any_of=frozenset({"3"}))
    assert recall_of(gallery, images, filter=ImageFilter(conditions=(third,))) >= 0.98
    others = LabelCondition(field="tenth", any_of=frozenset({"3"}), negated=True)
    excluded = frozenset(image.image_id for image in images[:200])
    assert recall_of(gallery, images, filter=ImageFilter(conditions=(others,), exclude=excluded)) >= 0.98
    assert recall_of(gallery, images, filter=ImageFilter(any_ids=excluded), top_k=300) == 1.0


def test_few_allowed_images_are_all_looked_at_and_the_answer_is_exact(large: tuple[Gallery, list[NewImage]]) -> None:
    gallery, images = large
    names = frozenset(image.image_id for image in images[:40])
    query = SearchQuery(features=images[0].features, settings=None, filter=ImageFilter(any_ids=names))
    answer = gallery.search(query)
    assert answer.exact
    assert [(hit.record.image_id, hit.score) for hit in answer.hits] == naive_search(
        images, query, grid=CellGrid(rows=1, columns=1)
    )
    assert not gallery.search(SearchQuery(features=images[0].features, settings=None)).exact


def test_exhaustive_searches_prove_their_answers_whatever_lists_miss(large: tuple[Gallery, list[NewImage]]) -> None:
    gallery, images = large
    for vector in clustered(5, seed=11):
        query = SearchQuery(features=batch_of(vector[None])[0], depth=5, top_k=5, max_flows=0, exhaustive=True)
        answer = gallery.search(query)
        assert answer.exact
        assert [(hit.record.image_id, hit.score) for hit in answer.hits] == naive_search(
            images, query, grid=CellGrid(rows=1, columns=1), exhaustive=True
        )


def test_the_worked_example_holds() -> None:
    results = doctest.testmod(ivf_index)
    assert results.attempted
    assert not results.failed

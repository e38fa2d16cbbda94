"""Dropping dead slots and making lists while searches and writes go on: nothing is lost, and answers stay the same."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import (
    empty_shelf,
    gallery_spec,
    naive_search,
    new_image,
    new_images,
    put_update,
    removal,
    sample_features,
)

from matchflow_index import GalleryStore, SearchQuery, StoreUnavailableError, coarse, exhaustive, live_shelf, upkeep
from matchflow_index.coarse import trained
from matchflow_index.flat_index import FlatIndex
from matchflow_index.ivf_index import IvfIndex
from matchflow_index.shelf import Shelf
from matchflow_index.slab import CellSlab
from matchflow_index.upkeep import Upkeep, compacted, make_lists, wants_compaction
from matchflow_matching import match

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matchflow_index import Gallery, NewImage

FEATURES = sample_features(64)


def churned(store: GalleryStore, seeds: int = 4, count: int = 60) -> tuple[Gallery, list[NewImage]]:
    """Return a gallery most of whose slots are dead, and what is in it."""
    gallery = store.create(gallery_spec())
    for seed in range(seeds):
        gallery.put(new_images(count, seed=seed))
    gallery.delete([f"image-{k:03}" for k in range(0, count, 7)])
    return gallery, [image for k, image in enumerate(new_images(count, seed=seeds - 1)) if k % 7]


def check(gallery: Gallery, images: list[NewImage]) -> None:
    query = SearchQuery(features=sample_features(1, seed=77)[0], top_k=20, depth=15, max_flows=0)
    for wide in (False, True):
        query = replace(query, exhaustive=wide)
        hits = [(hit.record.image_id, hit.score) for hit in gallery.search(query).hits]
        assert hits == naive_search(images, query, exhaustive=wide)
    assert gallery.count == len(images)
    for image in images:
        np.testing.assert_array_equal(gallery.features(image.image_id).cells, image.features.cells)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is large enough for upkeep."""
    monkeypatch.setattr(upkeep, "LEAST_COMPACTED", 1)
    monkeypatch.setattr(upkeep, "ROWS_PER_STEP", 16)


@given(gone=st.frozensets(st.integers(0, 39)), step=st.integers(1, 50), lists=st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_compacted_shelf_holds_what_lived_in_the_same_order(gone: frozenset[int], step: int, *, lists: bool) -> None:
    shelf, other = empty_shelf(), empty_shelf()
    names = [f"image-{k}" for k in range(40)]
    puts = [put_update(name, k + 1, FEATURES[k], {"k": str(k % 3)}) for k, name in enumerate(names)]
    shelf.apply([*puts, *(removal(names[k], 50 + k) for k in sorted(gone))], 99)
    if lists:
        index = IvfIndex.train(FEATURES.embeddings, 40)
        index.add(shelf.slab.embeddings(0, 40))
        index.remove(np.array(sorted(gone), np.int64))
        shelf.coarse = index
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upkeep, "ROWS_PER_STEP", step)
        new = compacted(shelf, other.slab)
    kept = [k for k in range(40) if k not in gone]
    assert new.size == new.count == new.slab.size == new.coarse.size == len(kept)
    assert isinstance(new.coarse, IvfIndex if lists else FlatIndex)
    assert new.slots.ids.of(range(new.size)) == [names[k] for k in kept]
    assert new.slots.row_ids.values.tolist() == [101 + k for k in kept]
    np.testing.assert_array_equal(new.slab.stored(np.arange(new.size)), shelf.slab.stored(np.array(kept, np.int64)))
    np.testing.assert_array_equal(new.cell_norms, shelf.cell_norms[kept])
    assert new.longest_cell == shelf.longest_cell
    assert new.sequence == 99
    slots, _ = new.coarse.propose(FEATURES.embeddings[0], 100, None)
    assert sorted(slots.tolist()) == list(range(len(kept)))
    shelf.close()
    new.close()


def test_only_large_galleries_with_many_dead_slots_are_compacted(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = empty_shelf()
    shelf.apply([put_update(f"image-{k}", k + 1, FEATURES[k]) for k in range(8)], 8)
    shelf.apply([removal("image-0", 9), removal("image-1", 10)], 10)
    assert not wants_compaction(shelf)
    monkeypatch.setattr(upkeep, "LEAST_COMPACTED", 8)
    assert not wants_compaction(shelf)
    shelf.apply([removal("image-2", 11)], 11)
    assert wants_compaction(shelf)
    monkeypatch.setattr(upkeep, "LEAST_COMPACTED", 9)
    assert not wants_compaction(shelf)
    shelf.close()


@pytest.mark.usefixtures("small")
def test_answers_are_the_same_before_and_after_and_after_a_restart(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        gallery, images = churned(store)
        check(gallery, images)
        old = gallery._shelf
        gallery.maintain()
        assert gallery._shelf is not old
        assert gallery._shelf.size == len(images)
        check(gallery, images)
        more = new_images(5, seed=9, prefix="more")
        gallery.put(more)
        gallery.delete([images[3].image_id])
        images = [*images[:3], *images[4:], *more]
        check(gallery, images)
    assert len(list(tmp_path.glob("caches/*/cells*"))) == 1
    with GalleryStore.open(tmp_path) as store:
        assert store.gallery("demo")._shelf.size == len(images) + 1
        check(store.gallery("demo"), images)


def test_a_look_at_one_image_is_a_look_at_one_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shelf without dead slots may take the place of the one in which the image was found just now."""
    with GalleryStore.open(tmp_path) as store:
        gallery, images = churned(store)
        old, wanted = gallery._shelf, images[-1]
        slot_of = Shelf.slot

        def overtaken(shelf: Shelf, image_id: str) -> int | None:
            found = slot_of(shelf, image_id)
            if shelf is old and gallery._live.shelf is old:
                gallery._live.shelf = compacted(old, CellSlab.private(old.slab.layout))
                assert found is not None
                assert found >= gallery._live.shelf.size
            return found

        monkeypatch.setattr(Shelf, "slot", overtaken)
        np.testing.assert_array_equal(gallery.features(wanted.image_id).cells, wanted.features.cells)
        assert gallery._live.shelf is not old
        gallery._live.shelf.close()
        gallery._live.shelf = old


@pytest.mark.usefixtures("small")
def test_a_compaction_without_room_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GalleryStore.open(tmp_path) as store:
        gallery, images = churned(store)
        old = gallery._shelf

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("os.posix_fallocate", full)
            with pytest.raises(StoreUnavailableError, match="No space left"):
                gallery.maintain()
        assert gallery._shelf is old
        check(gallery, images)
        gallery.put(new_images(2, seed=8, prefix="more"))
        images += new_images(2, seed=8, prefix="more")
        check(gallery, images)
    with GalleryStore.open(tmp_path) as store:
        check(store.gallery("demo"), images)


@pytest.mark.usefixtures("small")
def test_a_search_that_began_before_a_compaction_ends_where_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()
    with GalleryStore.open(tmp_path) as store:
        gallery, images = churned(store)
        query = SearchQuery(features=FEATURES[0], top_k=20, depth=1, max_flows=1, exhaustive=True)
        before = gallery.search(query)

        def disturbed(*given: Any, **named: Any) -> Any:
            calls.append(0)
            if len(calls) == 1:
                gallery.maintain()
                gallery.put(new_images(300, seed=5, prefix="later"))
                gallery.delete([image.image_id for image in images])
            return match(*given, **named)

        monkeypatch.setattr(exhaustive, "match", disturbed)
        monkeypatch.setattr(exhaustive, "FIRST_CHUNK", 4)
        monkeypatch.setattr(exhaustive, "CHUNK_BYTES", 1)
        monkeypatch.setattr(exhaustive, "SMALLEST_CHUNK", 4)
        during = gallery.search(query)
        assert len(calls) > 1
        assert (during.hits, during.exact, during.held_back) == (before.hits, True, 0)
        monkeypatch.setattr(exhaustive, "match", match)
        check(gallery, new_images(300, seed=5, prefix="later"))


class Beside:
    """Threads that do their work until `end`, and note what goes wrong."""

    def __init__(self, *works: Callable[[], None]) -> None:
        self.trouble: list[object] = []
        self._finished = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in works]
        for thread in self._threads:
            thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            while not self._finished.is_set():
                work()
        except Exception as error:  # noqa: BLE001
            self.trouble.append(error)

    def end(self) -> None:
        self._finished.set()
        for thread in self._threads:
            thread.join(60)


def look(kept: Gallery, query: SearchQuery) -> None:
    """Search where all 40 images are replaced at once, again and again."""
    answer = kept.search(query)
    versions = {hit.record.labels["v"] for hit in answer.hits}
    assert (len(answer.hits), len(versions), answer.held_back) == (40, 1, 0)


@pytest.mark.usefixtures("small")
def test_upkeep_beside_searches_and_writers_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matchflow_index.coarse.wanted_lists.__defaults__", (30,))
    monkeypatch.setattr(coarse, "GROWTH", 1.1)
    monkeypatch.setattr(live_shelf, "SAVE_CHANGES", 20)
    names = [f"image-{k:03}" for k in range(40)]
    batches = [sample_features(len(names), seed=version) for version in range(30)]
    query = SearchQuery(features=batches[7][0], top_k=40, depth=40, max_flows=1)
    with GalleryStore.open(tmp_path) as store:
        kept = store.create(gallery_spec())

        def put(version: int) -> None:
            kept.put([new_image(name, batches[version][k], {"v": str(version)}) for k, name in enumerate(names)])

        put(0)
        wide = replace(query, exhaustive=True)
        beside = Beside(partial(look, kept, query), partial(look, kept, wide), kept.maintain)
        for version in range(1, 30):
            put(version)
            time.sleep(0.005)
        beside.end()
        assert not beside.trouble
        kept.maintain()
        assert kept._shelf.size < 30 * 40
        assert isinstance(kept._shelf.coarse, IvfIndex)
        check_all(kept, names, batches[29])
    with GalleryStore.open(tmp_path) as store:
        check_all(store.gallery("demo"), names, batches[29])
    assert len(list(tmp_path.glob("caches/*/cells*"))) == 1


def check_all(kept: Gallery, names: list[str], batch: Any) -> None:
    assert kept.count == len(names)
    for k, name in enumerate(names):
        np.testing.assert_array_equal(kept.features(name).cells, batch[k].cells)
    found = kept.search(SearchQuery(features=batch[3], top_k=100, settings=None))
    assert {hit.record.image_id for hit in found.hits} == set(names)
    assert found.hits[0].record.image_id == names[3]


def test_lists_hold_what_was_written_while_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matchflow_index.coarse.wanted_lists.__defaults__", (10,))
    shelf = empty_shelf()
    shelf.apply([put_update(f"image-{k}", k + 1, FEATURES[k]) for k in range(40)], 40)

    def meanwhile(*given: Any) -> Any:
        lists = trained(*given)
        shelf.apply([put_update(f"later-{k}", 41 + k, FEATURES[40 + k]) for k in range(5)], 45)
        shelf.apply([removal("image-3", 46), removal("later-2", 47)], 47)
        return lists

    monkeypatch.setattr(upkeep, "trained", meanwhile)
    assert "too many" in make_lists(shelf, threading.Lock())
    assert isinstance(shelf.coarse, IvfIndex)
    slots, _ = shelf.coarse.propose(FEATURES.embeddings[0], 100, None)
    assert sorted(slots.tolist()) == shelf.live_slots.tolist()
    assert make_lists(shelf, threading.Lock()) == ""
    shelf.close()


def test_caches_are_saved_after_many_changes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_shelf, "SAVE_CHANGES", 10)
    with GalleryStore.open(tmp_path) as store:
        kept = store.create(gallery_spec())
        kept.put(new_images(10))
        kept.maintain()
        assert not list(tmp_path.glob("caches/*/slots.cache"))
        kept.put(new_images(11))
        kept.maintain()
        assert len(list(tmp_path.glob("caches/*/slots.cache"))) == 1


def test_a_store_with_upkeep_does_it_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LEAST_COMPACTED", 1)
    with GalleryStore.open(tmp_path, upkeep_s=0.01) as store:
        kept, images = churned(store)
        deadline = time.monotonic() + 20
        # Done in the middle, it leaves fewer dead slots behind than are worth doing it again.
        while upkeep.wants_compaction(kept._shelf) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not upkeep.wants_compaction(kept._shelf)
        check(kept, images)


def test_upkeep_goes_on_after_a_failure_and_says_it_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "RETRY_S", 0.0)
    calls, done = list[int](), threading.Event()

    def work() -> bool:
        calls.append(0)
        if len(calls) < 4:
            raise StoreUnavailableError("the store is away")
        done.set()
        return False

    threads = Upkeep()
    threads.start("upkeep", work)
    assert done.wait(20)
    threads.stop()
    assert len(calls) == 4
    assert caplog.text.count("the store is away") == 1


def test_upkeep_that_breaks_ends_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    threads = Upkeep()

    def work() -> bool:
        raise ZeroDivisionError

    threads.start("upkeep", work)
    for thread in threads._threads:
        thread.join(20)
    threads.stop()
    assert "upkeep ended" in caplog.text

"""What one search sees: shelf and truth of one moment, whoever writes meanwhile."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from index_samples import empty_shelf, gallery_spec, new_image, new_images, put_update, sample_features

from matchflow_index import GalleryStore, SearchQuery, live_shelf
from matchflow_index import search as search_module
from matchflow_index.exhaustive import widen
from matchflow_index.sight import MOST_LOOKS, Records, Sight

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_index import Gallery
    from matchflow_index.shelf import Shelf

FEATURES = sample_features(8)
QUERY = SearchQuery(features=FEATURES[0], top_k=20, max_flows=0)


class Snapshots:
    """Snapshots of a truth that is at the changes of a list, one after the other, and then stays at the last."""

    def __init__(self, *sequences: int) -> None:
        self.sequences = list(sequences)
        self.opened = self.closed = 0

    @contextmanager
    def __call__(self) -> Iterator[Any]:
        self.opened += 1
        assert self.opened - self.closed == 1
        yield Looked(self.sequences[min(self.opened, len(self.sequences)) - 1])
        self.closed += 1


class Looked:
    def __init__(self, sequence: int) -> None:
        self.sequence = sequence

    def records_of(self, image_ids: list[str]) -> list[Any]:
        return [(image_id, self.sequence) for image_id in image_ids]


def looked_up(sight: Sight) -> list[Any]:
    """Return what a sight has of an image: with the snapshots above, its id and the moment."""
    return list(sight.records_of(["a"]).found)


def nothing(image_ids: Any) -> Records:
    return Records(found=[None for _ in image_ids])


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = empty_shelf()
    shelf.apply([put_update(f"image-{k}", k + 1, FEATURES[k]) for k in range(3)], 3)
    yield shelf
    shelf.close()


@pytest.mark.parametrize(("sequences", "looks"), [([3], 1), ([2, 3], 2), ([1, 2, 3], 3)])
def test_the_truth_is_looked_at_again_until_it_is_where_the_shelf_is(
    shelf: Shelf, sequences: list[int], looks: int
) -> None:
    snapshots = Snapshots(*sequences)
    with Sight(lambda: shelf, nothing, snapshots=snapshots) as sight:
        for _ in range(2):
            with sight.still() as still:
                assert still is shelf
                assert looked_up(sight) == [("a", 3)]
        assert (snapshots.opened, snapshots.closed) == (looks, looks - 1)
    assert snapshots.closed == looks


def test_changes_that_the_shelf_lacks_are_waited_for_without_a_transaction(shelf: Shelf) -> None:
    snapshots, waited = Snapshots(4, 4), list[int]()

    def settled(sequence: int) -> bool:
        waited.append(sequence)
        assert snapshots.opened == snapshots.closed
        shelf.apply([put_update("image-3", 4, FEATURES[3])], 4)
        return True

    with Sight(lambda: shelf, nothing, snapshots=snapshots, settled=settled) as sight, sight.still():
        assert looked_up(sight) == [("a", 4)]
    assert waited == [4]


def test_changes_that_never_come_are_not_waited_for_again_and_again(shelf: Shelf) -> None:
    waited = []

    def settled(sequence: int) -> bool:
        waited.append(sequence)
        return False

    snapshots = Snapshots(5)
    with Sight(lambda: shelf, nothing, snapshots=snapshots, settled=settled) as sight, sight.still() as still:
        assert still is shelf
    assert waited == [5]
    snapshots = Snapshots(2)
    with Sight(lambda: shelf, nothing, snapshots=snapshots) as sight, sight.still():
        assert snapshots.opened == MOST_LOOKS


def test_a_shelf_that_was_replaced_is_left_for_the_new_one_only_when_it_must_be(shelf: Shelf) -> None:
    other = empty_shelf()
    other.apply([put_update("image-0", 4, FEATURES[0])], 4)
    current = [shelf]
    with Sight(lambda: current[0], nothing, snapshots=Snapshots(3, 4)) as sight:
        with sight.still():
            pass
        current[0] = other
        with sight.still(pinned=True) as still:
            assert still is shelf
        shelf.sequence = 9
        with sight.still(pinned=True) as still:
            assert still is other
        assert (shelf._pins, other._pins) == (1, 1)
    assert (shelf._pins, other._pins) == (0, 0)
    other.close()


def test_without_snapshots_records_are_those_of_now(shelf: Shelf) -> None:
    with Sight(lambda: shelf, nothing) as sight, sight.still():
        assert sight.records_of(["a", "b"]) == Records(found=[None, None], store_unreachable=False)


def test_labels_of_hits_are_those_of_the_moment_of_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GalleryStore.open(tmp_path) as store:
        kept = store.create(gallery_spec())
        kept.put(new_images(6))
        before = kept.search(QUERY)
        real = search_module.match_first

        def disturbed(*given: Any) -> Any:
            kept.update("image-002", labels={"new": "yes"})
            kept.put([new_image("image-003", sample_features(1, seed=5)[0])])
            kept.delete(["image-004"])
            return real(*given)

        with monkeypatch.context() as patch:
            patch.setattr(search_module, "match_first", disturbed)
            during = kept.search(QUERY)
        assert (during.hits, during.held_back, during.sequence) == (before.hits, 0, 6)
        assert len(kept.search(QUERY).hits) == 5


def test_a_search_that_ran_out_of_time_answers_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked at the gallery again, which had changed by then."""
    with GalleryStore.open(tmp_path) as store:
        kept = store.create(gallery_spec())
        kept.put(new_images(40))
        query = SearchQuery(features=FEATURES[0], top_k=5, depth=2, max_flows=0, exhaustive=True)
        first = kept.search(SearchQuery(features=FEATURES[0], top_k=5, depth=2, max_flows=0))

        def late(sight: Sight, query: SearchQuery, grid: Any, ranking: Any) -> Any:
            kept.put([new_image(hit.record.image_id, FEATURES[k]) for k, hit in enumerate(first.hits)])
            with sight.still(pinned=True):
                pass
            monkeypatch.setattr("matchflow_index.exhaustive.look", lambda *_: None)
            return widen(sight, query, grid, ranking)

        monkeypatch.setattr(search_module, "widen", late)
        answer = kept.search(query)
        assert (answer.hits, answer.held_back, answer.exact) == (first.hits, 0, False)


def put_all(kept: Gallery) -> None:
    for k in range(40):
        kept.put(new_images(20, seed=k, prefix=f"p{k}"))


def test_a_map_that_grows_beside_searches_and_saves_stops_nobody_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_shelf, "SAVE_CHANGES", 5)
    finished, trouble = threading.Event(), list[object]()
    with GalleryStore.open(tmp_path, map_bytes=1 << 16) as store:
        kept = [store.create(gallery_spec(name)) for name in ("one", "two")]

        def beside(act: Any) -> None:
            try:
                while not finished.is_set():
                    act()
            except Exception as error:  # noqa: BLE001
                trouble.append(error)

        wide = SearchQuery(features=FEATURES[0], exhaustive=True, depth=1)
        acts = [each.maintain for each in kept] + [lambda each=each: each.search(wide) for each in kept]
        threads = [threading.Thread(target=beside, args=(act,), daemon=True) for act in [*acts, kept[0].save]]
        writers = [threading.Thread(target=put_all, args=(each,)) for each in kept]
        for thread in [*threads, *writers]:
            thread.start()
        for writer in writers:
            writer.join(120)
            assert not writer.is_alive()
        finished.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not trouble
        assert [each.count for each in kept] == [800, 800]

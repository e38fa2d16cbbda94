"""Galleries of a truth that several processes write to: each follows the log, and searches see what others wrote."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from index_samples import gallery_spec, new_image, new_images, sample_features

from matchflow_index import Gallery, GalleryStore, SearchQuery, store
from matchflow_index import search as search_module
from matchflow_index.caches import GalleryCaches
from matchflow_index.gallery import MOST_LOOKS
from matchflow_index.lmdb_truth import LmdbTruth
from matchflow_index.search import match_first

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUERY = SearchQuery(features=sample_features(1)[0], top_k=20, max_flows=0)


@pytest.fixture
def truth(tmp_path: Path) -> Iterator[LmdbTruth]:
    """A truth that says that others write to it, as one on a server would."""
    truth = LmdbTruth(tmp_path / "truth")
    truth.shared = True
    yield truth
    truth.close()


@pytest.fixture
def pair(truth: LmdbTruth, tmp_path: Path) -> Iterator[tuple[Gallery, Gallery]]:
    """The same gallery as two processes have it: each with a shelf and caches of its own."""
    stored = truth.create(gallery_spec())
    both = [Gallery(stored, truth, GalleryCaches(tmp_path / name, stored, read_only=False)) for name in ("a", "b")]
    yield both[0], both[1]
    for gallery in both:
        gallery.close()


def names(gallery: Gallery) -> list[str]:
    return sorted(hit.record.image_id for hit in gallery.search(QUERY).hits)


def test_what_one_writes_the_other_sees_once_it_follows(pair: tuple[Gallery, Gallery]) -> None:
    first, second = pair
    first.put(new_images(5))
    first.update("image-001", labels={"colour": "red"})
    first.delete(["image-002"])
    assert (second.sequence, second.count) == (0, 0)
    assert second.follow(0) == first.sequence == 7
    assert names(second) == names(first)
    np.testing.assert_array_equal(second.features("image-003").cells, first.features("image-003").cells)
    assert second.follow(0) == 7


def test_ones_own_changes_are_shown_after_those_of_others(pair: tuple[Gallery, Gallery]) -> None:
    first, second = pair
    first.put(new_images(5))
    second.put(new_images(2, seed=1, prefix="mine"))
    assert (second.sequence, second.count) == (7, 7)
    assert first.follow(0) == 7
    assert names(first) == names(second)
    second.put([new_image("image-000", sample_features(1, seed=3)[0])])
    first.put([new_image("image-000", sample_features(1, seed=4)[0])])
    second.follow(0)
    for gallery in pair:
        np.testing.assert_array_equal(gallery.features("image-000").cells, sample_features(1, seed=4)[0].cells)


def test_who_waits_for_a_change_of_others_goes_on_when_it_is_followed(pair: tuple[Gallery, Gallery]) -> None:
    first, second = pair
    waiting = threading.Thread(target=second.wait_for, args=(3, 60))
    waiting.start()
    following = threading.Thread(target=second.follow, args=(60,))
    following.start()
    first.put(new_images(3))
    for thread in (waiting, following):
        thread.join(60)
        assert not thread.is_alive()
    assert second.count == 3


@pytest.mark.parametrize("times", [1, 2])
def test_hits_that_another_replaces_meanwhile_are_searched_again(
    pair: tuple[Gallery, Gallery], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    first, second = pair
    first.put(new_images(6))
    second.follow(0)
    calls = list[int]()

    def disturbed(*given: Any) -> Any:
        calls.append(0)
        if len(calls) <= times:
            first.put(new_images(6, seed=len(calls)))
        return match_first(*given)

    monkeypatch.setattr(search_module, "match_first", disturbed)
    answer = second.search(QUERY)
    assert len(calls) == times + 1
    assert (len(answer.hits), answer.held_back, answer.sequence) == (6, 0, 6 * (times + 1))
    assert {hit.record.row_id for hit in answer.hits} == {record.row_id for record in first.page(None, 10)}


def test_a_search_that_is_never_left_in_peace_says_how_many_hits_it_held_back(
    pair: tuple[Gallery, Gallery], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    first.put(new_images(6))
    second.follow(0)
    calls = list[int]()

    def disturbed(*given: Any) -> Any:
        calls.append(0)
        first.put([new_image("image-003", sample_features(1, seed=len(calls))[0])])
        return match_first(*given)

    monkeypatch.setattr(search_module, "match_first", disturbed)
    answer = second.search(QUERY)
    assert len(calls) == MOST_LOOKS
    assert (len(answer.hits), answer.held_back, answer.exact) == (5, 1, False)
    assert "image-003" not in {hit.record.image_id for hit in answer.hits}


def test_what_another_removed_is_not_answered_even_before_it_is_followed(pair: tuple[Gallery, Gallery]) -> None:
    first, second = pair
    first.put(new_images(6))
    second.follow(0)
    first.delete(["image-003"])
    assert second.sequence == 6
    assert names(second) == names(first)
    assert "image-003" not in names(second)


@pytest.mark.parametrize("how", ["follow", "put", "search"])
def test_who_was_away_until_the_log_was_trimmed_begins_anew(
    pair: tuple[Gallery, Gallery], truth: LmdbTruth, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = pair
    first.put(new_images(6))
    second.follow(0)
    first.delete(["image-002"])
    first.put(new_images(3, seed=2, prefix="later"))
    truth.trim_log(first.stored, 1)
    if how == "put":
        second.put(new_images(1, seed=3, prefix="mine"))
        first.follow(0)
    elif how == "follow":
        second.follow(0)
    else:
        # What another removed is held back, and that is when it is seen that there is more to know.
        second.search(QUERY)
    assert "is read again from the truth" in caplog.text
    assert (second.sequence, second.count) == (first.sequence, first.count)
    assert names(second) == names(first)
    second.put(new_images(1, seed=4, prefix="more"))
    second.save()
    first.follow(0)
    assert names(second) == names(first)


def test_two_stores_on_one_truth_follow_each_other_by_themselves(
    tmp_path: Path, truth: LmdbTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "FOLLOW_S", 0.02)
    with (
        GalleryStore.open(tmp_path / "one", truth=truth) as one,
        GalleryStore.open(tmp_path / "two", truth=truth) as two,
    ):
        first = one.create(gallery_spec("both"))
        second = two.gallery("both")
        for k in range(5):
            results = (first, second)[k % 2].put(new_images(4, seed=k, prefix=f"p{k}"))
            (second, first)[k % 2].wait_for(results[-1].sequence, 30)
            assert names(first) == names(second)
        one.delete("both")
        deadline = time.monotonic() + 30
        while two._loaded and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not two._loaded
        truth.shared = False

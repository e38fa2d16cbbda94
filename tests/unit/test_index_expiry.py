"""Images with an end: never answered after it, deleted by upkeep, whatever the clock does."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_samples import gallery_spec, naive_search, new_images, sample_features

from matchflow_index import (
    EtagMismatchError,
    GalleryStore,
    ImageFilter,
    ImageNotFoundError,
    KnownImage,
    PutOutcome,
    SearchQuery,
    gallery,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_index import Gallery, NewImage

QUERY = SearchQuery(features=sample_features(1, seed=7)[0], top_k=100, depth=10, max_flows=0)


class Clock:
    """Stands for the module `time`, in steps of our own."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(1000.0)
    monkeypatch.setattr(gallery, "time", clock)
    return clock


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GalleryStore]:
    with GalleryStore.open(tmp_path) as store:
        yield store


def put_with_ends(kept: Gallery, ends: list[float | None]) -> list[NewImage]:
    images = [replace(image, expire_time_s=end) for image, end in zip(new_images(len(ends)), ends, strict=True)]
    kept.put(images)
    return images


def found(kept: Gallery, now_s: float, **asked: object) -> set[str]:
    answer = kept.search(replace(QUERY, now_s=now_s, **asked))  # type: ignore[arg-type]
    assert answer.exact or not asked.get("exhaustive")
    return {hit.record.image_id for hit in answer.hits}


@given(
    ends=st.lists(st.none() | st.integers(1001, 1010).map(float), min_size=1, max_size=20),
    nows=st.lists(st.integers(1000, 1012).map(float), max_size=4),
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_answered_after_its_end_and_everything_before(
    tmp_path_factory: pytest.TempPathFactory, clock: Clock, ends: list[float | None], nows: list[float]
) -> None:
    clock.now_s = 1000.0
    with GalleryStore.open(tmp_path_factory.mktemp("expiry")) as store:
        kept = store.create(gallery_spec())
        images = put_with_ends(kept, ends)
        for now_s in nows:
            clock.now_s = now_s
            # The clock may go back, the gallery does not.
            latest_s = kept.now_s()
            alive = [image for image in images if image.expire_time_s is None or image.expire_time_s > latest_s]
            names = {image.image_id for image in alive}
            ids = frozenset(image.image_id for image in images)
            assert found(kept, now_s) == names
            assert found(kept, now_s, settings=None) == names
            assert found(kept, now_s, exhaustive=True) == names
            assert found(kept, now_s, filter=ImageFilter(any_ids=ids)) == names
            query = replace(QUERY, top_k=3)
            hits = [(hit.record.image_id, hit.score) for hit in kept.search(replace(query, now_s=now_s)).hits]
            assert hits == naive_search(alive, query)
            assert {record.image_id for record in kept.page(None, 100)} == names
            for image in images:
                if image in alive:
                    assert kept.get(image.image_id).expire_time_s == image.expire_time_s
                    continue
                for act in (kept.get, kept.features, kept.thumbnail):
                    with pytest.raises(ImageNotFoundError):
                        act(image.image_id)


def test_upkeep_deletes_what_has_expired_and_only_that(store: GalleryStore, clock: Clock) -> None:
    kept = store.create(gallery_spec())
    images = put_with_ends(kept, [1001.0, None, 1002.0, 1003.0])
    assert kept.delete_expired() == 0
    clock.now_s = 1002.0
    assert kept.count == 4
    assert kept.delete_expired() == 2
    assert (kept.count, kept.sequence) == (2, 6)
    assert kept.delete_expired() == 0
    # What was given a longer life meanwhile stays.
    kept.update(images[3].image_id, expire_time_s=None)
    clock.now_s = 2000.0
    kept.maintain()
    assert {record.image_id for record in kept.page(None, 10)} == {images[1].image_id, images[3].image_id}


def test_a_clock_that_goes_back_brings_nothing_back(store: GalleryStore, clock: Clock) -> None:
    kept = store.create(gallery_spec())
    put_with_ends(kept, [1005.0, None])
    clock.now_s = 1005.0
    assert found(kept, 0.0) == {"image-001"}
    clock.now_s = 10.0
    assert found(kept, 0.0) == {"image-001"}
    assert kept.now_s() == 1005.0
    with pytest.raises(ImageNotFoundError):
        kept.get("image-000")
    kept.update("image-001", labels={"late": "yes"})
    assert kept.get("image-001").update_time_s == 1005.0


def test_a_search_may_ask_about_later_but_never_about_earlier(store: GalleryStore, clock: Clock) -> None:
    kept = store.create(gallery_spec())
    put_with_ends(kept, [1005.0, None])
    assert found(kept, 1006.0) == {"image-001"}
    assert found(kept, 1004.0) == {"image-000", "image-001"}
    clock.now_s = 1005.0
    assert found(kept, 1004.0) == {"image-001"}


@pytest.mark.parametrize("end", [-math.inf, 0.0, 999.0])
def test_an_image_without_end_has_none_and_an_end_in_the_past_is_one(
    store: GalleryStore, clock: Clock, caplog: pytest.LogCaptureFixture, end: float
) -> None:
    kept = store.create(gallery_spec())
    put_with_ends(kept, [None, end, end])
    assert found(kept, 0.0) == {"image-000"}
    assert not caplog.text
    clock.now_s = 1e12
    assert found(kept, 0.0) == {"image-000"}
    assert kept.delete_expired() == 2


def test_what_has_expired_can_be_put_again_as_if_it_were_gone(store: GalleryStore, clock: Clock) -> None:
    kept = store.create(gallery_spec())
    (image,) = put_with_ends(kept, [1005.0])
    with pytest.raises(EtagMismatchError):
        kept.put([replace(image, if_sequence=0)])
    clock.now_s = 1005.0
    with pytest.raises(EtagMismatchError):
        kept.put([replace(image, if_sequence=1)])
    with pytest.raises(ImageNotFoundError):
        kept.update(image.image_id, expire_time_s=None)
    kept.put([replace(image, if_sequence=0, expire_time_s=None)])
    assert found(kept, 0.0) == {image.image_id}
    assert kept.delete_expired() == 0


def test_an_end_can_be_set_moved_and_taken_away_without_new_features(store: GalleryStore, clock: Clock) -> None:
    kept = store.create(gallery_spec())
    (image,) = put_with_ends(kept, [None])
    row_id = kept.get(image.image_id).row_id
    known = KnownImage(image_id=image.image_id, content_hash=image.content_hash, labels=image.labels)
    assert kept.put([replace(known, expire_time_s=1010.0)])[0].outcome is PutOutcome.UPDATED
    assert kept.put([replace(known, expire_time_s=1010.0)])[0].outcome is PutOutcome.UNCHANGED
    record = kept.update(image.image_id, expire_time_s=1020.0)
    assert (record.expire_time_s, record.labels, record.row_id) == (1020.0, image.labels, row_id)
    record = kept.update(image.image_id, labels={"a": "b"})
    assert (record.expire_time_s, record.labels, record.sequence) == (1020.0, {"a": "b"}, 4)
    assert kept.update(image.image_id, labels={"a": "b"}, expire_time_s=1020.0) == record
    clock.now_s = 1019.0
    assert kept.update(image.image_id, expire_time_s=None).expire_time_s is None
    clock.now_s = 1e9
    assert found(kept, 0.0) == {image.image_id}


def test_ends_are_known_after_a_restart(tmp_path: Path, clock: Clock) -> None:
    with GalleryStore.open(tmp_path) as store:
        put_with_ends(store.create(gallery_spec()), [1005.0, None])
    for read_only in (True, False):
        with GalleryStore.open(tmp_path, read_only=read_only) as store:
            clock.now_s = 1004.0
            kept = store.gallery("demo")
            assert found(kept, 0.0) == {"image-000", "image-001"}
            clock.now_s = 1005.0
            assert found(kept, 0.0) == {"image-001"}

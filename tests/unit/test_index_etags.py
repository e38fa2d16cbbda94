"""Writes that depend on what was there, and reads that wait for writes."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from index_samples import gallery_spec, new_image, new_images, sample_features

from matchflow_index import EtagMismatchError, GalleryStore, ImageNotFoundError, KnownImage, PutOutcome, SearchQuery
from matchflow_index.errors import SequenceNotReachedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_index import Gallery


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with GalleryStore.open(tmp_path) as store:
        yield store.create(gallery_spec())


def test_every_record_says_which_change_wrote_it(gallery: Gallery) -> None:
    gallery.put(new_images(3))
    assert [record.sequence for record in gallery.page(None, 10)] == [1, 2, 3]
    assert gallery.update("image-001", labels={}).sequence == 4
    gallery.put([new_image("image-000", sample_features(1, seed=4)[0])])
    assert [gallery.get(f"image-{k:03}").sequence for k in range(3)] == [5, 4, 3]
    hits = gallery.search(SearchQuery(features=sample_features(1)[0])).hits
    assert {hit.record.image_id: hit.record.sequence for hit in hits} == {
        "image-000": 5,
        "image-001": 4,
        "image-002": 3,
    }
    assert gallery.update("image-001", labels={}).sequence == 4


def test_an_image_is_put_only_where_it_is_as_expected(gallery: Gallery) -> None:
    image, other = new_images(2)
    changed = new_image(image.image_id, sample_features(1, seed=4)[0])
    with pytest.raises(EtagMismatchError, match="expected it as change 7 left it; it is of 0") as caught:
        gallery.put([other, replace(image, if_sequence=7)])
    assert (caught.value.expected, caught.value.actual) == (7, 0)
    assert (gallery.count, gallery.sequence) == (0, 0)
    assert gallery.put([replace(image, if_sequence=0)])[0].outcome is PutOutcome.CREATED
    for wrong in (0, 2):
        with pytest.raises(EtagMismatchError):
            gallery.put([replace(changed, if_sequence=wrong)])
    assert gallery.put([replace(changed, if_sequence=1)])[0].outcome is PutOutcome.UPDATED
    assert gallery.get(image.image_id).sequence == 2


def test_etags_are_looked_at_in_the_order_of_a_put(gallery: Gallery) -> None:
    image = new_images(1)[0]
    versions = [new_image(image.image_id, sample_features(1, seed=k)[0]) for k in range(3)]
    results = gallery.put([replace(version, if_sequence=k) for k, version in enumerate(versions)])
    assert [result.sequence for result in results] == [1, 2, 3]
    with pytest.raises(EtagMismatchError):
        gallery.put([replace(versions[0], if_sequence=3), replace(versions[1], if_sequence=3)])
    assert gallery.sequence == 3


def test_the_same_content_is_checked_too(gallery: Gallery) -> None:
    image = new_images(1)[0]
    known = KnownImage(image_id=image.image_id, content_hash=image.content_hash, labels=image.labels)
    gallery.put([image])
    for one in (image, known):
        with pytest.raises(EtagMismatchError):
            gallery.put([replace(one, if_sequence=0)])
        assert gallery.put([replace(one, if_sequence=1)])[0].outcome is PutOutcome.UNCHANGED


def test_an_update_is_made_only_where_the_image_is_as_expected(gallery: Gallery) -> None:
    gallery.put(new_images(1))
    with pytest.raises(EtagMismatchError):
        gallery.update("image-000", labels={}, if_sequence=2)
    assert gallery.update("image-000", labels={}, if_sequence=1).sequence == 2
    with pytest.raises(ImageNotFoundError):
        gallery.update("nobody", labels={}, if_sequence=1)


def test_nothing_is_deleted_unless_all_is_as_expected(gallery: Gallery) -> None:
    gallery.put(new_images(3))
    names = [f"image-{k:03}" for k in range(3)]
    with pytest.raises(EtagMismatchError, match="'image-001'"):
        gallery.delete(names, if_sequences={"image-000": 1, "image-001": 9})
    with pytest.raises(EtagMismatchError, match="'nobody'"):
        gallery.delete([*names, "nobody"], if_sequences={"nobody": 1})
    assert gallery.count == 3
    assert gallery.delete(names, if_sequences={"image-000": 1, "image-001": 2}) == (3, 0)


def test_of_many_who_expect_the_same_one_wins(gallery: Gallery) -> None:
    gallery.put([new_image("one", sample_features(1)[0], {"n": 0.0})])
    rounds, writers = 20, 4
    won = [0] * writers

    def count_up(writer: int) -> None:
        while True:
            record = gallery.get("one")
            value = record.labels["n"]
            assert isinstance(value, float)
            if value >= rounds:
                return
            try:
                gallery.update("one", labels={"n": value + 1}, if_sequence=record.sequence)
            except EtagMismatchError:
                continue
            won[writer] += 1

    threads = [threading.Thread(target=count_up, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(won) == rounds
    assert gallery.get("one").labels == {"n": float(rounds)}


def test_who_waits_for_a_change_goes_on_once_searches_see_it(gallery: Gallery) -> None:
    gallery.wait_for(0, 0.0)
    seen: list[int] = []

    def wait() -> None:
        gallery.wait_for(3, 60)
        seen.append(len(gallery.search(SearchQuery(features=sample_features(1)[0])).hits))

    thread = threading.Thread(target=wait)
    thread.start()
    gallery.put(new_images(2))
    time.sleep(0.05)
    assert not seen
    gallery.put(new_images(3)[2:])
    thread.join(60)
    assert seen == [3]


def test_who_waits_in_vain_is_told_how_far_it_is(gallery: Gallery) -> None:
    gallery.put(new_images(2))
    gallery.wait_for(2, 0.0)
    with pytest.raises(SequenceNotReachedError, match="is at change 2 here; expected at least 5") as caught:
        gallery.wait_for(5, 0.01)
    assert (caught.value.wanted, caught.value.reached) == (5, 2)

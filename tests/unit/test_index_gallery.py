from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from index_samples import gallery_spec, new_image, new_images, sample_features

from matchflow_index import (
    BundleMismatchError,
    FeaturesRejectedError,
    Gallery,
    GalleryStore,
    ImageFilter,
    ImageNotFoundError,
    ImageRejectedError,
    KnownImage,
    LabelCondition,
    PutOutcome,
    SearchQuery,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_index import NewImage


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GalleryStore]:
    with GalleryStore.open(tmp_path) as store:
        yield store


@pytest.fixture
def gallery(store: GalleryStore) -> Gallery:
    return store.create(gallery_spec())


def found(gallery: Gallery, image_filter: ImageFilter | None = None) -> set[str]:
    """Return the ids of everything that a search can find."""
    query = SearchQuery(features=sample_features(1)[0], top_k=1000, settings=None, filter=image_filter or ImageFilter())
    return {hit.record.image_id for hit in gallery.search(query).hits}


def test_a_put_image_is_there_and_found_at_once(gallery: Gallery) -> None:
    images = new_images(5)
    results = gallery.put(images)
    assert [result.outcome for result in results] == [PutOutcome.CREATED] * 5
    assert [result.sequence for result in results] == [1, 2, 3, 4, 5]
    assert len({result.row_id for result in results}) == gallery.count == 5
    for image, result in zip(images, results, strict=True):
        record = gallery.get(image.image_id)
        assert (record.row_id, record.content_hash) == (result.row_id, image.content_hash)
        assert (record.labels, record.width_px, record.height_px) == (image.labels, 640, 480)
        assert record.update_time_s > 0
        assert gallery.thumbnail(image.image_id) == image.thumbnail
        features = gallery.features(image.image_id)
        np.testing.assert_array_equal(features.embedding, image.features.embedding)
        np.testing.assert_array_equal(features.cells, image.features.cells)
        np.testing.assert_array_equal(features.scales, image.features.scales)
    assert found(gallery) == {image.image_id for image in images}


def test_putting_the_same_again_changes_nothing(gallery: Gallery) -> None:
    first = gallery.put(new_images(3))
    again = gallery.put(new_images(3))
    assert [result.outcome for result in again] == [PutOutcome.UNCHANGED] * 3
    assert [result.row_id for result in again] == [result.row_id for result in first]
    assert gallery.sequence == 3


def test_other_labels_keep_the_row(gallery: Gallery) -> None:
    image = new_images(1)[0]
    before = gallery.put([image])[0]
    after = gallery.put([replace(image, labels={"parity": "odd", "new": "yes"})])[0]
    assert (after.outcome, after.row_id, after.sequence) == (PutOutcome.UPDATED, before.row_id, 2)
    odd = ImageFilter(conditions=(LabelCondition(field="parity", any_of=frozenset({"odd"})),))
    even = ImageFilter(conditions=(LabelCondition(field="parity", any_of=frozenset({"even"})),))
    assert found(gallery, odd) == {image.image_id}
    assert not found(gallery, even)


def test_other_content_gets_a_new_row_and_the_old_one_is_gone(gallery: Gallery) -> None:
    old, other = new_images(2)
    before = gallery.put([old, other])[0]
    after = gallery.put([new_image(old.image_id, sample_features(1, seed=5)[0], old.labels)])[0]
    assert after.outcome is PutOutcome.UPDATED
    assert after.row_id > before.row_id
    assert gallery.count == 2
    answer = gallery.search(SearchQuery(features=old.features))
    assert sorted(hit.record.image_id for hit in answer.hits) == [old.image_id, other.image_id]
    np.testing.assert_array_equal(gallery.features(old.image_id).cells, sample_features(1, seed=5)[0].cells)


def test_one_image_twice_in_one_put_is_applied_in_order(gallery: Gallery) -> None:
    batch = sample_features(3)
    versions = [new_image("same", batch[k], {"version": str(k)}) for k in range(3)]
    outcomes = [result.outcome for result in gallery.put([*versions, versions[2]])]
    assert outcomes == [PutOutcome.CREATED, PutOutcome.UPDATED, PutOutcome.UPDATED, PutOutcome.UNCHANGED]
    assert gallery.get("same").labels == {"version": "2"}
    np.testing.assert_array_equal(gallery.features("same").embedding, batch.embeddings[2])
    assert found(gallery) == {"same"}
    assert gallery.count == 1


def test_putting_nothing_is_nothing(gallery: Gallery) -> None:
    assert gallery.put([]) == []
    assert gallery.sequence == 0


def test_one_bad_image_stops_the_whole_put(gallery: Gallery) -> None:
    images = new_images(3)
    bad = replace(images[1], features=replace(images[1].features, cells=np.zeros((9, 8), np.int8)))
    with pytest.raises(FeaturesRejectedError, match=r"cells of image 'image-001': expected int8 \[4, 8\]; got"):
        gallery.put([images[0], bad, images[2]])
    assert gallery.count == 0
    assert gallery.page(None, 10) == []


@pytest.mark.parametrize("image_id", ["", "x" * 257, "\ud800"])
def test_an_id_that_cannot_be_stored_is_refused(gallery: Gallery, image_id: str) -> None:
    with pytest.raises(ImageRejectedError):
        gallery.put([new_image(image_id, sample_features(1)[0])])


def test_a_label_that_cannot_be_stored_is_refused(gallery: Gallery) -> None:
    gallery.put(new_images(1))
    with pytest.raises(ImageRejectedError):
        gallery.update("image-000", labels={"name": "\udfff"})


def test_ids_of_any_length_and_script_work(gallery: Gallery) -> None:
    names = sorted(["x" * 256, "猫" * 256, "猫" * 255 + "犬", "🐈" * 256, "é", "a b"])
    batch = sample_features(len(names))
    gallery.put([new_image(name, batch[k]) for k, name in enumerate(names)])
    assert found(gallery) == set(names)
    assert {record.image_id for record in gallery.page(None, 100)} == set(names)
    for name in names:
        assert gallery.thumbnail(name) is not None
    assert gallery.delete(names) == (len(names), 0)
    assert not found(gallery)


def test_a_gallery_says_which_content_it_holds(gallery: Gallery) -> None:
    image = new_images(1)[0]
    assert gallery.holding(image.image_id, image.content_hash) is None
    gallery.put([image])
    assert gallery.holding(image.image_id, image.content_hash) == gallery.get(image.image_id)
    assert gallery.holding(image.image_id, "other") is None
    assert gallery.holding("other", image.content_hash) is None


def known(image: NewImage, **labels: str) -> KnownImage:
    return KnownImage(image_id=image.image_id, content_hash=image.content_hash, labels=labels)


def test_a_known_image_gets_other_labels_without_its_features(tmp_path: Path) -> None:
    image = new_images(1)[0]
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        (created,) = gallery.put([image])
        again = gallery.put([known(image, kind="x"), known(image, kind="x"), known(image, kind="y")])
    assert [result.outcome for result in again] == [PutOutcome.UPDATED, PutOutcome.UNCHANGED, PutOutcome.UPDATED]
    assert [result.row_id for result in again] == [created.row_id] * 3
    assert [result.sequence for result in again] == [2, 2, 3]
    with GalleryStore.open(tmp_path) as store:
        gallery = store.gallery("demo")
        assert gallery.get(image.image_id).labels == {"kind": "y"}
        np.testing.assert_array_equal(gallery.features(image.image_id).cells, image.features.cells)


def test_a_known_image_is_missing_where_its_content_is_not_held(gallery: Gallery) -> None:
    image, other = new_images(2)
    replaced = new_image(image.image_id, sample_features(1, seed=5)[0])
    results = gallery.put([known(image, a="1"), image, known(image, a="2"), replaced, known(image, a="3"), other])
    assert [result.outcome for result in results] == [
        PutOutcome.MISSING,
        PutOutcome.CREATED,
        PutOutcome.UPDATED,
        PutOutcome.UPDATED,
        PutOutcome.MISSING,
        PutOutcome.CREATED,
    ]
    assert [result.row_id for result in results if result.outcome is PutOutcome.MISSING] == [0, 0]
    assert gallery.get(image.image_id).labels == replaced.labels
    assert gallery.count == 2
    gallery.delete([image.image_id])
    assert gallery.put([known(replaced)])[0].outcome is PutOutcome.MISSING
    assert gallery.count == 1


def test_a_known_image_with_a_label_that_cannot_be_stored_is_refused(gallery: Gallery) -> None:
    image = new_images(1)[0]
    gallery.put([image])
    with pytest.raises(ImageRejectedError, match="no valid text"):
        gallery.put([known(image, bad="\udc80")])
    assert gallery.get(image.image_id).labels == image.labels


def test_labels_are_replaced_and_search_follows(gallery: Gallery) -> None:
    gallery.put(new_images(4))
    record = gallery.update("image-002", labels={"colour": "red"})
    assert record == gallery.get("image-002")
    assert record.labels == {"colour": "red"}
    red = ImageFilter(conditions=(LabelCondition(field="colour", any_of=frozenset({"red"})),))
    assert found(gallery, red) == {"image-002"}


def test_replacing_labels_by_the_same_changes_nothing(gallery: Gallery) -> None:
    gallery.put(new_images(1))
    before = gallery.get("image-000")
    assert gallery.update("image-000", labels=before.labels) == before
    assert gallery.sequence == 1


def test_the_callers_labels_are_not_ours(gallery: Gallery) -> None:
    labels = {"colour": "red"}
    gallery.put([new_image("one", sample_features(1)[0], labels)])
    labels["colour"] = "blue"
    assert gallery.get("one").labels == {"colour": "red"}


def test_deleted_images_are_gone_and_missing_ones_counted(gallery: Gallery) -> None:
    gallery.put(new_images(5))
    assert gallery.delete(["image-001", "nobody", "image-003", "image-001"]) == (2, 1)
    assert found(gallery) == {"image-000", "image-002", "image-004"}
    assert gallery.count == 3
    assert gallery.sequence == 7
    assert [record.image_id for record in gallery.page(None, 10)] == sorted(found(gallery))


@pytest.mark.parametrize("look", ["get", "features", "thumbnail"])
def test_a_missing_image_is_named(gallery: Gallery, look: str) -> None:
    with pytest.raises(ImageNotFoundError, match="'nobody' in gallery 'demo'"):
        getattr(gallery, look)("nobody")


def test_labels_of_a_missing_image_cannot_be_replaced(gallery: Gallery) -> None:
    with pytest.raises(ImageNotFoundError):
        gallery.update("nobody", labels={})


def test_pages_go_through_everything_once_in_order(gallery: Gallery) -> None:
    gallery.put(new_images(25)[::-1])
    after, seen = None, []
    while page := gallery.page(after, 7):
        seen += [record.image_id for record in page]
        after = page[-1].image_id
    assert seen == [f"image-{k:03}" for k in range(25)]
    assert [record.image_id for record in gallery.page("image-0225", 10)] == ["image-023", "image-024"]


def test_a_gallery_without_thumbnails_keeps_none(store: GalleryStore) -> None:
    gallery = store.create(gallery_spec("bare", keep_thumbnails=False))
    gallery.put(new_images(1))
    assert gallery.thumbnail("image-000") is None


def test_another_bundle_is_refused_with_both_digests(gallery: Gallery) -> None:
    gallery.require_bundle("sha256:tiny")
    with pytest.raises(BundleMismatchError, match=r"sha256:tiny.*sha256:other") as caught:
        gallery.require_bundle("sha256:other")
    assert (caught.value.expected, caught.value.actual) == ("sha256:tiny", "sha256:other")


def test_labelled_images_are_the_living_ones(gallery: Gallery) -> None:
    images = new_images(4)
    gallery.put(images)
    gallery.put([new_image("image-001", sample_features(1, seed=3)[0], {"version": "2"})])
    gallery.delete(["image-002"])
    everything = gallery.labelled_images()
    assert everything.image_ids == ("image-000", "image-003", "image-001")
    assert everything.labels[2] == {"version": "2"}
    np.testing.assert_array_equal(everything.features.cells[1], images[3].features.cells)
    np.testing.assert_array_equal(everything.features.cells[2], sample_features(1, seed=3)[0].cells)


def test_searches_see_all_of_a_put_or_nothing_of_it(gallery: Gallery) -> None:
    """A writer gives all images the same new version, again and again; no search may see two versions."""
    versions, names = 60, [f"image-{k}" for k in range(6)]
    batches = [sample_features(len(names), seed=version) for version in range(versions)]

    def put(version: int) -> None:
        gallery.put([new_image(name, batches[version][k], {"v": str(version)}) for k, name in enumerate(names)])

    put(0)
    finished, trouble = threading.Event(), []

    def look() -> None:
        seen = 0
        while not finished.is_set() or not seen:
            answer = gallery.search(SearchQuery(features=batches[seen % versions][0], top_k=20, max_flows=1))
            shown = {hit.record.labels["v"] for hit in answer.hits}
            if len(answer.hits) != len(names) or len(shown) != 1:
                trouble.append((len(answer.hits), shown))
            seen += 1

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(1, versions):
        put(version)
    finished.set()
    for thread in threads:
        thread.join(60)
    assert not trouble


def test_many_writers_lose_nothing(gallery: Gallery) -> None:
    def write(prefix: str) -> None:
        for image in new_images(15, seed=ord(prefix), prefix=prefix):
            gallery.put([image])
        gallery.delete([f"{prefix}-000"])

    threads = [threading.Thread(target=write, args=(prefix,)) for prefix in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    expected = {f"{prefix}-{k:03}" for prefix in "abcd" for k in range(1, 15)}
    assert found(gallery) == {record.image_id for record in gallery.page(None, 100)} == expected
    assert gallery.sequence == 4 * 16
    row_ids = [gallery.get(name).row_id for name in expected]
    assert len(set(row_ids)) == len(row_ids)
    for prefix in "abcd":
        for image in new_images(15, seed=ord(prefix), prefix=prefix)[1:]:
            np.testing.assert_array_equal(gallery.features(image.image_id).cells, image.features.cells)

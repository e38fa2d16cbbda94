"""What was removed is nowhere: not in any cache file, not in any answer, and it never comes back."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from index_samples import gallery_spec, new_image, new_images, sample_features

from matchflow_index import GalleryStore, SearchQuery, upkeep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matchflow_index import Gallery
    from matchflow_matching import Features

NAMES = [f"image-{k:03}" for k in range(0, 40, 3)]


def removed(gallery: Gallery) -> None:
    gallery.delete(NAMES)


def replaced(gallery: Gallery) -> None:
    batch = sample_features(len(NAMES), seed=50)
    gallery.put([new_image(name, batch[k]) for k, name in enumerate(NAMES)])


def expired(gallery: Gallery) -> None:
    for name in NAMES:
        gallery.update(name, expire_time_s=0.0)
    gallery.delete_expired()


def traces(store: Path, features: Features) -> set[str]:
    """Return the files under caches/ that hold the embedding, the cells or a part of them."""
    needles = [features.embedding.tobytes(), features.cells.tobytes(), features.cells[1].tobytes()]
    return {
        path.name
        for path in (store / "caches").rglob("*")
        if path.is_file()
        for needle in needles
        if needle in path.read_bytes()
    }


@pytest.mark.parametrize("how", [removed, replaced, expired])
@pytest.mark.parametrize("when", ["saved", "unsaved", "restarted"])
def test_features_of_what_is_gone_are_in_no_cache_file(
    tmp_path: Path, how: Callable[[Gallery], None], when: str
) -> None:
    images = new_images(40)
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(images)
        if when != "unsaved":
            gallery.save()
            assert {name.split("-")[0] for name in traces(tmp_path, images[3].features)} == {"cells", "coarse.cache"}
        if when == "restarted":
            store.close()
    with GalleryStore.open(tmp_path) as store:
        gallery = store.gallery("demo")
        how(gallery)
        gallery.save()
        for image in images:
            gone = image.image_id in NAMES
            assert bool(traces(tmp_path, image.features)) != gone
    for image in images:
        assert bool(traces(tmp_path, image.features)) != (image.image_id in NAMES)


def test_a_slab_holds_nothing_of_what_is_gone_even_before_it_is_saved(tmp_path: Path) -> None:
    images = new_images(40)
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(images)
        gallery.save()
        gallery.delete(["image-003"])
        assert traces(tmp_path, images[3].features) == {"coarse.cache"}


def test_a_crash_between_removal_and_saving_brings_nothing_back(tmp_path: Path) -> None:
    images, path, aside = new_images(40), tmp_path / "store", tmp_path / "aside"
    with GalleryStore.open(path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(images)
        gallery.save()
        shutil.copytree(path / "caches", aside)
        gallery.delete(NAMES)
    shutil.rmtree(path / "caches")
    shutil.copytree(aside, path / "caches")
    with GalleryStore.open(path) as store:
        gallery = store.gallery("demo")
        hits = gallery.search(SearchQuery(features=images[3].features, top_k=100)).hits
        assert {hit.record.image_id for hit in hits} == {image.image_id for image in images} - set(NAMES)
        gallery.save()
        assert not traces(path, images[3].features)
    assert not traces(path, images[3].features)


def test_a_search_that_needs_removed_features_delays_their_erasure_but_not_for_good(tmp_path: Path) -> None:
    images = new_images(40)
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(images)
        gallery.save()
        shelf = gallery._shelf
        with shelf.lock.reading():
            shelf.pin()
        gallery.delete(["image-003"])
        gallery.save()
        assert "coarse.cache" in traces(tmp_path, images[3].features)
        shelf.unpin()
        gallery.save()
        assert not traces(tmp_path, images[3].features)


def test_compaction_leaves_nothing_of_the_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LEAST_COMPACTED", 1)
    images = new_images(40)
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(images)
        gallery.save()
        shelf = gallery._shelf
        with shelf.lock.reading():
            shelf.pin()
        gallery.delete(NAMES)
        gallery.maintain()
        assert gallery._shelf is not shelf
        assert not traces(tmp_path, images[3].features)
        shelf.unpin()
        assert not traces(tmp_path, images[3].features)
        np.testing.assert_array_equal(gallery.features("image-001").cells, images[1].features.cells)


def test_a_deleted_gallery_leaves_no_cache(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(new_images(40))
        gallery.save()
        store.delete("demo")
        assert not list((tmp_path / "caches").rglob("*"))

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from index_samples import gallery_spec, new_image, new_images, sample_features

from matchflow_index import (
    GalleryExistsError,
    GalleryNotFoundError,
    GalleryStore,
    ImageFilter,
    LabelCondition,
    SearchQuery,
    StoreUnavailableError,
    upkeep,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_galleries_are_listed_in_order_with_what_they_are_pinned_to(tmp_path: Path) -> None:
    specs = [gallery_spec(name, keep_thumbnails=name != "b") for name in ("c", "a", "b")]
    with GalleryStore.open(tmp_path) as store:
        for spec in specs:
            assert store.create(spec).spec == spec
        assert store.list() == sorted(specs, key=lambda spec: spec.gallery_id)
    with GalleryStore.open(tmp_path) as store:
        assert store.list() == sorted(specs, key=lambda spec: spec.gallery_id)


def test_a_gallery_is_loaded_once(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        assert store.create(gallery_spec()) is store.gallery("demo")


def test_an_id_that_is_taken_is_refused(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        store.create(gallery_spec()).put(new_images(2))
        with pytest.raises(GalleryExistsError, match="'demo'"):
            store.create(gallery_spec())
        assert store.gallery("demo").count == 2


@pytest.mark.parametrize("act", ["gallery", "delete"])
def test_a_missing_gallery_is_named(tmp_path: Path, act: str) -> None:
    with GalleryStore.open(tmp_path) as store, pytest.raises(GalleryNotFoundError, match="'nowhere'"):
        getattr(store, act)("nowhere")


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    query = SearchQuery(
        features=sample_features(1, seed=3)[0],
        filter=ImageFilter(conditions=(LabelCondition(field="parity", any_of=frozenset({"odd"})),)),
    )
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(new_images(40))
        gallery.put([new_image("image-003", sample_features(1, seed=8)[0], {"parity": "odd"})])
        gallery.delete(["image-005"])
        gallery.update("image-000", labels={"parity": "odd"})
        before, count, sequence = gallery.search(query).hits, gallery.count, gallery.sequence
    for _ in range(2):
        with GalleryStore.open(tmp_path) as store:
            gallery = store.gallery("demo")
            assert (gallery.count, gallery.sequence) == (count, sequence) == (39, 43)
            assert gallery.search(query).hits == before


def test_deleted_stays_deleted_and_its_row_id_unused_after_a_restart(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        last = gallery.put(new_images(3))[-1]
        gallery.delete(["image-002"])
    with GalleryStore.open(tmp_path) as store:
        gallery = store.gallery("demo")
        assert gallery.count == 2
        again = gallery.put(new_images(3))[-1]
    assert again.row_id > last.row_id
    with GalleryStore.open(tmp_path) as store:
        assert store.gallery("demo").get("image-002").row_id == again.row_id


def test_a_gallery_created_again_has_nothing_of_the_old_one(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        old = store.create(gallery_spec())
        last = old.put(new_images(5))[-1]
        store.delete("demo")
        assert store.list() == []
        new = store.create(gallery_spec())
        assert (new.count, new.sequence) == (0, 0)
        assert new.page(None, 10) == []
        assert new.put(new_images(1))[0].row_id > last.row_id
    with GalleryStore.open(tmp_path) as store:
        assert store.gallery("demo").count == 1
        assert len(list((tmp_path / "caches").iterdir())) == 1


def test_whoever_holds_a_deleted_gallery_is_told_that_it_is_gone(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        held = store.create(gallery_spec())
        held.put(new_images(5))
        store.delete("demo")
        store.create(gallery_spec())
        for act in (
            lambda: held.search(SearchQuery(features=sample_features(1)[0])),
            lambda: held.put(new_images(6)),
            lambda: held.delete(["image-000"]),
            lambda: held.page(None, 1),
            lambda: held.thumbnail("image-000"),
        ):
            with pytest.raises(GalleryNotFoundError):
                act()
        held.maintain()
        held.save()
        held.close()
        assert len(list((tmp_path / "caches").iterdir())) == 1


def test_galleries_do_not_see_each_other(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        first, second = store.create(gallery_spec("first")), store.create(gallery_spec("second"))
        first.put(new_images(3))
        second.put(new_images(2, seed=1, prefix="other"))
        assert [record.image_id for record in first.page(None, 10)] == ["image-000", "image-001", "image-002"]
        assert second.sequence == 2
        store.delete("first")
        assert second.count == 2
    with GalleryStore.open(tmp_path) as store:
        assert [record.image_id for record in store.gallery("second").page(None, 9)] == ["other-000", "other-001"]


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = GalleryStore.open(tmp_path)
    gallery = store.create(gallery_spec())
    store.close()
    store.close()
    for act in (
        store.list,
        lambda: store.gallery("demo"),
        lambda: store.create(gallery_spec("new")),
        lambda: store.delete("demo"),
        lambda: gallery.put(new_images(1)),
        lambda: gallery.page(None, 1),
    ):
        with pytest.raises(StoreUnavailableError):
            act()


def test_saving_in_between_is_allowed_and_repeatable(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        for start in range(0, 30, 10):
            gallery.put(new_images(30)[start : start + 10])
            gallery.save()
            gallery.save()
    with GalleryStore.open(tmp_path) as store:
        assert store.gallery("demo").count == 30


def test_slots_of_dead_rows_are_dropped_by_upkeep_and_stay_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LEAST_COMPACTED", 10)
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        for seed in range(4):
            gallery.put(new_images(20, seed=seed))
        assert gallery._shelf.size == 80
        gallery.maintain()
        assert gallery._shelf.size == gallery._shelf.slab.size == gallery._shelf.coarse.size == 20
    with GalleryStore.open(tmp_path) as store:
        gallery = store.gallery("demo")
        assert gallery._shelf.size == gallery._shelf.slab.size == gallery._shelf.coarse.size == 20
        np.testing.assert_array_equal(gallery.features("image-007").cells, sample_features(20, seed=3).cells[7])


def test_a_read_only_store_shows_everything_and_changes_nothing(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        store.create(gallery_spec()).put(new_images(10))
    before = {path: path.read_bytes() for path in tmp_path.glob("caches/**/*.*")}
    with GalleryStore.open(tmp_path, read_only=True) as store:
        gallery = store.gallery("demo")
        assert len(gallery.search(SearchQuery(features=sample_features(1)[0])).hits) == 10
        for change in (
            lambda: gallery.put(new_images(11)),
            lambda: gallery.delete(["image-000"]),
            lambda: gallery.update("image-000", labels={}),
            lambda: store.create(gallery_spec("new")),
            lambda: store.delete("demo"),
        ):
            with pytest.raises(StoreUnavailableError, match="read-only"):
                change()
        gallery.save()
    assert {path: path.read_bytes() for path in tmp_path.glob("caches/**/*.*")} == before


def test_a_store_that_is_not_there_cannot_be_opened_read_only(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError):
        GalleryStore.open(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_store_cannot_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailableError, match=r"a store is a folder; .*file is a file"):
        GalleryStore.open(tmp_path / "file")
    with pytest.raises(StoreUnavailableError, match="can't be created"):
        GalleryStore.open(tmp_path / "file" / "store")

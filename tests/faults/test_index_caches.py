"""Damaged caches: answers are those of the truth all the same, and the log says what was rebuilt and why."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_samples import gallery_spec, naive_search, new_image, new_images, sample_features

from matchflow_index import GalleryStore, SearchQuery, StoreUnavailableError
from matchflow_index.arrays import decode_arrays, encode_arrays
from matchflow_index.cachefile import read_cache, write_cache
from matchflow_index.slab import BLOCK_ROWS, HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matchflow_index import NewImage

CACHES = ["slots.cache", "coarse.cache", "cells-*.slab"]


@pytest.fixture
def images() -> list[NewImage]:
    return new_images(40)


@pytest.fixture
def saved(tmp_path: Path, images: list[NewImage]) -> Path:
    """A store whose caches are on disk."""
    with GalleryStore.open(tmp_path / "store") as store:
        store.create(gallery_spec()).put(images)
    return tmp_path / "store"


def cache(store: Path, name: str) -> Path:
    return next((store / "caches").glob(f"*/{name}"))


def check_answers(path: Path, images: list[NewImage], *, read_only: bool = False) -> None:
    """Open the store and compare its answers with those of the images that should be in it."""
    query = SearchQuery(features=sample_features(1, seed=99)[0], top_k=30, depth=20, max_flows=0)
    with GalleryStore.open(path, read_only=read_only) as store:
        gallery = store.gallery("demo")
        assert gallery.count == len(images)
        hits = [(hit.record.image_id, hit.score) for hit in gallery.search(query).hits]
    assert hits == naive_search(images, query)


def warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    os.truncate(path, 200)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 100] ^= 4
    path.write_bytes(content)


def overwrite(path: Path) -> None:
    path.write_bytes(b"\x00garbage" * 1000)


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("damage", [remove, empty, cut, flip, overwrite])
def test_a_damaged_cache_is_rebuilt_and_the_log_says_why(
    saved: Path, images: list[NewImage], name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(cache(saved, name))
    expected = "coarse.cache" if name == "coarse.cache" else "cells.slab"
    for read_only in (True, False):
        check_answers(saved, images, read_only=read_only)
        assert f"{expected} of gallery demo is rebuilt from" in warnings(caplog)
        caplog.clear()
    check_answers(saved, images)
    assert not warnings(caplog)


def flip_row(store: Path, row: int) -> None:
    with cache(store, "cells-*.slab").open("r+b") as file:
        file.seek(HEADER_BYTES + row * (8 * 4 + 4 * 8 + 4 * 2) + 11)
        file.write(b"\xa5")


def test_a_damaged_block_of_the_slab_is_read_again_from_the_truth(
    saved: Path, images: list[NewImage], caplog: pytest.LogCaptureFixture
) -> None:
    more = new_images(2 * BLOCK_ROWS, seed=6, prefix="more")
    with GalleryStore.open(saved) as store:
        store.gallery("demo").put(more)
    slab = cache(saved, "cells-*.slab")
    for row in (3, 2 * BLOCK_ROWS + 1):
        flip_row(saved, row)
    check_answers(saved, [*images, *more], read_only=True)
    assert "checksums of the slab do not match its bytes in 2 blocks" in warnings(caplog)
    caplog.clear()
    check_answers(saved, [*images, *more])
    assert "2 of 3 blocks of the slab of gallery demo are damaged" in warnings(caplog)
    assert cache(saved, "cells-*.slab") == slab
    caplog.clear()
    check_answers(saved, [*images, *more])
    assert not warnings(caplog)


def test_a_damaged_block_of_stale_caches_is_repaired_and_then_followed(
    saved: Path, images: list[NewImage], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Some of its images are gone from the truth by now."""
    shutil.copytree(saved / "caches", tmp_path / "aside")
    expected = change(saved, images)
    older(saved, tmp_path / "aside")
    flip_row(saved, 9)
    check_answers(saved, expected)
    assert "1 of 1 blocks of the slab of gallery demo are damaged" in warnings(caplog)
    caplog.clear()
    check_answers(saved, expected)
    assert not warnings(caplog)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_no_flipped_bit_reaches_an_answer(saved: Path, images: list[NewImage], data: st.DataObject) -> None:
    path = cache(saved, data.draw(st.sampled_from(CACHES)))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    check_answers(saved, images)


def test_good_caches_are_used_without_a_word(
    saved: Path, images: list[NewImage], caplog: pytest.LogCaptureFixture
) -> None:
    check_answers(saved, images)
    assert not warnings(caplog)


def older(store: Path, aside: Path) -> None:
    shutil.rmtree(store / "caches")
    shutil.copytree(aside, store / "caches")


def change(path: Path, images: list[NewImage]) -> list[NewImage]:
    """Put, replace, relabel and delete; return what is there then."""
    other = new_images(5, seed=5, prefix="other")
    replaced = new_image("image-007", sample_features(1, seed=77)[0], {"parity": "new"})
    with GalleryStore.open(path) as store:
        gallery = store.gallery("demo")
        gallery.put([*other, replaced])
        gallery.put([new_image("other-001", sample_features(1, seed=78)[0])])
        gallery.update("image-008", labels={"parity": "new"})
        gallery.delete(["image-009", "other-002"])
        kept = [gallery.get("image-008"), gallery.get("other-001")]
    assert [record.labels for record in kept] == [{"parity": "new"}, {}]
    gone = {"image-007", "image-009", "other-001", "other-002"}
    expected = [image for image in [*images, *other] if image.image_id not in gone]
    return [*expected, replaced, new_image("other-001", sample_features(1, seed=78)[0])]


def test_stale_caches_catch_up_from_the_log(
    saved: Path, images: list[NewImage], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(saved / "caches", tmp_path / "aside")
    expected = change(saved, images)
    older(saved, tmp_path / "aside")
    check_answers(saved, expected)
    assert not warnings(caplog)


def test_a_read_only_store_with_stale_caches_answers_from_the_truth(
    saved: Path, images: list[NewImage], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(saved / "caches", tmp_path / "aside")
    expected = change(saved, images)
    older(saved, tmp_path / "aside")
    check_answers(saved, expected, read_only=True)
    assert "10 changes behind, and the store is read-only" in warnings(caplog)


def test_a_stale_coarse_index_beside_newer_slots_is_rebuilt(
    saved: Path, images: list[NewImage], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(cache(saved, "coarse.cache"), tmp_path / "old")
    expected = change(saved, images)
    shutil.copy(tmp_path / "old", cache(saved, "coarse.cache"))
    check_answers(saved, expected)
    assert "coarse.cache of gallery demo is rebuilt from the cell slab" in warnings(caplog)


def test_caches_ahead_of_the_truth_are_not_believed(
    saved: Path, images: list[NewImage], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The truth was restored from a backup, the caches were not."""
    shutil.copytree(saved / "truth.lmdb", tmp_path / "backup")
    change(saved, images)
    shutil.rmtree(saved / "truth.lmdb")
    shutil.copytree(tmp_path / "backup", saved / "truth.lmdb")
    check_answers(saved, images)
    assert "the truth ends at 40" in warnings(caplog)


def test_caches_of_another_history_of_the_same_length_are_not_believed(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Backup restored and then written to: the sequence fits, the rows do not."""
    shutil.copytree(saved / "truth.lmdb", tmp_path / "backup")
    with GalleryStore.open(saved) as store:
        store.gallery("demo").delete(["image-000"])
    shutil.copytree(saved / "caches", tmp_path / "aside")
    shutil.rmtree(saved / "truth.lmdb")
    shutil.copytree(tmp_path / "backup", saved / "truth.lmdb")
    extra = new_images(3, seed=8, prefix="extra")
    with GalleryStore.open(saved) as store:
        store.gallery("demo").put(extra)
    older(saved, tmp_path / "aside")
    check_answers(saved, [*new_images(40), *extra])
    assert "another history up to change 41" in warnings(caplog)


@pytest.mark.parametrize("keep", [1, 9, 10, 11, 12])
def test_caches_that_the_log_does_not_reach_are_not_believed(
    saved: Path, images: list[NewImage], tmp_path: Path, caplog: pytest.LogCaptureFixture, keep: int
) -> None:
    """The change that the caches reflect must be in the log, or nothing says that they are of its history."""
    shutil.copytree(saved / "caches", tmp_path / "aside")
    expected = change(saved, images)
    with GalleryStore.open(saved) as store:
        truth = store._truth
        assert truth.trim_log(truth.galleries()[0], keep) == 50 - keep
    older(saved, tmp_path / "aside")
    check_answers(saved, expected)
    assert ("but the log begins at" in warnings(caplog)) == (keep < 11)
    caplog.clear()
    check_answers(saved, expected)
    assert not warnings(caplog)


def test_caches_of_another_gallery_are_not_believed(
    saved: Path, images: list[NewImage], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with GalleryStore.open(tmp_path / "foreign") as store:
        store.create(gallery_spec()).put(new_images(40, seed=1))
    for name in CACHES:
        shutil.copy(cache(tmp_path / "foreign", name), cache(saved, name))
    check_answers(saved, images)
    assert "belongs to something else" in warnings(caplog)


def test_a_gallery_created_again_never_sees_the_old_caches(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(saved / "caches", tmp_path / "aside")
    again = new_images(40, seed=2)
    with GalleryStore.open(saved) as store:
        store.delete("demo")
        store.create(gallery_spec()).put(again)
    for name in CACHES:
        shutil.copy(next((tmp_path / "aside").glob(f"*/{name}")), cache(saved, name))
    check_answers(saved, again)
    assert "belongs to something else" in warnings(caplog)


def test_caches_that_no_gallery_has_are_removed(saved: Path, images: list[NewImage]) -> None:
    orphan = saved / "caches" / "0123456789abcdef"
    shutil.copytree(cache(saved, "slots.cache").parent, orphan)
    check_answers(saved, images, read_only=True)
    assert orphan.exists()
    check_answers(saved, images)
    assert not orphan.exists()


def test_rows_that_a_crash_left_in_the_slab_are_written_over(saved: Path, images: list[NewImage]) -> None:
    path = cache(saved, "cells-*.slab")
    size = HEADER_BYTES + 40 * (8 * 4 + 4 * 8 + 4 * 2)
    with path.open("r+b") as file:
        file.seek(size)
        file.write(b"\xff" * 500)
    more = new_images(3, seed=4, prefix="more")
    with GalleryStore.open(saved) as store:
        store.gallery("demo").put(more)
    check_answers(saved, [*images, *more])


def test_caches_that_cannot_be_saved_are_only_a_warning(
    saved: Path, images: list[NewImage], caplog: pytest.LogCaptureFixture
) -> None:
    blocked = cache(saved, "slots.cache").with_name(".slots.cache.new")
    blocked.mkdir()
    more = new_images(3, seed=4, prefix="more")
    with GalleryStore.open(saved) as store:
        store.gallery("demo").put(more)
    assert "caches of gallery demo could not be saved" in warnings(caplog)
    check_answers(saved, [*images, *more])


def test_records_without_their_rows_are_reported_not_served(saved: Path) -> None:
    """The truth itself is damaged: nothing can be rebuilt from it."""
    with GalleryStore.open(saved) as store:
        truth = store._truth
        stored = truth.galleries()[0]
        truth.write(stored, lambda transaction: transaction._erase_row(7))  # type: ignore[attr-defined]
    shutil.rmtree(saved / "caches")
    with (
        GalleryStore.open(saved) as store,
        pytest.raises(StoreUnavailableError, match=r"demo is damaged: 1 rows are missing"),
    ):
        store.gallery("demo")


def test_a_folder_that_refuses_the_slab_is_reported(saved: Path) -> None:
    folder = cache(saved, "slots.cache").parent
    shutil.rmtree(folder)
    folder.write_bytes(b"no folder")
    with GalleryStore.open(saved) as store, pytest.raises(StoreUnavailableError, match="replaced"):
        store.gallery("demo")


@pytest.mark.parametrize("name", ["widths_px", "heights_px", "from_thumbnail"])
def test_caches_from_before_there_was_a_column_are_rebuilt(
    saved: Path, images: list[NewImage], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = cache(saved, "slots.cache")
    header, payload = read_cache(path)
    arrays = decode_arrays(payload)
    assert len(arrays.pop(name)) == 40
    write_cache(path, header, encode_arrays(arrays))
    check_answers(saved, images)
    assert f"rebuilt from the truth: expected an array {name}" in warnings(caplog)
    caplog.clear()
    check_answers(saved, images)
    assert not warnings(caplog)

"""Every kind of damage is planted, and found where it is."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_samples import DIM, GRID, gallery_spec, new_image, new_images, sample_features
from PIL import Image

from matchflow_index import GalleryStore, MatchDefaults
from matchflow_index.arrays import decode_arrays, encode_arrays
from matchflow_index.cachefile import read_cache, write_cache
from matchflow_index.coarse import trained
from matchflow_index.lmdb_truth import LmdbTruth
from matchflow_index.opening import StorePlace
from matchflow_index.records import RowLayout
from matchflow_index.slab import HEADER_BYTES
from matchflow_index.verifying import verify
from matchflow_index.verifying_coarse import check_coarse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from matchflow_index import NewImage
    from matchflow_index.findings import Verification

ROW_BYTES = RowLayout(cells=GRID.size, dim=DIM).size_bytes
IMAGES = 300
# image-005 was removed, image-003 has got other content.
DEAD = (3, 5)


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def with_pictures(images: list[NewImage]) -> list[NewImage]:
    return [replace(image, thumbnail=picture(seed)) for seed, image in enumerate(images)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a past whose caches are saved; copy it before anything is done to it."""
    path = tmp_path_factory.mktemp("sound") / "store"
    with GalleryStore.open(path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(with_pictures(new_images(IMAGES)))
        gallery.put([replace(new_image("image-003", sample_features(1, seed=7)[0]), thumbnail=picture(7))])
        gallery.update("image-004", labels={"age": 3.0}, expire_time_s=4e9)
        gallery.delete(["image-005"])
        gallery.set_match_defaults(MatchDefaults(depth=7))
    return path


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "store")
    return tmp_path / "store"


def verified(store: Path) -> Verification:
    truth = LmdbTruth(store / "truth.lmdb", read_only=True)
    try:
        return verify(truth, "demo", StorePlace(folder=store))
    finally:
        truth.close()


def found(store: Path) -> list[tuple[str, str | None, int | None]]:
    return [(each.part, each.image_id, each.slot) for each in verified(store).findings]


def problems(store: Path) -> str:
    return "\n".join(each.problem for each in verified(store).findings)


def cache(store: Path, name: str) -> Path:
    return next((store / "caches").glob(f"*/{name}"))


def flip(path: Path, offset: int, bit: int = 2) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ (1 << bit)]))


def row_offset(slot: int, byte: int = 0) -> int:
    return HEADER_BYTES + slot * ROW_BYTES + byte


def in_truth(store: Path, work: Callable[[Any, dict[str, Any]], object]) -> None:
    """Change the truth behind everybody's back."""
    with lmdb.open(str(store / "truth.lmdb"), max_dbs=20, map_size=1 << 30) as env:
        names = ("images", "rows", "thumbnails", "log", "counters", "defaults")
        databases = {name: env.open_db(name.encode()) for name in names}
        with env.begin(write=True) as txn:
            work(txn, databases)


def change_value(store: Path, database: str, key_end: bytes, change: Callable[[bytes], bytes | None]) -> None:
    """Change the value of the first key that ends so; None deletes it."""

    def work(txn: Any, databases: dict[str, Any]) -> None:
        cursor = txn.cursor(db=databases[database])
        key, value = next((k, v) for k, v in cursor if k.endswith(key_end))
        changed = change(value)
        if changed is None:
            txn.delete(key, db=databases[database])
        else:
            txn.put(key, changed, db=databases[database])

    in_truth(store, work)


def row_id(store: Path, image_id: str) -> int:
    truth = LmdbTruth(store / "truth.lmdb", read_only=True)
    with truth.read(truth.galleries()[0]) as snapshot:
        record = snapshot.record(image_id)
    truth.close()
    assert record is not None
    return record.row_id


def row_key(store: Path, image_id: str) -> bytes:
    return row_id(store, image_id).to_bytes(8, "big") + b"\0"


def test_a_sound_store_has_nothing_wrong_and_everything_was_looked_at(store: Path) -> None:
    report = verified(store)
    assert report.findings == []
    assert report.notes == []
    assert (report.images, report.slots) == (IMAGES - 1, IMAGES + 1)
    assert report.changes == report.sequence == IMAGES + 3


def test_a_store_without_caches_is_sound(store: Path) -> None:
    shutil.rmtree(store / "caches")
    report = verified(store)
    assert report.findings == []
    assert "no saved caches" in report.notes[0]


def test_the_truth_can_be_verified_alone(store: Path) -> None:
    flip(cache(store, "cells-*.slab"), row_offset(9))
    truth = LmdbTruth(store / "truth.lmdb", read_only=True)
    assert verify(truth, "demo", None).findings == []
    truth.close()


@pytest.mark.parametrize("byte", [0, 4 * DIM - 1, 4 * DIM, ROW_BYTES - 1])
def test_a_flipped_bit_in_the_slab_is_found_with_its_image_and_slot(store: Path, byte: int) -> None:
    flip(cache(store, "cells-*.slab"), row_offset(257, byte))
    # The norms and the vectors that were made of the row may be found wrong too.
    assert ("slab", "image-257", 257) in found(store)
    assert {slot for _, _, slot in found(store)} == {257}
    assert f"byte {byte} of the row" in problems(store)


@pytest.mark.parametrize("slot", DEAD)
def test_features_of_a_removed_image_are_found_in_the_slab(store: Path, slot: int) -> None:
    flip(cache(store, "cells-*.slab"), row_offset(slot, 40))
    assert found(store) == [("slab", f"image-{slot:03}", slot)]
    assert "the slot is dead, but there are features in it" in problems(store)


def test_damage_to_the_head_of_the_slab_is_found(store: Path) -> None:
    flip(cache(store, "cells-*.slab"), 20)
    assert found(store) == [("slab", None, None)]
    assert "is another slab" in problems(store)


def test_a_truncated_or_missing_slab_is_found(store: Path) -> None:
    slab = cache(store, "cells-*.slab")
    with slab.open("r+b") as file:
        file.truncate(row_offset(100))
    assert "is truncated" in problems(store)
    slab.unlink()
    assert "can't be opened" in problems(store)


@pytest.mark.parametrize("name", ["slots.cache", "coarse.cache"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_a_flipped_bit_in_a_cache_file_is_found(store: Path, name: str, share: float) -> None:
    path = cache(store, name)
    flip(path, int(share * path.stat().st_size))
    assert {part for part, _, _ in found(store)} == {name}


@pytest.mark.parametrize("name", ["slots.cache", "coarse.cache"])
def test_a_cache_file_alone_is_found(store: Path, name: str) -> None:
    cache(store, name).unlink()
    assert found(store) == [(name, None, None)]


def test_a_stray_slab_is_worth_a_note(store: Path) -> None:
    cache(store, "cells-*.slab").with_name("cells-old.slab").write_bytes(b"x")
    report = verified(store)
    assert report.findings == []
    assert "cells-old.slab belongs to no saved cache" in report.notes[0]


def rewrite_slots(store: Path, name: str, change: Callable[[np.ndarray[Any, Any]], None]) -> None:
    """Change a column of slots.cache with a checksum that is right."""
    path = cache(store, "slots.cache")
    header, payload = read_cache(path)
    arrays = {key: array.copy() for key, array in decode_arrays(payload).items()}
    change(arrays[name])
    write_cache(path, header, encode_arrays(arrays))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("row_ids", 1, "expected row, change, expiry"),
        ("sequences", 1, "expected row, change, expiry"),
        ("expire_times_s", 5.0, "expected row, change, expiry"),
        ("widths_px", 5, "expected row, change, expiry, width"),
        ("heights_px", 5, "expected row, change, expiry, width, height"),
        ("from_thumbnail", True, "from a thumbnail"),
        ("cell_norms", 9.0, "expected longest cell"),
        ("live", False, "expected one live slot of the image; got []"),
    ],
)
def test_columns_that_contradict_the_truth_are_found(store: Path, name: str, value: float, problem: str) -> None:
    def change(column: np.ndarray[Any, Any]) -> None:
        column[20] = value

    rewrite_slots(store, name, change)
    assert problem in problems(store)
    assert {image_id for _, image_id, _ in found(store)} == {"image-020"}


def test_a_dead_slot_that_lives_again_is_found(store: Path) -> None:
    def change(column: np.ndarray[Any, Any]) -> None:
        column[5] = True

    rewrite_slots(store, "live", change)
    assert ("slots.cache", "image-005", 5) in found(store)
    assert "the image has no row in the truth" in problems(store)


def test_a_wrong_checksum_of_a_block_is_found(store: Path) -> None:
    def change(column: np.ndarray[Any, Any]) -> None:
        column[1] ^= 1

    rewrite_slots(store, "block_checksums", change)
    assert found(store) == [("slab", None, 256)]
    assert "slots 256 to 300" in problems(store)


def rewrite_header(store: Path, name: str, **changes: object) -> None:
    path = cache(store, name)
    header, payload = read_cache(path)
    write_cache(path, replace(header, **changes), payload)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"gallery_uuid": "other"}, "slots.cache belongs to something else"),
        ({"sequence": 1000}, "reflects change 1000, but the truth ends at 303"),
        ({"history": "00"}, "slots.cache has 00"),
        ({"kind": "coarse"}, "slots.cache belongs to something else"),
    ],
)
def test_caches_of_another_state_are_found(store: Path, changes: dict[str, object], problem: str) -> None:
    rewrite_header(store, "slots.cache", **changes)
    assert problem in problems(store)


def test_a_coarse_index_of_another_state_is_found(store: Path) -> None:
    rewrite_header(store, "coarse.cache", sequence=3)
    assert found(store) == [("coarse.cache", None, None)]


@pytest.mark.parametrize("slot", [11, 5])
def test_a_wrong_vector_in_the_coarse_index_is_found(store: Path, slot: int) -> None:
    path = cache(store, "coarse.cache")
    header, payload = read_cache(path)
    changed = bytearray(payload)
    changed[4 + 4 * DIM * slot + 3] ^= 0x11
    write_cache(path, header, bytes(changed))
    assert found(store) == [("coarse.cache", f"image-{slot:03}", slot)]


def test_a_coarse_index_of_no_known_kind_is_found(store: Path) -> None:
    path = cache(store, "coarse.cache")
    header, payload = read_cache(path)
    write_cache(path, header, b"tree" + payload)
    assert "expected one of" in problems(store)


def test_caches_behind_the_truth_are_sound_and_their_dead_slots_still_looked_at(store: Path) -> None:
    truth = LmdbTruth(store / "truth.lmdb")
    truth.write(truth.galleries()[0], lambda transaction: transaction.remove("image-050", 1.0))
    truth.close()
    report = verified(store)
    assert report.findings == []
    assert "1 images were changed after the caches were saved" in report.notes[0]
    flip(cache(store, "cells-*.slab"), row_offset(50, 30))
    assert found(store) == []
    flip(cache(store, "cells-*.slab"), row_offset(5, 30))
    assert found(store) == [("slab", "image-005", 5)]


def test_caches_that_are_older_than_the_log_are_worth_a_note(store: Path) -> None:
    truth = LmdbTruth(store / "truth.lmdb")
    gallery = truth.galleries()[0]
    for name in ("image-050", "image-051"):
        truth.write(gallery, lambda transaction, name=name: transaction.remove(name, 1.0))  # type: ignore[misc]
    truth.trim_log(gallery, 1)
    truth.close()
    report = verified(store)
    assert report.findings == []
    assert "older than the log" in report.notes[0]


def test_a_flipped_bit_in_a_row_of_the_truth_is_found(store: Path) -> None:
    key = row_key(store, "image-042")
    change_value(store, "rows", key, lambda value: value[:50] + bytes([value[50] ^ 1]) + value[51:])
    assert found(store) == [("slab", "image-042", 42)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda value: value[:-3], f"expected {ROW_BYTES} bytes; got {ROW_BYTES - 3}"),
        (lambda value: b"\x00\x00\xc0\x7f" + value[4:], "embedding of row"),
        (lambda value: bytes(4 * DIM) + value[4 * DIM :], "embedding of row"),
        (lambda value: value[:-2] + b"\xff\xff", "scales of row"),
        (lambda _: None, "is missing"),
    ],
)
def test_a_row_that_nobody_would_have_stored_is_found(
    store: Path, change: Callable[[bytes], bytes | None], problem: str
) -> None:
    change_value(store, "rows", row_key(store, "image-042"), change)
    assert ("truth", "image-042", None) in found(store)
    assert problem in problems(store)
    assert {image_id for _, image_id, _ in found(store)} == {"image-042"}


def test_a_record_that_is_gone_is_found_with_what_it_left(store: Path) -> None:
    change_value(store, "images", b"image-042", lambda _: None)
    assert ("log", "image-042", None) in found(store)
    assert "change 43 stored the image, but there is no record" in problems(store)
    assert ("slots.cache", "image-042", 42) in found(store)


def test_a_record_that_can_not_be_read_is_found_and_the_others_are_looked_at(store: Path) -> None:
    change_value(store, "images", b"image-042", lambda value: b"\xff" + value)
    change_value(store, "rows", row_key(store, "image-290"), lambda _: None)
    assert ("truth", "image-042", None) in found(store)
    assert ("truth", "image-290", None) in found(store)
    assert "a record can't be read, one after" in problems(store) or "the first one or later" in problems(store)
    assert verified(store).images == IMAGES - 2


def edited(store: Path, image_id: str, place: int, value: object) -> None:
    def change(data: bytes) -> bytes:
        fields = json.loads(data)
        fields[place] = value
        return json.dumps(fields).encode()

    change_value(store, "images", image_id.encode(), change)


def test_records_that_contradict_the_log_or_each_other_are_found(store: Path) -> None:
    edited(store, "image-010", 7, 999)
    assert "the record is of change 999; the last one is 303" in problems(store)
    edited(store, "image-011", 1, row_id(store, "image-012"))
    assert "is also that of image 'image-011'" in problems(store)
    edited(store, "image-013", 3, {"age": True})
    assert "expected a text, a number or a time" in problems(store)


def test_an_image_that_was_removed_but_has_a_record_is_found(store: Path) -> None:
    def work(txn: Any, databases: dict[str, Any]) -> None:
        key, value = next((k, v) for k, v in txn.cursor(db=databases["images"]) if k.endswith(b"image-006"))
        fields = json.loads(value)
        fields[0] = "image-005"
        txn.put(key[:-1] + b"5", json.dumps(fields).encode(), db=databases["images"])

    in_truth(store, work)
    assert "removed the image, but there is a record" in problems(store)


@pytest.mark.parametrize("image_id", ["image-005", "image-003"])
def test_features_of_a_removed_image_are_found_in_the_truth(store: Path, image_id: str) -> None:
    old = int(image_id[-3:]) + 1

    def work(txn: Any, databases: dict[str, Any]) -> None:
        txn.put(old.to_bytes(8, "big") + b"\0", b"features", db=databases["rows"])
        txn.put(old.to_bytes(8, "big"), b"picture", db=databases["thumbnails"])

    in_truth(store, work)
    assert found(store) == [("truth", image_id, None), ("thumbnails", image_id, None)]


@pytest.mark.parametrize("change", [lambda value: value[: len(value) // 2], lambda _: b"", lambda _: b"no picture"])
def test_a_thumbnail_that_is_no_whole_picture_is_found(store: Path, change: Callable[[bytes], bytes]) -> None:
    key = row_id(store, "image-042").to_bytes(8, "big")
    change_value(store, "thumbnails", key, change)
    assert found(store) == [("thumbnails", "image-042", None)]


def test_a_gallery_that_keeps_no_thumbnails_must_have_none(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path / "store") as opened:
        opened.create(gallery_spec(keep_thumbnails=False)).put(new_images(3))
    in_truth(
        tmp_path / "store",
        lambda txn, databases: txn.put((2).to_bytes(8, "big"), picture(1), db=databases["thumbnails"]),
    )
    assert found(tmp_path / "store") == [("thumbnails", "image-001", None)]


def log_key(sequence: int) -> bytes:
    return sequence.to_bytes(8, "big")


@pytest.mark.parametrize("byte", [0, 7, 12, 20])
def test_a_flipped_bit_in_the_log_is_found(store: Path, byte: int) -> None:
    change_value(store, "log", log_key(100), lambda value: value[:byte] + bytes([value[byte] ^ 1]) + value[byte + 1 :])
    assert "log" in {part for part, _, _ in found(store)}
    assert "change 100" in problems(store)


def test_a_gap_in_the_log_is_found(store: Path) -> None:
    change_value(store, "log", log_key(100), lambda _: None)
    assert "changes 100 to 100 are missing" in problems(store)


def test_a_log_without_its_end_is_found(store: Path) -> None:
    change_value(store, "log", log_key(IMAGES + 3), lambda _: None)
    assert f"changes {IMAGES + 3} to {IMAGES + 3} are missing" in problems(store)


def test_a_log_that_is_gone_is_found(store: Path) -> None:
    in_truth(store, lambda txn, databases: txn.drop(databases["log"], delete=False))
    assert "expected at least the last change, 303; there is none" in problems(store)


def test_a_trimmed_log_is_sound(store: Path) -> None:
    truth = LmdbTruth(store / "truth.lmdb")
    truth.trim_log(truth.galleries()[0], 10)
    truth.close()
    report = verified(store)
    assert report.findings == []
    assert report.changes == 10


def test_match_defaults_that_can_not_be_read_are_found(store: Path) -> None:
    change_value(store, "defaults", b"", lambda _: b"{}")
    assert found(store) == [("truth", None, None)]


@given(st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_of_what_the_caches_reflect_is_found(store: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["slots.cache", "coarse.cache", "cells-*.slab"]))
    path = cache(store, name)
    size = row_offset(IMAGES + 1) if name.endswith("slab") else path.stat().st_size
    offset, bit = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7))
    flip(path, offset, bit)
    try:
        assert verified(store).findings
    finally:
        flip(path, offset, bit)
    assert not verified(store).findings


@given(st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_of_a_row_in_the_truth_is_found(store: Path, data: st.DataObject) -> None:
    image = data.draw(st.integers(10, IMAGES - 1))
    byte, bit = data.draw(st.integers(0, ROW_BYTES - 1)), data.draw(st.integers(0, 7))
    key = row_key(store, f"image-{image:03}")

    def change(value: bytes) -> bytes:
        return value[:byte] + bytes([value[byte] ^ (1 << bit)]) + value[byte + 1 :]

    change_value(store, "rows", key, change)
    assert ("slab", f"image-{image:03}", image) in found(store)
    change_value(store, "rows", key, change)


def test_lists_are_checked_as_flat_vectors_are(tmp_path: Path) -> None:
    batch = sample_features(2_000)
    with GalleryStore.open(tmp_path / "store") as opened:
        gallery = opened.create(gallery_spec())
        gallery.put([new_image(f"i{k}", batch[k]) for k in range(2_000)])
        gallery.delete(["i7", "i8"])
        shelf = gallery._shelf
        lists = trained(shelf.slab, shelf.live_slots, shelf.size)
        assert list(check_coarse(lists, shelf.slots, shelf.slab)) == []
        lists.remove(np.array([100]))
        assert [(each.slot, each.problem) for each in check_coarse(lists, shelf.slots, shelf.slab)] == [
            (100, "the vector is missing")
        ] * 2
        back = trained(shelf.slab, np.arange(2_000), 2_000)
        assert {each.slot for each in check_coarse(back, shelf.slots, shelf.slab)} == {7, 8}

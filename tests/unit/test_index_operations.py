"""Compaction, figures and duplicates of stores, and how a store is named."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import DIM, gallery_spec, new_image, new_images, sample_features
from PIL import Image
from redis_server import running_redis

from matchflow_index import GalleryStore, SearchQuery, StoreUnavailableError
from matchflow_index import coarse as coarse_module
from matchflow_index.compaction import Compaction, compact, compact_lmdb, disk_bytes
from matchflow_index.duplicates import find_duplicates, near_groups, picture_hash
from matchflow_index.gallery_stats import store_stats
from matchflow_index.lmdb_truth import LmdbTruth
from matchflow_index.opening import StorePlace, opened_truth
from matchflow_index.restoring import UNFINISHED, stored_gallery
from matchflow_index.verifying import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis_server import RedisServer

    from matchflow_index.duplicates import DuplicateReport

IMAGES = 600
READER = """
import sys, lmdb
env = lmdb.open(sys.argv[1], readonly=True, max_dbs=20)
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


def fill(place: StorePlace) -> None:
    """Make a gallery of which half was removed, and another one."""
    assert place.folder is not None
    truth = None
    if place.address is not None:
        from matchflow_index.redis_truth import RedisTruth  # noqa: PLC0415

        truth = RedisTruth(place.address)
    with GalleryStore.open(place.folder, truth=truth) as store:
        gallery = store.create(gallery_spec())
        gallery.put([replace(image, thumbnail=bytes(3000)) for image in new_images(IMAGES)])
        gallery.delete([f"image-{k:03}" for k in range(0, IMAGES, 2)])
        store.create(gallery_spec("other")).put(new_images(3))


@pytest.fixture
def place(tmp_path: Path) -> StorePlace:
    fill(StorePlace(folder=tmp_path / "store"))
    return StorePlace(folder=tmp_path / "store")


@pytest.fixture
def redis_place(redis_server: RedisServer, tmp_path: Path, request: pytest.FixtureRequest) -> StorePlace:
    place = StorePlace.parse(f"{redis_server.url}?prefix={request.node.name}", tmp_path / "cache")
    fill(place)
    return place


def answers(folder: Path) -> list[tuple[str, float]]:
    query = SearchQuery(features=sample_features(1, seed=99)[0], top_k=30, depth=20, max_flows=0)
    with GalleryStore.open(folder, read_only=True) as store:
        return [(hit.record.image_id, hit.score) for hit in store.gallery("demo").search(query).hits]


def sound(place: StorePlace, gallery_id: str = "demo") -> bool:
    with opened_truth(place, read_only=True) as truth:
        return not [f for f in verify(truth, gallery_id, place).findings if f.part != "thumbnails"]


def test_compaction_gives_disk_back_and_changes_no_answer(place: StorePlace) -> None:
    assert place.folder is not None
    before, told = answers(place.folder), list[str]()
    done = compact(place, keep_changes=100, progress=told.append)
    assert done.dead_slots == IMAGES // 2
    assert done.changes == IMAGES * 3 // 2 - 100
    assert done.bytes_after < 0.7 * done.bytes_before
    assert done.bytes_after == disk_bytes(place.folder)
    assert told == ["slots of demo", "slots of other", "log of demo", "log of other", "truth"]
    assert answers(place.folder) == before
    assert sound(place)
    assert sound(place, "other")
    again = compact(place, keep_changes=100)
    assert (again.dead_slots, again.changes) == (0, 0)
    with GalleryStore.open(place.folder) as store:
        store.gallery("demo").put(new_images(5, seed=8, prefix="late"))
    assert sound(place)


def test_a_store_that_a_server_has_open_is_not_compacted(place: StorePlace) -> None:
    assert place.folder is not None
    with GalleryStore.open(place.folder), pytest.raises(StoreUnavailableError, match="is open for writing in process"):
        compact(place, keep_changes=100)
    assert sound(place)


def test_a_truth_that_another_process_reads_is_not_swapped(place: StorePlace) -> None:
    assert place.folder is not None
    folder = place.folder / "truth.lmdb"
    inode = (folder / "data.mdb").stat().st_ino
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        with pytest.raises(StoreUnavailableError, match="is open in another process that reads it"):
            compact_lmdb(folder)
        reader.communicate("")
    assert (folder / "data.mdb").stat().st_ino == inode
    compact_lmdb(folder)
    assert (folder / "data.mdb").stat().st_ino != inode
    assert sorted(path.name for path in folder.iterdir()) == ["data.mdb", "lock.mdb"]
    assert sound(place)


def test_what_is_no_store_is_not_made_one(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="there is no store in"):
        compact(StorePlace(folder=tmp_path / "gone"), keep_changes=1)
    assert not (tmp_path / "gone").exists()
    with pytest.raises(StoreUnavailableError, match="can't be read"):
        store_stats(StorePlace(folder=tmp_path / "gone"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "data.mdb").write_bytes(b"no environment" * 1000)
    with pytest.raises(StoreUnavailableError, match="can't be compacted"):
        compact_lmdb(tmp_path / "bad")


def test_a_copy_that_lacks_entries_does_not_take_the_place(place: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.folder is not None
    counts = iter([{b"images": 3}, {b"images": 2}])
    monkeypatch.setattr("matchflow_index.compaction._counts", lambda _: next(counts))
    with pytest.raises(StoreUnavailableError, match="expected entries"):
        compact_lmdb(place.folder / "truth.lmdb")
    assert sound(place)


def test_a_store_on_redis_is_compacted_where_it_can_be(redis_place: StorePlace) -> None:
    done = compact(redis_place, keep_changes=100)
    assert (done.dead_slots, done.changes) == (IMAGES // 2, IMAGES * 3 // 2 - 100)
    assert sound(redis_place)
    alone = replace(redis_place, folder=None)
    assert compact(alone, keep_changes=10) == Compaction(bytes_before=0, bytes_after=0, dead_slots=0, changes=90)


def test_figures_say_what_is_there_and_what_it_takes(place: StorePlace) -> None:
    assert place.folder is not None
    stats = store_stats(place)
    assert stats.durability == "disk"
    assert stats.truth_bytes == (place.folder / "truth.lmdb" / "data.mdb").stat().st_size
    assert stats.truth_parts["thumbnails"] >= IMAGES // 2 * 3000
    assert min(stats.truth_parts[name] for name in ("images", "rows", "log")) > 0
    demo, other = stats.galleries
    assert (demo.gallery_id, demo.images, demo.sequence, demo.log_entries) == ("demo", 300, 900, 900)
    assert demo.caches is not None
    assert (demo.caches.slots, demo.caches.dead_slots, demo.caches.sequence) == (600, 300, 900)
    assert (demo.caches.coarse_kind, demo.caches.recall) == ("flat", 1.0)
    assert demo.caches.coarse_bytes > 600 * 4 * DIM
    assert demo.caches.slab_bytes >= 600 * (demo.row_bytes // 300)
    assert [each.gallery_id for each in store_stats(place, "other").galleries] == ["other"] == [other.gallery_id]


def test_figures_of_a_store_on_redis_lack_its_bytes(redis_place: StorePlace) -> None:
    stats = store_stats(replace(redis_place, folder=None))
    assert (stats.truth_bytes, stats.truth_parts) == (None, {})
    assert [(each.images, each.caches) for each in stats.galleries] == [(300, None), (3, None)]
    assert "?" not in stats.store
    caches = store_stats(redis_place).galleries[0].caches
    assert caches is not None
    assert caches.dead_slots == 300


def test_figures_tell_the_recall_of_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse_module.wanted_lists, "__defaults__", (500,))
    batch = sample_features(2_000)
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put([new_image(f"i{k}", batch[k]) for k in range(2_000)])
        gallery.maintain()
        gallery.save()
    caches = store_stats(StorePlace(folder=tmp_path)).galleries[0].caches
    assert caches is not None
    assert caches.coarse_kind == "ivf8"
    assert 0.9 < caches.recall <= 1


def test_figures_leave_out_caches_that_can_not_be_read_and_galleries_that_are_not_whole(place: StorePlace) -> None:
    assert place.folder is not None
    for path in place.folder.glob("caches/*/coarse.cache"):
        path.write_bytes(b"x" * 100)
    with opened_truth(place, read_only=False) as truth:
        truth.set_match_defaults(stored_gallery(truth, "other"), UNFINISHED)
    assert [(each.gallery_id, each.caches) for each in store_stats(place).galleries] == [("demo", None)]


def test_a_place_is_a_folder_or_an_address() -> None:
    assert StorePlace.parse("store") == StorePlace(folder=Path("store"))
    with pytest.raises(StoreUnavailableError, match="has its caches there"):
        StorePlace.parse("store", Path("cache"))
    place = StorePlace.parse("redis://:secret@localhost/0")
    assert place.caches_of("u") is None
    assert "secret" not in str(place)
    assert StorePlace.parse("unix:///socket", Path("cache")).caches_of("u") == Path("cache/caches/u")
    with (
        pytest.raises(StoreUnavailableError, match="is no folder"),
        opened_truth(StorePlace(folder=None), read_only=True),
    ):
        pass


def test_a_place_that_is_a_file_can_not_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(StoreUnavailableError, match="can't be created"),
        opened_truth(StorePlace(folder=tmp_path / "file"), read_only=False),
    ):
        pass


def scene(seed: int) -> Image.Image:
    """Return a smooth picture with few edges, as photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((200, 150), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def differing_bits(one: bytes, other: bytes) -> int:
    first, second = picture_hash(one), picture_hash(other)
    assert first is not None
    assert second is not None
    return (first ^ second).bit_count()


@pytest.mark.parametrize("seed", range(20))
def test_a_look_outlives_compression_scaling_and_brightness_and_differs_from_others(seed: int) -> None:
    original = encoded(scene(seed))
    assert differing_bits(original, encoded(scene(seed), "JPEG", quality=30)) <= 4
    assert differing_bits(original, encoded(scene(seed).resize((90, 70)))) <= 4
    assert differing_bits(original, encoded(scene(seed).point(lambda value: value * 0.8))) <= 4
    assert differing_bits(original, encoded(scene(seed + 100))) > 10


def test_what_is_transparent_is_not_looked_at() -> None:
    picture = Image.new("RGBA", (90, 80), (0, 0, 0, 0))
    hidden = picture.copy()
    hidden.paste((200, 90, 10, 0), (0, 0, 40, 80))
    assert picture_hash(encoded(picture)) == picture_hash(encoded(hidden)) == 0


@pytest.mark.parametrize("data", [b"", b"no picture", encoded(scene(1))[:60]])
def test_what_is_no_picture_has_no_look(data: bytes) -> None:
    assert picture_hash(data) is None


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 255), max_size=60), st.integers(0, 8))
@settings(deadline=None)
def test_groups_of_near_hashes_are_those_of_comparing_each_with_each(hashes: list[int], distance: int) -> None:
    groups = [{place} for place in range(len(hashes))]
    for one in range(len(hashes)):
        for other in range(one):
            if (hashes[one] ^ hashes[other]).bit_count() <= distance:
                joined = [group for group in groups if group & {one, other}]
                groups = [group for group in groups if not group & {one, other}] + [set().union(*joined)]
    expected = sorted(sorted(group) for group in groups if len(group) > 1)
    assert near_groups(np.array(hashes, np.uint64), distance) == expected


def test_many_hashes_are_grouped_across_all_chunks() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 5_000, dtype=np.uint64)
    hashes[4_000:] = hashes[:1_000] ^ (np.uint64(1) << rng.integers(0, 63, 1_000).astype(np.uint64))
    assert near_groups(hashes, 4) == [[place, 4_000 + place] for place in range(1_000)]


def duplicates(folder: Path, distance: int = 4) -> DuplicateReport:
    truth = LmdbTruth(folder / "truth.lmdb", read_only=True)
    try:
        return find_duplicates(truth, stored_gallery(truth, "demo"), distance=distance)
    finally:
        truth.close()


def test_duplicates_are_found_by_content_and_by_look(tmp_path: Path) -> None:
    batch = sample_features(5)
    pictures = {
        "a": encoded(scene(1)),
        "b": encoded(scene(2)),
        "copy of b": encoded(scene(2)),
        "small a": encoded(scene(1).resize((100, 80)), "JPEG", quality=50),
    }
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        images = [
            replace(new_image(name, batch[k]), content_hash=name[-1], thumbnail=thumbnail)
            for k, (name, thumbnail) in enumerate(pictures.items())
        ]
        images[3] = replace(images[3], content_hash="other")
        gallery.put([*images, replace(new_image("features", batch[4]), thumbnail=None)])
    report = duplicates(tmp_path)
    assert (report.images, report.unseen) == (5, 1)
    found = [(group.kind, [image.image_id for image in group.images]) for group in report.groups]
    assert found == [("content", ["b", "copy of b"]), ("look", ["a", "small a"])]
    assert 0 <= report.groups[1].images[1].distance <= 4
    assert [group.kind for group in duplicates(tmp_path, distance=0).groups][:1] == ["content"]
    assert len(duplicates(tmp_path, distance=64).groups[1].images) == 4


def test_an_empty_gallery_has_no_duplicates(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        store.create(gallery_spec())
    assert duplicates(tmp_path).groups == ()

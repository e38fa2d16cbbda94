"""Killed writers, second writers, readers beside a writer, full disks."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import numpy as np
import pytest
from index_samples import gallery_spec, new_images, sample_features

from matchflow_index import (
    Gallery,
    GalleryNotFoundError,
    GalleryStore,
    PutOutcome,
    SearchQuery,
    StoreUnavailableError,
)
from matchflow_index import lmdb_truth as lmdb_truth_module
from matchflow_index.lmdb_truth import LmdbTruth

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[1]


def program(body: str, *arguments: object) -> list[str]:
    """Return the command line of a process that runs `body` with the samples imported."""
    head = """
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from index_samples import gallery_spec, new_images, sample_features
        from matchflow_index import GalleryStore, SearchQuery, StoreUnavailableError
        path = Path(sys.argv[2])
    """
    source = textwrap.dedent(head) + textwrap.dedent(body)
    return [sys.executable, "-c", source, str(TESTS), *map(str, arguments)]


def run(body: str, *arguments: object) -> str:
    """Run a process to its end and return what it printed."""
    return subprocess.run(program(body, *arguments), capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.fixture
def endless_writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that puts three images at a time, without end, and names each put once it is acknowledged."""
    body = """
        store = GalleryStore.open(path)
        gallery = store.create(gallery_spec())
        gallery.put(new_images(3, prefix="saved"))
        gallery.save()
        for number in range(1_000_000):
            gallery.put(new_images(3, seed=number, prefix=f"put-{number}"))
            print(number, flush=True)
    """
    process = subprocess.Popen(program(body, tmp_path), stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait(60)
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("acknowledged", [1, 40])
def test_every_acknowledged_image_survives_a_kill_and_none_is_half_there(
    tmp_path: Path, endless_writer: subprocess.Popen[str], acknowledged: int
) -> None:
    assert endless_writer.stdout is not None
    last = 0
    for _ in range(acknowledged):
        last = int(endless_writer.stdout.readline())
    endless_writer.send_signal(signal.SIGKILL)
    rest = endless_writer.stdout.read().split()
    assert endless_writer.wait(60) == -signal.SIGKILL
    last = max(last, *map(int, rest)) if rest else last

    with GalleryStore.open(tmp_path) as store:
        gallery = store.gallery("demo")
        names = {record.image_id for record in gallery.page(None, 10**6)}
        puts = {name.rsplit("-", 1)[0] for name in names}
        assert puts >= {"saved", *(f"put-{number}" for number in range(last + 1))}
        # The put that was under way is there whole or not at all.
        assert names == {f"{prefix}-{k:03}" for prefix in puts for k in range(3)}
        assert gallery.count == gallery.sequence == len(names)
        for prefix in puts - {"saved"}:
            expected = sample_features(3, seed=int(prefix.removeprefix("put-")))
            for k in range(3):
                np.testing.assert_array_equal(gallery.features(f"{prefix}-{k:03}").cells, expected.cells[k])
        query = SearchQuery(features=sample_features(1)[0], top_k=len(names), settings=None)
        assert {hit.record.image_id for hit in gallery.search(query).hits} == names


def test_a_second_writing_process_is_refused_and_a_reading_one_is_not(tmp_path: Path) -> None:
    body = """
        try:
            GalleryStore.open(path)
        except StoreUnavailableError as error:
            print(error)
        with GalleryStore.open(path, read_only=True) as store:
            gallery = store.gallery("demo")
            print(gallery.count, len(gallery.search(SearchQuery(features=sample_features(1)[0])).hits))
    """
    with GalleryStore.open(tmp_path) as store:
        store.create(gallery_spec()).put(new_images(7))
        refusal, counts = run(body, tmp_path).splitlines()
    assert f"open for writing in process {os.getpid()}" in refusal
    assert counts == "7 7"


def test_a_store_is_not_opened_twice_in_one_process(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path), pytest.raises(StoreUnavailableError, match="open for writing"):
        GalleryStore.open(tmp_path)
    with GalleryStore.open(tmp_path) as store:
        assert store.list() == []


def test_a_reader_keeps_its_view_while_another_process_rewrites_everything(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        store.create(gallery_spec()).put(new_images(20))
    body = """
        for _ in range(3):
            with GalleryStore.open(path) as store:
                gallery = store.gallery("demo")
                gallery.put(new_images(20, seed=gallery.sequence))
    """
    query = SearchQuery(features=sample_features(1, seed=3)[0], top_k=20)
    with GalleryStore.open(tmp_path, read_only=True) as store:
        gallery = store.gallery("demo")
        before = gallery.search(query).hits
        run(body, tmp_path)
        assert gallery.search(query).hits == before
        np.testing.assert_array_equal(gallery.features("image-004").cells, sample_features(20).cells[4])
    with GalleryStore.open(tmp_path, read_only=True) as store:
        assert store.gallery("demo").sequence == 80


def test_a_reader_follows_a_map_that_another_process_grew(tmp_path: Path) -> None:
    body = """
        with GalleryStore.open(path, map_bytes=1 << 20) as store:
            for number in range(40):
                store.gallery("demo").put(new_images(100, seed=number, prefix=f"p{number}"))
    """
    with GalleryStore.open(tmp_path, map_bytes=1 << 18) as store:
        store.create(gallery_spec()).put(new_images(2))
    with GalleryStore.open(tmp_path, read_only=True, map_bytes=1 << 18) as store:
        gallery = store.gallery("demo")
        run(body, tmp_path)
        assert len(gallery.page(None, 10_000)) == 4002


def fill(gallery: Gallery) -> None:
    for seed in range(1000):
        gallery.put(new_images(20, seed=seed, prefix=f"p{seed}"))


def test_a_store_that_may_not_grow_is_full_and_what_is_in_it_stays(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path, map_bytes=1 << 19, max_map_bytes=1 << 19) as store:
        gallery = store.create(gallery_spec())
        with pytest.raises(StoreUnavailableError, match="is full: it may not grow beyond 524288 bytes"):
            fill(gallery)
        stored = gallery.count
        assert stored == len(gallery.page(None, 10_000)) > 0
        assert len(gallery.search(SearchQuery(features=sample_features(1)[0])).hits) == 10
    with GalleryStore.open(tmp_path) as store:
        gallery = store.gallery("demo")
        assert gallery.count == stored
        gallery.put(new_images(500, prefix="more"))
        assert gallery.count == stored + 500


def test_a_map_that_is_full_grows_by_itself(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path, map_bytes=1 << 18) as store:
        gallery = store.create(gallery_spec())
        gallery.put(new_images(3000))
        assert gallery.count == len(gallery.page(None, 10_000)) == 3000


def test_a_disk_that_fills_up_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes writes beyond a length fail, as a full disk does; it is for good, hence another process."""
    body = """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))
        store = GalleryStore.open(path)
        gallery = store.create(gallery_spec())
        done = 0
        try:
            for seed in range(1000):
                gallery.put(new_images(20, seed=seed, prefix=f"p{seed}"))
                done += 20
        except StoreUnavailableError:
            print(done, gallery.count, len(gallery.search(SearchQuery(features=sample_features(1)[0])).hits))
        store.close()
    """
    done, count, hits = map(int, run(body, tmp_path).split())
    assert done == count > 0
    assert hits == 10
    with GalleryStore.open(tmp_path) as store:
        gallery = store.gallery("demo")
        assert gallery.count == len(gallery.page(None, 10_000)) == done
        assert gallery.put(new_images(1, prefix="after"))


def test_a_slab_without_room_stops_the_put_before_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(new_images(3))

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            with pytest.raises(StoreUnavailableError, match="No space left"):
                gallery.put(new_images(5))
        assert gallery.count == len(gallery.page(None, 10)) == 3
        gallery.put(new_images(5))
        assert gallery.count == 5


@pytest.mark.parametrize("how", ["search", "put"])
def test_what_a_slab_without_room_could_not_show_is_shown_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Some file systems promise no room: then the put is durable, and says that searches do not see it."""
    query = SearchQuery(features=sample_features(1)[0], settings=None, top_k=20)
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(new_images(3))

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(StoreUnavailableError, match="No space left"):
                gallery.put(new_images(5))
            assert len(gallery.page(None, 10)) == 5
            assert {hit.record.image_id for hit in gallery.search(query).hits} == {f"image-{k:03}" for k in range(3)}
        if how == "put":
            assert {result.outcome for result in gallery.put(new_images(5))} == {PutOutcome.UNCHANGED}
            gallery.put(new_images(1, prefix="other"))
            assert gallery.count == 6
        assert len(gallery.search(query).hits) == len(gallery.page(None, 10)) == gallery.count


def test_a_gallery_whose_slab_has_no_room_is_not_served_until_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GalleryStore.open(tmp_path) as store:
        store.create(gallery_spec()).put(new_images(3))
    shutil.rmtree(tmp_path / "caches")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with GalleryStore.open(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(StoreUnavailableError, match="No space left"):
                store.gallery("demo")
        assert store.gallery("demo").count == 3


def test_a_store_without_room_for_a_lock_holder_is_locked_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", full)
        store = GalleryStore.open(tmp_path)
    with store, pytest.raises(StoreUnavailableError, match="process unknown"):
        GalleryStore.open(tmp_path)


def test_a_truth_that_is_no_truth_is_refused(tmp_path: Path) -> None:
    (tmp_path / "truth.lmdb").mkdir()
    (tmp_path / "truth.lmdb" / "data.mdb").write_bytes(b"no database " * 1000)
    for read_only in (False, True):
        with pytest.raises(StoreUnavailableError):
            GalleryStore.open(tmp_path, read_only=read_only)
    (tmp_path / "truth.lmdb" / "data.mdb").unlink()
    GalleryStore.open(tmp_path).close()


def test_a_truth_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "truth.lmdb").write_bytes(b"a file")
    with pytest.raises(StoreUnavailableError, match=r"truth\.lmdb can't be used"):
        GalleryStore.open(tmp_path)


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    GalleryStore.open(tmp_path).close()
    with lmdb.open(str(tmp_path / "truth.lmdb"), max_dbs=10) as env, env.begin(write=True) as transaction:
        transaction.put(b"format", (1).to_bytes(8, "big"), db=env.open_db(b"counters", transaction))
    with pytest.raises(StoreUnavailableError, match="has format 1; this program reads and writes format 2"):
        GalleryStore.open(tmp_path)


def test_a_database_of_somebody_else_is_refused_read_only(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path / "truth.lmdb"), max_dbs=10).close()
    with pytest.raises(StoreUnavailableError):
        GalleryStore.open(tmp_path, read_only=True)


def test_a_deletion_that_was_cut_off_is_ended_at_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> bool:
        raise StoreUnavailableError("the power went")

    with GalleryStore.open(tmp_path) as store:
        for name in ("demo", "kept"):
            store.create(gallery_spec(name)).put(new_images(30))
        with monkeypatch.context() as patch:
            patch.setattr(LmdbTruth, "_sweep_some", fail)
            store.delete("demo")
        assert "could not be swept" in caplog.text
        with pytest.raises(GalleryNotFoundError):
            store.gallery("demo")
    monkeypatch.setattr(lmdb_truth_module, "SWEEP_KEYS", 7)
    with GalleryStore.open(tmp_path) as store:
        assert store.gallery("kept").count == 30
    with lmdb.open(str(tmp_path / "truth.lmdb"), max_dbs=10, readonly=True) as env, env.begin() as transaction:
        left = {
            name: transaction.stat(env.open_db(name.encode(), transaction, create=False))["entries"]
            for name in ("images", "rows", "thumbnails", "log", "doomed")
        }
    assert left == {"images": 30, "rows": 30, "thumbnails": 30, "log": 30, "doomed": 0}


def test_the_file_size_limit_of_this_process_is_untouched() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY

from __future__ import annotations

import resource
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_samples import gallery_spec, new_image, new_images, sample_features
from redis_server import running_redis

from matchflow_index import (
    BackupDamagedError,
    GalleryExistsError,
    GalleryNotFoundError,
    GalleryStore,
    MatchDefaults,
    SearchQuery,
    StoreUnavailableError,
)
from matchflow_index import backup as backup_module
from matchflow_index.backup import back_up
from matchflow_index.backup_file import BackupHeader, BackupImage, BackupReader, BackupRemoval, BackupWriter
from matchflow_index.lmdb_truth import LmdbTruth
from matchflow_index.redis_address import RedisAddress
from matchflow_index.redis_truth import RedisTruth
from matchflow_index.restoring import UNFINISHED, is_unfinished, read_header, restore, stored_gallery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis_server import RedisServer

    from matchflow_index.labels import Labels
    from matchflow_index.truth import Result, Snapshot, StoredGallery, Transaction, Truth

LABELS: Labels = {"name": "ünï", "age": 31.5, "taken": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)}


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_truth(redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[RedisTruth]:
    truth = RedisTruth(RedisAddress(url=redis_server.url, prefix=request.node.name))
    yield truth
    truth.close()


@pytest.fixture
def lmdb_truth(tmp_path: Path) -> Iterator[LmdbTruth]:
    truth = LmdbTruth(tmp_path / "target")
    yield truth
    truth.close()


def filled(store: Path, truth: Truth | None = None) -> None:
    """Make a gallery with everything that images can have, and a past."""
    with GalleryStore.open(store, truth=truth) as opened:
        gallery = opened.create(gallery_spec())
        gallery.put(new_images(30))
        features = sample_features(2, seed=5)
        gallery.put([new_image("typed/ü", features[0], LABELS), new_image("image-003", features[1])])
        gallery.update("image-004", labels={"other": 1.0}, expire_time_s=4e9)
        gallery.delete(["image-005", "image-006"])
        gallery.set_match_defaults(MatchDefaults(depth=17))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    filled(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def backup(source: Path, tmp_path: Path) -> Path:
    truth = LmdbTruth(source / "truth.lmdb", read_only=True)
    back_up(truth, stored_gallery(truth, "demo"), tmp_path / "demo.backup")
    truth.close()
    return tmp_path / "demo.backup"


def contents(truth: Truth, gallery: StoredGallery) -> tuple[object, ...]:
    """Return all that a restore has to bring back."""
    with truth.read(gallery) as snapshot:
        records = list(snapshot.records())
        return (
            [(r.image_id, r.content_hash, r.labels, r.width_px, r.height_px) for r in records],
            [(r.update_time_s, r.expire_time_s) for r in records],
            [snapshot.row(r.row_id) for r in records],
            [snapshot.thumbnail(r.row_id) for r in records],
            truth.match_defaults(gallery),
        )


def contents_of_store(store: Path, gallery_id: str = "demo") -> tuple[object, ...]:
    truth = LmdbTruth(store / "truth.lmdb", read_only=True)
    try:
        return contents(truth, stored_gallery(truth, gallery_id))
    finally:
        truth.close()


def test_a_restored_gallery_has_all_that_the_backup_has_with_a_new_identity(
    source: Path, backup: Path, lmdb_truth: LmdbTruth
) -> None:
    told: list[tuple[int, int]] = []
    gallery = restore(backup, lmdb_truth, progress=lambda done, total: told.append((done, total)))
    assert contents(lmdb_truth, gallery) == contents_of_store(source)
    header = read_header(backup)
    assert told == [(29, 29)]
    assert (header.images, header.entries, header.sequence) == (29, 29, 35)
    assert gallery.spec == header.spec
    assert gallery.uuid != header.uuid
    with lmdb_truth.read(gallery) as snapshot:
        assert [record.sequence for record in sorted(snapshot.records(), key=lambda r: r.sequence)] == [*range(1, 30)]


def test_a_restored_gallery_answers_as_the_one_that_was_backed_up(source: Path, backup: Path) -> None:
    truth = LmdbTruth(source / "truth.lmdb")
    restore(backup, truth, gallery_id="copy")
    truth.close()
    query = SearchQuery(features=sample_features(1, seed=99)[0], top_k=30, depth=20, max_flows=0)
    with GalleryStore.open(source) as store:
        answers = [
            [(hit.record.image_id, hit.score) for hit in store.gallery(name).search(query).hits]
            for name in ("demo", "copy")
        ]
        assert store.gallery("copy").match_defaults.depth == 17
    assert answers[0] == answers[1]


def test_a_gallery_goes_to_redis_and_back(
    source: Path, backup: Path, redis_truth: RedisTruth, lmdb_truth: LmdbTruth, tmp_path: Path
) -> None:
    there = restore(backup, redis_truth, gallery_id="there")
    assert contents(redis_truth, there) == contents_of_store(source)
    header = back_up(redis_truth, there, tmp_path / "again")
    assert (header.images, header.entries) == (29, 29)
    back = restore(tmp_path / "again", lmdb_truth, gallery_id="demo")
    assert contents(lmdb_truth, back) == contents_of_store(source)


def test_an_empty_gallery_can_be_backed_up_and_its_restore_can_be_repeated(
    lmdb_truth: LmdbTruth, tmp_path: Path
) -> None:
    header = back_up(lmdb_truth, lmdb_truth.create(gallery_spec("empty")), tmp_path / "file")
    assert (header.images, header.sequence, header.match_defaults) == (0, 0, None)
    restore(tmp_path / "file", lmdb_truth)
    assert contents(lmdb_truth, stored_gallery(lmdb_truth, "empty"))[0] == []


def test_an_existing_gallery_is_not_touched(source: Path, backup: Path) -> None:
    before = contents_of_store(source)
    truth = LmdbTruth(source / "truth.lmdb")
    with pytest.raises(GalleryExistsError, match="there already is a gallery 'demo'"):
        restore(backup, truth)
    truth.close()
    assert contents_of_store(source) == before


def test_a_truncated_backup_is_refused_wherever_it_was_cut(backup: Path, lmdb_truth: LmdbTruth) -> None:
    whole = backup.read_bytes()
    for length in [*range(60), *range(60, len(whole), len(whole) // 40), len(whole) - 1]:
        backup.write_bytes(whole[:length])
        with pytest.raises(BackupDamagedError, match="expected"):
            restore(backup, lmdb_truth)
    assert lmdb_truth.galleries() == []


def test_what_follows_the_end_is_refused(backup: Path, lmdb_truth: LmdbTruth) -> None:
    with backup.open("ab") as file:
        file.write(b"x")
    with pytest.raises(BackupDamagedError, match="expected its end at"):
        restore(backup, lmdb_truth)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_anywhere_is_found_before_anything_is_written(
    backup: Path, lmdb_truth: LmdbTruth, data: st.DataObject
) -> None:
    whole = backup.read_bytes()
    flipped = bytearray(whole)
    flipped[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    backup.write_bytes(flipped)
    try:
        with pytest.raises(BackupDamagedError, match="expected"):
            restore(backup, lmdb_truth)
    finally:
        backup.write_bytes(whole)
    assert lmdb_truth.galleries() == []


def test_chunks_that_changed_places_are_refused(
    source: Path, tmp_path: Path, lmdb_truth: LmdbTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matchflow_index.backup_file.CHUNK_BYTES", 1)
    truth = LmdbTruth(source / "truth.lmdb", read_only=True)
    back_up(truth, stored_gallery(truth, "demo"), tmp_path / "small chunks")
    truth.close()
    whole = (tmp_path / "small chunks").read_bytes()
    first, second, third = (whole.index(b'["image-%03d"' % k) - 33 for k in range(3))
    swapped = whole[:first] + whole[second:third] + whole[first:second] + whole[third:]
    (tmp_path / "swapped").write_bytes(swapped)
    with pytest.raises(BackupDamagedError, match="expected chunk 1; got 2"):
        restore(tmp_path / "swapped", lmdb_truth)
    restore(tmp_path / "small chunks", lmdb_truth)
    assert contents(lmdb_truth, stored_gallery(lmdb_truth, "demo")) == contents_of_store(source)


def test_something_else_is_no_backup(tmp_path: Path, lmdb_truth: LmdbTruth) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8" * 500)
    with pytest.raises(BackupDamagedError, match="expected b'MFBACKUP' and format 1"):
        restore(tmp_path / "photo.jpg", lmdb_truth)
    with pytest.raises(StoreUnavailableError, match="can't be read"):
        restore(tmp_path / "gone", lmdb_truth)


class _FailingTruth(LmdbTruth):
    """A truth that fails with the first batch of images."""

    def write(self, gallery: StoredGallery, work: Callable[[Transaction], Result], *, active: bool = True) -> Result:
        super().write(gallery, work, active=active)
        raise KeyboardInterrupt


def test_an_interrupted_restore_leaves_nothing(backup: Path, tmp_path: Path) -> None:
    truth = _FailingTruth(tmp_path / "failing")
    with pytest.raises(KeyboardInterrupt):
        restore(backup, truth)
    assert truth.galleries() == []
    truth.close()


def killed_restore(backup: Path, truth: Truth) -> None:
    """Leave what a restore leaves when the process is killed in its midst."""
    gallery = truth.create(read_header(backup).spec)
    truth.set_match_defaults(gallery, UNFINISHED)


def test_what_a_killed_restore_left_is_nobodys_gallery_and_the_next_writer_removes_it(
    backup: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth = LmdbTruth(tmp_path / "killed" / "truth.lmdb")
    killed_restore(backup, truth)
    truth.close()
    with GalleryStore.open(tmp_path / "killed", read_only=True) as store:
        assert store.list() == []
        with pytest.raises(GalleryNotFoundError):
            store.gallery("demo")
    with GalleryStore.open(tmp_path / "killed") as store:
        store.create(gallery_spec())
    assert "removing gallery demo: its restore was cut off" in caplog.text


def test_a_restore_into_redis_takes_the_place_of_a_killed_one(
    source: Path, backup: Path, redis_truth: RedisTruth, tmp_path: Path
) -> None:
    killed_restore(backup, redis_truth)
    with GalleryStore.open(tmp_path / "caches", truth=redis_truth) as store:
        # Somebody may be at it.
        assert store.list() == []
        assert is_unfinished(redis_truth, redis_truth.galleries()[0])
        gallery = restore(backup, redis_truth)
        assert contents(redis_truth, gallery) == contents_of_store(source)
        assert store.gallery("demo").count == 29


def test_an_expired_image_and_a_gallery_without_thumbnails_come_back(lmdb_truth: LmdbTruth, tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path / "bare") as store:
        gallery = store.create(gallery_spec(keep_thumbnails=False))
        gallery.put(new_images(3))
        gallery.update("image-001", expire_time_s=1.0)
    truth = LmdbTruth(tmp_path / "bare" / "truth.lmdb", read_only=True)
    back_up(truth, stored_gallery(truth, "demo"), tmp_path / "file")
    truth.close()
    restore(tmp_path / "file", lmdb_truth)
    assert contents(lmdb_truth, stored_gallery(lmdb_truth, "demo")) == contents_of_store(tmp_path / "bare")


def test_a_backup_on_lmdb_is_of_the_moment_when_it_began(
    source: Path, tmp_path: Path, lmdb_truth: LmdbTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents_of_store(source)
    monkeypatch.setattr(backup_module, "STEP", 4)
    truth = LmdbTruth(source / "truth.lmdb")
    gallery = stored_gallery(truth, "demo")

    def interfere(entries: int) -> None:
        truth.write(gallery, lambda transaction: transaction.remove(f"image-{(7 * entries) % 30:03}", 1.0))

    header = back_up(truth, gallery, tmp_path / "file", progress=interfere)
    truth.close()
    assert header.sequence == 35
    restore(tmp_path / "file", lmdb_truth)
    assert contents(lmdb_truth, stored_gallery(lmdb_truth, "demo")) == before


def history_of(truth: Truth, header: BackupHeader) -> str | None:
    with truth.read(stored_gallery(truth, "demo")) as snapshot:
        history = snapshot.history(header.sequence)
    return None if history is None else history.hex()


def test_a_backup_of_a_shared_truth_is_of_the_moment_that_it_names(
    redis_truth: RedisTruth, tmp_path: Path, lmdb_truth: LmdbTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_module, "STEP", 4)
    with GalleryStore.open(tmp_path / "caches", truth=redis_truth) as store:
        gallery = store.create(gallery_spec())
        gallery.put(new_images(30))
        rounds = iter(range(9))

        def interfere(_: int) -> None:
            for k in rounds:
                gallery.delete([f"image-{k:03}"])
                gallery.update(f"image-{29 - k:03}", labels={"round": float(k)})
                gallery.put(new_images(2, seed=50 + k, prefix=f"late-{k}"))
                gallery.put([new_image(f"image-{10 + k // 2:03}", sample_features(1, seed=k)[0])])
                break

        header = back_up(redis_truth, gallery.stored, tmp_path / "file", progress=interfere)
        assert next(rounds, None) is None
        assert header.sequence == gallery.sequence == 30 + 9 * 5
        assert header.history == history_of(redis_truth, header)
        assert header.entries > header.images == gallery.count
        restored = restore(tmp_path / "file", lmdb_truth)
        assert contents(lmdb_truth, restored) == contents(redis_truth, gallery.stored)


def test_a_backup_beside_a_busy_writer_has_whole_transactions(
    redis_truth: RedisTruth, tmp_path: Path, lmdb_truth: LmdbTruth
) -> None:
    with GalleryStore.open(tmp_path / "caches", truth=redis_truth) as store:
        gallery = store.create(gallery_spec())
        gallery.put(new_images(100))
        stopped, batches = threading.Event(), 0

        def write() -> None:
            nonlocal batches
            while not stopped.is_set():
                # Always in tens: half a transaction would show.
                gallery.put(new_images(10, seed=batches, prefix=f"late-{batches % 3}"))
                batches += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            headers = [back_up(redis_truth, gallery.stored, tmp_path / f"file-{k}") for k in range(3)]
        finally:
            stopped.set()
            writer.join()
        assert batches > 3
        for k, header in enumerate(headers):
            assert header.images % 10 == 0
            assert header.sequence % 10 == 0
            assert header.history == history_of(redis_truth, header)
            restored = restore(tmp_path / f"file-{k}", lmdb_truth, gallery_id=f"g{k}")
            with lmdb_truth.read(restored) as snapshot:
                assert len(list(snapshot.records())) == header.images


class _Meddled:
    """A snapshot whose log is not what it should be, or that has lost rows."""

    def __init__(self, snapshot: Snapshot, *, log_start: int | None = None, history: bool = True) -> None:
        self._snapshot = snapshot
        self.log_start = snapshot.log_start if log_start is None else log_start
        self._history = history

    def __getattr__(self, name: str) -> object:
        return getattr(self._snapshot, name)

    def history(self, sequence: int) -> bytes | None:
        return self._snapshot.history(sequence) if self._history else None


class _MeddlingTruth:
    """A shared truth that somebody changes at every look."""

    shared = True

    def __init__(self, truth: LmdbTruth, **meddling: object) -> None:
        self._truth = truth
        self._meddling = meddling

    def __getattr__(self, name: str) -> object:
        return getattr(self._truth, name)

    @contextmanager
    def read(self, gallery: StoredGallery) -> Iterator[_Meddled]:
        self._truth.write(
            gallery, lambda transaction: transaction.remove(next(iter(transaction.records())).image_id, 0)
        )
        with self._truth.read(gallery) as snapshot:
            yield _Meddled(snapshot, **self._meddling)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("meddling", "problem"),
    [
        ({}, "changed faster than it could be read, 5 times"),
        ({"log_start": 1000}, "the log of gallery demo was trimmed while it was backed up"),
        ({"history": False}, "its log lacks change 36"),
    ],
)
def test_a_backup_that_can_not_be_consistent_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meddling: dict[str, object], problem: str
) -> None:
    monkeypatch.setattr(backup_module, "MOST_ROUNDS", 5)
    truth = LmdbTruth(source / "truth.lmdb")
    with pytest.raises(StoreUnavailableError, match=problem):
        back_up(_MeddlingTruth(truth, **meddling), stored_gallery(truth, "demo"), tmp_path / "file")  # type: ignore[arg-type]
    truth.close()
    assert not list(tmp_path.glob("*file*"))


def test_a_gallery_that_lost_a_row_is_not_backed_up(source: Path, tmp_path: Path) -> None:
    truth = LmdbTruth(source / "truth.lmdb")
    gallery = stored_gallery(truth, "demo")
    with truth.read(gallery) as snapshot:
        record = snapshot.record("image-010")
    assert record is not None
    truth._env.write(lambda txn: truth._erase_row(txn, record.row_id))
    with pytest.raises(StoreUnavailableError, match="rows of 1 images are missing, that of 'image-010'"):
        back_up(truth, gallery, tmp_path / "file")
    truth.close()
    assert not (tmp_path / "file").exists()


def test_a_backup_that_can_not_be_written_leaves_the_old_one(source: Path, backup: Path, tmp_path: Path) -> None:
    before = backup.read_bytes()
    truth = LmdbTruth(source / "truth.lmdb", read_only=True)
    gallery = stored_gallery(truth, "demo")
    with pytest.raises(StoreUnavailableError, match="can't be written"):
        back_up(truth, gallery, tmp_path / "gone" / "file")

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(truth, gallery, backup, progress=fail)
    truth.close()
    assert backup.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_disk_that_is_full_is_told_and_nothing_is_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = LmdbTruth(source / "truth.lmdb", read_only=True)
    gallery = stored_gallery(truth, "demo")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for chunk_bytes in (1_000, 1 << 20):
        monkeypatch.setattr("matchflow_index.backup_file.CHUNK_BYTES", chunk_bytes)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))
        try:
            with pytest.raises(StoreUnavailableError, match=r"can't be written: .*File too large"):
                back_up(truth, gallery, tmp_path / "file")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(tmp_path.glob("*file*"))
    truth.close()


def written(source: Path, path: Path, *, cut: int = 0, images: int = 1) -> Path:
    """Write a backup of one image whose row is too short, or whose header counts wrong."""
    truth = LmdbTruth(source / "truth.lmdb", read_only=True)
    gallery = stored_gallery(truth, "demo")
    with truth.read(gallery) as snapshot:
        record = snapshot.record("image-010")
        assert record is not None
        row = snapshot.row(record.row_id)
    truth.close()
    assert row is not None
    header = BackupHeader(
        spec=gallery.spec, uuid="u", sequence=1, history="", images=images, entries=1, match_defaults=None
    )
    with BackupWriter(path, header) as writer:
        writer.add(BackupImage(record, row[cut:], None))
        writer.finish(header)
    return path


def test_a_backup_whose_rows_do_not_fit_is_refused(source: Path, tmp_path: Path, lmdb_truth: LmdbTruth) -> None:
    with pytest.raises(
        BackupDamagedError, match="the row of image 'image-010' in the backup has 71 bytes; expected 72"
    ):
        restore(written(source, tmp_path / "file", cut=1), lmdb_truth)
    assert lmdb_truth.galleries() == []


def test_a_backup_that_counts_wrong_leaves_nothing(source: Path, tmp_path: Path, lmdb_truth: LmdbTruth) -> None:
    with pytest.raises(BackupDamagedError, match="expected 2 images in the backup; got 1"):
        restore(written(source, tmp_path / "file", images=2), lmdb_truth)
    assert lmdb_truth.galleries() == []


def test_match_defaults_that_outgrow_the_header_are_refused(source: Path, tmp_path: Path) -> None:
    truth = LmdbTruth(source / "truth.lmdb")
    gallery = stored_gallery(truth, "demo")
    with pytest.raises(StoreUnavailableError, match="the match defaults grew meanwhile"):
        back_up(truth, gallery, tmp_path / "file", progress=lambda _: truth.set_match_defaults(gallery, bytes(5_000)))
    truth.close()
    assert not (tmp_path / "file").exists()


def test_two_backups_into_one_file_do_not_mix(source: Path, tmp_path: Path) -> None:
    truth = LmdbTruth(source / "truth.lmdb", read_only=True)
    gallery = stored_gallery(truth, "demo")

    def interfere(_: int) -> None:
        with pytest.raises(StoreUnavailableError, match="can't be written"):
            back_up(truth, gallery, tmp_path / "file")

    back_up(truth, gallery, tmp_path / "file", progress=interfere)
    truth.close()
    assert len([entry for chunk in BackupReader(tmp_path / "file").entries() for entry in chunk]) == 29
    assert [path.name for path in tmp_path.glob("*file*")] == ["file"]


def test_what_a_killed_backup_left_is_written_over(source: Path, tmp_path: Path) -> None:
    (tmp_path / ".file.new").write_bytes(b"x" * 1_000_000)
    truth = LmdbTruth(source / "truth.lmdb", read_only=True)
    back_up(truth, stored_gallery(truth, "demo"), tmp_path / "file")
    truth.close()
    assert read_header(tmp_path / "file").images == 29
    assert (tmp_path / "file").stat().st_size < 100_000
    assert not (tmp_path / ".file.new").exists()


def test_removals_are_entries_of_their_own(redis_truth: RedisTruth, tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path / "caches", truth=redis_truth) as store:
        gallery = store.create(gallery_spec())
        gallery.put(new_images(3))
        once = iter([1])

        def interfere(_: int) -> None:
            if next(once, None):
                gallery.delete(["image-001"])

        back_up(redis_truth, gallery.stored, tmp_path / "file", progress=interfere)
    entries = [entry for chunk in BackupReader(tmp_path / "file").entries() for entry in chunk]
    assert entries[-1] == BackupRemoval("image-001")
    assert len(entries) == 4

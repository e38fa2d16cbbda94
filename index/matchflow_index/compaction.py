"""Give a store's disk back: dead slots, old entries of the logs, and the pages of LMDB that nothing uses any more."""

from __future__ import annotations

import fcntl
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lmdb

from matchflow_index.cachefile import synchronise_directory
from matchflow_index.errors import StoreUnavailableError
from matchflow_index.opening import opened_truth, taken_lock, truth_folder
from matchflow_index.store import GalleryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matchflow_index.opening import StorePlace
    from matchflow_index.truth import StoredGallery, Truth

# More databases than any environment of ours has.
MOST_DATABASES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """What a compaction did; the bytes are those that the store's folder takes on disk, before and after."""

    bytes_before: int
    bytes_after: int
    dead_slots: int
    changes: int


def compact(place: StorePlace, *, keep_changes: int, progress: Callable[[str], object] = lambda _: None) -> Compaction:
    """Compact all galleries of a store; `keep_changes` entries of each log stay, which caches elsewhere may need.

    No server may have the folder open, and for the copy of LMDB's file that takes the place of the old one nobody may
    read it either. Raises StoreUnavailableError; the store is whole then, and what was done stays done.
    """
    folder = place.folder
    if place.address is None and not truth_folder(place).is_dir():
        raise StoreUnavailableError(f"there is no store in {folder}")
    before, dead = disk_bytes(folder), 0
    if folder is not None:
        dead = _drop_dead_slots(place, folder, progress)
    forgotten = 0
    with opened_truth(place, read_only=False) as truth:
        for stored in truth.galleries():
            progress(f"log of {stored.spec.gallery_id}")
            for each in truth.generations(stored.spec.gallery_id):
                forgotten += truth.trim_log(each, max(keep_changes, _not_followed(truth, each)))
    if place.address is None:
        progress("truth")
        lock = taken_lock(place)
        try:
            compact_lmdb(truth_folder(place))
        finally:
            lock.release()
    return Compaction(bytes_before=before, bytes_after=disk_bytes(folder), dead_slots=dead, changes=forgotten)


def _not_followed(truth: Truth, gallery: StoredGallery) -> int:
    """Return how many of a generation's last changes the other one has yet to follow."""
    follower = next((each for each in truth.generations(gallery.spec.gallery_id) if each.uuid != gallery.uuid), None)
    if follower is None:
        return 0
    with truth.read(follower) as snapshot:
        position = snapshot.position
    with truth.read(gallery) as snapshot:
        return snapshot.sequence - position.sequence if position and position.uuid == gallery.uuid else 0


def _drop_dead_slots(place: StorePlace, folder: Path, progress: Callable[[str], object]) -> int:
    truth, dead = None, 0
    if place.address is not None:
        from matchflow_index.redis_truth import RedisTruth  # noqa: PLC0415 - stores in folders need no client

        truth = RedisTruth(place.address)
    with GalleryStore.open(folder, truth=truth) as store:
        for spec in store.list():
            progress(f"slots of {spec.gallery_id}")
            for generation in store.generations(spec.gallery_id):
                dead += store.gallery(spec.gallery_id, generation.spec.generation).compact()
    return dead


def disk_bytes(folder: Path | None) -> int:
    """Return what a folder takes on disk; holes in files take none."""
    files = folder.rglob("*") if folder is not None else ()
    return sum(512 * path.stat().st_blocks for path in files if path.is_file())


def compact_lmdb(folder: Path) -> None:
    """Let a copy without unused pages take the place of an environment; the caller has the right to write to it.

    StoreUnavailableError when another process has it open: it would go on in a file that is no more.
    """
    fresh = folder / "compacting"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        _copy(folder, fresh)
        _swap(folder, fresh)
    except (lmdb.Error, OSError) as error:
        raise StoreUnavailableError(f"{folder} can't be compacted: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _copy(folder: Path, fresh: Path) -> None:
    with lmdb.open(os.fspath(folder), max_dbs=MOST_DATABASES, readonly=True) as env:
        env.copy(os.fspath(fresh), compact=True)
        expected = _counts(env)
    with lmdb.open(os.fspath(fresh), max_dbs=MOST_DATABASES, readonly=True, lock=False) as copy:
        got = _counts(copy)
    if got != expected:
        raise StoreUnavailableError(f"the copy of {folder} is not whole: expected entries {expected}; got {got}")
    with (fresh / "data.mdb").open("rb") as file:
        os.fsync(file.fileno())


def _counts(env: Any) -> dict[bytes, int]:
    """Return how many entries each database has."""
    with env.begin() as txn:
        names = [bytes(key) for key, _ in txn.cursor()]
    databases = {name: env.open_db(name, create=False) for name in names}
    with env.begin() as txn:
        return {name: txn.stat(database)["entries"] for name, database in databases.items()}


def _swap(folder: Path, fresh: Path) -> None:
    """Replace the file while no process has it open: each of them holds a lock on the first byte of lock.mdb."""
    with (folder / "lock.mdb").open("r+b") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except OSError as error:
            raise StoreUnavailableError(
                f"{folder} is open in another process that reads it: end that one, then compact again"
            ) from error
        (fresh / "data.mdb").replace(folder / "data.mdb")
        synchronise_directory(folder)

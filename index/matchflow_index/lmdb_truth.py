"""Truth in one LMDB environment: no server, ACID, one writing process and many reading ones.

databases     key                                 value
galleries     gallery id                          active generation: number u32, uuid 16 bytes, specification as JSON
others        gallery id                          the other generation, if there is one: the same
images        number u32, image key               record as JSON
rows          row id u64, part u8                 features, cut into parts (see lmdb_rows.py)
thumbnails    row id u64                          picture
log           number u32, sequence u64            chained digest 8 bytes, change as JSON
defaults      number u32                          match defaults, as they were given
positions     number u32                          how far this generation has followed the other one, as JSON
counters      number u32, or a name               u64
doomed        number u32                          nothing: generations that are deleted but not yet swept

Numbers are big-endian, so that LMDB's order of bytes is their order.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from matchflow_index.errors import GalleryExistsError, GenerationMovedError, StoreUnavailableError
from matchflow_index.lmdb_environment import INITIAL_MAP_BYTES, MAX_MAP_BYTES, LmdbEnvironment
from matchflow_index.lmdb_generations import (
    add_generation,
    decode_gallery,
    delete_generations,
    drop_generation,
    encode_gallery,
    is_active,
    new_gallery,
    stored_generations,
    switch_generations,
)
from matchflow_index.lmdb_rows import delete_row
from matchflow_index.lmdb_view import U32, U64, LmdbView
from matchflow_index.records import ImageRecord
from matchflow_index.truth import Durability

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from matchflow_index.records import GallerySpec
    from matchflow_index.truth import Generations, Result, Snapshot, StoredGallery, Transaction

logger = logging.getLogger(__name__)

DATABASES = ("galleries", "images", "rows", "thumbnails", "log", "counters", "doomed")
# Stores from before there were match defaults, or generations, have none.
ADDED_DATABASES = ("defaults", "others", "positions")
FORMAT = 2
SWEEP_KEYS = 5_000
# Seconds between two looks of who waits for a change.
LOOK_S = 0.02


class LmdbTruth:
    """A truth in a directory of its own."""

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        durability: Durability = Durability.DISK,
        map_bytes: int = INITIAL_MAP_BYTES,
        max_map_bytes: int = MAX_MAP_BYTES,
    ) -> None:
        """Open it; a writer creates what is missing and ends deletions that were cut off.

        With `durability` PROCESS, the loss of power may undo the last transaction; the store stays whole.
        """
        self.shared = read_only
        self.durability = durability
        self._env = LmdbEnvironment(
            path,
            DATABASES,
            added=ADDED_DATABASES,
            read_only=read_only,
            synchronise_last=durability is Durability.DISK,
            map_bytes=map_bytes,
            max_map_bytes=max_map_bytes,
        )
        self._databases = self._env.databases
        try:
            self._check_format(path, read_only=read_only)
            if not read_only:
                self._sweep()
        except StoreUnavailableError:
            self._env.close()
            raise

    def _check_format(self, path: Path, *, read_only: bool) -> None:
        with self._env.reading() as txn:
            found = txn.get(b"format", db=self._databases["counters"])
        if found is None and not read_only:
            self._env.write(lambda txn: txn.put(b"format", U64.pack(FORMAT), db=self._databases["counters"]))
        elif found is None or U64.unpack(found) != (FORMAT,):
            version = None if found is None else U64.unpack(found)[0]
            raise StoreUnavailableError(f"{path} has format {version}; this program reads and writes format {FORMAT}")

    def galleries(self) -> list[StoredGallery]:
        """Return all galleries, in order of id."""
        with self._env.reading() as txn:
            return [decode_gallery(value) for _, value in txn.cursor(db=self._databases["galleries"])]

    def generations(self, gallery_id: str) -> Generations:
        """Return what is stored under an id; GalleryNotFoundError."""
        with self._env.reading() as txn:
            return stored_generations(txn, self._databases, gallery_id)

    def others(self) -> list[StoredGallery]:
        """Return the other generation of every gallery that has one, in order of id."""
        database = self._databases.get("others")
        with self._env.reading() as txn:
            return [] if database is None else [decode_gallery(value) for _, value in txn.cursor(db=database)]

    def create(self, spec: GallerySpec) -> StoredGallery:
        """Store a new, empty gallery; GalleryExistsError when the id is taken."""

        def work(txn: Any) -> StoredGallery:
            gallery = new_gallery(txn, self._databases, spec)
            key, value = spec.gallery_id.encode(), encode_gallery(gallery)
            if not txn.put(key, value, db=self._databases["galleries"], overwrite=False):
                raise GalleryExistsError(spec.gallery_id)
            return gallery

        return self._env.write(work)

    def add_generation(self, spec: GallerySpec) -> StoredGallery:
        """Store an empty generation beside the active one of that id; GenerationExistsError, GalleryNotFoundError."""
        return self._env.write(lambda txn: add_generation(txn, self._databases, spec))

    def drop_generation(self, gallery: StoredGallery) -> None:
        """Delete a generation and all that is in it; GenerationActiveError, GenerationNotFoundError."""
        self._env.write(lambda txn: drop_generation(txn, self._databases, gallery))
        self._sweep()

    def switch(self, gallery: StoredGallery, sequence: int, *, complete: bool = True, beyond: bool = False) -> bool:
        """Let both generations change places, if `gallery` is the active one and at that change."""
        return self._env.write(
            lambda txn: switch_generations(txn, self._databases, gallery, sequence, complete=complete, beyond=beyond)
        )

    def claim(self, gallery: StoredGallery, seconds: float) -> bool:  # noqa: ARG002 - nobody else writes here
        """Tell whether this process is the one that fills a generation."""
        return True

    def delete(self, gallery_id: str) -> StoredGallery:
        """Delete a gallery, all generations of it, with all that is in it; return the active one.

        It is gone, durably, with the first small transaction; what it held is swept in pieces after that.
        """
        gallery = self._env.write(lambda txn: delete_generations(txn, self._databases, gallery_id))
        self._sweep()
        return gallery

    def _sweep(self) -> None:
        """Erase what deleted galleries held; what can't be erased now is left for the next opening."""
        try:
            while self._env.write(self._sweep_some):
                pass
        except StoreUnavailableError as error:
            logger.warning("deleted galleries could not be swept, their space is not free yet: %s", error)

    def _sweep_some(self, txn: Any) -> bool:
        """Erase up to SWEEP_KEYS entries of doomed galleries; tell whether there may be more."""
        doomed = txn.cursor(db=self._databases["doomed"])
        if not doomed.first():
            return False
        number, left = doomed.key(), SWEEP_KEYS
        for name in ("images", "log"):
            cursor = txn.cursor(db=self._databases[name])
            found = cursor.set_range(number)
            while found and cursor.key().startswith(number):
                if left <= 0:
                    return True
                left -= 1
                if name == "images":
                    left -= self._erase_row(txn, ImageRecord.decode(cursor.value()).row_id)
                cursor.delete()
                found = bool(cursor.key())
        for name in ("defaults", "positions", "counters", "doomed"):
            txn.delete(number, db=self._databases[name])
        return True

    def _erase_row(self, txn: Any, row_id: int) -> int:
        txn.delete(U64.pack(row_id), db=self._databases["thumbnails"])
        return delete_row(txn, self._databases["rows"], row_id)

    @contextmanager
    def read(self, gallery: StoredGallery) -> Iterator[Snapshot]:
        """Look at a gallery."""
        with self._env.reading() as txn:
            active = is_active(txn, self._databases, gallery)
            yield LmdbView(txn, self._databases, gallery, active=active)

    @contextmanager
    def hold(self, gallery: StoredGallery) -> Iterator[None]:  # noqa: ARG002 - nobody else writes here
        """Let no other process write to a gallery inside the block."""
        yield

    def write(self, gallery: StoredGallery, work: Callable[[Transaction], Result], *, active: bool = True) -> Result:
        """Run `work` in one transaction, and return its result once that is on disk; GenerationMovedError."""

        def guarded(txn: Any) -> Result:
            if is_active(txn, self._databases, gallery) is not active:
                raise GenerationMovedError(gallery.spec.gallery_id, gallery.spec.generation)
            return work(LmdbView(txn, self._databases, gallery, active=active))

        return self._env.write(guarded)

    def wait(self, gallery: StoredGallery, after: int, timeout_s: float) -> int:
        """Return the gallery's last change as soon as it is greater than `after`, or when the time is up."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self.read(gallery) as snapshot:
                sequence = snapshot.sequence
            left_s = deadline - time.monotonic()
            if sequence > after or left_s <= 0:
                return sequence
            time.sleep(min(LOOK_S, left_s))

    def trim_log(self, gallery: StoredGallery, keep: int) -> int:
        """Forget the log but for the last `keep` entries, at least one; return how many were forgotten."""

        def work(txn: Any) -> int:
            is_active(txn, self._databases, gallery)
            return LmdbView(txn, self._databases, gallery).trim_log(max(keep, 1), SWEEP_KEYS)

        forgotten = 0
        while step := self._env.write(work):
            forgotten += step
        return forgotten

    def match_defaults(self, gallery: StoredGallery) -> bytes | None:
        """Return what `set_match_defaults` stored."""
        database = self._databases.get("defaults")
        with self._env.reading() as txn:
            is_active(txn, self._databases, gallery)
            found: bytes | None = None if database is None else txn.get(U32.pack(gallery.number), db=database)
            return found

    def set_match_defaults(self, gallery: StoredGallery, defaults: bytes | None, *, active: bool | None = None) -> None:
        """Store a gallery's match defaults; None: forget them. GenerationMovedError."""

        def work(txn: Any) -> None:
            if is_active(txn, self._databases, gallery) is not active is not None:
                raise GenerationMovedError(gallery.spec.gallery_id, gallery.spec.generation)
            if defaults is None:
                txn.delete(U32.pack(gallery.number), db=self._databases["defaults"])
            else:
                txn.put(U32.pack(gallery.number), defaults, db=self._databases["defaults"])

        self._env.write(work)

    def close(self) -> None:
        """Let go of the environment."""
        self._env.close()

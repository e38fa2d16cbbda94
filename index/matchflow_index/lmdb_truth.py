"""Truth in one LMDB environment: no server, ACID, one writing process and many reading ones.

databases     key                                 value
galleries     gallery id                          number u32, uuid 16 bytes, specification as JSON
images        number u32, image key               record as JSON
rows          number u32, row id u64              features
thumbnails    number u32, row id u64              picture
log           number u32, sequence u64            change as JSON
counters      number u32, or a name               u64
doomed        number u32                          nothing: galleries that are deleted but not yet swept

Numbers are big-endian, so that LMDB's order of bytes is their order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from matchflow_index.errors import GalleryExistsError, GalleryNotFoundError, StoreUnavailableError
from matchflow_index.lmdb_environment import INITIAL_MAP_BYTES, MAX_MAP_BYTES, LmdbEnvironment
from matchflow_index.records import GallerySpec, ImageRecord
from matchflow_index.truth import Change, ChangeKind, StoredGallery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from matchflow_index.truth import Result, Snapshot, Transaction

logger = logging.getLogger(__name__)

DATABASES = ("galleries", "images", "rows", "thumbnails", "log", "counters", "doomed")
PER_GALLERY = ("images", "rows", "thumbnails", "log")
FORMAT = 1
SWEEP_KEYS = 5_000
# LMDB takes keys of at most 511 bytes.
LONGEST_PLAIN_ID = 470

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_ROW_KEY = struct.Struct(">IQ")


class LmdbTruth:
    """A truth in a directory of its own."""

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        map_bytes: int = INITIAL_MAP_BYTES,
        max_map_bytes: int = MAX_MAP_BYTES,
    ) -> None:
        """Open it; a writer creates what is missing and ends deletions that were cut off."""
        self._env = LmdbEnvironment(
            path, DATABASES, read_only=read_only, map_bytes=map_bytes, max_map_bytes=max_map_bytes
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
            self._env.write(lambda txn: txn.put(b"format", _U64.pack(FORMAT), db=self._databases["counters"]))
        elif found is None or _U64.unpack(found) != (FORMAT,):
            version = None if found is None else _U64.unpack(found)[0]
            raise StoreUnavailableError(f"{path} has format {version}; this program reads and writes format {FORMAT}")

    def galleries(self) -> list[StoredGallery]:
        """Return all galleries, in order of id."""
        with self._env.reading() as txn:
            return [_decode_gallery(value) for _, value in txn.cursor(db=self._databases["galleries"])]

    def create(self, spec: GallerySpec) -> StoredGallery:
        """Store a new, empty gallery; GalleryExistsError when the id is taken."""

        def work(txn: Any) -> StoredGallery:
            number = _count_up(txn, self._databases["counters"], b"gallery")
            gallery = StoredGallery(spec=spec, number=number, uuid=uuid.uuid4().hex)
            key, value = spec.gallery_id.encode(), _encode_gallery(gallery)
            if not txn.put(key, value, db=self._databases["galleries"], overwrite=False):
                raise GalleryExistsError(spec.gallery_id)
            return gallery

        return self._env.write(work)

    def delete(self, gallery_id: str) -> StoredGallery:
        """Delete a gallery and all that is in it; return what it was.

        It is gone, durably, with the first small transaction; what it held is swept in pieces after that.
        """

        def work(txn: Any) -> StoredGallery:
            value = txn.pop(gallery_id.encode(), db=self._databases["galleries"])
            if value is None:
                raise GalleryNotFoundError(gallery_id)
            gallery = _decode_gallery(value)
            txn.put(_U32.pack(gallery.number), b"", db=self._databases["doomed"])
            return gallery

        gallery = self._env.write(work)
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
        for name in PER_GALLERY:
            cursor = txn.cursor(db=self._databases[name])
            found = cursor.set_range(number)
            while found and cursor.key().startswith(number):
                if not left:
                    return True
                cursor.delete()
                found, left = bool(cursor.key()), left - 1
        txn.delete(number, db=self._databases["counters"])
        txn.delete(number, db=self._databases["doomed"])
        return True

    @contextmanager
    def read(self, gallery: StoredGallery) -> Iterator[Snapshot]:
        """Look at a gallery."""
        with self._env.reading() as txn:
            self._check_exists(txn, gallery)
            yield LmdbView(txn, self._databases, gallery)

    def write(self, gallery: StoredGallery, work: Callable[[Transaction], Result]) -> Result:
        """Run `work` in one transaction, and return its result once that is on disk."""

        def guarded(txn: Any) -> Result:
            self._check_exists(txn, gallery)
            return work(LmdbView(txn, self._databases, gallery))

        return self._env.write(guarded)

    def _check_exists(self, txn: Any, gallery: StoredGallery) -> None:
        found = txn.get(gallery.spec.gallery_id.encode(), db=self._databases["galleries"])
        if found is None or _decode_gallery(found).uuid != gallery.uuid:
            raise GalleryNotFoundError(gallery.spec.gallery_id)

    def close(self) -> None:
        """Let go of the environment."""
        self._env.close()


class LmdbView:
    """A gallery inside an LMDB transaction: a Snapshot, and in a write transaction a Transaction."""

    __slots__ = ("_databases", "_number", "_prefix", "_txn")

    def __init__(self, txn: Any, databases: dict[str, Any], gallery: StoredGallery) -> None:
        self._txn = txn
        self._databases = databases
        self._number = gallery.number
        self._prefix = _U32.pack(gallery.number)

    @property
    def sequence(self) -> int:
        """The last change; 0 for none."""
        return _counter(self._txn, self._databases["counters"], self._prefix)

    def record(self, image_id: str) -> ImageRecord | None:
        """Return an image's record."""
        value = self._txn.get(self._image_key(image_id), db=self._databases["images"])
        return None if value is None else ImageRecord.decode(value)

    def records(self, after: str | None = None) -> Iterator[ImageRecord]:
        """Yield all records, or those whose id is greater than `after`, in order of id.

        Ids of more than 470 bytes are in order only as far as their first 470 bytes tell.
        """
        start = self._prefix if after is None else self._image_key(after)
        for key, value in self._entries("images", start):
            if after is None or key != start:
                yield ImageRecord.decode(value)

    def row(self, row_id: int) -> bytes | None:
        """Return a row's features."""
        value: bytes | None = self._txn.get(self._row_key(row_id), db=self._databases["rows"])
        return value

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Yield all rows, in order of row id."""
        for key, value in self._entries("rows", self._prefix):
            yield _ROW_KEY.unpack(key)[1], value

    def thumbnail(self, row_id: int) -> bytes | None:
        """Return a row's thumbnail."""
        value: bytes | None = self._txn.get(self._row_key(row_id), db=self._databases["thumbnails"])
        return value

    def changes(self, after: int) -> Iterator[Change]:
        """Yield the changes whose sequence is greater than `after`, in order."""
        for key, value in self._entries("log", _ROW_KEY.pack(self._number, after + 1)):
            kind, image_id, row_id, replaced = json.loads(value)
            yield Change(
                sequence=_ROW_KEY.unpack(key)[1],
                kind=ChangeKind(kind),
                image_id=image_id,
                row_id=row_id,
                replaced_row_id=replaced,
            )

    def next_row_id(self) -> int:
        """Return a row id that was never given before."""
        return _count_up(self._txn, self._databases["counters"], b"row")

    def put(self, record: ImageRecord, row: bytes, thumbnail: bytes | None) -> Change:
        """Store an image with a new row; the row that it had before, if any, is gone."""
        old = self.record(record.image_id)
        if old is not None:
            self._erase_row(old.row_id)
        self._write_record(record)
        self._txn.put(self._row_key(record.row_id), row, db=self._databases["rows"])
        if thumbnail is not None:
            self._txn.put(self._row_key(record.row_id), thumbnail, db=self._databases["thumbnails"])
        return self._note(ChangeKind.PUT, record.image_id, record.row_id, None if old is None else old.row_id)

    def relabel(self, record: ImageRecord) -> Change:
        """Replace the record of an image that keeps its row."""
        self._write_record(record)
        return self._note(ChangeKind.RELABEL, record.image_id, record.row_id)

    def remove(self, image_id: str) -> Change | None:
        """Remove an image with its row; None when there is none."""
        old = self.record(image_id)
        if old is None:
            return None
        self._txn.delete(self._image_key(image_id), db=self._databases["images"])
        self._erase_row(old.row_id)
        return self._note(ChangeKind.REMOVE, image_id, old.row_id)

    def _note(self, kind: ChangeKind, image_id: str, row_id: int, replaced: int | None = None) -> Change:
        sequence = _count_up(self._txn, self._databases["counters"], self._prefix)
        entry = json.dumps([kind, image_id, row_id, replaced], ensure_ascii=False).encode()
        self._txn.put(_ROW_KEY.pack(self._number, sequence), entry, db=self._databases["log"])
        return Change(sequence=sequence, kind=kind, image_id=image_id, row_id=row_id, replaced_row_id=replaced)

    def _write_record(self, record: ImageRecord) -> None:
        self._txn.put(self._image_key(record.image_id), record.encode(), db=self._databases["images"])

    def _erase_row(self, row_id: int) -> None:
        for name in ("rows", "thumbnails"):
            self._txn.delete(self._row_key(row_id), db=self._databases[name])

    def _entries(self, name: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._txn.cursor(db=self._databases[name])
        if cursor.set_range(start):
            for key, value in cursor:
                if not key.startswith(self._prefix):
                    return
                yield key, value

    def _row_key(self, row_id: int) -> bytes:
        return _ROW_KEY.pack(self._number, row_id)

    def _image_key(self, image_id: str) -> bytes:
        name = image_id.encode()
        if len(name) > LONGEST_PLAIN_ID:
            # Longer than any plain key, so the two kinds never collide.
            name = name[:LONGEST_PLAIN_ID] + hashlib.sha256(name).digest()
        return self._prefix + name


def _counter(txn: Any, database: Any, key: bytes) -> int:
    value = txn.get(key, db=database)
    return 0 if value is None else int(_U64.unpack(value)[0])


def _count_up(txn: Any, database: Any, key: bytes) -> int:
    value = _counter(txn, database, key) + 1
    txn.put(key, _U64.pack(value), db=database)
    return value


def _encode_gallery(gallery: StoredGallery) -> bytes:
    return _U32.pack(gallery.number) + bytes.fromhex(gallery.uuid) + gallery.spec.encode()


def _decode_gallery(value: bytes) -> StoredGallery:
    return StoredGallery(spec=GallerySpec.decode(value[20:]), number=_U32.unpack(value[:4])[0], uuid=value[4:20].hex())

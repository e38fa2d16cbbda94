"""One gallery inside an LMDB transaction; the layout of keys is in lmdb_truth.py."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any

from matchflow_index.errors import StoreUnavailableError
from matchflow_index.history import BEGINNING, DIGEST_BYTES, chained
from matchflow_index.lmdb_rows import delete_row, get_rows, put_row
from matchflow_index.records import ImageRecord, compact_json
from matchflow_index.truth import Change, ChangeKind, Position

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matchflow_index.truth import StoredGallery

# LMDB takes keys of at most 511 bytes.
LONGEST_PLAIN_ID = 470
# Rows fetched at once while all are walked through.
ROWS_PER_STEP = 256

U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")
_LOG_KEY = struct.Struct(">IQ")


class LmdbView:
    """A gallery inside an LMDB transaction: a Snapshot, and in a write transaction a Transaction."""

    __slots__ = ("_active", "_base", "_databases", "_number", "_prefix", "_txn")

    def __init__(self, txn: Any, databases: Mapping[str, Any], gallery: StoredGallery, *, active: bool = True) -> None:
        self._txn = txn
        self._databases = databases
        self._active = active
        self._base = gallery.spec.base_sequence
        self._number = gallery.number
        self._prefix = U32.pack(gallery.number)

    @property
    def sequence(self) -> int:
        """The last change; 0 for none."""
        return read_counter(self._txn, self._databases["counters"], self._prefix)

    @property
    def active(self) -> bool:
        """Whether this is the active generation."""
        return self._active

    @property
    def log_start(self) -> int:
        """The first change that the log still has."""
        for key, _ in self._entries("log", self._prefix):
            return int(_LOG_KEY.unpack(key)[1])
        return self.sequence + 1

    def history(self, sequence: int) -> bytes | None:
        """Return the chained digest of all changes up to one; None where the log doesn't reach."""
        if sequence == self._base:
            return BEGINNING
        value = self._txn.get(_LOG_KEY.pack(self._number, sequence), db=self._databases["log"])
        return None if value is None else bytes(value[:DIGEST_BYTES])

    def record(self, image_id: str) -> ImageRecord | None:
        """Return an image's record."""
        value = self._txn.get(self._image_key(image_id), db=self._databases["images"])
        return None if value is None else ImageRecord.decode(value)

    def records_of(self, image_ids: Sequence[str]) -> list[ImageRecord | None]:
        """Return the records of some images, in that order."""
        return [self.record(image_id) for image_id in image_ids]

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
        return self.rows_of([row_id])[0]

    def rows_of(self, row_ids: Sequence[int]) -> list[bytes | None]:
        """Return some rows' features, in that order."""
        return get_rows(self._txn, self._databases["rows"], row_ids)

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Yield all rows, in order of row id."""
        row_ids = sorted(record.row_id for record in self.records())
        for start in range(0, len(row_ids), ROWS_PER_STEP):
            step = row_ids[start : start + ROWS_PER_STEP]
            for row_id, row in zip(step, self.rows_of(step), strict=True):
                if row is not None:
                    yield row_id, row

    def thumbnail(self, row_id: int) -> bytes | None:
        """Return a row's thumbnail."""
        value: bytes | None = self._txn.get(U64.pack(row_id), db=self._databases["thumbnails"])
        return value

    def changes(self, after: int) -> Iterator[Change]:
        """Yield the changes whose sequence is greater than `after`, in order."""
        for key, value in self._entries("log", _LOG_KEY.pack(self._number, after + 1)):
            kind, image_id, row_id, replaced, time_s = json.loads(value[DIGEST_BYTES:])
            yield Change(
                sequence=_LOG_KEY.unpack(key)[1],
                kind=ChangeKind(kind),
                image_id=image_id,
                row_id=row_id,
                time_s=time_s,
                replaced_row_id=replaced,
            )

    @property
    def position(self) -> Position | None:
        """How far this generation has followed the other one."""
        database = self._databases.get("positions")
        value = None if database is None else self._txn.get(self._prefix, db=database)
        return None if value is None else Position.decode(value)

    def follow(self, position: Position) -> None:
        """Say how far this generation has followed the other one."""
        self._txn.put(self._prefix, position.encode(), db=self._databases["positions"])

    def next_row_id(self) -> int:
        """Return a row id that was never given before."""
        return count_up(self._txn, self._databases["counters"], b"row")

    def put(self, record: ImageRecord, row: bytes, thumbnail: bytes | None) -> Change:
        """Store an image with a new row; the row that it had before, if any, is gone."""
        old = self.record(record.image_id)
        if old is not None:
            self._erase_row(old.row_id)
        self._write_record(record)
        put_row(self._txn, self._databases["rows"], record.row_id, row)
        if thumbnail is not None:
            self._txn.put(U64.pack(record.row_id), thumbnail, db=self._databases["thumbnails"])
        return self._note(ChangeKind.PUT, record, record.update_time_s, None if old is None else old.row_id)

    def relabel(self, record: ImageRecord) -> Change:
        """Replace the record of an image that keeps its row."""
        self._write_record(record)
        return self._note(ChangeKind.RELABEL, record, record.update_time_s)

    def remove(self, image_id: str, time_s: float) -> Change | None:
        """Remove an image with its row; None when there is none."""
        old = self.record(image_id)
        if old is None:
            return None
        self._txn.delete(self._image_key(image_id), db=self._databases["images"])
        self._erase_row(old.row_id)
        return self._note(ChangeKind.REMOVE, old, time_s)

    def _note(self, kind: ChangeKind, record: ImageRecord, time_s: float, replaced: int | None = None) -> Change:
        previous = self.history(self.sequence)
        if previous is None:
            raise StoreUnavailableError(f"the log of the gallery lacks its last change, {self.sequence}")
        sequence = count_up(self._txn, self._databases["counters"], self._prefix)
        entry = compact_json([kind, record.image_id, record.row_id, replaced, time_s])
        value = chained(previous, entry) + entry
        self._txn.put(_LOG_KEY.pack(self._number, sequence), value, db=self._databases["log"])
        return Change(
            sequence=sequence,
            kind=kind,
            image_id=record.image_id,
            row_id=record.row_id,
            time_s=time_s,
            replaced_row_id=replaced,
        )

    def trim_log(self, keep: int, limit: int) -> int:
        """Forget up to `limit` of the oldest changes but for the last `keep`; return how many were."""
        first = self.log_start
        doomed = range(first, min(self.sequence - keep + 1, first + limit))
        for sequence in doomed:
            self._txn.delete(_LOG_KEY.pack(self._number, sequence), db=self._databases["log"])
        return len(doomed)

    def _write_record(self, record: ImageRecord) -> None:
        self._txn.put(self._image_key(record.image_id), record.encode(), db=self._databases["images"])

    def _erase_row(self, row_id: int) -> None:
        delete_row(self._txn, self._databases["rows"], row_id)
        self._txn.delete(U64.pack(row_id), db=self._databases["thumbnails"])

    def _entries(self, name: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._txn.cursor(db=self._databases[name])
        if cursor.set_range(start):
            for key, value in cursor:
                if not key.startswith(self._prefix):
                    return
                yield key, value

    def _image_key(self, image_id: str) -> bytes:
        name = image_id.encode()
        if len(name) > LONGEST_PLAIN_ID:
            # Longer than any plain key, so the two kinds never collide.
            name = name[:LONGEST_PLAIN_ID] + hashlib.sha256(name).digest()
        return self._prefix + name


def read_counter(txn: Any, database: Any, key: bytes) -> int:
    """Return what a counter has come to, 0 where there is none."""
    value = txn.get(key, db=database)
    return 0 if value is None else int(U64.unpack(value)[0])


def count_up(txn: Any, database: Any, key: bytes) -> int:
    """Add one to a counter and return it."""
    value = read_counter(txn, database, key) + 1
    txn.put(key, U64.pack(value), db=database)
    return value

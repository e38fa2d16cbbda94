"""One gallery inside an LMDB transaction; the layout of keys is in lmdb_truth.py."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any

from matchflow_index.records import ImageRecord, compact_json
from matchflow_index.truth import Change, ChangeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matchflow_index.truth import StoredGallery

# LMDB takes keys of at most 511 bytes.
LONGEST_PLAIN_ID = 470

U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")
_ROW_KEY = struct.Struct(">IQ")


class LmdbView:
    """A gallery inside an LMDB transaction: a Snapshot, and in a write transaction a Transaction."""

    __slots__ = ("_databases", "_number", "_prefix", "_txn")

    def __init__(self, txn: Any, databases: dict[str, Any], gallery: StoredGallery) -> None:
        self._txn = txn
        self._databases = databases
        self._number = gallery.number
        self._prefix = U32.pack(gallery.number)

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
        return count_up(self._txn, self._databases["counters"], b"row")

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
        sequence = count_up(self._txn, self._databases["counters"], self._prefix)
        entry = compact_json([kind, image_id, row_id, replaced])
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
    return 0 if value is None else int(U64.unpack(value)[0])


def count_up(txn: Any, database: Any, key: bytes) -> int:
    """Add one to a counter and return it."""
    value = _counter(txn, database, key) + 1
    txn.put(key, U64.pack(value), db=database)
    return value

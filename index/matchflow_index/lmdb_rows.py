"""Rows of features in LMDB: cut into parts, so that they fill the pages of the file.

A value of more than half a page takes whole pages of its own: a row of 2,592 bytes would take 4,096. In two parts,
three to a page, it takes 2,731. Keys rise over the whole store (row ids are never given twice), so that pages are
filled to the end instead of being split in halves.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

PAGE_BYTES = 4096
# What a page can hold, and what each entry of it takes besides its value: a header, a place in the index and the key.
_PAGE_ROOM = PAGE_BYTES - 16
_ENTRY_BYTES = 8 + 2 + 13
# Entries of a page for which a value still counts as small.
_FEWEST, _MOST = 2, 16
_MOST_PARTS = 255

_KEY = struct.Struct(">QB")


def parts_of(size: int) -> int:
    """Return in how many parts a row of `size` bytes takes the fewest pages.

    >>> parts_of(2592)
    2
    """
    # Alone, a large value takes whole pages.
    best, parts = float(-(-(size + 16) // PAGE_BYTES)), 1
    for entries in range(_FEWEST, _MOST + 1):
        room = (_PAGE_ROOM // entries - _ENTRY_BYTES) & ~1
        needed = max(1, -(-size // room))
        if needed <= _MOST_PARTS and needed / entries < best:
            best, parts = needed / entries, needed
    return parts


def put_row(txn: Any, database: Any, row_id: int, row: bytes) -> None:
    """Write a row; its id must be greater than any before."""
    parts = parts_of(len(row))
    step = max(1, -(-len(row) // parts))
    for part in range(parts):
        value = row[part * step : (part + 1) * step]
        txn.put(_KEY.pack(row_id, part), value, db=database, append=True)


def get_rows(txn: Any, database: Any, row_ids: Iterable[int]) -> list[bytes | None]:
    """Return some rows, None for those that are not there."""
    found: list[bytes | None] = []
    with txn.cursor(db=database) as cursor:
        for row_id in row_ids:
            parts: list[bytes] = []
            there = cursor.set_key(_KEY.pack(row_id, 0))
            while there and _KEY.unpack(cursor.key())[0] == row_id:
                parts.append(cursor.value())
                there = cursor.next()
            found.append(b"".join(parts) if parts else None)
    return found


def delete_row(txn: Any, database: Any, row_id: int) -> int:
    """Delete a row and return in how many parts it was."""
    part = 0
    while txn.delete(_KEY.pack(row_id, part), db=database):
        part += 1
    return part

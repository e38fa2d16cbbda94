"""What a transaction is about to do to one gallery in Redis, kept in memory until it is committed."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from matchflow_index.history import chained
from matchflow_index.records import compact_json
from matchflow_index.redis_view import RedisView, decode_change
from matchflow_index.truth import ChangeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from matchflow_index.records import ImageRecord
    from matchflow_index.redis_keys import GalleryKeys
    from matchflow_index.redis_view import Asking
    from matchflow_index.truth import Change, Position

# Row ids are taken from the store's counter in blocks that double from the first to the largest.
FIRST_BLOCK, LARGEST_BLOCK = 8, 1024


class RedisTransaction(RedisView):
    """A Transaction over what was there when it began; `count_rows(n)` gives the last of n new row ids.

    A record that was looked at once is known; asking for all of them by `records_of` first saves the round trips.
    """

    def __init__(
        self,
        asking: Asking,
        keys: GalleryKeys,
        sequence: int,
        digest: bytes,
        count_rows: Callable[[int], int],
        *,
        base: int = 0,
        standing: bytes = b"",
    ) -> None:
        super().__init__(asking, keys, sequence, digest, base=base, standing=standing)
        self.new_position: Position | None = None
        """How far the generation will have followed the other one; None: as far as before."""
        self.written: dict[str, ImageRecord | None] = {}
        """Records by image id as they will be; None: the image will be gone."""
        self.new_rows: dict[int, tuple[bytes, bytes | None]] = {}
        """Rows that will be there, each with its thumbnail."""
        self.dead_rows: set[int] = set()
        """Rows that were there before and will be gone."""
        self.entries: list[tuple[bytes, bytes]] = []
        """What the log will gain: (digest, entry)."""
        self._count_rows = count_rows
        self._known: dict[str, ImageRecord | None] = {}
        self._row_ids = range(0)
        self._block = FIRST_BLOCK

    @property
    def sequence(self) -> int:
        """The last change, its own included."""
        return self._head_sequence + len(self.entries)

    @property
    def digest(self) -> bytes:
        """The chained digest of all changes, its own included."""
        return self.entries[-1][0] if self.entries else self._head_digest

    @property
    def log_start(self) -> int:
        """The first change that the log has."""
        return min(super().log_start, self._head_sequence + 1)

    def history(self, sequence: int) -> bytes | None:
        """Return the chained digest of all changes up to one; None where the log doesn't reach."""
        own = sequence - self._head_sequence
        if own <= 0:
            return super().history(sequence)
        return self.entries[own - 1][0] if own <= len(self.entries) else None

    def records_of(self, image_ids: Sequence[str]) -> list[ImageRecord | None]:
        """Return the records of some images, in that order."""
        unknown = [name for name in dict.fromkeys(image_ids) if name not in self.written and name not in self._known]
        self._known.update(zip(unknown, super().records_of(unknown), strict=True))
        return [self.written[name] if name in self.written else self._known[name] for name in image_ids]

    def records(self, after: str | None = None) -> Iterator[ImageRecord]:
        """Yield all records, or those whose id is greater than `after`, in order of id."""
        written = dict(self.written)
        own = [record for name, record in written.items() if record and (after is None or _order(name) > _order(after))]
        own.sort(key=lambda record: _order(record.image_id))
        stored = (record for record in super().records(after) if record.image_id not in written)
        yield from heapq.merge(own, stored, key=lambda record: _order(record.image_id))

    def rows_of(self, row_ids: Sequence[int]) -> list[bytes | None]:
        """Return some rows' features, in that order."""
        stored = [row_id for row_id in row_ids if row_id not in self.new_rows and row_id not in self.dead_rows]
        found = dict(zip(stored, super().rows_of(stored), strict=True))
        return [self.new_rows[row_id][0] if row_id in self.new_rows else found.get(row_id) for row_id in row_ids]

    def thumbnail(self, row_id: int) -> bytes | None:
        """Return a row's thumbnail."""
        if row_id in self.new_rows:
            return self.new_rows[row_id][1]
        return None if row_id in self.dead_rows else super().thumbnail(row_id)

    def changes(self, after: int) -> Iterator[Change]:
        """Yield the changes whose sequence is greater than `after`, in order; those that the log still has."""
        yield from super().changes(after)
        first = self._head_sequence + 1
        for sequence in range(max(after + 1, first), self.sequence + 1):
            yield decode_change(sequence, self.entries[sequence - first][1])

    @property
    def position(self) -> Position | None:
        """How far this generation has followed the other one."""
        return self.new_position or super().position

    def follow(self, position: Position) -> None:
        """Say how far this generation has followed the other one."""
        self.new_position = position

    def next_row_id(self) -> int:
        """Return a row id that was never given before.

        Within a gallery, row ids count up with the sequence: they are taken after the moment at which the gallery must
        not have changed until the commit.
        """
        if not self._row_ids:
            last = self._count_rows(self._block)
            self._row_ids = range(last - self._block + 1, last + 1)
            self._block = min(4 * self._block, LARGEST_BLOCK)
        row_id, self._row_ids = self._row_ids[0], self._row_ids[1:]
        return row_id

    def put(self, record: ImageRecord, row: bytes, thumbnail: bytes | None) -> Change:
        """Store an image with a new row; the row that it had before, if any, is gone."""
        old = self.record(record.image_id)
        if old is not None:
            self._end_row(old.row_id)
        self.written[record.image_id] = record
        self.new_rows[record.row_id] = (row, thumbnail)
        return self._note(ChangeKind.PUT, record, record.update_time_s, None if old is None else old.row_id)

    def relabel(self, record: ImageRecord) -> Change:
        """Replace the record of an image that keeps its row."""
        self.written[record.image_id] = record
        return self._note(ChangeKind.RELABEL, record, record.update_time_s)

    def remove(self, image_id: str, time_s: float) -> Change | None:
        """Remove an image with its row; None when there is none."""
        old = self.record(image_id)
        if old is None:
            return None
        self.written[image_id] = None
        self._end_row(old.row_id)
        return self._note(ChangeKind.REMOVE, old, time_s)

    def _end_row(self, row_id: int) -> None:
        if self.new_rows.pop(row_id, None) is None:
            self.dead_rows.add(row_id)

    def _note(self, kind: ChangeKind, record: ImageRecord, time_s: float, replaced: int | None = None) -> Change:
        entry = compact_json([kind, record.image_id, record.row_id, replaced, time_s])
        self.entries.append((chained(self.digest, entry), entry))
        return decode_change(self.sequence, entry)


def _order(image_id: str) -> bytes:
    return image_id.encode()

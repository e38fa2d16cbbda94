"""A look at one gallery in Redis; the layout of keys is in redis_keys.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Protocol

from matchflow_index.history import BEGINNING, DIGEST_BYTES
from matchflow_index.records import ImageRecord
from matchflow_index.redis_keys import BUCKETS, CUT_SIZES, ROW, THUMBNAIL, stands_active, tail_key
from matchflow_index.truth import Change, ChangeKind, Position

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from matchflow_index.redis_keys import GalleryKeys
    from matchflow_index.redis_link import Command

RECORDS_PER_PAGE = 1000
ROWS_PER_STEP = 256
CHANGES_PER_PAGE = 1000
# The field of a log entry; every entry has just this one.
ENTRY = b"c"


class Asking(Protocol):
    """Who sends commands: a RedisLink, or a RedisSession that keeps to one connection."""

    @property
    def by_slot(self) -> bool:
        """Whether a command may only name keys of one slot."""
        ...

    def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies."""
        ...


class RedisView:
    """A gallery from a moment on: a Snapshot. Its log ends where it began; later images may shine through."""

    def __init__(
        self,
        asking: Asking,
        keys: GalleryKeys,
        sequence: int,
        digest: bytes,
        *,
        base: int = 0,
        standing: bytes = b"",
    ) -> None:
        """Take over what the gallery's head and its key say; its first change was `base` + 1."""
        self.standing = standing
        self._asking = asking
        self._keys = keys
        self._head_sequence = sequence
        self._head_digest = digest
        self._base = base

    @property
    def sequence(self) -> int:
        """The last change; 0 for none."""
        return self._head_sequence

    @property
    def active(self) -> bool:
        """Whether this was the active generation when the look began."""
        return stands_active(self.standing)

    @property
    def log_start(self) -> int:
        """The first change that the log still has; `sequence` + 1 when it has none."""
        first = self._call("XRANGE", self._keys.log, "-", "+", "COUNT", 1)
        return min(_sequence(first[0][0]), self.sequence + 1) if first else self.sequence + 1

    def history(self, sequence: int) -> bytes | None:
        """Return the chained digest of all changes up to one; None where the log doesn't reach."""
        if sequence == self._base:
            return BEGINNING
        if sequence >= self._head_sequence:
            return self._head_digest if sequence == self._head_sequence else None
        found = self._call("XRANGE", self._keys.log, f"{sequence}-0", f"{sequence}-0")
        return bytes(found[0][1][1][:DIGEST_BYTES]) if found else None

    @property
    def position(self) -> Position | None:
        """How far this generation has followed the other one."""
        value = self._call("GET", self._keys.position)
        return None if value is None else Position.decode(value)

    def record(self, image_id: str) -> ImageRecord | None:
        """Return an image's record."""
        return self.records_of([image_id])[0]

    def records_of(self, image_ids: Sequence[str]) -> list[ImageRecord | None]:
        """Return the records of some images, in that order."""
        return self._stored_records([image_id.encode() for image_id in image_ids])

    def _stored_records(self, names: Sequence[bytes]) -> list[ImageRecord | None]:
        if not names:
            return []
        found = self._call("HMGET", self._keys.records, *names)
        return [None if value is None else ImageRecord.decode(value) for value in found]

    def records(self, after: str | None = None) -> Iterator[ImageRecord]:
        """Yield all records, or those whose id is greater than `after`, in order of id."""
        start = b"-" if after is None else b"(" + after.encode()
        while True:
            names = self._call("ZRANGE", self._keys.ids, start, "+", "BYLEX", "LIMIT", 0, RECORDS_PER_PAGE)
            yield from (record for record in self._stored_records(names) if record is not None)
            if len(names) < RECORDS_PER_PAGE:
                return
            start = b"(" + names[-1]

    def row(self, row_id: int) -> bytes | None:
        """Return a row's features."""
        return self.rows_of([row_id])[0]

    def rows_of(self, row_ids: Sequence[int]) -> list[bytes | None]:
        """Return some rows' features, in that order."""
        return self._values(ROW, row_ids)

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
        return self._values(THUMBNAIL, [row_id])[0]

    def changes(self, after: int) -> Iterator[Change]:
        """Yield the changes whose sequence is greater than `after`, in order; those that the log still has."""
        start, end = after + 1, f"{self._head_sequence}-0"
        while start <= self._head_sequence:
            page = self._call("XRANGE", self._keys.log, f"{start}-0", end, "COUNT", CHANGES_PER_PAGE)
            if not page:
                return
            for name, (_, value) in page:
                start = _sequence(name) + 1
                yield decode_change(start - 1, value[DIGEST_BYTES:])

    def _values(self, kind: bytes, row_ids: Sequence[int]) -> list[bytes | None]:
        """Return values by one MGET, or one per bucket in a cluster, and one more for the tails of the cut."""
        keys = self._keys.values(kind, row_ids)
        found = self._gather(keys, row_ids)
        cut = [place for place, value in enumerate(found) if value is not None and len(value) in CUT_SIZES]
        if cut:
            tails = self._gather([tail_key(keys[place]) for place in cut], [row_ids[place] for place in cut])
            for place, tail in zip(cut, tails, strict=True):
                found[place] = (found[place] or b"") + (tail or b"")
        return found

    def _gather(self, keys: Sequence[bytes], row_ids: Sequence[int]) -> list[bytes | None]:
        if not self._asking.by_slot:
            return list(self._call("MGET", *keys)) if keys else []
        buckets: list[list[int]] = [[] for _ in range(BUCKETS)]
        for place, row_id in enumerate(row_ids):
            buckets[row_id % BUCKETS].append(place)
        used = [places for places in buckets if places]
        replies = self._asking.pipeline([("MGET", *[keys[place] for place in places]) for places in used])
        found: list[bytes | None] = [None] * len(keys)
        for places, values in zip(used, replies, strict=True):
            for place, value in zip(places, values, strict=True):
                found[place] = value
        return found

    def _call(self, *command: bytes | str | float) -> Any:
        return self._asking.pipeline([command])[0]


def decode_change(sequence: int, entry: bytes) -> Change:
    """Return the change of a log entry."""
    kind, image_id, row_id, replaced, time_s = json.loads(entry)
    return Change(
        sequence=sequence,
        kind=ChangeKind(kind),
        image_id=image_id,
        row_id=row_id,
        time_s=time_s,
        replaced_row_id=replaced,
    )


def _sequence(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])

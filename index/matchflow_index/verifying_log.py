"""Verify a gallery's log: no gaps, every digest as chained, and the images as it says."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from matchflow_index.findings import UNREADABLE, Finding
from matchflow_index.history import chained
from matchflow_index.records import compact_json
from matchflow_index.truth import ChangeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matchflow_index.records import ImageRecord
    from matchflow_index.truth import Change, Snapshot

STEP = 1_024


@dataclass(slots=True)
class LastChange:
    """What the log says last of an image."""

    sequence: int
    is_removal: bool
    row_id: int


@dataclass(slots=True)
class LogWalk:
    """What a whole log says: the last change of each image, and the rows that are gone.

    `base` is the sequence before the gallery's first change.
    """

    snapshot: Snapshot
    base: int
    count: int = 0
    last: dict[str, LastChange] = field(default_factory=dict)
    erased: dict[int, str] = field(default_factory=dict)

    def findings(self) -> Iterator[Finding]:
        """Walk the log and yield what is wrong with itself."""
        first, end = self.snapshot.log_start, self.snapshot.sequence
        if end > self.base and first > end:
            yield _finding(f"expected at least the last change, {end}; there is none")
        digest = self.snapshot.history(first - 1)
        expected = first
        while expected <= end:
            try:
                change = next(self.snapshot.changes(expected - 1), None)
            except UNREADABLE as error:
                yield _finding(f"change {expected} can't be read: {error!r}")
                digest, expected = self.snapshot.history(expected), expected + 1
                continue
            if change is None:
                yield _finding(f"changes {expected} to {end} are missing")
                return
            for change in self._readable(expected - 1):
                if change.sequence != expected:
                    yield _finding(f"changes {expected} to {change.sequence - 1} are missing")
                    digest = None
                yield from self._check_digest(change, digest)
                digest = self.snapshot.history(change.sequence)
                self._note(change)
                expected = change.sequence + 1

    def _readable(self, after: int) -> Iterator[Change]:
        """Yield changes up to the first one that can't be read."""
        try:
            yield from self.snapshot.changes(after)
        except UNREADABLE:
            return

    def _check_digest(self, change: Change, previous: bytes | None) -> Iterator[Finding]:
        found = self.snapshot.history(change.sequence)
        if previous is None:
            return
        replaced = change.replaced_row_id
        entry = compact_json([change.kind.value, change.image_id, change.row_id, replaced, change.time_s])
        expected = chained(previous, entry)
        if found != expected:
            got = "none" if found is None else found.hex()
            yield _finding(
                f"the chain is broken at change {change.sequence}: expected digest {expected.hex()}; got {got}",
                change.image_id,
            )

    def _note(self, change: Change) -> None:
        self.count += 1
        removal = change.kind is ChangeKind.REMOVE
        self.last[change.image_id] = LastChange(change.sequence, removal, change.row_id)
        if removal:
            self.erased[change.row_id] = change.image_id
        elif change.replaced_row_id is not None:
            self.erased[change.replaced_row_id] = change.image_id

    def check(self, record: ImageRecord) -> Iterator[Finding]:
        """Yield how a record and the log contradict each other."""
        last = self.last.pop(record.image_id, None)
        if last is None:
            if record.sequence >= self.snapshot.log_start:
                yield _finding(f"the record is of change {record.sequence}, which is not of it", record.image_id)
        elif last.is_removal:
            yield _finding(f"change {last.sequence} removed the image, but there is a record", record.image_id)
        elif (last.sequence, last.row_id) != (record.sequence, record.row_id):
            yield _finding(
                f"expected the record as change {last.sequence} left it, of row {last.row_id}; "
                f"it is of change {record.sequence} and row {record.row_id}",
                record.image_id,
            )

    def check_missing(self) -> Iterator[Finding]:
        """Yield the images that the log has and no record was checked for, and what is left of removed ones."""
        for image_id, last in self.last.items():
            if not last.is_removal:
                yield _finding(f"change {last.sequence} stored the image, but there is no record", image_id)
        erased = iter(self.erased.items())
        while step := list(islice(erased, STEP)):
            rows = self.snapshot.rows_of([row_id for row_id, _ in step])
            for (row_id, image_id), row in zip(step, rows, strict=True):
                if row is not None:
                    problem = f"the features of row {row_id}, which is no more, are still there"
                    yield Finding(part="truth", problem=problem, image_id=image_id)
                if self.snapshot.thumbnail(row_id) is not None:
                    problem = f"the thumbnail of row {row_id}, which is no more, is still there"
                    yield Finding(part="thumbnails", problem=problem, image_id=image_id)


def _finding(problem: str, image_id: str | None = None) -> Finding:
    return Finding(part="log", problem=problem, image_id=image_id)

"""From the truth to a shelf: all that there is, or what changed since."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from matchflow_index.errors import CacheDamagedError, StoreUnavailableError
from matchflow_index.shelf import Update
from matchflow_index.truth import Change, ChangeKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matchflow_index.records import ImageRecord
    from matchflow_index.shelf import Shelf
    from matchflow_index.truth import Snapshot

# Changes that searches see at once, and rows in memory while a shelf is filled.
STEP = 1_024


def fill_from_truth(shelf: Shelf, snapshot: Snapshot, gallery_id: str) -> None:
    """Fill an empty shelf with all images of a snapshot, in order of row id; StoreUnavailableError.

    What changes in a shared truth while this goes on is not missed: the changes since it began are applied at the end.
    """
    began = snapshot.sequence
    places = sorted((record.row_id, record.image_id) for record in snapshot.records())
    for start in range(0, len(places), STEP):
        step = places[start : start + STEP]
        records = snapshot.records_of([image_id for _, image_id in step])
        rows = snapshot.rows_of([row_id for row_id, _ in step])
        updates = [
            Update(change=_as_put(record), record=record, row=row)
            for (row_id, _), record, row in zip(step, records, rows, strict=True)
            if record is not None and row is not None and record.row_id == row_id
        ]
        if len(updates) < len(step) and snapshot.sequence == began and not _changed_since(snapshot, began):
            raise StoreUnavailableError(f"gallery {gallery_id} is damaged: {len(step) - len(updates)} rows are missing")
        shelf.apply(updates, 0)
    shelf.sequence = began
    catch_up(shelf, snapshot)


def _as_put(record: ImageRecord) -> Change:
    return Change(
        sequence=record.sequence,
        kind=ChangeKind.PUT,
        image_id=record.image_id,
        row_id=record.row_id,
        time_s=record.update_time_s,
    )


def _changed_since(snapshot: Snapshot, sequence: int) -> bool:
    return next(iter(snapshot.changes(sequence)), None) is not None


def catch_up(shelf: Shelf, snapshot: Snapshot, known: Mapping[int, Update] | None = None) -> None:
    """Apply all changes that a shelf lacks; `known` are those by sequence that need not be looked up.

    CacheDamagedError when the log does not reach back to them any more.
    """
    changes = snapshot.changes(shelf.sequence)
    while step := list(islice(changes, STEP)):
        if step[0].sequence != shelf.sequence + 1:
            raise CacheDamagedError(f"searches see change {shelf.sequence}, and the log goes on at {step[0].sequence}")
        shelf.apply(looked_up(step, snapshot, known or {}), step[-1].sequence)


def looked_up(changes: Sequence[Change], snapshot: Snapshot, known: Mapping[int, Update]) -> list[Update]:
    """Return changes with the records and rows that the truth has for them now."""
    asked = [change for change in changes if change.kind is not ChangeKind.REMOVE and change.sequence not in known]
    records = dict(zip((c.image_id for c in asked), snapshot.records_of([c.image_id for c in asked]), strict=True))
    wanted = [change.row_id for change in asked if _is_current(change, records)]
    rows = dict(zip(wanted, snapshot.rows_of(wanted), strict=True))
    return [
        known.get(change.sequence)
        or Update(
            change=change,
            record=records.get(change.image_id) if change.kind is not ChangeKind.REMOVE else None,
            row=rows.get(change.row_id) if change.kind is ChangeKind.PUT else None,
        )
        for change in changes
    ]


def _is_current(change: Change, records: Mapping[str, ImageRecord | None]) -> bool:
    record = records.get(change.image_id)
    return change.kind is ChangeKind.PUT and record is not None and record.row_id == change.row_id

"""What tests of every truth write, and how they look at it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from matchflow_index import ImageRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from matchflow_index import LabelValue
    from matchflow_index.truth import Change, Snapshot, StoredGallery, Transaction, Truth

# A cluster refuses commands and transactions whose keys are in several slots.
SHARED = ("redis", "redis cluster of one")
TRUTHS = ("lmdb", "lmdb that grows", *SHARED)

by_several = pytest.mark.parametrize("opener", SHARED, indirect=True)


def a_record(image_id: str, row_id: int, sequence: int = 0, **labels: LabelValue) -> ImageRecord:
    return ImageRecord(
        image_id=image_id,
        row_id=row_id,
        content_hash="c",
        labels=labels,
        width_px=1,
        height_px=2,
        update_time_s=3.5,
        sequence=sequence,
    )


def put_in(transaction: Transaction, name: str, row: bytes | None = None, thumbnail: bytes | None = None) -> Change:
    """Put an image whose row is its name ten thousand times over."""
    record = a_record(name, transaction.next_row_id(), transaction.sequence + 1)
    return transaction.put(record, name.encode() * 10_000 if row is None else row, thumbnail)


def put(truth: Truth, gallery: StoredGallery, *names: str, thumbnail: bytes | None = None) -> list[Change]:
    return truth.write(gallery, lambda transaction: [put_in(transaction, name, None, thumbnail) for name in names])


def remove(truth: Truth, gallery: StoredGallery, name: str) -> Change | None:
    return truth.write(gallery, lambda transaction: transaction.remove(name, 4.5))


def everything(snapshot: Snapshot) -> tuple[object, ...]:
    """Return all that there is to see."""
    records = list(snapshot.records())
    return (
        snapshot.sequence,
        snapshot.log_start,
        records,
        list(snapshot.rows()),
        [snapshot.thumbnail(record.row_id) for record in records],
        list(snapshot.changes(0)),
        [snapshot.history(sequence) for sequence in range(snapshot.sequence + 2)],
    )


def run_together(*works: Callable[[], object]) -> None:
    """Run functions in threads of their own, and raise what the first of them raises."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]

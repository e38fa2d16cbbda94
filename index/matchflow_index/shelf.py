"""A gallery as searching sees it: one slot per row, the same slot in the coarse index, the slab and all columns.

A slot is filled once. An image that gets other features gets a new slot and its old one is dead; the dead are skipped,
and dropped when the caches are next rebuilt. Slots are in ascending order of their row ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.filters import LabelColumns
from matchflow_index.growing import GrowingArray
from matchflow_index.locking import ReadWriteLock
from matchflow_index.truth import ChangeKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from matchflow_index.coarse import CoarseIndex
    from matchflow_index.filters import ImageFilter
    from matchflow_index.records import ImageRecord
    from matchflow_index.slab import CellSlab
    from matchflow_index.truth import Change


class Shelf:
    """The state in memory of one gallery.

    Hold `lock.reading()` around every look at it; `apply` takes the other side. One thread at a time may change it.
    """

    def __init__(
        self,
        *,
        slab: CellSlab,
        coarse: CoarseIndex,
        row_ids: NDArray[np.int64],
        records: list[ImageRecord | None],
        sequence: int,
    ) -> None:
        """Take over filled slots; `records` has None where a slot is dead."""
        self.lock = ReadWriteLock()
        self.slab = slab
        self.coarse = coarse
        self.sequence = sequence
        self.records = records
        self._row_ids = GrowingArray(np.int64)
        self._row_ids.extend(row_ids)
        self._live = GrowingArray(np.bool_)
        self._live.extend(np.array([record is not None for record in records], np.bool_))
        self._cell_norms = GrowingArray(np.float32)
        self._cell_norms.extend(np.where(self._live.values, slab.cell_norms(0, slab.size), np.float32(0)))
        self._longest_cell: float | None = None
        self._labels = LabelColumns()
        self._labels.extend([{} if record is None else record.labels for record in records])
        self._slots = {record.image_id: slot for slot, record in enumerate(records) if record is not None}

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self._slots)

    @property
    def row_ids(self) -> NDArray[np.int64]:
        """The row ids of all slots, the dead included."""
        return self._row_ids.values

    @property
    def live_slots(self) -> NDArray[np.int64]:
        """The slots that hold an image, in ascending order."""
        return np.flatnonzero(self._live.values)

    @property
    def cell_norms(self) -> NDArray[np.float32]:
        """The length of the longest cell of each slot, float32 [slots]; 0 for the dead."""
        return self._cell_norms.values

    @property
    def longest_cell(self) -> float:
        """The length of the longest cell of all images; 0 without images."""
        # Two readers may both look for it: they find the same.
        found = self._longest_cell
        if found is None:
            found = self._longest_cell = float(self._cell_norms.values.max(initial=0))
        return found

    def slot(self, image_id: str) -> int | None:
        """Return the slot of an image."""
        return self._slots.get(image_id)

    def record(self, image_id: str) -> ImageRecord | None:
        """Return the record of an image."""
        slot = self._slots.get(image_id)
        return None if slot is None else self.records[slot]

    def allowed(self, image_filter: ImageFilter) -> NDArray[np.bool_] | None:
        """Return which slots may be answered, bool [slots]; None when all may."""
        excluded = [self._slots[image_id] for image_id in image_filter.exclude if image_id in self._slots]
        if self.count == len(self.records) and not excluded and not image_filter.labels:
            return None
        allowed = self._live.values.copy()
        for condition in image_filter.labels:
            allowed &= self._labels.mask(condition)
        allowed[excluded] = False
        return allowed

    def apply(self, updates: Sequence[tuple[Change, ImageRecord | None]]) -> None:
        """Show searches a committed transaction, all of it at once; the slab already holds the new rows."""
        with self.lock.writing():
            self._fill([record for change, record in updates if record and change.kind is ChangeKind.PUT])
            slot = len(self.records) - sum(change.kind is ChangeKind.PUT for change, _ in updates)
            for change, record in updates:
                old = self._slots.get(change.image_id)
                if change.kind is ChangeKind.RELABEL and record and old is not None:
                    self.records[old] = record
                    self._labels.replace(old, record.labels)
                    continue
                if old is not None:
                    self._bury(change.image_id, old)
                if change.kind is ChangeKind.PUT:
                    self._slots[change.image_id] = slot
                    slot += 1
            if updates:
                self.sequence = updates[-1][0].sequence

    def _fill(self, records: list[ImageRecord]) -> None:
        if not records:
            return
        # First what can fail for want of memory: slots must mean the same everywhere.
        start, stop = self.slab.size, self.slab.size + len(records)
        norms = self.slab.cell_norms(start, stop)
        self.coarse.add(self.slab.embeddings(start, stop))
        self.slab.publish(len(records))
        self._cell_norms.extend(norms)
        self._longest_cell = max(self.longest_cell, float(norms.max()))
        self._row_ids.extend(np.array([record.row_id for record in records], np.int64))
        self._live.extend(np.ones(len(records), np.bool_))
        self._labels.extend([record.labels for record in records])
        self.records.extend(records)

    def _bury(self, image_id: str, slot: int) -> None:
        del self._slots[image_id]
        self._live.values[slot] = False
        if self._cell_norms.values[slot] == self._longest_cell:
            self._longest_cell = None
        self._cell_norms.values[slot] = 0
        self.records[slot] = None

"""A gallery as searching sees it: one slot per row, the same slot in the coarse index, the slab and all columns.

A slot is filled once. An image that gets other features gets a new slot and its old one is dead: skipped, made zero
wherever its features were, and dropped when the shelf is compacted. What an image is called and labelled is in columns
of a few bytes; its record stays in the truth, and can be told from the columns but for content hash and update time.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.locking import ReadWriteLock
from matchflow_index.slots import NEVER
from matchflow_index.truth import ChangeKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from matchflow_index.coarse import CoarseIndex
    from matchflow_index.filters import ImageFilter
    from matchflow_index.records import ImageRecord
    from matchflow_index.slab import CellSlab
    from matchflow_index.slots import Slots
    from matchflow_index.truth import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A change with what the truth has of it now: a PUT without record and row was undone by a later change."""

    change: Change
    record: ImageRecord | None = None
    row: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which slots may be answered: those of `allowed` bool [slots] (None: all live ones) but for `without`."""

    allowed: NDArray[np.bool_] | None
    without: frozenset[int]
    count: int


class Shelf:
    """The state in memory of one gallery.

    Hold `lock.reading()` around every look at it; what changes it takes the other side. One thread at a time may.
    """

    def __init__(self, *, slab: CellSlab, coarse: CoarseIndex, slots: Slots, sequence: int) -> None:
        """Take over filled slots, as many in each."""
        self.lock = ReadWriteLock()
        self.slab = slab
        self.coarse = coarse
        self.slots = slots
        self.sequence = sequence
        self.count = int(np.count_nonzero(slots.live.values))
        self._longest_cell: float | None = None
        self._pins = 0
        self._pinning = threading.Lock()
        self._unerased: list[int] = []
        self._look_for_ends()

    @property
    def size(self) -> int:
        """The number of slots, the dead included."""
        return len(self.slots)

    @property
    def live_slots(self) -> NDArray[np.int64]:
        """The slots that hold an image, in ascending order."""
        return np.flatnonzero(self.slots.live.values)

    @property
    def cell_norms(self) -> NDArray[np.float32]:
        """The length of the longest cell of each slot, float32 [slots]; 0 for the dead."""
        return self.slots.cell_norms.values

    @property
    def longest_cell(self) -> float:
        """The length of the longest cell of all images; 0 without images."""
        # Two readers may both look for it: they find the same.
        found = self._longest_cell
        if found is None:
            found = self._longest_cell = float(self.cell_norms.max(initial=0))
        return found

    def slot(self, image_id: str) -> int | None:
        """Return the slot of an image."""
        live = self.slots.live.values
        return next((slot for slot in reversed(self.slots.ids.slots(image_id)) if live[slot]), None)

    def records_of(self, image_ids: Sequence[str]) -> list[ImageRecord | None]:
        """Return what is known of some images, in that order, None for those that are not there; see Slots.records."""
        slots = [self.slot(image_id) for image_id in image_ids]
        records = iter(self.slots.records([slot for slot in slots if slot is not None]))
        return [None if slot is None else next(records) for slot in slots]

    def select(self, image_filter: ImageFilter, now_s: float) -> Selection:
        """Return which slots may be answered at a time."""
        without = frozenset(slot for name in image_filter.exclude if (slot := self.slot(name)) is not None)
        conditions, only, expiring = image_filter.conditions, image_filter.any_ids, self._earliest_end_s <= now_s
        if not conditions and only is None and not expiring:
            return Selection(allowed=None, without=without, count=self.count - len(without))
        if only is None:
            allowed = self.slots.live.values.copy()
        else:
            allowed = np.zeros(self.size, np.bool_)
            allowed[[slot for name in only if (slot := self.slot(name)) is not None]] = True
        if expiring:
            allowed &= self.slots.expire_times_s.values > now_s
        for condition in conditions:
            allowed &= self.slots.labels.mask(condition)
        allowed[list(without)] = False
        return Selection(allowed=allowed, without=frozenset(), count=int(np.count_nonzero(allowed)))

    def expired(self, now_s: float) -> list[str]:
        """Return the ids of the images that count as gone at a time."""
        return self.slots.ids.of(np.flatnonzero(self.slots.expire_times_s.values <= now_s))

    def pin(self) -> None:
        """Keep the features of all slots, those of images that are removed meanwhile included, until `unpin`.

        For those who hold `lock.reading()`.
        """
        with self._pinning:
            self._pins += 1

    def unpin(self) -> None:
        """Let go of what was pinned."""
        with self.lock.writing():
            self._pins -= 1
            self._erase()

    def close(self) -> None:
        """Let go of the slab's file; searches go on in memory."""
        with self.lock.writing():
            self.slab.close()

    def _look_for_ends(self) -> None:
        """Know when the first image expires: until then no search has to look at all of them."""
        self._earliest_end_s = float(self.slots.expire_times_s.values.min(initial=NEVER))

    def apply(self, updates: Sequence[Update], sequence: int) -> None:
        """Show searches all changes up to `sequence` at once; StoreUnavailableError when the slab can't take them.

        A change that the shelf is past already does nothing.
        """
        with self.lock.writing():
            new = self._append([each for each in updates if self._is_new(each)])
            known = len(self._unerased)
            for update in updates:
                self._follow(update, new)
            if self._unerased[known:]:
                self.coarse.remove(np.array(self._unerased[known:]))
            ends = any(each.record is not None and each.record.expire_time_s is not None for each in updates)
            if ends or self._earliest_end_s < NEVER:
                self._look_for_ends()
            self._erase()
            self.sequence = max(self.sequence, sequence)

    def _is_new(self, update: Update) -> bool:
        slot = self.slot(update.change.image_id)
        return (
            update.change.kind is ChangeKind.PUT
            and update.record is not None
            and update.row is not None
            and update.record.row_id == update.change.row_id
            and (slot is None or self.slots.sequences.values[slot] < update.change.sequence)
        )

    def _append(self, updates: list[Update]) -> dict[int, int]:
        """Fill slots and return them by row id; until `_follow` they hold no image."""
        if not updates:
            return {}
        start = self.size
        # First what can fail: slots must mean the same everywhere.
        self.slab.append([update.row for update in updates if update.row is not None])
        try:
            norms = self.slab.cell_norms(start, self.slab.size)
            self.coarse.add(self.slab.embeddings(start, self.slab.size))
        except BaseException:
            self.slab.size = start
            raise
        self.slots.extend([update.record for update in updates if update.record is not None], norms)
        self.slots.live.values[start:] = False
        return {update.change.row_id: slot for slot, update in enumerate(updates, start)}

    def _follow(self, update: Update, new: Mapping[int, int]) -> None:
        change, old = update.change, self.slot(update.change.image_id)
        if old is not None and self.slots.sequences.values[old] >= change.sequence:
            return
        if change.kind is ChangeKind.RELABEL:
            if old is not None and update.record and update.record.row_id == self.slots.row_ids.values[old]:
                self.slots.relabel(old, update.record)
            return
        if old is not None:
            self._bury(old)
        slot = new.get(change.row_id)
        if change.kind is ChangeKind.PUT and slot is not None:
            self.slots.live.values[slot] = True
            self.count += 1
            self._longest_cell = max(self.longest_cell, float(self.cell_norms[slot]))

    def _bury(self, slot: int) -> None:
        if self.cell_norms[slot] == self._longest_cell:
            self._longest_cell = None
        self.slots.bury(slot)
        self.count -= 1
        self._unerased.append(slot)

    def _erase(self) -> None:
        # Whoever closes the slab's file removes it, or finds at the next opening what is to be erased.
        if self._unerased and not self._pins and not self.slab.closed:
            self.slab.erase(np.array(self._unerased))
            self._unerased = []

    @property
    def is_erased(self) -> bool:
        """Whether the features of all dead slots are gone from the slab."""
        return not self._unerased

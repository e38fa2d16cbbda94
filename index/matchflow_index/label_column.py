"""One label of one kind over all slots: entries only for the slots that have it.

A text is the number of its value, int32 from 1 (0: absent); a number is float64 (NaN: absent); a time is int64
microseconds since 1970 (the lowest: absent). Slots ascend; where all have an entry, entry and slot are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from matchflow_index.growing import GrowingArray
from matchflow_index.labels import LabelKind, decode_label, kind_of, microseconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from matchflow_index.conditions import LabelCondition, LabelRange
    from matchflow_index.labels import LabelValue

DTYPES: dict[LabelKind, type[np.int32 | np.float64 | np.int64]] = {
    LabelKind.TEXT: np.int32,
    LabelKind.NUMBER: np.float64,
    LabelKind.TIME: np.int64,
}
ABSENT: dict[LabelKind, float] = {
    LabelKind.TEXT: 0,
    LabelKind.NUMBER: np.nan,
    LabelKind.TIME: np.iinfo(np.int64).min,
}
# Up to so many values are compared one by one, more are looked up.
FEW = 4
# A column with an entry for one slot in so many is filled up before an entry is put in between.
DENSE = 8


class LabelColumn:
    """The entries of one label and one kind; `texts` has the number of each text."""

    __slots__ = ("_by_number", "entries", "kind", "slots", "texts")

    def __init__(self, kind: LabelKind) -> None:
        self.kind = kind
        self.slots: GrowingArray[np.int32] = GrowingArray(np.int32)
        self.entries: GrowingArray[Any] = GrowingArray(DTYPES[kind])
        self.texts: dict[str, int] = {}
        self._by_number: list[str] = []

    def extend(self, slots: NDArray[np.int32], entries: NDArray[Any]) -> None:
        """Add entries of slots that ascend from the last one."""
        self.slots.extend(slots)
        self.entries.extend(entries)

    def numbered(self, values: Sequence[Any]) -> NDArray[Any]:
        """Return values of this column's kind as entries; new texts get numbers."""
        if self.kind is LabelKind.TEXT:
            texts = self.texts
            return np.array([texts.setdefault(value, len(texts) + 1) for value in values], np.int32)
        if self.kind is LabelKind.TIME:
            return np.array([microseconds(value) for value in values], np.int64)
        return np.array(values, np.float64)

    def put(self, slot: int, value: LabelValue | None, size: int) -> None:
        """Give one of `size` slots another value, None: no value of this kind."""
        slots = self.slots.values
        position = int(np.searchsorted(slots, slot))
        there = position < len(slots) and slots[position] == slot
        if value is None:
            if there:
                self.entries.values[position] = ABSENT[self.kind]
            return
        entry = self.numbered([value])
        if there:
            self.entries.values[position] = entry[0]
        elif position == len(slots):
            self.extend(np.array([slot], np.int32), entry)
        elif len(slots) * DENSE >= size:
            self._become(np.arange(size, dtype=np.int32), self.filled(size))
            self.entries.values[slot] = entry[0]
        else:
            self._become(np.insert(slots, position, slot), np.insert(self.entries.values, position, entry[0]))

    def filled(self, size: int) -> NDArray[Any]:
        """Return the entries of all slots, absent ones included, [size]."""
        entries = np.full(size, ABSENT[self.kind], DTYPES[self.kind])
        entries[self.slots.values] = self.entries.values
        return entries

    def _become(self, slots: NDArray[np.int32], entries: NDArray[Any]) -> None:
        self.slots, self.entries = GrowingArray(np.int32), GrowingArray(DTYPES[self.kind])
        self.extend(slots, entries)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which entries are values, bool [entries]."""
        return self._is_present(self.entries.values)

    def _is_present(self, entries: NDArray[Any]) -> NDArray[np.bool_]:
        there = ~np.isnan(entries) if self.kind is LabelKind.NUMBER else entries != ABSENT[self.kind]
        return np.asarray(there, np.bool_)

    def of(self, slots: NDArray[np.int32]) -> Iterator[tuple[int, LabelValue]]:
        """Yield the position in `slots` [n], in any order, and the value of each slot that has one."""
        own = self.slots.values
        if not len(own):
            return
        places = np.minimum(np.searchsorted(own, slots), len(own) - 1)
        entries = self.entries.values[places]
        positions = np.flatnonzero((own[places] == slots) & self._is_present(entries))
        # Texts are only ever added; who comes at the same time finds the same.
        if len(positions) and len(self._by_number) != len(self.texts):
            self._by_number = list(self.texts)
        texts = self._by_number
        for position, entry in zip(positions.tolist(), entries[positions].tolist(), strict=True):
            if self.kind is LabelKind.TEXT:
                yield position, texts[entry - 1]
            else:
                yield position, decode_label([entry]) if self.kind is LabelKind.TIME else entry

    def holding(self, condition: LabelCondition) -> NDArray[np.bool_] | None:
        """Return for which entries the condition, were it not negated, holds, bool [entries]; None: for none."""
        holding = None
        if condition.any_of is not None:
            holding = self._among(condition.any_of)
            if holding is None:
                return None
        if condition.within is not None:
            if condition.within.kind is not self.kind:
                return None
            within = self._within(condition.within)
            return within if holding is None else within & holding
        return self.present if holding is None else holding

    def _among(self, values: Iterable[LabelValue]) -> NDArray[np.bool_] | None:
        """Return which entries are among `values`; those of other kinds play no part."""
        entries = self.entries.values
        chosen: list[float]
        if self.kind is LabelKind.TEXT:
            chosen = [number for number in map(self.texts.get, (v for v in values if isinstance(v, str))) if number]
        else:
            chosen = sorted({exact for v in values if (exact := self._exact(v)) is not None})
        if not chosen:
            return None
        if len(chosen) <= FEW:
            among = entries == chosen[0]
            for value in chosen[1:]:
                among |= entries == value
            return np.asarray(among, np.bool_)
        if self.kind is LabelKind.TEXT:
            table = np.zeros(len(self.texts) + 1, np.bool_)
            table[np.array(chosen, np.int32)] = True
            return np.asarray(table[entries], np.bool_)
        wanted = np.array(chosen, entries.dtype)
        nearest = np.minimum(np.searchsorted(wanted, entries), len(wanted) - 1)
        return np.asarray(wanted[nearest] == entries, np.bool_)

    def _exact(self, value: LabelValue) -> float | None:
        """Return a number or time as an entry; None for another kind, and for what float64 can't hold."""
        if kind_of(value) is not self.kind:
            return None
        if self.kind is LabelKind.TIME:
            return microseconds(value)  # type: ignore[arg-type]
        return float(value) if float(value) == value else None  # type: ignore[arg-type]

    def _within(self, ends: LabelRange) -> NDArray[np.bool_]:
        entries = self.entries.values
        compared = [
            compare(entries, self._end(end))
            for compare, end in (
                (np.greater_equal, ends.gte),
                (np.greater, ends.gt),
                (np.less_equal, ends.lte),
                (np.less, ends.lt),
            )
            if end is not None
        ]
        # NaN is in no range; the lowest time is in those without a lower end.
        if self.kind is LabelKind.TIME:
            compared.append(self.present)
        within = compared[0]
        for each in compared[1:]:
            within &= each
        return np.asarray(within, np.bool_)

    def _end(self, end: float | datetime) -> float:
        return microseconds(end) if self.kind is LabelKind.TIME else end  # type: ignore[arg-type,return-value]

    def groups(self) -> tuple[NDArray[np.int32], int]:
        """Return a number from 1 for each distinct value, 0 where absent, int32 [entries]; and the highest of them."""
        if self.kind is LabelKind.TEXT:
            return self.entries.values, len(self.texts)
        present = self.present
        distinct, inverse = np.unique(self.entries.values[present], return_inverse=True)
        numbers = np.zeros(len(present), np.int32)
        numbers[present] = inverse + 1
        return numbers, len(distinct)

    def take(self, places: NDArray[np.int32]) -> LabelColumn:
        """Return the values of the slots for which `places` int32 [slots] says where they go, -1: nowhere.

        Places must ascend. Texts that nobody has are forgotten.
        """
        taken = LabelColumn(self.kind)
        goes_to = places[self.slots.values]
        kept = (goes_to >= 0) & self.present
        entries = self.entries.values[kept]
        if self.kind is LabelKind.TEXT:
            used = np.zeros(len(self.texts) + 1, np.bool_)
            used[entries] = True
            renumbered = np.cumsum(used, dtype=np.int32)
            entries = renumbered[entries]
            taken.texts = {text: int(renumbered[number]) for text, number in self.texts.items() if used[number]}
        taken.extend(goes_to[kept], entries)
        return taken

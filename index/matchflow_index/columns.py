"""The labels of all slots, in columns: what filters are evaluated over."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from matchflow_index.errors import CacheDamagedError
from matchflow_index.label_column import DTYPES, LabelColumn
from matchflow_index.labels import LabelKind, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from matchflow_index.conditions import LabelCondition
    from matchflow_index.labels import LabelValue

_HEAD_LENGTH = struct.Struct("<I")


class LabelColumns:
    """The labels of `size` slots, a column for each field and kind of value."""

    __slots__ = ("_columns", "size")

    def __init__(self) -> None:
        self._columns: dict[tuple[str, LabelKind], LabelColumn] = {}
        self.size = 0

    def extend(self, labels: Sequence[Mapping[str, LabelValue]]) -> None:
        """Add one slot for each of `labels`."""
        found: defaultdict[str, tuple[list[int], list[LabelValue]]] = defaultdict(lambda: ([], []))
        for slot, each in enumerate(labels, self.size):
            for name, value in each.items():
                slots, values = found[name]
                slots.append(slot)
                values.append(value)
        for name, (slots, values) in found.items():
            kinds = list(map(kind_of, values))
            for kind in set(kinds):
                chosen = [value for value, its in zip(values, kinds, strict=True) if its is kind]
                where = [slot for slot, its in zip(slots, kinds, strict=True) if its is kind]
                column = self._column(name, kind)
                column.extend(np.array(where, np.int32), column.numbered(chosen))
        self.size += len(labels)

    def replace(self, slot: int, labels: Mapping[str, LabelValue]) -> None:
        """Give a slot other labels."""
        for name, value in labels.items():
            self._column(name, kind_of(value))
        for (name, kind), column in self._columns.items():
            wanted = labels.get(name)
            column.put(slot, wanted if wanted is not None and kind_of(wanted) is kind else None, self.size)

    def _column(self, name: str, kind: LabelKind) -> LabelColumn:
        column = self._columns.get((name, kind))
        if column is None:
            column = self._columns[name, kind] = LabelColumn(kind)
        return column

    def _of(self, field: str) -> Iterator[LabelColumn]:
        """Yield the columns of a label; of these at most one has a value for a slot."""
        for kind in LabelKind:
            column = self._columns.get((field, kind))
            if column is not None:
                yield column

    def mask(self, condition: LabelCondition) -> NDArray[np.bool_]:
        """Return which slots pass, bool [slots]."""
        passed = np.full(self.size, condition.negated)
        for column in self._of(condition.field):
            holding = column.holding(condition)
            if holding is None:
                continue
            if len(holding) == self.size:
                passed ^= holding
            else:
                passed[column.slots.values[holding]] = not condition.negated
        return passed

    def codes(self, field: str) -> NDArray[np.int32]:
        """Return a number for each distinct value of a label, int32 [slots]; 0 for the slots without it."""
        codes, given = np.zeros(self.size, np.int32), 0
        for column in self._of(field):
            groups, count = column.groups()
            there = groups > 0
            codes[column.slots.values[there]] = groups[there] + given
            given += count
        return codes

    def of(self, slots: NDArray[np.int64]) -> list[dict[str, LabelValue]]:
        """Return the labels of some slots, in that order."""
        found: list[dict[str, LabelValue]] = [{} for _ in slots]
        for (field, _), column in self._columns.items():
            for position, value in column.of(slots.astype(np.int32)):
                found[position][field] = value
        return found

    def take(self, slots: NDArray[np.integer[Any]]) -> LabelColumns:
        """Return the labels of some slots, ascending, as columns of their own."""
        taken, places = LabelColumns(), np.full(self.size, -1, np.int32)
        places[slots] = np.arange(len(slots), dtype=np.int32)
        taken.size = len(slots)
        for key, column in self._columns.items():
            kept = column.take(places)
            if len(kept.slots.values):
                taken._columns[key] = kept
        return taken

    def encode(self) -> bytes:
        """Return all of it for a cache: the length of a JSON head, the head, and the columns' arrays, little-endian."""
        columns = [
            {"field": field, "kind": kind, "entries": len(column.slots.values), "texts": list(column.texts)}
            for (field, kind), column in self._columns.items()
        ]
        head = json.dumps({"size": self.size, "columns": columns}, ensure_ascii=False).encode()
        arrays = [array for column in self._columns.values() for array in (column.slots.values, column.entries.values)]
        return b"".join(
            (_HEAD_LENGTH.pack(len(head)), head, *(a.astype(a.dtype.newbyteorder("<")).tobytes() for a in arrays))
        )

    @classmethod
    def decode(cls, data: bytes | memoryview, *, size: int) -> LabelColumns:
        """Return what `encode` wrote of `size` slots; CacheDamagedError for anything else."""
        try:
            return cls._decode(memoryview(data), size)
        except (ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
            raise CacheDamagedError(f"the label columns can't be read: {error}") from error

    @classmethod
    def _decode(cls, data: memoryview, size: int) -> LabelColumns:
        (length,) = _HEAD_LENGTH.unpack_from(data)
        start = _HEAD_LENGTH.size + length
        head = json.loads(bytes(data[_HEAD_LENGTH.size : start]))
        if head["size"] != size:
            raise CacheDamagedError(f"the label columns are of {head['size']} slots; expected {size}")
        columns = cls()
        columns.size = size
        for described in head["columns"]:
            field, column = described["field"], LabelColumn(LabelKind(described["kind"]))
            count, arrays = described["entries"], []
            for dtype in (np.dtype(np.int32), np.dtype(DTYPES[column.kind])):
                arrays.append(np.frombuffer(data, dtype.newbyteorder("<"), count, start).astype(dtype, copy=False))
                start += arrays[-1].nbytes
            column.texts = {text: number for number, text in enumerate(described["texts"], 1)}
            _check(*arrays, column=column, texts=len(described["texts"]), size=size)
            if not isinstance(field, str) or (field, column.kind) in columns._columns:
                raise CacheDamagedError(f"the label columns name {field!r} twice, or not as text")
            column.extend(*arrays)
            columns._columns[field, column.kind] = column
        if start != len(data):
            raise CacheDamagedError(f"the label columns have {len(data)} bytes; expected {start}")
        return columns


def _check(slots: NDArray[np.int32], entries: NDArray[Any], *, column: LabelColumn, texts: int, size: int) -> None:
    """Raise CacheDamagedError for a column that nobody wrote."""
    if len(slots) and not (slots[0] >= 0 and slots[-1] < size and (slots[1:] > slots[:-1]).all()):
        raise CacheDamagedError("the slots of a label column do not ascend within the slots that there are")
    if not all(isinstance(text, str) for text in column.texts) or len(column.texts) != texts:
        raise CacheDamagedError("a label column has a text twice, or one that is none")
    if column.kind is LabelKind.TEXT:
        if len(entries) and not (entries.min() >= 0 and entries.max() <= texts):
            raise CacheDamagedError("a label column numbers texts that it does not have")
    elif texts or np.isinf(entries).any():
        raise CacheDamagedError("a label column of numbers or times has texts, or infinite numbers")

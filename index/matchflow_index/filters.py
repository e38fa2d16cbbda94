"""Which images an answer may hold: conditions on labels, evaluated over columns of codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.growing import GrowingArray

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from matchflow_index.records import ImageRecord

ABSENT = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCondition:
    """The label `field` is one of `any_of`; negated: none of them, and an image without the label then passes."""

    field: str
    any_of: frozenset[str]
    negated: bool = False

    def accepts(self, labels: Mapping[str, str]) -> bool:
        """Tell whether an image with these labels passes.

        >>> LabelCondition(field="designer", any_of=frozenset({"noto"}), negated=True).accepts({})
        True
        """
        return (labels.get(self.field) in self.any_of) != self.negated


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFilter:
    """Every condition must hold, and the image id must not be one of `exclude`."""

    labels: tuple[LabelCondition, ...] = ()
    exclude: frozenset[str] = field(default_factory=frozenset)

    def accepts(self, record: ImageRecord) -> bool:
        """Tell whether an image passes."""
        return record.image_id not in self.exclude and all(c.accepts(record.labels) for c in self.labels)


class LabelColumns:
    """The labels of all slots, one int32 column of codes per field; code 0: without that label."""

    __slots__ = ("_codes", "_columns", "_size")

    def __init__(self) -> None:
        self._columns: dict[str, GrowingArray[np.int32]] = {}
        self._codes: dict[str, dict[str, int]] = {}
        self._size = 0

    def extend(self, labels: Sequence[Mapping[str, str]]) -> None:
        """Add one slot for each of `labels`."""
        for name in {name for each in labels for name in each} - self._columns.keys():
            self._add_column(name)
        for name, column in self._columns.items():
            codes = (self._code(name, each.get(name)) for each in labels)
            column.extend(np.fromiter(codes, np.int32, len(labels)))
        self._size += len(labels)

    def replace(self, slot: int, labels: Mapping[str, str]) -> None:
        """Give a slot other labels."""
        for name in labels.keys() - self._columns.keys():
            self._add_column(name)
        for name, column in self._columns.items():
            column.values[slot] = self._code(name, labels.get(name))

    def _add_column(self, name: str) -> None:
        self._columns[name] = GrowingArray(np.int32)
        self._columns[name].extend(np.full(self._size, ABSENT, np.int32))
        self._codes[name] = {}

    def _code(self, name: str, value: str | None) -> int:
        if value is None:
            return ABSENT
        codes = self._codes[name]
        return codes.setdefault(value, len(codes) + 1)

    def mask(self, condition: LabelCondition) -> NDArray[np.bool_]:
        """Return which slots pass, bool [slots]."""
        column = self._columns.get(condition.field)
        if column is None:
            return np.full(self._size, condition.negated)
        codes = self._codes[condition.field]
        passing = np.full(len(codes) + 1, condition.negated)
        for value in condition.any_of & codes.keys():
            passing[codes[value]] = not condition.negated
        passed: NDArray[np.bool_] = passing[column.values]
        return passed

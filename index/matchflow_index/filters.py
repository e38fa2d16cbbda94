"""Which images an answer may hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from matchflow_index.columns import LabelColumns
from matchflow_index.conditions import LabelCondition, LabelRange

if TYPE_CHECKING:
    from matchflow_index.records import ImageRecord

__all__ = ["ImageFilter", "LabelColumns", "LabelCondition", "LabelRange"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFilter:
    """Every condition must hold; the image id must be one of `any_ids`, if given, and not one of `exclude`."""

    conditions: tuple[LabelCondition, ...] = ()
    any_ids: frozenset[str] | None = None
    exclude: frozenset[str] = field(default_factory=frozenset)

    def accepts(self, record: ImageRecord) -> bool:
        """Tell whether an image passes: the final word on every hit."""
        return (
            record.image_id not in self.exclude
            and (self.any_ids is None or record.image_id in self.any_ids)
            and all(condition.accepts(record.labels) for condition in self.conditions)
        )

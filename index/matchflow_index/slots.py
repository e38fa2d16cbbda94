"""The columns of a shelf: what is known of each slot, in a few bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from matchflow_index.arrays import array_of
from matchflow_index.columns import LabelColumns
from matchflow_index.errors import CacheDamagedError
from matchflow_index.growing import GrowingArray
from matchflow_index.image_ids import ImageIds
from matchflow_index.records import ImageRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

NEVER = np.inf
# What an int32 holds of a width or height.
LARGEST_PX = 2**31 - 1


class Slots:
    """The columns of all slots."""

    def __init__(self) -> None:
        self.row_ids = GrowingArray(np.int64)
        self.sequences = GrowingArray(np.int64)
        self.live = GrowingArray(np.bool_)
        self.cell_norms = GrowingArray(np.float32)
        self.expire_times_s = GrowingArray(np.float64)
        self.widths_px = GrowingArray(np.int32)
        self.heights_px = GrowingArray(np.int32)
        self.from_thumbnail = GrowingArray(np.bool_)
        self.ids = ImageIds()
        self.labels = LabelColumns()

    def __len__(self) -> int:
        """Return the number of slots, the dead included."""
        return len(self.ids)

    def extend(self, records: Sequence[ImageRecord], cell_norms: NDArray[np.float32]) -> None:
        """Add one live slot for each record."""
        self.row_ids.extend(np.array([record.row_id for record in records], np.int64))
        self.sequences.extend(np.array([record.sequence for record in records], np.int64))
        self.live.extend(np.ones(len(records), np.bool_))
        self.cell_norms.extend(cell_norms)
        self.expire_times_s.extend(np.array([_expiry(record) for record in records], np.float64))
        self.widths_px.extend(np.array([min(record.width_px, LARGEST_PX) for record in records], np.int32))
        self.heights_px.extend(np.array([min(record.height_px, LARGEST_PX) for record in records], np.int32))
        self.from_thumbnail.extend(np.array([record.from_thumbnail for record in records], np.bool_))
        self.ids.extend([record.image_id for record in records])
        self.labels.extend([record.labels for record in records])

    def relabel(self, slot: int, record: ImageRecord) -> None:
        """Take over a record of the same row."""
        self.sequences.values[slot] = record.sequence
        self.expire_times_s.values[slot] = _expiry(record)
        self.labels.replace(slot, record.labels)

    def bury(self, slot: int) -> None:
        """Let a slot be dead."""
        self.live.values[slot] = False
        self.cell_norms.values[slot] = 0
        self.expire_times_s.values[slot] = NEVER
        self.widths_px.values[slot] = self.heights_px.values[slot] = 0
        self.from_thumbnail.values[slot] = False
        self.labels.replace(slot, {})

    def records(self, slots: Sequence[int]) -> list[ImageRecord]:
        """Return the records of some slots, without content hash ("") and update time (0), which no column has."""
        chosen = np.array(slots, np.int64)
        columns = (
            getattr(self, name).values[chosen].tolist()
            for name in ("row_ids", "sequences", "expire_times_s", "widths_px", "heights_px", "from_thumbnail")
        )
        return [
            ImageRecord(
                image_id=image_id,
                row_id=row_id,
                content_hash="",
                labels=labels,
                width_px=width_px,
                height_px=height_px,
                update_time_s=0.0,
                sequence=sequence,
                expire_time_s=None if expire_time_s == NEVER else expire_time_s,
                from_thumbnail=from_thumbnail,
            )
            for image_id, labels, row_id, sequence, expire_time_s, width_px, height_px, from_thumbnail in zip(
                self.ids.of(chosen), self.labels.of(chosen), *columns, strict=True
            )
        ]

    def encode(self) -> dict[str, NDArray[Any]]:
        """Return arrays that `decode` understands."""
        return {
            **{name: getattr(self, name).values for name in _COLUMNS},
            **self.ids.encode(),
            "labels": np.frombuffer(self.labels.encode(), np.uint8),
        }

    @classmethod
    def decode(cls, arrays: Mapping[str, NDArray[Any]], *, size: int) -> Slots:
        """Return the columns of `size` slots that `encode` wrote; CacheDamagedError."""
        slots = cls()
        for name in _COLUMNS:
            values = array_of(arrays, name)
            if len(values) != size:
                raise CacheDamagedError(f"expected {name} of {size} slots; got {len(values)}")
            getattr(slots, name).extend(values)
        slots.ids = ImageIds.decode(arrays, size=size)
        slots.labels = LabelColumns.decode(array_of(arrays, "labels").tobytes(), size=size)
        return slots

    def taken(self, kept: NDArray[np.int64]) -> Slots:
        """Return the columns of some slots, as slots 0 to n - 1."""
        slots = Slots()
        for name in _COLUMNS:
            getattr(slots, name).extend(getattr(self, name).values[kept])
        slots.ids = self.ids.taken(kept)
        slots.labels = self.labels.take(kept)
        return slots


_COLUMNS = (
    "row_ids",
    "sequences",
    "live",
    "cell_norms",
    "expire_times_s",
    "widths_px",
    "heights_px",
    "from_thumbnail",
)


def _expiry(record: ImageRecord) -> float:
    return NEVER if record.expire_time_s is None else record.expire_time_s

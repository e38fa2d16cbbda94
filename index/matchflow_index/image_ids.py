"""Image ids by slot and slots by image id, in about 40 bytes an image: a dictionary of texts takes four times that."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from matchflow_index.arrays import array_of
from matchflow_index.errors import CacheDamagedError
from matchflow_index.growing import GrowingArray

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

# Ids that were added since the order of checksums was last made are found by a dictionary, up to so many, or to this
# share of all.
LARGEST_TAIL = 65_536
TAIL_SHARE = 0.125


class ImageIds:
    """The ids of all slots; several slots may have had the same one, one after another.

    Looked up by the CRC-32 of an id; each that has it is compared, so that equal checksums do no harm.
    """

    def __init__(self) -> None:
        self._text = GrowingArray(np.uint8)
        self._ends = GrowingArray(np.int64)
        self._checksums = GrowingArray(np.uint32)
        self._order = np.empty(0, np.int64)
        self._sorted = np.empty(0, np.uint32)
        self._tail: dict[str, list[int]] = {}
        self._in_tail = 0

    def __len__(self) -> int:
        """Return the number of slots."""
        return len(self._ends.values)

    def __getitem__(self, slot: int) -> str:
        """Return the id of a slot."""
        ends = self._ends.values
        start = int(ends[slot - 1]) if slot else 0
        return self._text.values[start : ends[slot]].tobytes().decode()

    def of(self, slots: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Return the ids of some slots."""
        places, ends = np.asarray(slots, np.int64), self._ends.values
        if not len(places):
            return []
        starts = np.where(places > 0, ends[places - 1], 0)
        text: memoryview = self._text.values.data
        return [str(text[a:b], "utf-8") for a, b in zip(starts.tolist(), ends[places].tolist(), strict=True)]

    def extend(self, image_ids: Sequence[str]) -> None:
        """Add one slot for each id."""
        names = [image_id.encode() for image_id in image_ids]
        start, first = len(self._text.values), len(self)
        self._text.extend(np.frombuffer(b"".join(names), np.uint8))
        self._ends.extend(start + np.cumsum([len(name) for name in names], dtype=np.int64))
        self._checksums.extend(np.array([zlib.crc32(name) for name in names], np.uint32))
        for slot, image_id in enumerate(image_ids, first):
            self._tail.setdefault(image_id, []).append(slot)
        self._in_tail += len(image_ids)
        if self._in_tail > max(LARGEST_TAIL, TAIL_SHARE * len(self)):
            self._arrange()

    def _arrange(self) -> None:
        checksums = self._checksums.values
        self._order = np.argsort(checksums, kind="stable")
        self._sorted = checksums[self._order]
        self._tail, self._in_tail = {}, 0

    def slots(self, image_id: str) -> list[int]:
        """Return the slots that have or had an id, in ascending order."""
        checksum = np.uint32(zlib.crc32(image_id.encode()))
        first, last = np.searchsorted(self._sorted, [checksum]), np.searchsorted(self._sorted, [checksum], "right")
        found = [int(slot) for slot in self._order[first[0] : last[0]] if self[int(slot)] == image_id]
        return found + self._tail.get(image_id, [])

    def encode(self) -> dict[str, NDArray[Any]]:
        """Return arrays that `decode` understands."""
        return {
            "id_text": self._text.values,
            "id_ends": self._ends.values,
            "id_checksums": self._checksums.values,
        }

    @classmethod
    def decode(cls, arrays: Mapping[str, NDArray[Any]], *, size: int) -> ImageIds:
        """Return the ids of `size` slots that `encode` wrote; CacheDamagedError."""
        text, ends, checksums = (array_of(arrays, name) for name in ("id_text", "id_ends", "id_checksums"))
        if not len(ends) == len(checksums) == size or (ends[-1:] != len(text)).any() or (np.diff(ends) < 0).any():
            raise CacheDamagedError(f"expected the ids of {size} slots; got {len(ends)}")
        ids = cls()
        ids._text.extend(text)
        ids._ends.extend(ends)
        ids._checksums.extend(checksums)
        ids._arrange()
        return ids

    def taken(self, slots: NDArray[np.int64]) -> ImageIds:
        """Return the ids of some slots, as slots 0 to n - 1."""
        ids = ImageIds()
        ids.extend(self.of(slots))
        return ids

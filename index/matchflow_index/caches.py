"""The caches of one gallery on disk: load them, replay what they missed, or rebuild them from the truth.

cells.slab     the rows of all slots, only ever added to (see slab.py)
slots.cache    what the slab holds: its row ids, the sequence that it reflects, its checksum
coarse.cache   the coarse index

A crash can leave rows in the slab that slots.cache doesn't know: they are written over. Nothing is believed that the
truth contradicts: the truth's own records decide which slots are live.
"""

from __future__ import annotations

import logging
import zlib
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.cachefile import CacheHeader, read_cache, write_cache
from matchflow_index.coarse import CoarseIndex
from matchflow_index.errors import CacheDamagedError, StoreUnavailableError
from matchflow_index.records import RowLayout
from matchflow_index.shelf import Shelf
from matchflow_index.slab import CellSlab
from matchflow_index.truth import ChangeKind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from matchflow_index.records import ImageRecord
    from matchflow_index.truth import Snapshot, StoredGallery

logger = logging.getLogger(__name__)

ROWS_PER_STEP = 1024
# When more than this share of the slots is dead, opening drops them.
MOST_DEAD = 0.25

Slots = tuple[CellSlab, CoarseIndex, list[int]]


class GalleryCaches:
    """Where a gallery's caches live and whose they are."""

    def __init__(self, directory: Path, gallery: StoredGallery, *, read_only: bool) -> None:
        self._directory = directory
        self._gallery = gallery
        self._layout = RowLayout.of(gallery.spec)
        self._read_only = read_only
        self._saved_sequence: int | None = None

    def open_shelf(self, snapshot: Snapshot) -> Shelf:
        """Return the gallery as the truth has it now, by way of the caches where they are good."""
        try:
            return self._load(snapshot)
        except CacheDamagedError as error:
            if snapshot.sequence:
                self._warn("cells.slab", error, "the truth")
            return self._rebuild(snapshot)

    def _load(self, snapshot: Snapshot) -> Shelf:
        header, row_ids = self._read_slots(snapshot.sequence)
        slab = self._open_slab(header)
        try:
            read = self._read_coarse(header)
            slots = (slab, read or self._index(slab), row_ids)
            _append(slots, self._missed(snapshot, header.sequence))
            shelf = _fill_shelf(slots, snapshot)
        except CacheDamagedError:
            slab.close()
            raise
        # What had to be made anew is worth saving even if nothing changes any more.
        self._saved_sequence = header.sequence if read else None
        return shelf

    def _read_slots(self, sequence: int) -> tuple[CacheHeader, list[int]]:
        header, payload = read_cache(self._directory / "slots.cache")
        row_ids = np.frombuffer(payload, "<i8")
        expected = self._header("slots", header.sequence, row_ids, header.slab_checksum)
        _check_header(header, expected)
        if header.sequence > sequence:
            raise CacheDamagedError(f"slots.cache reflects change {header.sequence}, but the truth ends at {sequence}")
        return header, row_ids.tolist()

    def _open_slab(self, header: CacheHeader) -> CellSlab:
        path, needed = self._directory / "cells.slab", header.slots * self._layout.size_bytes
        try:
            length = path.stat().st_size
        except OSError as error:
            raise CacheDamagedError(f"cells.slab is missing ({error.strerror})") from error
        if length < needed:
            raise CacheDamagedError(f"cells.slab is truncated: {length} bytes of at least {needed}")
        slab = CellSlab.open(path, self._layout, header.slots, read_only=self._read_only)
        if slab.checksum() != header.slab_checksum:
            slab.close()
            raise CacheDamagedError("the checksum of cells.slab does not match its bytes")
        return slab

    def _read_coarse(self, slots: CacheHeader) -> CoarseIndex | None:
        """Return the coarse index that goes with the slots; None, with a warning, when there is no good one."""
        try:
            header, payload = read_cache(self._directory / "coarse.cache")
            _check_header(header, slots_twin(slots))
            return CoarseIndex.decode(payload, size=slots.slots, dim=slots.dim)
        except CacheDamagedError as error:
            self._warn("coarse.cache", error, "the cell slab")
            return None

    def _index(self, slab: CellSlab) -> CoarseIndex:
        coarse = CoarseIndex(self._layout.dim)
        for start in range(0, slab.size, ROWS_PER_STEP):
            coarse.add(slab.embeddings(start, min(start + ROWS_PER_STEP, slab.size)))
        return coarse

    def _missed(self, snapshot: Snapshot, after: int) -> list[tuple[int, bytes]]:
        """Return the rows that the log has after a change and that are still there, in order of row id."""
        put = [change.row_id for change in snapshot.changes(after) if change.kind is ChangeKind.PUT]
        missed = [(row_id, row) for row_id in put if (row := snapshot.row(row_id)) is not None]
        if missed and self._read_only:
            raise CacheDamagedError(f"the slab is {len(missed)} rows behind, and the store is read-only")
        return missed

    def _rebuild(self, snapshot: Snapshot) -> Shelf:
        if self._read_only:
            slab = CellSlab.private(self._layout)
        else:
            self._forget()
            slab = CellSlab.create(self._directory / "cells.slab", self._layout)
        slots: Slots = (slab, CoarseIndex(self._layout.dim), [])
        try:
            _append(slots, snapshot.rows())
            return _fill_shelf(slots, snapshot, most_dead=1)
        except CacheDamagedError as error:
            slab.close()
            # Records and rows are written and erased together, so this is no fault of a cache.
            raise StoreUnavailableError(f"gallery {self._gallery.spec.gallery_id} is damaged: {error}") from error
        except StoreUnavailableError:
            slab.close()
            raise

    def _forget(self) -> None:
        """Remove the files that describe the slab, before it becomes another."""
        try:
            for name in ("slots.cache", "coarse.cache"):
                (self._directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreUnavailableError(f"the caches in {self._directory} can't be replaced: {error}") from error

    def save(self, shelf: Shelf) -> None:
        """Write what changed; a failure is a warning, since nothing is lost but time at the next opening."""
        if self._read_only or self._saved_sequence == shelf.sequence:
            return
        try:
            shelf.slab.synchronise()
            header = self._header("slots", shelf.sequence, shelf.row_ids, shelf.slab.checksum())
            write_cache(self._directory / "coarse.cache", slots_twin(header), shelf.coarse.encode())
            write_cache(self._directory / "slots.cache", header, shelf.row_ids.astype("<i8").tobytes())
        except OSError as error:
            logger.warning("the caches of gallery %s could not be saved: %s", self._gallery.spec.gallery_id, error)
            return
        self._saved_sequence = shelf.sequence

    def _header(self, kind: str, sequence: int, row_ids: NDArray[np.int64], slab_checksum: int) -> CacheHeader:
        return CacheHeader(
            kind=kind,
            gallery_id=self._gallery.spec.gallery_id,
            gallery_uuid=self._gallery.uuid,
            sequence=sequence,
            slots=len(row_ids),
            cells=self._layout.cells,
            dim=self._layout.dim,
            slots_checksum=zlib.crc32(row_ids.astype("<i8").tobytes()),
            slab_checksum=slab_checksum,
        )

    def _warn(self, name: str, error: CacheDamagedError, source: str) -> None:
        logger.warning("%s of gallery %s is rebuilt from %s: %s", name, self._gallery.spec.gallery_id, source, error)


def _check_header(header: CacheHeader, expected: CacheHeader) -> None:
    if header != expected:
        raise CacheDamagedError(f"{header.kind}.cache belongs to something else: expected {expected}; got {header}")


def slots_twin(slots: CacheHeader) -> CacheHeader:
    """Return the header of the coarse index that goes with some slots."""
    fields = {name: getattr(slots, name) for name in CacheHeader.__slots__}
    return CacheHeader(**{**fields, "kind": "coarse"})


def _append(slots: Slots, rows: Iterable[tuple[int, bytes]]) -> None:
    slab, coarse, row_ids = slots
    source = iter(rows)
    while step := list(islice(source, ROWS_PER_STEP)):
        start = slab.size
        slab.write([row for _, row in step])
        slab.publish(len(step))
        coarse.add(slab.embeddings(start, slab.size))
        row_ids.extend(row_id for row_id, _ in step)


def _fill_shelf(slots: Slots, snapshot: Snapshot, most_dead: float = MOST_DEAD) -> Shelf:
    """Return the shelf of these slots; the truth's records say which are live and what they hold."""
    slab, coarse, row_ids = slots
    slot_of = {row_id: slot for slot, row_id in enumerate(row_ids)}
    records: list[ImageRecord | None] = [None] * len(row_ids)
    for record in snapshot.records():
        slot = slot_of.get(record.row_id)
        if slot is None:
            raise CacheDamagedError(f"the slab lacks row {record.row_id} of image {record.image_id!r}")
        records[slot] = record
    dead = records.count(None)
    if dead > most_dead * len(records):
        raise CacheDamagedError(f"{dead} of {len(records)} slots are dead")
    return Shelf(
        slab=slab, coarse=coarse, row_ids=np.array(row_ids, np.int64), records=records, sequence=snapshot.sequence
    )

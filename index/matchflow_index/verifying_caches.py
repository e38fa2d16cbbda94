"""Verify a gallery's caches on disk against its truth; a server may be running, and change both meanwhile.

A slot whose image was changed after the caches were saved proves nothing: the log is replayed when they are opened.
Dead slots must be zero all the same, since caches are saved only when they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.arrays import array_of, decode_arrays
from matchflow_index.cachefile import read_cache
from matchflow_index.coarse import decode_coarse
from matchflow_index.errors import CacheDamagedError
from matchflow_index.findings import UNREADABLE, Finding
from matchflow_index.records import RowLayout
from matchflow_index.slab import BLOCK_ROWS, CellSlab
from matchflow_index.slots import LARGEST_PX, NEVER, Slots
from matchflow_index.verifying_coarse import check_coarse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from matchflow_index.cachefile import CacheHeader
    from matchflow_index.coarse import CoarseIndex
    from matchflow_index.findings import Verification
    from matchflow_index.records import ImageRecord
    from matchflow_index.truth import Snapshot, StoredGallery, Truth

# A server may save its caches while they are read: they are read again then.
MOST_LOOKS = 5


def verify_caches(
    directory: Path, truth: Truth, gallery: StoredGallery, report: Verification, progress: Callable[[int], object]
) -> None:
    """Add what is wrong with the caches in a directory to a report."""
    if not (directory / "slots.cache").exists():
        if (directory / "coarse.cache").exists():
            report.findings.append(Finding(part="slots.cache", problem="slots.cache is missing, coarse.cache is there"))
        report.notes.append("there are no saved caches: they are made from the truth at the next opening")
        return
    try:
        caches = _Caches(directory, gallery)
    except CacheDamagedError as error:
        report.findings.append(Finding(part="slots.cache", problem=str(error)))
        return
    except UNREADABLE as error:
        report.findings.append(Finding(part="slots.cache", problem=f"slots.cache can't be read: {error!r}"))
        return
    report.findings += caches.coarse_findings
    try:
        slab = caches.open_slab()
    except CacheDamagedError as error:
        report.findings.append(Finding(part="slab", problem=str(error)))
        return
    try:
        _Comparison(caches, slab, truth=truth, gallery=gallery, report=report, progress=progress).run()
    finally:
        slab.close()
    for stray in sorted(set(directory.glob("cells*")) - {caches.slab_path}):
        report.notes.append(
            f"{stray.name} belongs to no saved cache: it is being filled, or removed at the next saving"
        )


class _Caches:
    """What slots.cache and coarse.cache say."""

    def __init__(self, directory: Path, gallery: StoredGallery) -> None:
        """Read them; CacheDamagedError for slots.cache, findings for coarse.cache."""
        self._directory = directory
        self.layout = RowLayout.of(gallery.spec)
        for _ in range(MOST_LOOKS):
            self.header, slots = read_cache(directory / "slots.cache")
            coarse, self.coarse_findings = self._read_coarse()
            if read_cache(directory / "slots.cache")[0] == self.header:
                break
        expected = (gallery.spec.gallery_id, gallery.uuid, self.layout.cells, self.layout.dim)
        got = (self.header.gallery_id, self.header.gallery_uuid, self.header.cells, self.header.dim)
        if got != expected or self.header.kind != "slots":
            raise CacheDamagedError(f"slots.cache belongs to something else: expected {expected}; got {got}")
        arrays = decode_arrays(slots)
        self.slots = Slots.decode(arrays, size=self.header.slots)
        self.checksums: NDArray[np.uint32] = array_of(arrays, "block_checksums")
        self.coarse = None if coarse is None else self._decode_coarse(*coarse)

    def _read_coarse(self) -> tuple[tuple[CacheHeader, bytes] | None, list[Finding]]:
        try:
            return read_cache(self._directory / "coarse.cache"), []
        except (CacheDamagedError, *UNREADABLE) as error:
            return None, [Finding(part="coarse.cache", problem=str(error))]

    def _decode_coarse(self, header: CacheHeader, payload: bytes) -> CoarseIndex | None:
        problem = f"coarse.cache belongs to something else: expected {self.header}; got {header}"
        if header == self.header.twin("coarse"):
            try:
                return decode_coarse(payload, size=self.header.slots, dim=self.layout.dim)
            except CacheDamagedError as error:
                problem = str(error)
        self.coarse_findings.append(Finding(part="coarse.cache", problem=problem))
        return None

    @property
    def slab_path(self) -> Path:
        """Where the slab is that the slots go with."""
        return self._directory / f"cells-{self.header.slab_token}.slab"

    def open_slab(self) -> CellSlab:
        """Return that slab; CacheDamagedError."""
        token, slots = self.header.slab_token, self.header.slots
        return CellSlab.open(self.slab_path, self.layout, slots, token, read_only=True)


class _Comparison:
    """Caches against the truth, block by block."""

    def __init__(
        self,
        caches: _Caches,
        slab: CellSlab,
        *,
        truth: Truth,
        gallery: StoredGallery,
        report: Verification,
        progress: Callable[[int], object],
    ) -> None:
        self._caches = caches
        self._slots = caches.slots
        self._slab = slab
        self._truth = truth
        self._gallery = gallery
        self._report = report
        self._progress = progress
        # Of live slots, which count only if their image was not changed since.
        self._pending: list[Finding] = []
        self._damaged: list[int] = []
        self._lasting: list[Finding] = []

    def run(self) -> None:
        """Compare everything and report what is wrong."""
        report = self._report
        report.slots = len(self._slots)
        with self._truth.read(self._gallery) as snapshot:
            problem = self._wrong_with_state(snapshot)
            if problem:
                report.findings.append(Finding(part="slots.cache", problem=problem))
                return
            self._compare(snapshot)
            if self._caches.coarse is not None:
                self._pending += check_coarse(self._caches.coarse, self._slots, self._slab)
        with self._truth.read(self._gallery) as snapshot:
            moved = self._moved(snapshot)
        if moved is None:
            report.notes.append("the caches are older than the log: they are made anew at the next opening")
            return
        if moved:
            report.notes.append(f"{len(moved)} images were changed after the caches were saved: they prove nothing")
        found = self._lasting + [each for each in self._pending if each.image_id not in moved]
        report.findings += found + list(self._damaged_blocks(found, moved))

    def _wrong_with_state(self, snapshot: Snapshot) -> str:
        header = self._caches.header
        if header.sequence > snapshot.sequence:
            return f"slots.cache reflects change {header.sequence}, but the truth ends at {snapshot.sequence}"
        history = snapshot.history(header.sequence)
        if history is not None and history.hex() != header.history:
            return (
                f"expected the history {history.hex()} up to change {header.sequence}; slots.cache has {header.history}"
            )
        if len(self._caches.checksums) != len(self._slab.checksums()):
            return f"expected checksums of {len(self._slab.checksums())} blocks; got {len(self._caches.checksums)}"
        return ""

    def _moved(self, snapshot: Snapshot) -> set[str] | None:
        """Return the images that were changed after the caches were saved; None when nobody knows."""
        sequence = self._caches.header.sequence
        if snapshot.log_start > sequence + 1:
            return None
        try:
            return {change.image_id for change in snapshot.changes(sequence)}
        except UNREADABLE:
            return None

    def _compare(self, snapshot: Snapshot) -> None:
        self._damaged = np.flatnonzero(self._slab.checksums() != self._caches.checksums).tolist()
        for start in range(0, len(self._slots), BLOCK_ROWS):
            self._compare_block(snapshot, start, min(start + BLOCK_ROWS, len(self._slots)))
            self._progress(min(start + BLOCK_ROWS, len(self._slots)))
        self._pending += self._unshelved(snapshot)

    def _compare_block(self, snapshot: Snapshot, start: int, stop: int) -> None:
        stored = self._slab.stored(np.arange(start, stop))
        norms = self._slab.cell_norms(start, stop)
        row_ids = self._slots.row_ids.values[start:stop].tolist()
        rows = snapshot.rows_of(row_ids)
        for slot, row, kept, norm in zip(range(start, stop), rows, stored, norms, strict=True):
            image_id = self._slots.ids[slot]
            if not self._slots.live.values[slot]:
                if kept.any():
                    problem = "the slot is dead, but there are features in it"
                    self._lasting.append(Finding(part="slab", problem=problem, image_id=image_id, slot=slot))
                continue
            if row is None or kept.tobytes() != row:
                problem = "the image has no row in the truth" if row is None else _difference(kept.tobytes(), row)
                self._pending.append(Finding(part="slab", problem=problem, image_id=image_id, slot=slot))
            elif self._slots.cell_norms.values[slot] != norm:
                problem = f"expected longest cell {norm}; got {self._slots.cell_norms.values[slot]}"
                self._pending.append(Finding(part="slots.cache", problem=problem, image_id=image_id, slot=slot))
            self._pending += self._check_slot(snapshot, image_id, slot)

    def _check_slot(self, snapshot: Snapshot, image_id: str, slot: int) -> Iterator[Finding]:
        try:
            record = snapshot.record(image_id)
        except UNREADABLE:
            # The truth's own findings say so.
            return
        expected = None if record is None else _columns(record)
        slots = self._slots
        got = (
            int(slots.row_ids.values[slot]),
            int(slots.sequences.values[slot]),
            float(slots.expire_times_s.values[slot]),
            int(slots.widths_px.values[slot]),
            int(slots.heights_px.values[slot]),
            bool(slots.from_thumbnail.values[slot]),
        )
        if expected != got:
            wanted = expected or "of no image"
            problem = f"expected row, change, expiry, width, height and from a thumbnail {wanted}; got {got}"
            yield Finding(part="slots.cache", problem=problem, image_id=image_id, slot=slot)

    def _unshelved(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield the images that have no slot, or several."""
        live = self._slots.live.values
        try:
            for record in snapshot.records():
                slots = [slot for slot in self._slots.ids.slots(record.image_id) if live[slot]]
                if len(slots) != 1:
                    problem = f"expected one live slot of the image; got {slots}"
                    yield Finding(part="slots.cache", problem=problem, image_id=record.image_id)
        except UNREADABLE:
            return

    def _damaged_blocks(self, found: list[Finding], moved: set[str]) -> Iterator[Finding]:
        """Yield the blocks with wrong checksums in which nothing else explains them."""
        told = {each.slot // BLOCK_ROWS for each in found if each.slot is not None}
        for block in self._damaged:
            start, stop = block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, len(self._slots))
            if block not in told and moved.isdisjoint(self._slots.ids.of(range(start, stop))):
                problem = f"the checksum of slots {start} to {stop - 1} in slots.cache is not that of the slab"
                yield Finding(part="slab", problem=problem, slot=start)


def _columns(record: ImageRecord) -> tuple[int, int, float, int, int, bool]:
    expiry = float(NEVER) if record.expire_time_s is None else record.expire_time_s
    width_px, height_px = min(record.width_px, LARGEST_PX), min(record.height_px, LARGEST_PX)
    return record.row_id, record.sequence, expiry, width_px, height_px, record.from_thumbnail


def _difference(got: bytes, expected: bytes) -> str:
    if len(got) != len(expected):
        return f"expected {len(expected)} bytes as in the truth; got {len(got)}"
    differing = np.flatnonzero(np.frombuffer(got, np.uint8) != np.frombuffer(expected, np.uint8))
    return f"{len(differing)} bytes differ from the truth's, the first one is byte {differing[0]} of the row"

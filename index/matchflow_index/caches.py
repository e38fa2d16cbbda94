"""The caches of one gallery on disk: load them, replay what they missed, or rebuild them from the truth.

cells-<token>.slab   the features of all slots (see slab.py)
slots.cache          the columns of all slots, which slab they go with and its checksums, the change they reflect
coarse.cache         the coarse index

A crash can leave rows in the slab that slots.cache doesn't know: they are written over. Nothing is believed that the
truth contradicts: the log must go through the change that the caches reflect with the same history, blocks of the slab
whose checksums are wrong are read again from the truth, and everything after that change is replayed.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.arrays import array_of, decode_arrays, encode_arrays
from matchflow_index.cachefile import CacheHeader, read_cache, write_cache
from matchflow_index.coarse import CoarseIndex, decode_coarse, encode_coarse, filled
from matchflow_index.errors import CacheDamagedError, StoreUnavailableError
from matchflow_index.filling import catch_up, fill_from_truth
from matchflow_index.flat_index import FlatIndex
from matchflow_index.records import RowLayout
from matchflow_index.shelf import Shelf
from matchflow_index.slab import BLOCK_ROWS, CellSlab
from matchflow_index.slots import Slots

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from matchflow_index.truth import Snapshot, StoredGallery

logger = logging.getLogger(__name__)


class GalleryCaches:
    """Where a gallery's caches live and whose they are."""

    def __init__(self, directory: Path, gallery: StoredGallery, *, read_only: bool) -> None:
        self._directory = directory
        self._gallery = gallery
        self._layout = RowLayout.of(gallery.spec)
        self.read_only = read_only
        self.saved_sequence: int | None = None

    def open_shelf(self, snapshot: Snapshot) -> Shelf:
        """Return the gallery as the truth has it now, by way of the caches where they are good."""
        try:
            return self._load(snapshot)
        except CacheDamagedError as error:
            if snapshot.sequence > self._gallery.spec.base_sequence:
                self._warn("cells.slab", error, "the truth")
            return self._rebuild(snapshot)

    def _load(self, snapshot: Snapshot) -> Shelf:
        header, payload = read_cache(self._directory / "slots.cache")
        self._check(header, snapshot)
        arrays = decode_arrays(payload)
        slots = Slots.decode(arrays, size=header.slots)
        slab = self._open_slab(header)
        try:
            shelf, whole = self._load_shelf(header, slots, slab, array_of(arrays, "block_checksums"), snapshot)
        except (CacheDamagedError, StoreUnavailableError):
            slab.close()
            raise
        # What had to be made anew is worth saving even if nothing changes any more.
        self.saved_sequence = header.sequence if whole else None
        return shelf

    def _open_slab(self, header: CacheHeader) -> CellSlab:
        path, token = self._slab_path(header.slab_token), header.slab_token
        slab = CellSlab.open(path, self._layout, header.slots, token, read_only=self.read_only)
        if not self.read_only:
            return slab
        # The writing process erases what is removed under everybody's eyes; checksums tell whether it just did.
        try:
            return slab.copied()
        finally:
            slab.close()

    def _load_shelf(
        self, header: CacheHeader, slots: Slots, slab: CellSlab, checksums: NDArray[np.uint32], snapshot: Snapshot
    ) -> tuple[Shelf, bool]:
        """Return the shelf as the truth has it now, and whether the caches were whole."""
        repaired, lost = self._repair(slab, slots, checksums, snapshot)
        read = None if repaired else self._read_coarse(header)
        coarse = read or self._index(slab, slots)
        shelf = Shelf(slab=slab, coarse=coarse, slots=slots, sequence=header.sequence)
        self._check_following(snapshot.sequence - header.sequence)
        catch_up(shelf, snapshot)
        if slots.live.values[lost].any():
            raise StoreUnavailableError(
                f"gallery {self._gallery.spec.gallery_id} is damaged: rows of live images are missing"
            )
        return shelf, read is not None

    def _check_following(self, missed: int) -> None:
        if self.read_only and missed:
            raise CacheDamagedError(f"the caches are {missed} changes behind, and the store is read-only")

    def _check(self, header: CacheHeader, snapshot: Snapshot) -> None:
        expected = self._header("slots", header.sequence, header.history, header.slots, header.slab_token)
        if header != expected:
            raise CacheDamagedError(f"slots.cache belongs to something else: expected {expected}; got {header}")
        if header.sequence > snapshot.sequence:
            raise CacheDamagedError(
                f"slots.cache reflects change {header.sequence}, but the truth ends at {snapshot.sequence}"
            )
        history = snapshot.history(header.sequence)
        if history is None or snapshot.log_start > header.sequence + 1:
            raise CacheDamagedError(
                f"slots.cache reflects change {header.sequence}, but the log begins at {snapshot.log_start}"
            )
        if history.hex() != header.history:
            raise CacheDamagedError(f"the truth has another history up to change {header.sequence} than slots.cache")

    def _repair(
        self, slab: CellSlab, slots: Slots, expected: NDArray[np.uint32], snapshot: Snapshot
    ) -> tuple[bool, list[int]]:
        """Read blocks of the slab whose checksums are wrong again from the truth.

        Return whether there were any, and the slots that the truth has no row for: what comes after the caches must
        have removed them.
        """
        found, lost = slab.checksums(), list[int]()
        if len(found) != len(expected):
            raise CacheDamagedError(f"expected checksums of {len(found)} blocks; got {len(expected)}")
        damaged = np.flatnonzero(found != expected)
        if not len(damaged):
            return False, lost
        if self.read_only:
            raise CacheDamagedError(f"the checksums of the slab do not match its bytes in {len(damaged)} blocks")
        name = self._gallery.spec.gallery_id
        logger.warning("%d of %d blocks of the slab of gallery %s are damaged", len(damaged), len(found), name)
        nothing = bytes(self._layout.size_bytes)
        for block in damaged.tolist():
            start, stop = block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, slab.size)
            rows = snapshot.rows_of(slots.row_ids.values[start:stop].tolist())
            slab.replace(start, [row or nothing for row in rows])
            lost += [slot for slot, row in enumerate(rows, start) if row is None]
        return True, lost

    def _read_coarse(self, slots: CacheHeader) -> CoarseIndex | None:
        """Return the coarse index that goes with the slots; None, with a warning, when there is no good one."""
        try:
            return self._decode_coarse(slots)
        except CacheDamagedError as error:
            self._warn("coarse.cache", error, "the cell slab")
            return None

    def _decode_coarse(self, slots: CacheHeader) -> CoarseIndex:
        header, payload = read_cache(self._directory / "coarse.cache")
        if header != slots.twin("coarse"):
            raise CacheDamagedError(f"coarse.cache belongs to something else: expected {slots}; got {header}")
        return decode_coarse(payload, size=slots.slots, dim=slots.dim)

    def _index(self, slab: CellSlab, slots: Slots) -> CoarseIndex:
        index = FlatIndex(self._layout.dim)
        filled(index, slab, slab.size)
        dead = np.flatnonzero(~slots.live.values)
        if len(dead):
            index.remove(dead)
        return index

    def new_slab(self) -> CellSlab:
        """Return an empty slab for this gallery; one of nobody's when the store is read-only."""
        if self.read_only:
            return CellSlab.private(self._layout)
        return CellSlab.create(self._directory / "cells.new", self._layout)

    def _rebuild(self, snapshot: Snapshot) -> Shelf:
        if not self.read_only:
            self._forget()
        slab = self.new_slab()
        shelf = Shelf(slab=slab, coarse=FlatIndex(self._layout.dim), slots=Slots(), sequence=0)
        try:
            fill_from_truth(shelf, snapshot, self._gallery.spec.gallery_id)
        except StoreUnavailableError:
            slab.close()
            raise
        return shelf

    def _forget(self) -> None:
        """Remove what describes a slab, before there is another."""
        try:
            for name in ("slots.cache", "coarse.cache"):
                (self._directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreUnavailableError(f"the caches in {self._directory} can't be replaced: {error}") from error
        self._drop_slabs(kept="")

    def _drop_slabs(self, kept: str) -> None:
        for path in self._directory.glob("cells*"):
            if path != self._slab_path(kept):
                with suppress(OSError):
                    path.unlink()

    def save(self, shelf: Shelf, history: bytes | None) -> bool:
        """Write what changed, and tell whether it is all on disk; `history` is the digest at the shelf's sequence.

        A failure is a warning, since nothing is lost but time at the next opening. Nothing is written while there are
        features of removed images in the slab.
        """
        if self.read_only or self.saved_sequence == shelf.sequence:
            return True
        if history is None or not shelf.is_erased:
            return False
        try:
            path = self._slab_path(shelf.slab.token)
            if not path.exists():
                (self._directory / "cells.new").rename(path)
            shelf.slab.synchronise()
            header = self._header("slots", shelf.sequence, history.hex(), shelf.size, shelf.slab.token)
            arrays = {**shelf.slots.encode(), "block_checksums": shelf.slab.checksums()}
            write_cache(self._directory / "coarse.cache", header.twin("coarse"), encode_coarse(shelf.coarse))
            write_cache(self._directory / "slots.cache", header, encode_arrays(arrays))
        except OSError as error:
            logger.warning("the caches of gallery %s could not be saved: %s", self._gallery.spec.gallery_id, error)
            return False
        self.saved_sequence = shelf.sequence
        self._drop_slabs(kept=shelf.slab.token)
        return True

    def _slab_path(self, token: str) -> Path:
        return self._directory / f"cells-{token}.slab"

    def _header(self, kind: str, sequence: int, history: str, slots: int, slab_token: str) -> CacheHeader:
        return CacheHeader(
            kind=kind,
            gallery_id=self._gallery.spec.gallery_id,
            gallery_uuid=self._gallery.uuid,
            sequence=sequence,
            history=history,
            slots=slots,
            cells=self._layout.cells,
            dim=self._layout.dim,
            slab_token=slab_token,
        )

    def _warn(self, name: str, error: CacheDamagedError, source: str) -> None:
        logger.warning("%s of gallery %s is rebuilt from %s: %s", name, self._gallery.spec.gallery_id, source, error)

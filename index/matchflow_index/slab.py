"""The cell slab: the features of all slots in one file, slot after slot, read through memory mapping.

Rows are only ever added. They are written with `pwrite` and read through the mapping: on a full disk that is an error
to report, where writing through the mapping would kill the process.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import zlib
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.cell_norms import row_cell_norms
from matchflow_index.errors import StoreUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from matchflow_index.records import RowLayout
    from matchflow_matching.features import FeatureBatch

SMALLEST_ROWS = 256
STEP_ROWS = 4096


class CellSlab:
    """Rows of features in slot order.

    One thread appends; others may read slots below `size` at the same time, whatever happens to the file's length, and
    after `close`: a slot is written once, and whoever reads keeps the mapping alive that it reads from.
    """

    def __init__(self, layout: RowLayout, descriptor: int, size: int) -> None:
        """Take over an open file that holds `size` rows."""
        self.layout = layout
        self.size = size
        self._descriptor = descriptor
        self._rows: NDArray[np.uint8] = np.frombuffer(b"", np.uint8).reshape(0, layout.size_bytes)
        self._checked = (0, 0)
        if size:
            self._map(size)

    @classmethod
    def open(cls, path: Path, layout: RowLayout, size: int, *, read_only: bool) -> CellSlab:
        """Return the slab in a file of at least `size` rows."""
        return cls(layout, os.open(path, os.O_RDONLY if read_only else os.O_RDWR), size)

    @classmethod
    def create(cls, path: Path, layout: RowLayout) -> CellSlab:
        """Return an empty slab in a new file; one that was there lives on for those who have it open."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            return cls(layout, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), 0)
        except OSError as error:
            raise StoreUnavailableError(f"{path} can't be created: {error}") from error

    @classmethod
    def private(cls, layout: RowLayout) -> CellSlab:
        """Return an empty slab in a nameless temporary file, for those who may not write to the store."""
        with tempfile.TemporaryFile() as file:
            return cls(layout, os.dup(file.fileno()), 0)

    def write(self, rows: list[bytes]) -> None:
        """Write rows after the last slot, where nobody sees them until `publish`; StoreUnavailableError on failure."""
        if not rows:
            return
        try:
            self._reserve(self.size + len(rows))
            data, offset = memoryview(b"".join(rows)), self.size * self.layout.size_bytes
            while data:
                written = os.pwrite(self._descriptor, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise StoreUnavailableError(f"the cell slab can't take {len(rows)} more rows: {error}") from error

    def publish(self, count: int) -> None:
        """Count the first `count` rows that `write` wrote as slots."""
        self.size += count

    def _reserve(self, rows: int) -> None:
        if rows <= len(self._rows):
            return
        rows = max(rows, 2 * len(self._rows), SMALLEST_ROWS)
        # Sparse: takes no disk until written. Never shorter, since another process may have it mapped.
        length = max(rows * self.layout.size_bytes, os.fstat(self._descriptor).st_size)
        os.ftruncate(self._descriptor, length)
        self._map(rows)

    def _map(self, rows: int) -> None:
        mapping = mmap.mmap(self._descriptor, rows * self.layout.size_bytes, access=mmap.ACCESS_READ)
        self._rows = np.frombuffer(mapping, np.uint8).reshape(rows, self.layout.size_bytes)

    def gather(self, slots: NDArray[np.int64]) -> FeatureBatch:
        """Return the features of some slots, copied in the order given."""
        return self.layout.unpack(np.take(self._rows, slots, axis=0))

    def embeddings(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the embeddings float32 [stop - start, D] of a range of slots."""
        return self.layout.embeddings(self._rows[start:stop])

    def cell_norms(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the length of the longest cell of a range of slots, float32 [stop - start]; see row_cell_norms."""
        norms = np.empty(stop - start, np.float32)
        for at in range(start, stop, STEP_ROWS):
            end = min(at + STEP_ROWS, stop)
            norms[at - start : end - start] = row_cell_norms(self._rows[at:end], self.layout)
        return norms

    def checksum(self) -> int:
        """Return the CRC-32 of all slots; only those that are new since the last call are read."""
        value, done = self._checked
        for start in range(done, self.size, STEP_ROWS):
            value = zlib.crc32(self._rows[start : min(start + STEP_ROWS, self.size)].data, value)
        self._checked = (value, self.size)
        return value

    def synchronise(self) -> None:
        """Bring all rows to disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Let go of the file; what was gathered stays valid."""
        os.close(self._descriptor)

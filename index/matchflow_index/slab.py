"""The cell slab: the features of all slots in one file, slot after slot, read through memory mapping.

The file begins with a page that says whose slab it is. Rows are added at the end, and made zero when their image is
gone. They are written with `pwrite` and read through the mapping: on a full disk that is an error to report, where
writing through the mapping would kill the process.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import secrets
import tempfile
import zlib
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.cell_norms import row_cell_norms
from matchflow_index.errors import CacheDamagedError, StoreUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from matchflow_index.records import RowLayout
    from matchflow_matching.features import FeatureBatch

SMALLEST_ROWS = 256
STEP_ROWS = 4096
# Rows with a checksum of their own: what is found damaged is read again from the truth in such blocks.
BLOCK_ROWS = 256
HEADER_BYTES = 4096
MAGIC = "matchflow cell slab 2"


class CellSlab:
    """Rows of features in slot order.

    One thread writes; others may read slots below `size` at the same time, whatever happens to the file's length, and
    after `close`: whoever reads keeps the mapping alive that it reads from. `token` names this slab and no other.
    """

    def __init__(self, layout: RowLayout, descriptor: int, size: int, token: str) -> None:
        """Take over an open file that holds `size` rows."""
        self.layout = layout
        self.size = size
        self.token = token
        self._descriptor = descriptor
        self._rows: NDArray[np.uint8] = np.frombuffer(b"", np.uint8).reshape(0, layout.size_bytes)
        self._reserved = 0
        self._checksums: dict[int, int] = {}
        if size:
            self._map(size)

    @classmethod
    def open(cls, path: Path, layout: RowLayout, size: int, token: str, *, read_only: bool) -> CellSlab:
        """Return the slab in a file of at least `size` rows; CacheDamagedError when it isn't this one."""
        try:
            descriptor = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
        except OSError as error:
            raise CacheDamagedError(f"{path.name} can't be opened ({error.strerror})") from error
        try:
            _check_file(path, descriptor, layout, size, token)
        except CacheDamagedError:
            os.close(descriptor)
            raise
        return cls(layout, descriptor, size, token)

    @classmethod
    def create(cls, path: Path, layout: RowLayout) -> CellSlab:
        """Return an empty slab in a new file; one that was there lives on for those who have it open."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            return cls._begin(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), layout)
        except OSError as error:
            raise StoreUnavailableError(f"{path} can't be created: {error}") from error

    @classmethod
    def private(cls, layout: RowLayout) -> CellSlab:
        """Return an empty slab in a nameless temporary file, for those who may not write to the store."""
        try:
            with tempfile.TemporaryFile() as file:
                return cls._begin(os.dup(file.fileno()), layout)
        except OSError as error:
            raise StoreUnavailableError(f"a cell slab can't be created in {tempfile.gettempdir()}: {error}") from error

    @classmethod
    def _begin(cls, descriptor: int, layout: RowLayout) -> CellSlab:
        token = secrets.token_hex(16)
        try:
            _write_all(descriptor, memoryview(_header(layout, token)), 0)
        except OSError:
            os.close(descriptor)
            raise
        return cls(layout, descriptor, 0, token)

    def copied(self) -> CellSlab:
        """Return a private copy, which nobody else writes to."""
        copy = self.private(self.layout)
        try:
            for start in range(0, self.size, STEP_ROWS):
                copy.append_array(self._rows[start : min(start + STEP_ROWS, self.size)])
        except StoreUnavailableError:
            copy.close()
            raise
        return copy

    def reserve(self, count: int) -> None:
        """Take the disk that `count` more rows need, so that appending them can't fail; StoreUnavailableError."""
        try:
            self._extend(self.size + count)
            start, stop = max(self._reserved, self._offset(self.size)), self._offset(self.size + count)
            if stop > start:
                _allocate(self._descriptor, start, stop - start)
                self._reserved = stop
        except OSError as error:
            raise StoreUnavailableError(f"the cell slab can't take {count} more rows: {error}") from error

    def append(self, rows: list[bytes]) -> None:
        """Add rows as the next slots; StoreUnavailableError."""
        if rows:
            self.reserve(len(rows))
            self._write(self.size, rows)
            self.size += len(rows)

    def append_array(self, rows: NDArray[np.uint8]) -> None:
        """Add rows uint8 [N, size_bytes] as the next slots; StoreUnavailableError."""
        self.append([row.tobytes() for row in rows])

    def replace(self, start: int, rows: list[bytes]) -> None:
        """Write rows over those from slot `start` on; StoreUnavailableError."""
        self._write(start, rows)

    def erase(self, slots: NDArray[np.int64]) -> None:
        """Make slots zero: their features are gone from this file; StoreUnavailableError."""
        nothing = bytes(self.layout.size_bytes)
        for slot in slots.tolist():
            self._write(slot, [nothing])

    def _write(self, start: int, rows: list[bytes]) -> None:
        try:
            _write_all(self._descriptor, memoryview(b"".join(rows)), self._offset(start))
        except OSError as error:
            raise StoreUnavailableError(f"the cell slab can't be written: {error}") from error
        for block in range(start // BLOCK_ROWS, (start + len(rows) - 1) // BLOCK_ROWS + 1):
            self._checksums.pop(block, None)

    def _offset(self, slot: int) -> int:
        return HEADER_BYTES + slot * self.layout.size_bytes

    def _extend(self, rows: int) -> None:
        if rows <= len(self._rows):
            return
        rows = max(rows, 2 * len(self._rows), SMALLEST_ROWS)
        # Sparse: takes no disk until written. Never shorter, since another process may have it mapped.
        length = max(self._offset(rows), os.fstat(self._descriptor).st_size)
        os.ftruncate(self._descriptor, length)
        self._map(rows)

    def _map(self, rows: int) -> None:
        mapping = mmap.mmap(self._descriptor, self._offset(rows), access=mmap.ACCESS_READ)
        # Rows are read by chance: reading ahead would fetch what nobody asked for.
        mapping.madvise(mmap.MADV_RANDOM)
        whole = np.frombuffer(mapping, np.uint8, offset=HEADER_BYTES)
        self._rows = whole.reshape(rows, self.layout.size_bytes)

    def gather(self, slots: NDArray[np.int64]) -> FeatureBatch:
        """Return the features of some slots, copied in the order given."""
        return self.layout.unpack(np.take(self._rows, slots, axis=0))

    def stored(self, slots: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return some slots as they are stored, uint8 [n, size_bytes], copied in the order given."""
        return np.take(self._rows, slots, axis=0)

    def gather_embeddings(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings float32 [n, D] of some slots, copied in the order given."""
        return np.ascontiguousarray(self._rows[slots, : 4 * self.layout.dim]).view("<f4").astype(np.float32, copy=False)

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

    def checksums(self) -> NDArray[np.uint32]:
        """Return the CRC-32 of each block of rows, the last one up to `size`; those that nobody wrote to are known."""
        whole, rest = divmod(self.size, BLOCK_ROWS)
        for block in range(whole):
            if block not in self._checksums:
                self._checksums[block] = self._checksum(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS)
        last = [self._checksum(whole * BLOCK_ROWS, self.size)] if rest else []
        return np.array([self._checksums[block] for block in range(whole)] + last, np.uint32)

    def _checksum(self, start: int, stop: int) -> int:
        return zlib.crc32(self._rows[start:stop].data)

    def synchronise(self) -> None:
        """Bring all rows to disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Let go of the file; what was gathered stays valid. Once closed, closing does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    @property
    def closed(self) -> bool:
        """Whether the file was let go of."""
        return self._descriptor < 0


def _header(layout: RowLayout, token: str) -> bytes:
    content = {"magic": MAGIC, "token": token, "cells": layout.cells, "dim": layout.dim}
    return json.dumps(content).encode().ljust(HEADER_BYTES, b"\0")


def _check_file(path: Path, descriptor: int, layout: RowLayout, size: int, token: str) -> None:
    length, needed = os.fstat(descriptor).st_size, HEADER_BYTES + size * layout.size_bytes
    if length < needed:
        raise CacheDamagedError(f"{path.name} is truncated: {length} bytes of at least {needed}")
    found, expected = os.pread(descriptor, HEADER_BYTES, 0), _header(layout, token)
    if found != expected:
        raise CacheDamagedError(f"{path.name} is another slab: expected {expected[:120]!r}; got {found[:120]!r}")


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _allocate(descriptor: int, offset: int, length: int) -> None:
    try:
        os.posix_fallocate(descriptor, offset, length)
    except OSError as error:
        # File systems that can't promise disk say so when rows are written.
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
            raise

"""Cache files: a header that says what the file reflects, a checksum over all of it, and atomic replacement."""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from matchflow_index.errors import CacheDamagedError

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"MFCACHE\n"
FORMAT = 2
# magic, format version, length of the header
_PREFIX = struct.Struct("<8sII")
# CRC-32 of all other bytes
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheHeader:
    """What a cache file reflects.

    `gallery_uuid` tells galleries apart that had the same id one after the other, and `history` states of the truth
    that had the same sequence (see history.py); `slab_token` is that of the slab whose slots are meant.
    """

    kind: str
    gallery_id: str
    gallery_uuid: str
    sequence: int
    history: str
    slots: int
    cells: int
    dim: int
    slab_token: str

    def twin(self, kind: str) -> CacheHeader:
        """Return the header of a cache of another kind that goes with this one."""
        return replace(self, kind=kind)


def write_cache(path: Path, header: CacheHeader, payload: bytes) -> None:
    """Write a cache file so that the old one or the new one is there, whenever the power fails; OSError on failure."""
    head = json.dumps(asdict(header)).encode()
    start = _PREFIX.pack(MAGIC, FORMAT, len(head)) + head
    checksum = zlib.crc32(payload, zlib.crc32(start))
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(_CHECKSUM.pack(checksum))
            file.write(start)
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        synchronise_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_cache(path: Path) -> tuple[CacheHeader, bytes]:
    """Return a cache file's header and payload; CacheDamagedError unless every byte is as it was written."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CacheDamagedError(f"{path.name} is missing ({error.strerror})") from error
    if len(data) < _CHECKSUM.size + _PREFIX.size:
        raise CacheDamagedError(f"{path.name} is truncated: {len(data)} bytes")
    magic, version, length = _PREFIX.unpack_from(data, _CHECKSUM.size)
    if (magic, version) != (MAGIC, FORMAT):
        raise CacheDamagedError(
            f"{path.name}: expected {MAGIC!r} of format {FORMAT}; got {magic!r} of format {version}"
        )
    checked = memoryview(data)[_CHECKSUM.size :]
    if (zlib.crc32(checked),) != _CHECKSUM.unpack_from(data):
        raise CacheDamagedError(f"the checksum of {path.name} does not match its bytes")
    body = checked[_PREFIX.size :]
    return CacheHeader(**json.loads(bytes(body[:length]))), bytes(body[length:])


def synchronise_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

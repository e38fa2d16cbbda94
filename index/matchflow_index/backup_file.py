"""Backups as files: a header, chunks of images and an end mark, each with its number, its length and a checksum.

file     "MFBACKUP", format u32, chunks
chunk    kind (1 byte), number u64, length u64, CRC-32 of these and of the content, content; the header is chunk 0
images   entries one after another: lengths u32 of record, row and thumbnail, then these three; a removal has the id of
         the image in place of the record, and neither row nor thumbnail

Numbers are little-endian. Which engine the images came from shows nowhere. An entry replaces those of the same image
before it: a gallery that others write to is read once, and then what changed meanwhile is read again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from matchflow_index.cachefile import synchronise_directory
from matchflow_index.errors import BackupDamagedError, StoreUnavailableError
from matchflow_index.records import GallerySpec, ImageRecord, compact_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO

MAGIC = b"MFBACKUP"
FORMAT = 1
CHUNK_BYTES = 4 << 20
HEADER, IMAGES, END = b"H", b"I", b"E"
# Room for numbers that are known only at the end.
HEADER_ROOM = 256
NOTHING = 0xFFFFFFFF

_START = struct.Struct("<8sI")
_CHUNK = struct.Struct("<cQQ")
_CHECKSUM = struct.Struct("<I")
_ENTRY = struct.Struct("<III")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupHeader:
    """Of which gallery a backup is, and in which state.

    `sequence` and `history` (see history.py) name the state; `images` is how many there are in the end, `entries` how
    many the file has. `uuid` is the gallery's own: one that is restored gets another.
    """

    spec: GallerySpec
    uuid: str
    sequence: int
    history: str
    images: int
    entries: int
    match_defaults: bytes | None

    def encode(self) -> bytes:
        """Return the header as JSON."""
        fields = {name: getattr(self, name) for name in ("uuid", "sequence", "history", "images", "entries")}
        defaults = None if self.match_defaults is None else self.match_defaults.hex()
        return compact_json({**fields, "spec": json.loads(self.spec.encode()), "match_defaults": defaults})

    @classmethod
    def decode(cls, data: bytes) -> BackupHeader:
        """Return the header that `encode` wrote, blanks after it or not."""
        fields = json.loads(data)
        defaults = fields.pop("match_defaults")
        return cls(
            spec=GallerySpec.decode(compact_json(fields.pop("spec"))),
            match_defaults=None if defaults is None else bytes.fromhex(defaults),
            **fields,
        )


@dataclass(frozen=True, slots=True)
class BackupImage:
    """An image as it was stored."""

    record: ImageRecord
    row: bytes
    thumbnail: bytes | None


@dataclass(frozen=True, slots=True)
class BackupRemoval:
    """An image that was gone by the time its gallery had been read."""

    image_id: str


BackupEntry = BackupImage | BackupRemoval


class BackupWriter:
    """Writes a backup beside its place, and puts it there once it is whole and on disk; use it in a `with` statement.

    StoreUnavailableError when it can't be written.
    """

    def __init__(self, path: Path, header: BackupHeader) -> None:
        """Begin; of the header only the numbers and the match defaults may be others in the end."""
        self._path = path
        self._temporary = path.with_name(f".{path.name}.new")
        self._room = len(header.encode()) + HEADER_ROOM
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._chunks = 1
        self.entries = 0
        self._done = False
        try:
            self._file = _begun(self._temporary)
            self._file.write(_START.pack(MAGIC, FORMAT) + bytes(_framed(HEADER, 0, bytes(self._room))))
        except OSError as error:
            raise self._explained(error) from error

    def add(self, entry: BackupEntry) -> None:
        """Write an image, or that it is gone."""
        if isinstance(entry, BackupImage):
            record, row, thumbnail = entry.record.encode(), entry.row, entry.thumbnail
            lengths = _ENTRY.pack(len(record), len(row), NOTHING if thumbnail is None else len(thumbnail))
            data = b"".join((lengths, record, row, thumbnail or b""))
        else:
            name = entry.image_id.encode()
            data = _ENTRY.pack(len(name), NOTHING, NOTHING) + name
        self.entries += 1
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= CHUNK_BYTES:
            self._write_waiting()

    def _write_waiting(self) -> None:
        if self._waiting:
            self._write(IMAGES, b"".join(self._waiting))
            self._waiting, self._waiting_bytes = [], 0

    def _write(self, kind: bytes, content: bytes) -> None:
        try:
            self._file.write(_framed(kind, self._chunks, content))
        except OSError as error:
            raise self._explained(error) from error
        self._chunks += 1

    def finish(self, header: BackupHeader) -> None:
        """Write the end mark and what the header says in the end, and let the backup take its place."""
        self._write_waiting()
        self._write(END, compact_json({"entries": self.entries}))
        content = header.encode()
        if len(content) > self._room:
            raise StoreUnavailableError(f"the match defaults grew meanwhile: {len(content)} bytes of {self._room}")
        try:
            self._file.seek(_START.size)
            self._file.write(_framed(HEADER, 0, content.ljust(self._room)))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._temporary.replace(self._path)
            self._done = True
            synchronise_directory(self._path.parent)
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> StoreUnavailableError:
        return StoreUnavailableError(f"the backup {self._path} can't be written: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as failure:
            # A full disk fails again at closing; the first failure is the one to tell.
            if error is None:
                raise self._explained(failure) from failure
        finally:
            if not self._done:
                self._temporary.unlink(missing_ok=True)


def _begun(path: Path) -> BinaryIO:
    """Return a file that this process alone writes to; what a killed backup left of it is gone."""
    # Not cut off at opening: another may be writing.
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it may have put it in its place since it was opened here.
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise BlockingIOError(errno.EAGAIN, "another backup was being written there", str(path))
        file.truncate(0)
    except OSError:
        file.close()
        raise
    return file


def _framed(kind: bytes, number: int, content: bytes) -> bytes:
    head = _CHUNK.pack(kind, number, len(content))
    return b"".join((head, _CHECKSUM.pack(zlib.crc32(content, zlib.crc32(head))), content))


class BackupReader:
    """Reads a backup; BackupDamagedError says what was expected and what came, StoreUnavailableError for no file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.size_bytes = path.stat().st_size
        except OSError as error:
            raise StoreUnavailableError(f"the backup {path} can't be read: {error}") from error
        kind, content = next(self._chunks())
        if kind != HEADER:
            raise self._damaged(f"expected the header; got a chunk of kind {kind!r}")
        try:
            self.header = BackupHeader.decode(content)
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged(f"its header can't be read: {error!r}") from error

    def entries(self) -> Iterator[list[BackupEntry]]:
        """Yield all entries, chunk by chunk; after the last one it is certain that the file is whole."""
        count = 0
        for kind, content in self._chunks():
            if kind == IMAGES:
                try:
                    entries = list(_entries(content))
                except (ValueError, TypeError, IndexError, struct.error) as error:
                    raise self._damaged(f"an image can't be read: {error!r}") from error
                count += len(entries)
                yield entries
            elif kind == END:
                told = json.loads(content)["entries"]
                if not count == told == self.header.entries:
                    raise self._damaged(f"expected {self.header.entries} entries, {told} by its end mark; got {count}")

    def _chunks(self) -> Iterator[tuple[bytes, bytes]]:
        try:
            with self._path.open("rb") as file:
                yield from self._framed_chunks(file)
        except OSError as error:
            raise StoreUnavailableError(f"the backup {self._path} can't be read: {error}") from error

    def _framed_chunks(self, file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
        start = file.read(_START.size)
        if start != _START.pack(MAGIC, FORMAT):
            raise self._damaged(f"expected {MAGIC!r} and format {FORMAT}; got {start!r}")
        number, kind = 0, b""
        while kind != END:
            head = file.read(_CHUNK.size + _CHECKSUM.size)
            if len(head) < _CHUNK.size + _CHECKSUM.size:
                raise self._damaged(
                    f"it is truncated: expected chunk {number}; the file ends at {self.size_bytes} bytes"
                )
            kind, found, length = _CHUNK.unpack_from(head)
            left = self.size_bytes - file.tell()
            if found != number:
                raise self._damaged(f"expected chunk {number}; got {found}")
            if length > left:
                raise self._damaged(f"it is truncated: expected {length} bytes of chunk {number}; {left} are there")
            content = file.read(length)
            (expected,) = _CHECKSUM.unpack_from(head, _CHUNK.size)
            checksum = zlib.crc32(content, zlib.crc32(head[: _CHUNK.size]))
            if checksum != expected:
                raise self._damaged(f"expected checksum {expected:08x} of chunk {number}; got {checksum:08x}")
            yield kind, content
            number += 1
        if file.read(1):
            raise self._damaged(f"expected its end at {file.tell() - 1} bytes; it has {self.size_bytes}")

    def _damaged(self, problem: str) -> BackupDamagedError:
        return BackupDamagedError(f"{self._path} is not a whole backup: {problem}")


def _entries(content: bytes) -> Iterator[BackupEntry]:
    at = 0
    while at < len(content):
        record, row, thumbnail = _ENTRY.unpack_from(content, at)
        first = at + _ENTRY.size
        if row == NOTHING:
            at = first + record
            yield BackupRemoval(content[first:at].decode())
            continue
        second, third = first + record, first + record + row
        at = third if thumbnail == NOTHING else third + thumbnail
        if at > len(content):
            raise ValueError(f"expected {at} bytes; got {len(content)}")
        picture = None if thumbnail == NOTHING else content[third:at]
        yield BackupImage(ImageRecord.decode(content[first:second]), content[second:third], picture)

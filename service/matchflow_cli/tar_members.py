"""The members of a tar file, plain or gzipped, read forward within bounds.

The headers are read here and not by tarfile.TarFile, which keeps every member, reads headers of any size into memory,
and ends quietly at a damaged one: of an import nothing may go missing without a word. Links are given as members that
are no files; nothing is ever opened by a name in the archive. A gzipped file may hold at most MAX_RATIO times its size,
which no compressed picture comes near.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK = 512
# A name takes at most this many bytes, with whatever else stands beside it.
MAX_HEADER_BYTES = 1024 * 1024
MAX_RATIO = 100
RATIO_COUNTS_FROM_BYTES = 64 * 1024 * 1024
# Archives end with zeros, and concatenated ones go on after them.
MAX_ZERO_BLOCKS = 2048
GZIP_MAGIC = b"\x1f\x8b"
EXTENDED = frozenset({tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE})
FILES = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
# Whatever size their header gives.
WITHOUT_BYTES = frozenset(
    {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE}
)


class DamagedError(Exception):
    """The archive can't be read on from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member; `offset` is where its bytes begin in the tar file, unpacked."""

    name: str
    size_bytes: int
    offset: int
    is_file: bool
    is_folder: bool = False


class Shard:
    """An open tar file. Errors while reading are DamagedError; that it can't be opened is OSError."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("rb")
        self.status = os.fstat(self._raw.fileno())
        self.is_gzipped = self._raw.read(2) == GZIP_MAGIC
        self._raw.seek(0)
        self._file = gzip.GzipFile(fileobj=self._raw) if self.is_gzipped else self._raw
        self._limit = self.status.st_size
        if self.is_gzipped:
            self._limit = max(RATIO_COUNTS_FROM_BYTES, self.status.st_size * MAX_RATIO)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._raw.close()

    @property
    def position(self) -> int:
        """How far in the file on disk reading has come, in bytes."""
        return min(self._raw.tell(), self.status.st_size)

    def members(self) -> Iterator[Member]:
        """Give the members in their order; each can be read until the next one is asked for."""
        try:
            yield from self._members()
        except (OSError, EOFError, zlib.error) as error:
            raise DamagedError(f"the archive is damaged: {error}") from error

    def read(self, member: Member) -> bytes:
        """Return the bytes of a member; in a plain file at any time, in a gzipped one while it is the latest."""
        try:
            self._forward(member.offset)
            return self._exactly(member.size_bytes)
        except (OSError, EOFError, zlib.error) as error:
            raise DamagedError(f"the archive is damaged: {error}") from error

    def _members(self) -> Iterator[Member]:
        end, zeros, extended = 0, 0, _Extended()
        while zeros < MAX_ZERO_BLOCKS:
            self._forward(end)
            block = self._file.read(BLOCK)
            if not block and zeros:
                return
            end += BLOCK
            if block == bytes(BLOCK):
                zeros += 1
                continue
            zeros = 0
            header = _header(block)
            if _describes_the_next(header):
                extended.read(header, self._header_content(header))
                end += _blocks(header.size)
                continue
            member = extended.member(header, end)
            end += _blocks(member.size_bytes)
            extended = _Extended()
            yield member

    def _header_content(self, header: tarfile.TarInfo) -> bytes:
        if header.size > MAX_HEADER_BYTES:
            raise DamagedError(f"expected a header of at most {MAX_HEADER_BYTES:,} bytes; got {header.size:,}")
        return self._exactly(header.size)

    def _forward(self, target: int) -> None:
        if target > self._limit:
            if self.is_gzipped:
                raise DamagedError(f"it unpacks to more than {MAX_RATIO} times its size")
            raise DamagedError("the archive ends in the middle of a member")
        if self._file.tell() != target and self._file.seek(target) != target:
            raise DamagedError("the archive ends in the middle of a member")

    def _exactly(self, size_bytes: int) -> bytes:
        data = self._file.read(size_bytes)
        if len(data) < size_bytes:
            raise DamagedError("the archive ends in the middle of a member")
        return data


class _Extended:
    """What headers say of the member that follows them."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._size: int | None = None
        self._is_sparse = False

    def read(self, header: tarfile.TarInfo, content: bytes) -> None:
        if header.type == tarfile.GNUTYPE_LONGNAME:
            self._name = _text(content.partition(b"\0")[0])
        elif header.type in EXTENDED:
            for key, value in _records(content):
                self._take(key, value)

    def _take(self, key: bytes, value: bytes) -> None:
        if key == b"path":
            self._name = _text(value)
        elif key == b"size":
            if not value.isdigit() or len(value) > len(str(2**63)):
                raise DamagedError("a header gives a size that is no number")
            self._size = int(value)
        elif key.startswith(b"GNU.sparse"):
            self._is_sparse = True

    def member(self, header: tarfile.TarInfo, offset: int) -> Member:
        # A file with holes is not stored as its bytes.
        size_bytes = header.size if self._size is None else self._size
        return Member(
            name=header.name if self._name is None else self._name,
            size_bytes=0 if header.type in WITHOUT_BYTES else size_bytes,
            offset=offset,
            is_file=header.type in FILES and not self._is_sparse,
            is_folder=header.isdir(),
        )


def _blocks(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK) * BLOCK


def _header(block: bytes) -> tarfile.TarInfo:
    if len(block) < BLOCK:
        raise DamagedError("the archive ends without its end mark: it may have been cut off")
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise DamagedError(f"a header can't be read: {error}") from error
    if header.type == tarfile.GNUTYPE_SPARSE:
        raise DamagedError("it has files with holes, which are not read; pack it again without --sparse")
    if header.size < 0:
        raise DamagedError("a header gives a negative size")
    return header


def _describes_the_next(header: tarfile.TarInfo) -> bool:
    kinds = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE}
    return header.type in EXTENDED or header.type in kinds


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Give the records of a pax header: LENGTH KEY=VALUE and a line feed, where the length counts the whole record."""
    begin = 0
    while begin < len(content) and content[begin]:
        length, space, _ = content[begin : begin + 20].partition(b" ")
        if not (space and length.isdigit()):
            raise DamagedError("a header has a record without a length")
        end = begin + int(length)
        key, separator, value = content[begin + len(length) + 1 : end - 1].partition(b"=")
        if not separator or end > len(content) or content[end - 1 : end] != b"\n":
            raise DamagedError("a header has a record that does not end where it should")
        yield key, value
        begin = end


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")

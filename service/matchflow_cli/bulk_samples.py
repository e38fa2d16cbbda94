"""What an import is made of: samples that go in, and what is left out with the reason.

A source is read forward, once, and holds no more than a few samples at a time. Whatever is wrong with one of them is a
Rejection in its place; only a source that can't be read at all raises CommandError.
"""

from __future__ import annotations

import enum
import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from matchflow import FileUnreadableError
from matchflow.sources import read_image
from matchflow_cli.output import printable

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_cli.bulk_labels import Labels

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
MAX_ID_LENGTH = 256
SEPARATOR = ":"
# A file can change twice within one tick of the clock that its modification time is taken from.
SETTLED_AFTER_S = 2.0


class Reason(enum.StrEnum):
    """Why a sample was not even sent; what the server refuses has the server's reason."""

    ROW_INVALID = "ROW_INVALID"
    LABEL_INVALID = "LABEL_INVALID"
    PATH_OUTSIDE = "PATH_OUTSIDE"
    DUPLICATE_ID = "DUPLICATE_ID"
    SAMPLE_INCOMPLETE = "SAMPLE_INCOMPLETE"
    ARCHIVE_DAMAGED = "ARCHIVE_DAMAGED"
    FILE_UNREADABLE = FileUnreadableError.reason
    IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"


class RejectedError(Exception):
    """Something is wrong with one sample; the rest goes on."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A sample that is left out: where it stands in the source, its id where it has one, and why."""

    place: str
    reason: str
    message: str
    image_id: str = ""
    position: int = 0


class Content(Protocol):
    """The bytes of an image, not read yet."""

    def fingerprint(self) -> bytes | None:
        """Return what changes when the bytes may have changed, without reading them; None: can't tell."""
        ...

    def read(self) -> bytes:
        """Return the encoded image; raises MatchflowError or RejectedError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An image with its id and labels; `position` says how far in the source it stands."""

    image_id: str
    place: str
    labels: Labels
    content: Content = field(repr=False)
    position: int

    def rejected(self, reason: str, message: str) -> Rejection:
        """Return this sample as one that is left out."""
        return Rejection(
            place=self.place, reason=reason, message=message, image_id=self.image_id, position=self.position
        )


class Source(Protocol):
    """Where images come from."""

    def extent(self) -> int:
        """Return the position of the end, in whatever unit positions have."""
        ...

    def samples(self) -> Iterator[Sample | Rejection]:
        """Give the samples in an order that is always the same."""
        ...


@dataclass(frozen=True, slots=True)
class FileContent:
    """An image in a file of its own."""

    path: Path

    def fingerprint(self) -> bytes | None:
        """Return a digest of path, size and modification time; None for a file that was written just now."""
        try:
            status = self.path.stat()
        except (OSError, ValueError) as error:  # ValueError: a path with a null character
            raise FileUnreadableError(self.path, getattr(error, "strerror", None) or str(error)) from error
        return stat_fingerprint(self.path, status)

    def read(self) -> bytes:
        """Return the file's bytes."""
        return read_image(self.path)


def stat_fingerprint(path: Path, status: os.stat_result, detail: str = "") -> bytes | None:
    """Return a digest of what the file system says of a file, and of `detail` inside it; None if too fresh to trust."""
    if time.time() - status.st_mtime < SETTLED_AFTER_S:
        return None
    said = f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\0{detail}"
    return hashlib.sha256(said.encode("utf-8", "surrogateescape")).digest()[:16]


def image_id_of(relative: str) -> str:
    """Return the image id of a path, different for every path.

    Ids hold no '/': it becomes ':'. What could be taken for that or for an escape, or is no printable Unicode, becomes
    %XX. What is too long keeps its end, after a digest of the whole.

    >>> image_id_of("noto/1f600.png")
    'noto:1f600.png'
    """
    made = "".join(SEPARATOR if char == "/" else _escape(char) for char in relative)
    if len(made) > MAX_ID_LENGTH:
        digest = hashlib.sha256(made.encode()).hexdigest()[:32] + SEPARATOR
        made = digest + made[len(digest) - MAX_ID_LENGTH :]
    return made


def one_line_of(error: Exception) -> str:
    """Return an error's message as one printable line."""
    return printable(" ".join(str(error).split()))


def _escape(char: str) -> str:
    if char.isprintable() and char not in {"%", SEPARATOR}:
        return char
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))

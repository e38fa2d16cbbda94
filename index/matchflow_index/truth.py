"""What a truth is: the one transactional store that every cache is derived from, and nothing else is believed.

Layout, whatever the engine: specifications; per gallery its images (id -> record), rows (row id -> features),
thumbnails (row id -> bytes), an append-only log of changes (sequence -> change) and at most one note of match defaults
(bytes; no change of an image, so not in the log); counters. Row ids count up over the whole store and are never given
twice; sequence numbers count up per gallery.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from matchflow_index.records import GallerySpec, ImageRecord

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGallery:
    """A gallery in a truth: `number` is never reused in the store; `uuid` never anywhere, even under the same id."""

    spec: GallerySpec
    number: int
    uuid: str


class ChangeKind(enum.StrEnum):
    """What a change did to one image."""

    PUT = "put"
    RELABEL = "relabel"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One entry of the log; `replaced_row_id` is the row that a PUT put an end to, if any."""

    sequence: int
    kind: ChangeKind
    image_id: str
    row_id: int
    replaced_row_id: int | None = None


class Snapshot(Protocol):
    """A gallery as it was at one moment, however long one looks."""

    @property
    def sequence(self) -> int:
        """The last change; 0 for none."""
        ...

    def record(self, image_id: str) -> ImageRecord | None:
        """Return an image's record."""
        ...

    def records(self, after: str | None = None) -> Iterator[ImageRecord]:
        """Yield all records, or those whose id is greater than `after`, in order of id."""
        ...

    def row(self, row_id: int) -> bytes | None:
        """Return a row's features."""
        ...

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Yield all rows, in order of row id."""
        ...

    def thumbnail(self, row_id: int) -> bytes | None:
        """Return a row's thumbnail."""
        ...

    def changes(self, after: int) -> Iterator[Change]:
        """Yield the changes whose sequence is greater than `after`, in order."""
        ...


class Transaction(Snapshot, Protocol):
    """A snapshot that sees its own changes; all become durable together, or none."""

    def next_row_id(self) -> int:
        """Return a row id that was never given before."""
        ...

    def put(self, record: ImageRecord, row: bytes, thumbnail: bytes | None) -> Change:
        """Store an image with a new row; the row that it had before, if any, is gone."""
        ...

    def relabel(self, record: ImageRecord) -> Change:
        """Replace the record of an image that keeps its row."""
        ...

    def remove(self, image_id: str) -> Change | None:
        """Remove an image with its row; None when there is none."""
        ...


class Truth(Protocol):
    """Transactional storage of galleries.

    All raise StoreUnavailableError when the store can't serve, and GalleryNotFoundError for a gallery that is gone.
    """

    def galleries(self) -> list[StoredGallery]:
        """Return all galleries, in order of id."""
        ...

    def create(self, spec: GallerySpec) -> StoredGallery:
        """Store a new, empty gallery; GalleryExistsError when the id is taken."""
        ...

    def delete(self, gallery_id: str) -> StoredGallery:
        """Delete a gallery and all that is in it; return what it was."""
        ...

    def read(self, gallery: StoredGallery) -> AbstractContextManager[Snapshot]:
        """Look at a gallery."""
        ...

    def write(self, gallery: StoredGallery, work: Callable[[Transaction], Result]) -> Result:
        """Run `work` in one transaction, and return its result once that is on disk.

        `work` may run more than once (it must only depend on its transaction); an exception from it undoes all.
        """
        ...

    def match_defaults(self, gallery: StoredGallery) -> bytes | None:
        """Return what `set_match_defaults` stored, None when there is nothing."""
        ...

    def set_match_defaults(self, gallery: StoredGallery, defaults: bytes | None) -> None:
        """Store a gallery's match defaults, on disk when this returns; None: forget them."""
        ...

    def close(self) -> None:
        """Let go of the store."""
        ...

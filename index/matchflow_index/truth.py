"""What a truth is: the one transactional store that every cache is derived from, and nothing else is believed.

Layout, whatever the engine: specifications; per gallery its images (id -> record), rows (row id -> features),
thumbnails (row id -> bytes), an append-only log of changes (sequence -> change) and at most one note of match defaults
(bytes; no change of an image, so not in the log); counters. Row ids are never given twice in a store; sequence numbers
count up per gallery, without gaps, in the order in which transactions became durable.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from matchflow_index.records import GallerySpec, ImageRecord

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGallery:
    """A gallery in a truth: `number` is never reused in the store; `uuid` never anywhere, even under the same id."""

    spec: GallerySpec
    number: int
    uuid: str


class Durability(enum.StrEnum):
    """What has happened to a transaction when `write` returns."""

    DISK = "disk"
    """Written to disk and synchronised: it survives the loss of power."""
    PROCESS = "process"
    """Given to the operating system: it survives the end of any process; the loss of power may take the last second."""
    MEMORY = "memory"
    """Held in memory only: the end of the server takes it."""


class ChangeKind(enum.StrEnum):
    """What a change did to one image."""

    PUT = "put"
    RELABEL = "relabel"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One entry of the log; `replaced_row_id` is the row that a PUT put an end to, if any; seconds since 1970."""

    sequence: int
    kind: ChangeKind
    image_id: str
    row_id: int
    time_s: float
    replaced_row_id: int | None = None


class Snapshot(Protocol):
    """A gallery at one moment, however long one looks; a truth that is shared may show later changes too.

    All changes up to `sequence` are there. What changes meanwhile may shine through where `Truth.shared` is true: who
    needs one state applies the changes after `sequence` to what was read, which gives the same whichever were in it.
    """

    @property
    def sequence(self) -> int:
        """The last change; 0 for none."""
        ...

    @property
    def log_start(self) -> int:
        """The first change that the log still has; `sequence` + 1 when it has none."""
        ...

    def history(self, sequence: int) -> bytes | None:
        """Return the chained digest (history.py) of all changes up to one; None where the log doesn't reach."""
        ...

    def record(self, image_id: str) -> ImageRecord | None:
        """Return an image's record."""
        ...

    def records_of(self, image_ids: Sequence[str]) -> list[ImageRecord | None]:
        """Return the records of some images, in that order."""
        ...

    def records(self, after: str | None = None) -> Iterator[ImageRecord]:
        """Yield all records, or those whose id is greater than `after`, in order of id."""
        ...

    def row(self, row_id: int) -> bytes | None:
        """Return a row's features."""
        ...

    def rows_of(self, row_ids: Sequence[int]) -> list[bytes | None]:
        """Return some rows' features, in that order."""
        ...

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Yield all rows, in order of row id."""
        ...

    def thumbnail(self, row_id: int) -> bytes | None:
        """Return a row's thumbnail."""
        ...

    def changes(self, after: int) -> Iterator[Change]:
        """Yield the changes whose sequence is greater than `after`, in order; those that the log still has."""
        ...


class Transaction(Snapshot, Protocol):
    """A snapshot that sees its own changes; all become durable together, or none."""

    def next_row_id(self) -> int:
        """Return a row id that was never given before."""
        ...

    def put(self, record: ImageRecord, row: bytes, thumbnail: bytes | None) -> Change:
        """Store an image with a new row; the row that it had before, if any, is gone.

        `record.sequence` must be `sequence` + 1 as it was before the call; time is the record's update time.
        """
        ...

    def relabel(self, record: ImageRecord) -> Change:
        """Replace the record of an image that keeps its row; `record` as in `put`."""
        ...

    def remove(self, image_id: str, time_s: float) -> Change | None:
        """Remove an image with its row; None when there is none."""
        ...


class Truth(Protocol):
    """Transactional storage of galleries.

    All raise StoreUnavailableError when the store can't serve, and GalleryNotFoundError for a gallery that is gone.
    """

    @property
    def shared(self) -> bool:
        """Whether other processes may write while this one is open."""
        ...

    @property
    def durability(self) -> Durability:
        """What has happened to a transaction when `write` returns."""
        ...

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

    def wait(self, gallery: StoredGallery, after: int, timeout_s: float) -> int:
        """Return the gallery's last change as soon as it is greater than `after`, or when the time is up."""
        ...

    def trim_log(self, gallery: StoredGallery, keep: int) -> int:
        """Forget the log but for the last `keep` entries, at least one; return how many were forgotten."""
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

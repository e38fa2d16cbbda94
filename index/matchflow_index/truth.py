"""What a truth is: the one transactional store that every cache is derived from, and nothing else is believed.

Layout, whatever the engine: specifications; per gallery its images (id -> record), rows (row id -> features),
thumbnails (row id -> bytes), an append-only log of changes (sequence -> change) and at most one note of match defaults
(bytes; no change of an image, so not in the log); counters. Row ids are never given twice in a store; sequence numbers
count up per gallery, without gaps, in the order in which transactions became durable.

Under one gallery id there are up to two generations, each with all of that to itself: the active one, which is what
everybody means by that id, and another one, which follows it. A transaction says in which of the two roles it takes its
generation to be, and does nothing should that be wrong: no write is lost to a switch that it did not see.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from matchflow_index.errors import GenerationNotFoundError
from matchflow_index.records import compact_json

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

    @property
    def lineage(self) -> str:
        """What all generations of a gallery share, and no other gallery has, even under the same id."""
        return self.spec.lineage or self.uuid


@dataclass(frozen=True, slots=True, kw_only=True)
class Generations:
    """What is stored under one gallery id; `given` is the highest number that a generation of it ever had."""

    active: StoredGallery
    other: StoredGallery | None = None
    given: int = field(default=1, compare=False)

    def __iter__(self) -> Iterator[StoredGallery]:
        """Yield all of them, the active one first."""
        yield self.active
        if self.other is not None:
            yield self.other

    def numbered(self, generation: int) -> StoredGallery:
        """Return the generation of that number, the active one for 0; GenerationNotFoundError."""
        for stored in self:
            if generation in {0, stored.spec.generation}:
                return stored
        there = [stored.spec.generation for stored in self]
        raise GenerationNotFoundError(self.active.spec.gallery_id, generation, there)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a generation has followed another one: whatever that one's changes up to `sequence` did is in it.

    `complete`: it has all images that it could have. `beyond`: it may have some that the other one lacks.
    """

    uuid: str
    sequence: int
    complete: bool = False
    beyond: bool = False

    def encode(self) -> bytes:
        """Return it as JSON."""
        return compact_json([self.uuid, self.sequence, self.complete, self.beyond])

    @classmethod
    def decode(cls, data: bytes) -> Position:
        """Return the position that `encode` wrote."""
        uuid, sequence, complete, beyond = json.loads(data)
        return cls(uuid=uuid, sequence=sequence, complete=complete, beyond=beyond)


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
    def active(self) -> bool:
        """Whether this was the active generation when the look began."""
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

    @property
    def position(self) -> Position | None:
        """How far this generation has followed the other one; None: nobody said."""
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

    def follow(self, position: Position) -> None:
        """Say how far this generation has followed the other one; no change of an image."""
        ...


class Truth(Protocol):
    """Transactional storage of galleries.

    All raise StoreUnavailableError when the store can't serve, and GalleryNotFoundError for a gallery that is gone: it
    is a GenerationDroppedError where another generation of it is there.
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
        """Return the active generation of every gallery, in order of id."""
        ...

    def generations(self, gallery_id: str) -> Generations:
        """Return what is stored under an id."""
        ...

    def others(self) -> list[StoredGallery]:
        """Return the other generation of every gallery that has one, in order of id."""
        ...

    def create(self, spec: GallerySpec) -> StoredGallery:
        """Store a new, empty gallery; GalleryExistsError when the id is taken."""
        ...

    def delete(self, gallery_id: str) -> StoredGallery:
        """Delete a gallery with all of its generations and all that is in them; return the active one."""
        ...

    def add_generation(self, spec: GallerySpec) -> StoredGallery:
        """Store an empty generation beside the active one of that id, with a number that this id never had before.

        Raises GenerationExistsError when there are two.
        """
        ...

    def drop_generation(self, gallery: StoredGallery) -> None:
        """Delete a generation and all that is in it; GenerationActiveError, GenerationNotFoundError."""
        ...

    def switch(self, gallery: StoredGallery, sequence: int, *, complete: bool = True, beyond: bool = False) -> bool:
        """Let the active generation and the other one change places, if `gallery` is active and at that change.

        False: it is not, and nothing was done. The one that was active follows from then on, from where the other is;
        `complete` says that it has all images which that one has, `beyond` that it has some which that one lacks.
        """
        ...

    def claim(self, gallery: StoredGallery, seconds: float) -> bool:
        """Tell whether this process is the one that fills a generation: for so long, unless it claims it again.

        With 0 it lets go of it.
        """
        ...

    def read(self, gallery: StoredGallery) -> AbstractContextManager[Snapshot]:
        """Look at a gallery."""
        ...

    def hold(self, gallery: StoredGallery) -> AbstractContextManager[None]:
        """Let no other process write to a gallery inside the block, for some seconds at most; a courtesy, no lock."""
        ...

    def write(self, gallery: StoredGallery, work: Callable[[Transaction], Result], *, active: bool = True) -> Result:
        """Run `work` in one transaction, and return its result once that is on disk.

        `work` may run more than once (it must only depend on its transaction); an exception from it undoes all.
        Raises GenerationMovedError, and nothing was done, where the generation is active and `active` is false, or the
        other way round.
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

    def set_match_defaults(self, gallery: StoredGallery, defaults: bytes | None, *, active: bool | None = None) -> None:
        """Store a gallery's match defaults, on disk when this returns; None: forget them.

        With `active`, GenerationMovedError as in `write`.
        """
        ...

    def close(self) -> None:
        """Let go of the store."""
        ...

"""Putting images in: items, results, and the books that both clients keep while a stream runs."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from matchflow.errors import (
    InvalidFieldError,
    MatchflowError,
    ServerUnreachableError,
    UnexpectedStatusError,
    from_status,
)
from matchflow.labels import Expiry, Labels, labels_message, set_expiry
from matchflow.sources import ImageFile, features_message, read_image
from matchflow.v1 import ingest_pb2
from matchflow.values import Features, ImageRef

INGEST_IMAGES = "/matchflow.v1.IngestService/IngestImages"
# Enough to keep the server's encoder in full batches while one group of 64 waits for its commit and another gathers.
MAX_ITEMS_IN_FLIGHT = 256
# Sending that had to wait goes on once so many items may be sent in one go: a wake-up for each costs more than it.
REFILL_SHARE = 1 / 8
MAX_BYTES_IN_FLIGHT = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestItem:
    """An image to put in: the path of a file (read only when its turn comes), encoded bytes, or features.

    labels: texts, finite numbers, and times with a zone. expire_time: when the image is gone of itself, or how long
    after it arrives; None: it stays. etag: put only where the stored image still has it; must_be_new: only where there
    is none of that id.
    """

    id: str
    image: ImageFile | Features
    labels: Labels = field(default_factory=dict)
    expire_time: Expiry | None = None
    etag: str = ""
    must_be_new: bool = False


class IngestOutcome(enum.StrEnum):
    """What became of an item."""

    CREATED = "created"
    UPDATED = "updated"
    """There was an image of that id with other content, labels or end."""
    UNCHANGED = "unchanged"
    """Same content, labels and end: nothing was computed or written."""
    FAILED = "failed"


class Durability(enum.StrEnum):
    """What a stored image survives."""

    DISK = "disk"
    """Written to disk and synchronised: the loss of power."""
    PROCESS = "process"
    """Given to the operating system: the end of any process; the loss of power may take the last second."""
    MEMORY = "memory"
    """Held in memory: not even the end of the store's server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestResult:
    """What became of one item; `error` says why it failed, and is None otherwise. row_id is 0 for a failed one.

    `durability` is None for a failed one, and where the server does not say. generation: the one that took it.
    """

    item: IngestItem = field(repr=False)
    outcome: IngestOutcome
    row_id: int = 0
    sequence: int = 0
    error: MatchflowError | None = None
    durability: Durability | None = None
    generation: int = 0

    @property
    def image_id(self) -> str:
        """The id of the item."""
        return self.item.id


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestFailure:
    """An item that is not in the gallery, and why."""

    image_id: str
    error: MatchflowError


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSummary:
    """What a whole stream did."""

    created: int
    updated: int
    unchanged: int
    failures: tuple[IngestFailure, ...]

    @property
    def stored(self) -> int:
        """How many items are on the server's disk."""
        return self.created + self.updated + self.unchanged

    @property
    def total(self) -> int:
        """How many items there were."""
        return self.stored + len(self.failures)


OnResult: TypeAlias = Callable[[IngestResult], None]

OUTCOMES = {
    ingest_pb2.INGEST_OUTCOME_CREATED: IngestOutcome.CREATED,
    ingest_pb2.INGEST_OUTCOME_UPDATED: IngestOutcome.UPDATED,
    ingest_pb2.INGEST_OUTCOME_UNCHANGED: IngestOutcome.UNCHANGED,
}

DURABILITIES = {
    ingest_pb2.DURABILITY_DISK: Durability.DISK,
    ingest_pb2.DURABILITY_PROCESS: Durability.PROCESS,
    ingest_pb2.DURABILITY_MEMORY: Durability.MEMORY,
}


def ingest_request(gallery: str, item_id: int, item: IngestItem, generation: int = 0) -> ingest_pb2.IngestImagesRequest:
    """Return the message for one item, its file read now; raises MatchflowError for an item that can't be sent."""
    try:
        request = ingest_pb2.IngestImagesRequest(
            name=ImageRef(gallery, item.id).name,
            labels=labels_message(item.labels),
            item_id=item_id,
            etag=item.etag,
            must_be_new=item.must_be_new,
            generation=generation,
        )
        set_expiry(request, item.expire_time)
    except (TypeError, ValueError) as error:  # names that are no Unicode
        raise InvalidFieldError(f"item {item.id!r}: its id must be Unicode text: {error}") from error
    if isinstance(item.image, Features):
        request.features.CopyFrom(features_message(item.image))
    else:
        request.image_bytes = read_image(item.image)
    return request


class IngestLedger:
    """The books of one stream: what is under way, what became of the rest.

    Not safe for threads: the clients guard it by the lock on which they wait for room.
    """

    def __init__(
        self,
        gallery: str,
        *,
        max_items: int = MAX_ITEMS_IN_FLIGHT,
        max_bytes: int = MAX_BYTES_IN_FLIGHT,
        generation: int = 0,
    ) -> None:
        if max_items < 1:
            raise ValueError(f"at least 1 item must be allowed in flight; got {max_items}")
        self.gallery = gallery
        self.generation = generation
        self._max_items = max_items
        self._refill_at = max_items - max(1, int(max_items * REFILL_SHARE))
        self._full = False
        self._max_bytes = max_bytes
        self._next_id = 0
        self._bytes_in_flight = 0
        self._in_flight: dict[int, tuple[IngestItem, int]] = {}
        self._counts = dict.fromkeys(IngestOutcome, 0)
        self._failures: list[IngestFailure] = []
        self._unreported: list[IngestResult] = []

    def next_id(self) -> int:
        """Return an item id that was not given before."""
        self._next_id += 1
        return self._next_id

    def has_room(self, request: ingest_pb2.IngestImagesRequest) -> bool:
        """Say whether the request may be sent now; one alone always may.

        Once as many items are under way as may be, there is room again only when REFILL_SHARE of them are answered.
        """
        under_way = len(self._in_flight)
        self._full = under_way > self._refill_at if self._full else under_way >= self._max_items
        if not under_way:
            return True
        return not self._full and self._bytes_in_flight + request.ByteSize() <= self._max_bytes

    def sent(self, item: IngestItem, request: ingest_pb2.IngestImagesRequest) -> None:
        """Book an item as under way."""
        size_bytes = request.ByteSize()
        self._in_flight[request.item_id] = (item, size_bytes)
        self._bytes_in_flight += size_bytes

    def refused(self, item: IngestItem, error: MatchflowError) -> None:
        """Book an item that could not be sent."""
        self._book(IngestResult(item=item, outcome=IngestOutcome.FAILED, error=error))

    def answered(self, reply: ingest_pb2.IngestImagesResponse) -> None:
        """Book the server's result; one for an item that is not under way is ignored."""
        item, size_bytes = self._in_flight.pop(reply.item_id, (None, 0))
        if item is None:
            return
        self._bytes_in_flight -= size_bytes
        error = _error_of(reply)
        outcome = IngestOutcome.FAILED if error else OUTCOMES[reply.outcome]
        self._book(
            IngestResult(
                item=item,
                outcome=outcome,
                row_id=reply.row_id,
                sequence=reply.sequence,
                error=error,
                durability=DURABILITIES.get(reply.durability),
                generation=reply.generation,
            )
        )

    def unreported(self) -> list[IngestResult]:
        """Return the results booked since the last call."""
        results, self._unreported = self._unreported, []
        return results

    def summary(self) -> IngestSummary:
        """Return what became of the items so far."""
        return IngestSummary(
            created=self._counts[IngestOutcome.CREATED],
            updated=self._counts[IngestOutcome.UPDATED],
            unchanged=self._counts[IngestOutcome.UNCHANGED],
            failures=tuple(self._failures),
        )

    def interrupted(self, error: MatchflowError) -> MatchflowError:
        """Return the error of a stream that broke, with what had been acknowledged."""
        error.acknowledged = self.summary().stored
        return error

    def finished(self, target: str) -> IngestSummary:
        """Return the summary of a stream that the server ended; raises ServerUnreachableError for unanswered items."""
        if self._in_flight:
            count = len(self._in_flight)
            raise self.interrupted(ServerUnreachableError(f"{target} ended the stream with {count:,} items unanswered"))
        return self.summary()

    def _book(self, result: IngestResult) -> None:
        self._counts[result.outcome] += 1
        self._unreported.append(result)
        if result.error is not None:
            self._failures.append(IngestFailure(image_id=result.image_id, error=result.error))


def _error_of(reply: ingest_pb2.IngestImagesResponse) -> MatchflowError | None:
    if reply.status.code:
        return from_status(reply.status)
    if reply.outcome not in OUTCOMES:  # a newer server's; this client can't say that the image is stored
        return UnexpectedStatusError(
            f"the server answered with outcome {reply.outcome}, which this client does not know"
        )
    return None

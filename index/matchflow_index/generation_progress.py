"""How far a generation is that follows the active one, and what it lacks."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from matchflow_index.following import Embed, Follower
    from matchflow_index.gallery import Gallery
    from matchflow_index.records import GallerySpec
    from matchflow_index.truth import Position

    # Returns what computes features under the bundle of a digest; None: nobody here can.
    EmbedOf = Callable[[str], Embed | None]

# Images of the active generation that are looked at for one page of missing ones.
PAGE_LOOKS = 4_096


class GenerationState(enum.StrEnum):
    """What a generation is doing."""

    ACTIVE = "active"
    FILLING = "filling"
    READY = "ready"
    """It has every image of the active one."""
    INCOMPLETE = "incomplete"
    """It has every image that could be computed."""
    WAITING_FOR_MODEL = "waiting_for_model"
    """Images, or changes, may have to be computed, which can't be done here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStatus:
    """How far a generation is: `missing` images of the active one and `pending` changes of it are not in it.

    `complete`: but for what is pending, it has all images that it could have.
    """

    gallery: Gallery
    state: GenerationState
    missing: int = 0
    pending: int = 0
    complete: bool = True

    @property
    def spec(self) -> GallerySpec:
        """What the generation is pinned to."""
        return self.gallery.spec


class Progress:
    """Looks how far generations of one gallery are; any thread may use it."""

    def __init__(self, embed_of: EmbedOf) -> None:
        self._embed_of = embed_of
        self._counted: tuple[tuple[int, int], int] = ((-1, -1), 0)

    def of(self, follower: Follower) -> GenerationStatus:
        """Return how far the target of a follower is; no lock of the store is taken."""
        position, source = follower.position, follower.source
        pending = 0 if position is None else max(0, source.sequence - position.sequence)
        missing = self._missing_count(follower, position)
        complete = position is not None and position.complete
        return GenerationStatus(
            gallery=follower.target,
            state=self._state(follower.target.spec.bundle_digest, missing, pending, complete=complete),
            missing=missing,
            pending=pending,
            complete=complete,
        )

    def _state(self, digest: str, missing: int, pending: int, *, complete: bool) -> GenerationState:
        if pending or not complete:
            able = self._embed_of(digest) is not None
            return GenerationState.FILLING if able else GenerationState.WAITING_FOR_MODEL
        return GenerationState.INCOMPLETE if missing else GenerationState.READY

    def _missing_count(self, follower: Follower, position: Position | None) -> int:
        """Return how many images of the active generation the other one lacks."""
        source, target = follower.source, follower.target
        if position is None or not position.beyond:
            # What it has, the active one has too.
            return max(0, source.count - target.count)
        at = (source.sequence, target.sequence)
        if self._counted[0] != at:
            self._counted = (at, source.count - target.count_of(source.image_ids()))
        return self._counted[1]


def lacking(follower: Follower, after: str | None, limit: int) -> tuple[list[str], str | None]:
    """Return the ids of up to `limit` images that a follower's target lacks or has with other content, after an id.

    Of many images only some are looked at: the second value is the id to go on after, None at the end.
    """
    with follower.source.snapshot() as snapshot:
        records = list(islice(snapshot.records(after), PAGE_LOOKS))
    with follower.target.snapshot() as snapshot:
        held = snapshot.records_of([record.image_id for record in records])
    found = [
        record.image_id
        for record, other in zip(records, held, strict=True)
        if other is None or other.content_hash != record.content_hash
    ]
    if len(found) > limit:
        return found[:limit], found[limit - 1]
    return found, records[-1].image_id if len(records) == PAGE_LOOKS else None

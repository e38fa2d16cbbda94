"""The generations of one gallery: begin another one, see how far it is, compare it, switch to it, drop it."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from matchflow_index.comparing import compare
from matchflow_index.errors import (
    GenerationActiveError,
    GenerationDroppedError,
    GenerationMovedError,
    GenerationNotFoundError,
    GenerationNotReadyError,
    SequenceNotReachedError,
    StoreUnavailableError,
)
from matchflow_index.following import Follower
from matchflow_index.generation_progress import GenerationState, GenerationStatus, Progress, lacking
from matchflow_index.records import GENERATION_STRIDE
from matchflow_index.switching import switched

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matchflow_index.comparing import Comparison, ComparisonQuery
    from matchflow_index.gallery import Gallery
    from matchflow_index.generation_progress import EmbedOf
    from matchflow_index.records import GallerySpec
    from matchflow_index.store import GalleryStore
    from matchflow_index.truth import Generations, StoredGallery, Truth

logger = logging.getLogger(__name__)

LOOK_S = 0.05
# How long a process that fills a generation is taken to be alive without saying so again.
CLAIM_S = 60.0
# How often a deletion that met a switch goes over both generations.
MOST_ROUNDS = 20


class GalleryGenerations:
    """The generations of a gallery in an open store; any thread may use it.

    All methods raise GalleryNotFoundError, and those that take a number GenerationNotFoundError.
    """

    def __init__(self, gallery_id: str, store: GalleryStore, truth: Truth, embed_of: EmbedOf) -> None:
        """Use `GalleryStore.generations_of`."""
        self._gallery_id = gallery_id
        self._store = store
        self._truth = truth
        self._embed_of = embed_of
        self._followers: dict[tuple[str, str], Follower] = {}
        self._making = threading.Lock()
        self._filling = False
        self._progress = Progress(embed_of)

    def add(self, spec: GallerySpec) -> GenerationStatus:
        """Begin an empty generation beside the active one, scored by default as that one; GenerationExistsError."""
        active = self._store.gallery(self._gallery_id)
        stored = self._truth.add_generation(spec)
        added = self._store.gallery(self._gallery_id, stored.spec.generation)
        added.set_match_defaults(active.match_defaults)
        return self.status(stored.spec.generation)

    def drop(self, generation: int) -> None:
        """Delete a generation with all that is in it; GenerationActiveError."""
        self._truth.drop_generation(self._store.generations(self._gallery_id).numbered(generation))
        self._store.generations(self._gallery_id)

    def all(self) -> list[GenerationStatus]:
        """Return how far each generation is, the active one first."""
        return [self._status(each, there) for there in [self._store.generations(self._gallery_id)] for each in there]

    def status(self, generation: int) -> GenerationStatus:
        """Return how far a generation is."""
        there = self._store.generations(self._gallery_id)
        return self._status(there.numbered(generation), there)

    def _status(self, stored: StoredGallery, there: Generations) -> GenerationStatus:
        if stored == there.active:
            active = self._store.gallery(self._gallery_id, stored.spec.generation)
            return GenerationStatus(gallery=active, state=GenerationState.ACTIVE)
        return self._progress.of(self._follower(there))

    def missing(self, generation: int, after: str | None, limit: int) -> tuple[list[str], str | None]:
        """Return the ids of up to `limit` images that a generation lacks or has with other content, after an id.

        Of many images only some are looked at: the second value is the id to go on after, None at the end.
        """
        there = self._store.generations(self._gallery_id)
        stored = there.numbered(generation)
        if stored == there.active:
            return [], None
        return lacking(self._follower(there), after, limit)

    def compare(self, generation: int, query: ComparisonQuery) -> Comparison:
        """Ask a generation and the active one the same; GenerationActiveError."""
        there = self._store.generations(self._gallery_id)
        if there.numbered(generation) == there.active:
            raise GenerationActiveError(self._gallery_id, there.active.spec.generation)
        follower = self._follower(there)
        return compare(follower.source, follower.target, query)

    def activate(self, generation: int, *, allow_missing: bool = False, timeout_s: float = 0.0) -> None:
        """Let a generation be the active one, once it reflects every change of the one that is.

        Raises GenerationNotReadyError when it is not filled, when it lacks images, unless that is allowed, and when it
        is still behind after a while.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            there = self._store.generations(self._gallery_id)
            if there.numbered(generation) == there.active:
                return
            follower = self._follower(there)
            embed = self._embed_of(follower.target.spec.bundle_digest)
            if switched(follower, self._truth, self._progress, embed, allow_missing=allow_missing):
                logger.info("gallery %s: generation %d is active", self._gallery_id, generation)
                self._store.generations(self._gallery_id)
                return
            found = self.status(generation)
            # Nothing but changes that are being followed is worth waiting for.
            stays = found.missing and not found.pending and not allow_missing
            if not found.complete or stays or time.monotonic() >= deadline_s:
                raise GenerationNotReadyError(
                    self._gallery_id, generation, missing=found.missing, pending=found.pending
                )
            time.sleep(LOOK_S)

    def supplied(self, generation: int) -> Follower | None:
        """Return the follower by which a generation can be given features; None: it is the active one."""
        there = self._store.generations(self._gallery_id)
        return None if there.numbered(generation) == there.active else self._follower(there)

    def seen(self, generation: int, sequence: int, timeout_s: float) -> Gallery:
        """Return a generation, 0: the active one, once its searches see a change of it, or of one active before it.

        SequenceNotReachedError when the time is up before that.
        """
        of = (sequence - 1) // GENERATION_STRIDE + 1
        gallery = self._store.gallery(self._gallery_id, generation)
        if gallery.spec.generation != of:
            there = self._store.generations(self._gallery_id)
            gallery = self._store.gallery(self._gallery_id, generation)
        if gallery.spec.generation == of:
            gallery.wait_for(sequence, timeout_s)
            return gallery
        reached = self._reached(there, gallery, sequence, timeout_s)
        if reached < sequence:
            raise SequenceNotReachedError(self._gallery_id, wanted=sequence, reached=reached)
        if self._truth.shared:
            gallery.follow(0)
        return gallery

    def _reached(self, there: Generations, gallery: Gallery, sequence: int, timeout_s: float) -> int:
        """Return which change of the generation that a sequence is of is in another one, at least that one if it is."""
        of = (sequence - 1) // GENERATION_STRIDE + 1
        if of == there.active.spec.generation:
            return self._followed(there, sequence, timeout_s)
        if there.other is not None and of == there.other.spec.generation:
            # Once active, it gave its place away with all that was acknowledged.
            return self._store.gallery(self._gallery_id, of).follow(0)
        # One that is gone gave its place away, too, if it ever was active.
        return sequence if of <= there.given else gallery.sequence

    def _followed(self, there: Generations, sequence: int, timeout_s: float) -> int:
        """Wait until the other generation has followed a change of the active one; return which it has come to."""
        deadline_s, follower = time.monotonic() + timeout_s, self._follower(there)
        while True:
            position = follower.position
            reached = position.sequence if position is not None and position.complete else 0
            if reached >= sequence or time.monotonic() >= deadline_s:
                return reached
            time.sleep(LOOK_S)

    def fill(self, stopped: Callable[[], bool]) -> bool:
        """Do a piece of what the other generation lacks, and tell whether there was any.

        Of those processes that have its model one computes; what needs no model everybody does.
        """
        there = self._store.generations(self._gallery_id)
        if there.other is None:
            return False
        other, follower = there.other, self._follower(there)
        if follower.is_waited_for:
            return False
        embed = self._embed_of(other.spec.bundle_digest)
        if embed is not None and not self._claimed(other):
            return False
        return follower.step(
            embed, lambda: stopped() or follower.is_waited_for or (embed is not None and not self._claimed(other))
        )

    def _claimed(self, other: StoredGallery) -> bool:
        self._filling = self._truth.claim(other, CLAIM_S)
        return self._filling

    def let_go(self) -> None:
        """Leave the filling to other processes."""
        # Who claimed nothing need not ask the store, which may be out of reach.
        other = self._store.generations(self._gallery_id).other if self._filling else None
        if other is not None:
            self._truth.claim(other, 0)

    def delete_images(self, image_ids: Sequence[str], if_sequences: Mapping[str, int]) -> tuple[int, int]:
        """Delete images from both generations, so that they do not come back with either; see Gallery.delete."""
        deleted_from: set[str] = set()
        counts = (0, 0)

        def delete(gallery: Gallery) -> None:
            nonlocal counts
            if not deleted_from:
                counts = gallery.delete(image_ids, if_sequences=if_sequences)
            else:
                gallery.delete(image_ids)
            deleted_from.add(gallery.stored.uuid)

        for _ in range(MOST_ROUNDS):
            self._store.on_active(self._gallery_id, delete)
            there = self._store.generations(self._gallery_id)
            # Was it switched in between, the other one's images may be in no generation that was deleted from.
            if there.active.uuid in deleted_from and self._is_erased(there, image_ids):
                return counts
        raise StoreUnavailableError(f"gallery {self._gallery_id!r} is switched too often; some of it is deleted")

    def _is_erased(self, there: Generations, image_ids: Sequence[str]) -> bool:
        """Delete images from the generation that is not active; false: it is active by now."""
        if there.other is None:
            return True
        try:
            self._store.gallery(self._gallery_id, there.other.spec.generation).erase(image_ids)
        except GenerationMovedError:
            return False
        except (GenerationNotFoundError, GenerationDroppedError):
            # With all that was in it.
            pass
        return True

    def _follower(self, there: Generations) -> Follower:
        """Return the one follower of this pair, in this direction, that everybody here shares."""
        assert there.other is not None
        source, target = (self._store.gallery(self._gallery_id, each.spec.generation) for each in there)
        uuids = {each.uuid for each in there}
        with self._making:
            self._followers = {key: kept for key, kept in self._followers.items() if set(key) == uuids}
            return self._followers.setdefault((there.active.uuid, there.other.uuid), Follower(source, target))

"""The shelf that searches of one gallery see: it follows the truth, is saved, and gives way to a better one."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from matchflow_index.errors import (
    CacheDamagedError,
    GalleryNotFoundError,
    SequenceNotReachedError,
    StoreUnavailableError,
)
from matchflow_index.filling import catch_up
from matchflow_index.upkeep import compacted, make_lists, wants_compaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from matchflow_index.caches import GalleryCaches
    from matchflow_index.shelf import Shelf, Update
    from matchflow_index.truth import Snapshot, StoredGallery, Transaction, Truth

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Seconds that a search waits for changes that are durable already to be shown.
SETTLE_S = 0.25
# The caches are saved after so many changes, or this share of all images.
SAVE_CHANGES, SAVE_SHARE = 10_000, 0.05


class LiveShelf:
    """What searches see of a generation. All methods may be called from any thread.

    Who holds `writer` is the only one who changes what there is to see.
    """

    def __init__(self, stored: StoredGallery, truth: Truth, caches: GalleryCaches, snapshot: Snapshot) -> None:
        """Load the shelf as it is in a snapshot."""
        self._stored = stored
        self._truth = truth
        self._caches = caches
        self._moved = threading.Condition()
        self.writer = threading.RLock()
        self.shelf = caches.open_shelf(snapshot)

    @property
    def _gallery_id(self) -> str:
        return self._stored.spec.gallery_id

    @property
    def count(self) -> int:
        """The number of images."""
        with self.reading() as shelf:
            return shelf.count

    @property
    def sequence(self) -> int:
        """The last change that searches see."""
        with self.reading() as shelf:
            return shelf.sequence

    @contextmanager
    def reading(self) -> Iterator[Shelf]:
        """Hold the shelf of now as it is. Another one may take its place meanwhile: slots of this one are not its."""
        shelf = self.shelf
        with shelf.lock.reading():
            yield shelf

    def wait_for(self, sequence: int, timeout_s: float) -> None:
        """Return once searches see a change; SequenceNotReachedError when the time is up before that."""
        with self._moved:
            self._moved.wait_for(lambda: self.shelf.sequence >= sequence, timeout_s)
        if self.shelf.sequence < sequence:
            raise SequenceNotReachedError(self._gallery_id, wanted=sequence, reached=self.shelf.sequence)

    def settled(self, sequence: int) -> bool:
        """Wait until searches see a change that the truth has, and tell whether they do."""
        with self._moved:
            if self._moved.wait_for(lambda: self.shelf.sequence >= sequence, SETTLE_S):
                return True
        # Whoever made it could not show it.
        with suppress(StoreUnavailableError), self.writer, self._truth.read(self._stored) as snapshot:
            self._catch_up(snapshot)
        return self.shelf.sequence >= sequence

    def commit(self, write: Callable[[Transaction], tuple[Result, list[Update]]], *, active: bool) -> Result:
        """Write in one transaction, let searches see the updates, and return the result; see Truth.write."""
        with self.writer:
            result, updates = self._truth.write(self._stored, write, active=active)
            if updates:
                self._show({update.change.sequence: update for update in updates})
        return result

    def _show(self, known: Mapping[int, Update]) -> None:
        """Let searches see our own changes, after those that others made before them."""
        shelf, last = self.shelf, max(known)
        if last == shelf.sequence + len(known):
            shelf.apply([known[sequence] for sequence in sorted(known)], last)
        else:
            with self._truth.read(self._stored) as snapshot:
                self._catch_up(snapshot, known)
        with self._moved:
            self._moved.notify_all()

    def _catch_up(self, snapshot: Snapshot, known: Mapping[int, Update] | None = None) -> None:
        """Follow the log, or begin anew where it does not reach back any more; for those who hold `writer`."""
        try:
            catch_up(self.shelf, snapshot, known)
        except CacheDamagedError as error:
            logger.warning("gallery %s is read again from the truth: %s", self._gallery_id, error)
            old, self.shelf = self.shelf, self._caches.open_shelf(snapshot)
            old.close()

    def follow(self, timeout_s: float) -> int:
        """Wait for changes that others make, let searches see them, and return the last change that they see."""
        if self._truth.wait(self._stored, self.shelf.sequence, timeout_s) > self.shelf.sequence:
            with self.writer, self._truth.read(self._stored) as snapshot:
                self._catch_up(snapshot)
            with self._moved:
                self._moved.notify_all()
        return self.shelf.sequence

    def maintain(self) -> None:
        """Do what can wait: drop dead slots, make new lists, bring the caches up to date."""
        self.compact(wants_compaction)
        shelf = self.shelf
        why = make_lists(shelf, self.writer)
        if why:
            logger.info("gallery %s has new lists: %s", self._gallery_id, why)
            self._caches.saved_sequence = None
        unsaved = shelf.sequence - (self._caches.saved_sequence or 0)
        if unsaved > max(SAVE_CHANGES, SAVE_SHARE * shelf.size):
            self.save()

    def compact(self, wanted: Callable[[Shelf], bool]) -> int:
        """Let a shelf without dead slots take the place of a wanted one, and return how many there were.

        Searches go on in the old one till then.
        """
        with self.writer:
            old = self.shelf
            if old.slab.closed or not wanted(old):
                return 0
            slab = self._caches.new_slab()
            try:
                with old.lock.reading():
                    new = compacted(old, slab)
            except StoreUnavailableError:
                slab.close()
                raise
            self.shelf = new
            self._caches.saved_sequence = None
            # Whoever still searches there keeps its mapping.
            old.close()
        logger.info("dropped %d dead slots of gallery %s", old.size - old.count, self._gallery_id)
        self.save()
        return old.size - old.count

    def save(self) -> None:
        """Bring the caches on disk up to date, so that the next opening is quick; a failure is only a warning."""
        with self.writer:
            # Before the shelf is locked: a search that looks at the truth waits for the shelf.
            try:
                with self._truth.read(self._stored) as snapshot:
                    history = snapshot.history(self.shelf.sequence)
            except GalleryNotFoundError:
                return
            except StoreUnavailableError as error:
                logger.warning("the caches of gallery %s could not be saved: %s", self._gallery_id, error)
                return
            with self.shelf.lock.reading():
                self._caches.save(self.shelf, history)

    def discard(self) -> None:
        """Let go of the files without saving anything; searches that have begun are answered."""
        with self.writer:
            self.shelf.close()

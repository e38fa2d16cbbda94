"""One gallery: put images in, look at them, search them."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from matchflow_index.checks import check_features, check_image, check_labels
from matchflow_index.conditions import LabelCondition
from matchflow_index.errors import (
    BundleMismatchError,
    GenerationMovedError,
    ImageNotFoundError,
    StoreUnavailableError,
)
from matchflow_index.evaluation import labelled_images
from matchflow_index.filters import ImageFilter
from matchflow_index.ivf_index import IvfIndex
from matchflow_index.live_shelf import LiveShelf
from matchflow_index.lookup import Lookup
from matchflow_index.match_defaults import MatchDefaults
from matchflow_index.reachability import Reachability
from matchflow_index.records import KnownImage, Unchanged
from matchflow_index.search import search
from matchflow_index.writing import Writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from matchflow_index.answers import SearchAnswer
    from matchflow_index.caches import GalleryCaches
    from matchflow_index.evaluation import LabelledImages
    from matchflow_index.labels import Labels, LabelValue
    from matchflow_index.queries import SearchQuery
    from matchflow_index.records import GallerySpec, ImageRecord, NewImage, PutResult
    from matchflow_index.shelf import Shelf, Update
    from matchflow_index.truth import Durability, Snapshot, StoredGallery, Transaction, Truth
    from matchflow_matching.features import Features

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# How often a search is done again whose hits were changed under it, in a truth that is shared.
MOST_LOOKS = 5


class Gallery:
    """A generation of a gallery of an open store. All methods may be called from any thread.

    What writes raises GenerationMovedError, and writes nothing, where it isn't the active generation any more.
    """

    def __init__(
        self, stored: StoredGallery, truth: Truth, caches: GalleryCaches, *, reads_without_store_s: float = 0.0
    ) -> None:
        """Load the gallery; see GalleryStore.gallery, and `search` for `reads_without_store_s`."""
        self._stored = stored
        self._truth = truth
        self._match_defaults: MatchDefaults | None = None
        self._setting_defaults = threading.Lock()
        self._latest_s = 0.0
        with truth.read(stored) as snapshot:
            self._live = LiveShelf(stored, truth, caches, snapshot)
            # Who may not write to the caches can't follow what others change, and shows one moment for good.
            kept = {record.image_id: record for record in snapshot.records()} if caches.read_only else None
        if truth.shared:
            # Searches need them, and later the store may be out of reach; what can't be read is for who asks.
            with suppress(StoreUnavailableError):
                self._match_defaults = self._read_match_defaults()
        self._reachability = Reachability(stored.spec.gallery_id, reads_without_store_s)
        self._lookup = Lookup(stored, truth, self._live, kept=kept, reachability=self._reachability)

    @property
    def spec(self) -> GallerySpec:
        """What the gallery is pinned to."""
        return self._stored.spec

    @property
    def stored(self) -> StoredGallery:
        """What the store knows it as."""
        return self._stored

    @property
    def durability(self) -> Durability:
        """What has happened to an image when `put` returns."""
        return self._truth.durability

    @property
    def count(self) -> int:
        """The number of images."""
        return self._live.count

    @property
    def sequence(self) -> int:
        """The last change that searches see; that before the first one for none."""
        return self._live.sequence

    @property
    def _shelf(self) -> Shelf:
        return self._live.shelf

    @property
    def recall(self) -> float:
        """The share of the best 100 by cosine that the coarse index finds, measured on own vectors."""
        coarse = self._shelf.coarse
        return coarse.training.recall if isinstance(coarse, IvfIndex) else 1.0

    def now_s(self) -> float:
        """Return the time in seconds since 1970; it never goes back, whatever the clock does."""
        self._latest_s = max(self._latest_s, time.time())
        return self._latest_s

    def wait_for(self, sequence: int, timeout_s: float) -> None:
        """Return once searches see a change; SequenceNotReachedError when the time is up before that."""
        self._live.wait_for(sequence, timeout_s)

    @property
    def match_defaults(self) -> MatchDefaults:
        """What a search that does not say how to match means here: the paper's way unless something else was set.

        Read from the store by the first who asks; StoreUnavailableError when what it holds can't be read.
        """
        found = self._match_defaults
        if found is None:
            # Not the lock of the images: nobody should wait here for a large put.
            with self._setting_defaults:
                found = self._match_defaults = self._match_defaults or self._read_match_defaults()
        return found

    def _read_match_defaults(self) -> MatchDefaults:
        stored = self._truth.match_defaults(self._stored)
        return MatchDefaults() if stored is None else MatchDefaults.decode(stored, self.spec.gallery_id)

    def set_match_defaults(self, defaults: MatchDefaults | None, *, active: bool | None = None) -> None:
        """Store other defaults; on disk when this returns. None: the paper's again.

        Raises StoreUnavailableError, and with `active` GenerationMovedError unless the generation is active as it says.
        """
        with self._setting_defaults:
            encoded = None if defaults is None else defaults.encode()
            self._truth.set_match_defaults(self._stored, encoded, active=active)
            self._match_defaults = defaults or MatchDefaults()

    def require_bundle(self, digest: str) -> None:
        """Raise BundleMismatchError unless the gallery is pinned to this bundle."""
        if digest != self.spec.bundle_digest:
            raise BundleMismatchError(expected=self.spec.bundle_digest, actual=digest)

    def put(self, images: Sequence[NewImage | KnownImage]) -> list[PutResult]:
        """Store images in one transaction, in order; when this returns they are durable and found by searches.

        Other content than before gives a new row id, other labels or expiry alone keep it, and nothing new writes
        nothing. A KnownImage is MISSING when, at this place in the order, the gallery holds its content no more.
        All or none: raises ImageRejectedError, FeaturesRejectedError, EtagMismatchError, StoreUnavailableError.
        """
        for image in images:
            if isinstance(image, KnownImage):
                check_labels(image.image_id, image.labels)
            else:
                check_image(image, self.spec)

        def work(writing: Writing) -> list[PutResult]:
            if self._truth.shared:
                # One round trip for all records instead of one for each.
                writing.look_up([image.image_id for image in images])
            return [writing.put(image) for image in images]

        return self._commit(work)

    def update(
        self,
        image_id: str,
        *,
        labels: Labels | None = None,
        expire_time_s: float | Unchanged | None = Unchanged.UNCHANGED,
        if_sequence: int | None = None,
    ) -> ImageRecord:
        """Replace an image's labels, its expiry or both, and return its record.

        Raises ImageNotFoundError, ImageRejectedError, EtagMismatchError, StoreUnavailableError.
        """
        if labels is not None:
            check_labels(image_id, labels)

        def work(writing: Writing) -> ImageRecord:
            old = writing.existing(image_id, if_sequence)
            new = old if labels is None else replace(old, labels=dict(labels))
            if not isinstance(expire_time_s, Unchanged):
                new = replace(new, expire_time_s=expire_time_s)
            return writing.relabel(old, new)

        return self._commit(work)

    def delete(self, image_ids: Iterable[str], *, if_sequences: Mapping[str, int] | None = None) -> tuple[int, int]:
        """Delete images in one transaction; return how many there were, and how many of the ids were not there.

        With `if_sequences`, by id, none is deleted when a record is not of that change: EtagMismatchError.
        """
        wanted = list(dict.fromkeys(image_ids))

        def work(writing: Writing) -> int:
            for image_id in wanted:
                writing.remove(image_id, (if_sequences or {}).get(image_id))
            return len(writing.updates)

        deleted = self._commit(work)
        return deleted, len(wanted) - deleted

    def delete_expired(self) -> int:
        """Delete the images whose time has come, and return how many those were."""
        with self._live.reading() as shelf:
            found = shelf.expired(self.now_s())

        def work(writing: Writing) -> int:
            writing.remove_expired(found)
            return len(writing.updates)

        return self._commit(work) if found else 0

    def take_over(self, work: Callable[[Writing], Result]) -> Result:
        """Do what the follower of the active generation does; GenerationMovedError where this one is active."""
        return self._commit(work, active=False)

    def erase(self, image_ids: Iterable[str]) -> None:
        """Delete images from a generation that is not active; GenerationMovedError."""
        wanted = list(dict.fromkeys(image_ids))

        def work(writing: Writing) -> None:
            for image_id in wanted:
                writing.remove(image_id)

        self.take_over(work)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let nobody write to this gallery inside the block, as far as that can be had (see Truth.hold)."""
        with self._live.writer, self._truth.hold(self._stored):
            yield

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Look at what the truth has."""
        with self._truth.read(self._stored) as snapshot:
            self._reachability.answered()
            yield snapshot

    def _commit(self, work: Callable[[Writing], Result], *, active: bool = True) -> Result:
        """Do work in one transaction, let searches see what it did, and return its result."""

        def write(transaction: Transaction) -> tuple[Result, list[Update]]:
            writing = Writing(transaction, self.spec, self.now_s())
            result = work(writing)
            if writing.new_rows:
                self._shelf.slab.reserve(writing.new_rows)
            return result, writing.updates

        result = self._live.commit(write, active=active)
        self._reachability.answered()
        return result

    def follow(self, timeout_s: float) -> int:
        """Wait for changes that others make, let searches see them, and return the last change that they see."""
        self._lookup.look_again()
        with self._reachability.looking():
            return self._live.follow(timeout_s)

    def get(self, image_id: str) -> ImageRecord:
        """Return an image's record; ImageNotFoundError."""
        with self.snapshot() as snapshot:
            return self._existing(snapshot.record(image_id), image_id)

    def known(self, image_id: str) -> tuple[ImageRecord, bool]:
        """Return an image's record, and whether the store could not be reached, as in `search`; ImageNotFoundError."""
        records = self._lookup.records_of([image_id])
        return self._existing(records.found[0], image_id), records.store_unreachable

    def _existing(self, record: ImageRecord | None, image_id: str) -> ImageRecord:
        if record is None or record.is_expired(self.now_s()):
            raise ImageNotFoundError(self.spec.gallery_id, image_id)
        return record

    def holding(self, image_id: str, content_hash: str) -> ImageRecord | None:
        """Return the image's record when the gallery holds features of just this content of it.

        Raises GenerationMovedError where this is not the active generation any more: the one that is may have another.
        """
        with self.snapshot() as snapshot:
            if not snapshot.active:
                raise GenerationMovedError(self.spec.gallery_id, self.spec.generation)
            record = snapshot.record(image_id)
        held = record is not None and record.content_hash == content_hash and not record.from_thumbnail
        return record if held else None

    def features(self, image_id: str) -> Features:
        """Return an image's features, copied; ImageNotFoundError."""
        with self._live.reading() as shelf:
            slot = shelf.slot(image_id)
            if slot is None or shelf.slots.expire_times_s.values[slot] <= self.now_s():
                raise ImageNotFoundError(self.spec.gallery_id, image_id)
            return shelf.slab.gather(np.array([slot]))[0]

    def image_ids(self) -> list[str]:
        """Return the ids of all images, in no particular order."""
        with self._live.reading() as shelf:
            return shelf.slots.ids.of(shelf.live_slots)

    def count_of(self, image_ids: Iterable[str]) -> int:
        """Return how many of some images are there."""
        with self._live.reading() as shelf:
            return sum(shelf.slot(image_id) is not None for image_id in image_ids)

    def has_another(self, image_id: str, label: str, value: LabelValue) -> bool:
        """Tell whether any other image has that value of a label."""
        condition = LabelCondition(field=label, any_of=frozenset({value}))
        with self._live.reading() as shelf:
            others = ImageFilter(conditions=(condition,), exclude=frozenset({image_id}))
            return shelf.select(others, self.now_s()).count > 0

    def thumbnail(self, image_id: str) -> bytes | None:
        """Return an image's thumbnail, None when none was kept; ImageNotFoundError."""
        with self.snapshot() as snapshot:
            return snapshot.thumbnail(self._existing(snapshot.record(image_id), image_id).row_id)

    def page(self, after: str | None, limit: int) -> list[ImageRecord]:
        """Return up to `limit` records in order of id, those with an id greater than `after` (None: all)."""
        with self.snapshot() as snapshot:
            now_s = self.now_s()
            return list(islice((each for each in snapshot.records(after) if not each.is_expired(now_s)), limit))

    def search(self, query: SearchQuery) -> SearchAnswer:
        """Find images; see `search.search`. Raises InvalidQueryError, FeaturesRejectedError.

        While a truth that is shared can't be reached, hits are what was known of them; the answer says so, see
        SearchAnswer. StoreUnavailableError once it has not answered for longer than `reads_without_store_s`.
        """
        check_features(query.features, self.spec, "the query")
        query = replace(query, now_s=max(query.now_s, self.now_s()))
        for _ in range(MOST_LOOKS - 1):
            with self._lookup.sight(without_store=True) as sight:
                answer = search(sight, query, self.spec.grid)
            if not answer.held_back or not self._lookup.is_live or not self._has_moved_on(answer):
                return answer
            # What was held back has changed since the search began, and others may be in its place.
        with self._lookup.sight(without_store=True) as sight:
            return search(sight, query, self.spec.grid)

    def _has_moved_on(self, answer: SearchAnswer) -> bool:
        """Tell whether searches see more by now than an answer does, as far as that can be found out."""
        # Who has lost the truth just now can still return what it said before.
        with suppress(StoreUnavailableError):
            if not answer.store_unreachable:
                self.follow(0)
        return self.sequence != answer.sequence

    def labelled_images(self) -> LabelledImages:
        """Return everything in the gallery, copied, in order of row id: what `evaluate` works on."""
        with self._lookup.sight() as sight:
            return labelled_images(sight, self.spec.grid)

    def maintain(self) -> None:
        """Do what can wait: delete what has expired, drop dead slots, make new lists, bring the caches up to date."""
        # A generation that is not active hears of it from the one that is.
        with suppress(GenerationMovedError):
            self.delete_expired()
        self._live.maintain()

    def compact(self) -> int:
        """Drop all dead slots, however few, and return how many there were."""
        return self._live.compact(lambda shelf: shelf.size > shelf.count)

    def save(self) -> None:
        """Bring the caches on disk up to date, so that the next opening is quick."""
        self._live.save()

    def close(self) -> None:
        """Save the caches and let go of the files."""
        self.save()
        self.discard()

    def discard(self) -> None:
        """Let go of the files without saving anything; searches that have begun are answered."""
        self._live.discard()

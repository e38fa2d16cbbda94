"""One gallery: put images in, look at them, search them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.checks import check_features, check_image, check_labels
from matchflow_index.errors import BundleMismatchError, ImageNotFoundError
from matchflow_index.evaluation import LabelledImages
from matchflow_index.match_defaults import MatchDefaults
from matchflow_index.records import ImageRecord, KnownImage, PutOutcome, PutResult, RowLayout
from matchflow_index.search import search

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from matchflow_index.answers import SearchAnswer
    from matchflow_index.caches import GalleryCaches
    from matchflow_index.queries import SearchQuery
    from matchflow_index.records import GallerySpec, NewImage
    from matchflow_index.truth import Change, StoredGallery, Transaction, Truth
    from matchflow_matching.features import Features


@dataclass(slots=True, kw_only=True)
class _Plan:
    """What a transaction did, for the shelf to follow once it is on disk."""

    results: list[PutResult] = field(default_factory=list)
    updates: list[tuple[Change, ImageRecord | None]] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)


class Gallery:
    """A gallery of an open store. All methods may be called from any thread."""

    def __init__(self, stored: StoredGallery, truth: Truth, caches: GalleryCaches) -> None:
        """Load the gallery; see GalleryStore.gallery."""
        self._stored = stored
        self._truth = truth
        self._caches = caches
        self._layout = RowLayout.of(stored.spec)
        self._writer = threading.Lock()
        self._match_defaults: MatchDefaults | None = None
        self._setting_defaults = threading.Lock()
        with truth.read(stored) as snapshot:
            self._shelf = caches.open_shelf(snapshot)

    @property
    def spec(self) -> GallerySpec:
        """What the gallery is pinned to."""
        return self._stored.spec

    @property
    def count(self) -> int:
        """The number of images."""
        with self._shelf.lock.reading():
            return self._shelf.count

    @property
    def sequence(self) -> int:
        """The last change that searches see; 0 for none."""
        with self._shelf.lock.reading():
            return self._shelf.sequence

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

    def set_match_defaults(self, defaults: MatchDefaults | None) -> None:
        """Store other defaults; on disk when this returns. None: the paper's again. StoreUnavailableError."""
        with self._setting_defaults:
            self._truth.set_match_defaults(self._stored, None if defaults is None else defaults.encode())
            self._match_defaults = defaults or MatchDefaults()

    def require_bundle(self, digest: str) -> None:
        """Raise BundleMismatchError unless the gallery is pinned to this bundle."""
        if digest != self.spec.bundle_digest:
            raise BundleMismatchError(expected=self.spec.bundle_digest, actual=digest)

    def put(self, images: Sequence[NewImage | KnownImage]) -> list[PutResult]:
        """Store images in one transaction, in order; when this returns they are on disk and found by searches.

        Other content than before gives a new row id, other labels alone keep it, and nothing new writes nothing. A
        KnownImage is MISSING when, at this place in the order, the gallery holds its content no more.
        All or none: raises ImageRejectedError, FeaturesRejectedError, StoreUnavailableError.
        """
        for image in images:
            if isinstance(image, KnownImage):
                check_labels(image.image_id, image.labels)
            else:
                check_image(image, self.spec)

        def work(transaction: Transaction) -> _Plan:
            plan, now_s = _Plan(), time.time()
            for image in images:
                self._put(transaction, image, now_s, plan)
            self._shelf.slab.write(plan.rows)
            return plan

        return self._commit(work).results

    def _put(self, transaction: Transaction, image: NewImage | KnownImage, now_s: float, plan: _Plan) -> None:
        old = transaction.record(image.image_id)
        if old is not None and old.content_hash == image.content_hash:
            self._relabel(transaction, replace(old, labels=dict(image.labels)), now_s, plan)
            return
        if isinstance(image, KnownImage):
            plan.results.append(PutResult(outcome=PutOutcome.MISSING, row_id=0, sequence=transaction.sequence))
            return
        record = ImageRecord(
            image_id=image.image_id,
            row_id=transaction.next_row_id(),
            content_hash=image.content_hash,
            labels=dict(image.labels),
            width_px=image.width_px,
            height_px=image.height_px,
            update_time_s=now_s,
        )
        plan.rows.append(self._layout.pack(image.features))
        thumbnail = image.thumbnail if self.spec.keep_thumbnails else None
        change = transaction.put(record, plan.rows[-1], thumbnail)
        plan.updates.append((change, record))
        outcome = PutOutcome.CREATED if old is None else PutOutcome.UPDATED
        plan.results.append(PutResult(outcome=outcome, row_id=record.row_id, sequence=change.sequence))

    def _relabel(self, transaction: Transaction, record: ImageRecord, now_s: float, plan: _Plan) -> None:
        outcome, sequence = PutOutcome.UNCHANGED, transaction.sequence
        if record != transaction.record(record.image_id):
            record = replace(record, update_time_s=now_s)
            change = transaction.relabel(record)
            plan.updates.append((change, record))
            outcome, sequence = PutOutcome.UPDATED, change.sequence
        plan.results.append(PutResult(outcome=outcome, row_id=record.row_id, sequence=sequence))

    def update_labels(self, image_id: str, labels: Mapping[str, str]) -> ImageRecord:
        """Replace an image's labels and return its record; ImageNotFoundError, ImageRejectedError."""
        check_labels(image_id, labels)

        def work(transaction: Transaction) -> _Plan:
            plan, old = _Plan(), transaction.record(image_id)
            if old is None:
                raise ImageNotFoundError(self.spec.gallery_id, image_id)
            self._relabel(transaction, replace(old, labels=dict(labels)), time.time(), plan)
            return plan

        self._commit(work)
        return self.get(image_id)

    def delete(self, image_ids: Iterable[str]) -> tuple[int, int]:
        """Delete images in one transaction; return how many there were, and how many of the ids were not there."""
        wanted = list(dict.fromkeys(image_ids))

        def work(transaction: Transaction) -> _Plan:
            changes = [transaction.remove(image_id) for image_id in wanted]
            return _Plan(updates=[(change, None) for change in changes if change is not None])

        deleted = len(self._commit(work).updates)
        return deleted, len(wanted) - deleted

    def _commit(self, work: Callable[[Transaction], _Plan]) -> _Plan:
        with self._writer:
            plan = self._truth.write(self._stored, work)
            self._shelf.apply(plan.updates)
        return plan

    def get(self, image_id: str) -> ImageRecord:
        """Return an image's record; ImageNotFoundError."""
        with self._shelf.lock.reading():
            record = self._shelf.record(image_id)
        if record is None:
            raise ImageNotFoundError(self.spec.gallery_id, image_id)
        return record

    def holding(self, image_id: str, content_hash: str) -> ImageRecord | None:
        """Return the image's record when the gallery holds just this content of it."""
        with self._shelf.lock.reading():
            record = self._shelf.record(image_id)
        return record if record is not None and record.content_hash == content_hash else None

    def features(self, image_id: str) -> Features:
        """Return an image's features, copied; ImageNotFoundError."""
        with self._shelf.lock.reading():
            slot = self._shelf.slot(image_id)
            if slot is None:
                raise ImageNotFoundError(self.spec.gallery_id, image_id)
            return self._shelf.slab.gather(np.array([slot]))[0]

    def thumbnail(self, image_id: str) -> bytes | None:
        """Return an image's thumbnail, None when none was kept; ImageNotFoundError."""
        with self._truth.read(self._stored) as snapshot:
            record = snapshot.record(image_id)
            if record is None:
                raise ImageNotFoundError(self.spec.gallery_id, image_id)
            return snapshot.thumbnail(record.row_id)

    def page(self, after: str | None, limit: int) -> list[ImageRecord]:
        """Return up to `limit` records in order of id, those with an id greater than `after` (None: all)."""
        with self._truth.read(self._stored) as snapshot:
            return list(islice(snapshot.records(after), limit))

    def search(self, query: SearchQuery) -> SearchAnswer:
        """Find images; see `search.search`. Raises InvalidQueryError, FeaturesRejectedError."""
        check_features(query.features, self.spec, "the query")
        return search(self._shelf, query, self.spec.grid)

    def labelled_images(self) -> LabelledImages:
        """Return everything in the gallery, copied, in order of row id: what `evaluate` works on."""
        with self._shelf.lock.reading():
            slots = self._shelf.live_slots
            records = [record for record in self._shelf.records if record is not None]
            features = self._shelf.slab.gather(slots)
        return LabelledImages(
            image_ids=tuple(record.image_id for record in records),
            labels=tuple(record.labels for record in records),
            grid=self.spec.grid,
            features=features,
        )

    def save(self) -> None:
        """Bring the caches on disk up to date, so that the next opening is quick."""
        with self._writer, self._shelf.lock.reading():
            self._caches.save(self._shelf)

    def close(self) -> None:
        """Save the caches and let go of the files."""
        self.save()
        self.discard()

    def discard(self) -> None:
        """Let go of the files without saving anything; what is in memory can still be searched."""
        with self._writer:
            self._shelf.slab.close()

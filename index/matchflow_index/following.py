"""Keep the other generation of a gallery in step with the active one, with features of its own model.

Whatever changed in the active generation, since the position that the other one has come to, is made so there too: the
image is compared as the two have it now, so that looking twice does no harm. An image that is new or has other content
is computed from its thumbnail; without one that can be read, this generation lacks the image, and drops what it had of
it. Besides, until that was done once, all images of the active generation are walked through: that is how a new
generation is filled. The position and whether it was done are kept with what is written, so that both go on after any
interruption, and nothing is computed twice that was stored.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from matchflow_index.checks import check_features, check_image, check_shapes
from matchflow_index.errors import ContentDiffersError, FeaturesRejectedError, StoreUnavailableError
from matchflow_index.records import PutOutcome, PutResult
from matchflow_index.truth import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from matchflow_index.gallery import Gallery
    from matchflow_index.records import GallerySpec, ImageRecord, NewImage
    from matchflow_index.truth import Change
    from matchflow_index.writing import Writing
    from matchflow_matching.features import Features

    # Returns the features of encoded pictures, None for each that is none; whatever it raises ends the step.
    Embed = Callable[[Sequence[bytes]], Sequence[Features | None]]

logger = logging.getLogger(__name__)

# Images compared at once, and images computed before what they came to is stored.
STEP, COMPUTED = 256, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An image as the active generation has it and as the other one does; None: not at all."""

    image_id: str
    source: ImageRecord | None
    target: ImageRecord | None
    thumbnail: bytes | None = None

    @property
    def wants_features(self) -> bool:
        """Whether the other generation has no features of this content."""
        return self.source is not None and (self.target is None or self.target.content_hash != self.source.content_hash)

    @property
    def can_be_computed(self) -> bool:
        """Whether it wants features and has a picture to compute them from."""
        return self.wants_features and self.thumbnail is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """By what a step computes, if anything, and when it is to end early."""

    embed: Embed | None
    stopped: Callable[[], bool]


class Follower:
    """Keeps `target` in step with `source`; any thread may ask for a step, they take turns."""

    def __init__(self, source: Gallery, target: Gallery) -> None:
        self.source = source
        self.target = target
        self._turn = threading.RLock()
        self._counting = threading.Lock()
        self._waiting = 0
        self._cursor: str | None = None

    @property
    def position(self) -> Position | None:
        """How far the target has followed the source; None: it has not begun."""
        with self.target.snapshot() as snapshot:
            position = snapshot.position
        return position if position is not None and position.uuid == self.source.stored.uuid else None

    def step(self, embed: Embed | None, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Do a piece of what is left to do, and tell whether there was any.

        Without `embed` it goes as far as nothing has to be computed. Raises StoreUnavailableError, GenerationMovedError
        once the target is active, FeaturesRejectedError for features of another shape, and what `embed` raises.
        """
        with self._turn:
            position = self.position or self._begin()
            with self.source.snapshot() as snapshot:
                lost = snapshot.log_start > position.sequence + 1
                changes = [] if lost else list(islice(snapshot.changes(position.sequence), STEP))
            if lost:
                self._begin_anew(position)
                return True
            work = _Work(embed=embed, stopped=stopped)
            if changes:
                return self._follow(position, changes, work)
            return not position.complete and self._walk(position, work)

    @contextmanager
    def undisturbed(self, timeout_s: float) -> Iterator[bool]:
        """Let nobody else take a step inside the block; false when somebody was not done in time."""
        with self._counting:
            self._waiting += 1
        try:
            mine = self._turn.acquire(timeout=timeout_s)
        finally:
            with self._counting:
                self._waiting -= 1
        try:
            yield mine
        finally:
            if mine:
                self._turn.release()

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits for whoever takes a step now."""
        return self._waiting > 0

    def wanted(self, image_id: str, content_hash: str | None) -> ImageRecord | None:
        """Return the record of an image of the source whose features the target lacks; None when it has them.

        Features of a thumbnail count as lacking. Raises ImageNotFoundError, and ContentDiffersError when the source
        has other content than that of a hash; None: whatever it has.
        """
        with self.target.snapshot() as snapshot:
            held = snapshot.record(image_id)
        record = self.source.get(image_id)
        if content_hash not in {None, record.content_hash}:
            raise ContentDiffersError(
                self.source.spec.gallery_id, image_id, expected=record.content_hash, actual=str(content_hash)
            )
        has = held is not None and held.content_hash == record.content_hash and not held.from_thumbnail
        return None if has else record

    def supply(self, images: Sequence[NewImage]) -> list[PutResult]:
        """Give the target the features of images of the source; labels and ends are those that they have there.

        MISSING: the source has that content no more, and nothing was done. Raises FeaturesRejectedError and
        GenerationMovedError.
        """
        for image in images:
            check_image(image, self.target.spec)
        names = [image.image_id for image in images]
        with self._turn:
            with self.target.snapshot() as snapshot:
                position, targets = snapshot.position, snapshot.records_of(names)
            with self.source.snapshot() as snapshot:
                sources = snapshot.records_of(names)
                # What came as features leaves the picture to the source.
                kept = [
                    image.thumbnail or (None if record is None else snapshot.thumbnail(record.row_id))
                    for image, record in zip(images, sources, strict=True)
                ]

            def work(writing: Writing) -> list[PutResult]:
                results = []
                # Somebody who has followed further may have written what is newer than what was read here.
                current = writing.is_at(position)
                for image, source, target, picture in zip(images, sources, targets, kept, strict=True):
                    same = source is not None and source.content_hash == image.content_hash and current
                    if source is None or not same or not writing.is_as_known(image.image_id, target):
                        results.append(PutResult(outcome=PutOutcome.MISSING, row_id=0, sequence=self.target.sequence))
                        continue
                    record = writing.take_over(source, image.features, picture, from_thumbnail=False)
                    outcome = PutOutcome.CREATED if target is None else PutOutcome.UPDATED
                    results.append(PutResult(outcome=outcome, row_id=record.row_id, sequence=record.sequence))
                return results

            results = self.target.take_over(work)
            self._forget_removed(names)
            return results

    def _begin(self) -> Position:
        """Take all changes up to now for granted: the walk through all images looks at what they came to."""
        position = self._here()
        self.target.take_over(lambda writing: writing.follow(position))
        return position

    def _here(self) -> Position:
        with self.source.snapshot() as snapshot:
            return Position(uuid=self.source.stored.uuid, sequence=snapshot.sequence)

    def _begin_anew(self, position: Position) -> None:
        """Drop what the source does not have, since nobody can tell when it was removed, and walk through all again."""
        spec = self.target.spec
        if position.beyond:
            raise StoreUnavailableError(
                f"generation {spec.generation} of gallery {spec.gallery_id} can't follow any more: the log of the "
                f"active one begins after change {position.sequence}; delete it"
            )
        logger.warning("generation %d of gallery %s begins anew", spec.generation, spec.gallery_id)
        began = self._here()
        cursor: str | None = None
        while image_ids := self._page(self.target, cursor):
            with self.source.snapshot() as snapshot:
                found = snapshot.records_of(image_ids)
            self.target.erase([name for name, record in zip(image_ids, found, strict=True) if record is None])
            cursor = image_ids[-1]
        self._cursor = None
        # Last: should this end before, it is done again.
        self.target.take_over(lambda writing: writing.follow(began))

    def _follow(self, position: Position, changes: list[Change], work: _Work) -> bool:
        """Make so what some changes came to, and tell whether that was anything."""
        differences = self._differences([change.image_id for change in changes])
        if work.embed is None:
            # What has to be computed, and all after it, is left to somebody who can.
            later = {each.image_id for each in differences if each.can_be_computed}
            done = list(takewhile(lambda change: change.image_id not in later, changes))
            names = {change.image_id for change in done}
            changes, differences = done, [each for each in differences if each.image_id in names]
        if changes:
            self._make_equal(differences, position, replace(position, sequence=changes[-1].sequence), work)
        return bool(changes)

    def _walk(self, position: Position, work: _Work) -> bool:
        """Look at the next images of the source, and tell whether that was worth it."""
        image_ids = self._page(self.source, self._cursor)
        if not image_ids:
            self._cursor = None
            self._make_equal([], position, replace(position, complete=True), work)
            return True
        differences = self._differences(image_ids)
        if work.embed is None and any(each.can_be_computed for each in differences):
            return False
        if self._make_equal(differences, position, None, work):
            self._cursor = image_ids[-1]
        return True

    def _page(self, gallery: Gallery, after: str | None) -> list[str]:
        with gallery.snapshot() as snapshot:
            return [record.image_id for record in islice(snapshot.records(after), STEP)]

    def _make_equal(
        self, differences: list[Difference], position: Position, reached: Position | None, work: _Work
    ) -> bool:
        """Let the target have some images as the source does, and then be at a position, None: where it is.

        False: stopped before that, or somebody else has followed further meanwhile.
        """
        if not differences and reached is None:
            return True
        for start in range(0, max(1, len(differences)), COMPUTED):
            if work.stopped():
                return False
            some = differences[start : start + COMPUTED]
            last = start + COMPUTED >= len(differences)
            features = _computed(some, work.embed, self.target.spec)
            if not self._store(some, features, position, reached if last else None):
                return False
        return True

    def _differences(self, image_ids: Sequence[str]) -> list[Difference]:
        """Return the images that the two have otherwise, as both have them now, with what features are made of."""
        image_ids = list(dict.fromkeys(image_ids))
        # The target first: whatever is newer in the source is in its log, and looked at again.
        with self.target.snapshot() as snapshot:
            targets = snapshot.records_of(image_ids)
        found = []
        with self.source.snapshot() as snapshot:
            for name, source, target in zip(image_ids, snapshot.records_of(image_ids), targets, strict=True):
                difference = Difference(image_id=name, source=source, target=target)
                if difference.wants_features and source is not None:
                    found.append(replace(difference, thumbnail=snapshot.thumbnail(source.row_id)))
                elif _described(source) != _described(target):
                    found.append(difference)
        return found

    def _store(
        self, some: list[Difference], computed: dict[str, Features], position: Position, reached: Position | None
    ) -> bool:
        """Make some images so; false: somebody else has followed further than what was computed here is of."""

        def work(writing: Writing) -> bool:
            if not writing.is_at(position):
                return False
            for each in some:
                if writing.is_as_known(each.image_id, each.target):
                    _make_so(writing, each, computed.get(each.image_id))
            if reached is not None:
                writing.follow(reached)
            return True

        done = self.target.take_over(work)
        self._forget_removed([each.image_id for each in some if each.source is not None])
        return done

    def _forget_removed(self, image_ids: list[str]) -> None:
        """Remove at once what was removed from the source while it was computed, rather than when its log is read."""
        if image_ids:
            with self.source.snapshot() as snapshot:
                found = snapshot.records_of(image_ids)
            gone = [name for name, record in zip(image_ids, found, strict=True) if record is None]
            if gone:
                self.target.erase(gone)


def _computed(some: list[Difference], embed: Embed | None, spec: GallerySpec) -> dict[str, Features]:
    """Return features by image id, of those images that want them and have a picture that can be read.

    FeaturesRejectedError when they are not of a generation's shape.
    """
    pictures = [(each.image_id, each.thumbnail or b"") for each in some if each.can_be_computed]
    if embed is None or not pictures:
        return {}
    features = embed([picture for _, picture in pictures])
    computed = {}
    for (name, _), found in zip(pictures, features, strict=True):
        if found is None:
            continue
        check_shapes(found, spec, f"image {name!r}")
        try:
            check_features(found, spec, f"image {name!r}")
        except FeaturesRejectedError as error:
            # One image that a model can't cope with is missing; it must not keep the others waiting.
            logger.warning("generation %d of gallery %s lacks an image: %s", spec.generation, spec.gallery_id, error)
        else:
            computed[name] = found
    return computed


def _make_so(writing: Writing, difference: Difference, features: Features | None) -> None:
    source, target = difference.source, difference.target
    if source is not None and features is not None and difference.thumbnail is not None:
        # A small image is its own thumbnail.
        whole = hashlib.sha256(difference.thumbnail).hexdigest() == source.content_hash
        writing.take_over(source, features, difference.thumbnail, from_thumbnail=not whole)
    elif source is None or difference.wants_features:
        if target is not None:
            writing.remove(difference.image_id)
    elif target is not None:
        writing.relabel(target, replace(target, labels=source.labels, expire_time_s=source.expire_time_s))


def _described(record: ImageRecord | None) -> object:
    """Return what two generations have in common of an image."""
    return None if record is None else (record.content_hash, record.labels, record.expire_time_s)

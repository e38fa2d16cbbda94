"""What one transaction does to a gallery's images, noted for the shelf to follow once it is durable."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from matchflow_index.errors import EtagMismatchError, ImageNotFoundError
from matchflow_index.records import ImageRecord, KnownImage, NewImage, PutOutcome, PutResult, RowLayout
from matchflow_index.shelf import Update

if TYPE_CHECKING:
    from matchflow_index.records import GallerySpec
    from matchflow_index.truth import Change, Position, Transaction
    from matchflow_matching.features import Features


class Writing:
    """Writes to one gallery inside a transaction; `now_s` is the time of all of them, in seconds since 1970."""

    def __init__(self, transaction: Transaction, spec: GallerySpec, now_s: float) -> None:
        self._transaction = transaction
        self._spec = spec
        self._now_s = now_s
        self.updates: list[Update] = []

    @property
    def new_rows(self) -> int:
        """How many rows the slab will have to take."""
        return sum(update.row is not None for update in self.updates)

    def look_up(self, image_ids: list[str]) -> None:
        """Fetch records that will be asked for one by one."""
        self._transaction.records_of(image_ids)

    def put(self, image: NewImage | KnownImage) -> PutResult:
        """Store an image; see Gallery.put. Raises EtagMismatchError."""
        transaction, old = self._transaction, self._transaction.record(image.image_id)
        # What has expired counts as gone.
        self.check_etag(image.image_id, None if old and old.is_expired(self._now_s) else old, image.if_sequence)
        # Features of a thumbnail give way to those of the image itself.
        better = old is not None and old.from_thumbnail and isinstance(image, NewImage)
        if old is not None and old.content_hash == image.content_hash and not better:
            new = self.relabel(old, replace(old, labels=dict(image.labels), expire_time_s=image.expire_time_s))
            outcome = PutOutcome.UNCHANGED if new is old else PutOutcome.UPDATED
            sequence = transaction.sequence if new is old else new.sequence
            return PutResult(outcome=outcome, row_id=old.row_id, sequence=sequence)
        if isinstance(image, KnownImage):
            return PutResult(outcome=PutOutcome.MISSING, row_id=0, sequence=transaction.sequence)
        record = ImageRecord(
            image_id=image.image_id,
            row_id=transaction.next_row_id(),
            content_hash=image.content_hash,
            labels=dict(image.labels),
            width_px=image.width_px,
            height_px=image.height_px,
            update_time_s=self._now_s,
            sequence=transaction.sequence + 1,
            expire_time_s=image.expire_time_s,
        )
        row = RowLayout.of(self._spec).pack(image.features)
        self._note(transaction.put(record, row, image.thumbnail if self._spec.keep_thumbnails else None), record, row)
        outcome = PutOutcome.CREATED if old is None else PutOutcome.UPDATED
        return PutResult(outcome=outcome, row_id=record.row_id, sequence=record.sequence)

    def take_over(
        self, record: ImageRecord, features: Features, thumbnail: bytes | None, *, from_thumbnail: bool
    ) -> ImageRecord:
        """Store an image of another generation as this one knows it; its times are those that it has there."""
        new = replace(
            record,
            row_id=self._transaction.next_row_id(),
            sequence=self._transaction.sequence + 1,
            from_thumbnail=from_thumbnail,
        )
        row = RowLayout.of(self._spec).pack(features)
        self._note(self._transaction.put(new, row, thumbnail if self._spec.keep_thumbnails else None), new, row)
        return new

    def is_as_known(self, image_id: str, record: ImageRecord | None) -> bool:
        """Tell whether an image is still as a record says; None: not there."""
        return self._transaction.record(image_id) == record

    def is_at(self, position: Position | None) -> bool:
        """Tell whether the generation still is where it was in following the other one."""
        return self._transaction.position == position

    def follow(self, position: Position) -> None:
        """Say how far this generation has followed the other one."""
        self._transaction.follow(position)

    def existing(self, image_id: str, if_sequence: int | None) -> ImageRecord:
        """Return the record of an image that is there; ImageNotFoundError, EtagMismatchError."""
        record = self._transaction.record(image_id)
        if record is None or record.is_expired(self._now_s):
            raise ImageNotFoundError(self._spec.gallery_id, image_id)
        self.check_etag(image_id, record, if_sequence)
        return record

    def relabel(self, old: ImageRecord, new: ImageRecord) -> ImageRecord:
        """Store other labels or another end of an image that keeps its row; return `old` itself when nothing is new."""
        if new == old:
            return old
        record = replace(new, update_time_s=self._now_s, sequence=self._transaction.sequence + 1)
        self._note(self._transaction.relabel(record), record)
        return record

    def remove(self, image_id: str, if_sequence: int | None = None) -> None:
        """Remove an image, if it is there; EtagMismatchError."""
        if if_sequence is not None:
            self.check_etag(image_id, self._transaction.record(image_id), if_sequence)
        change = self._transaction.remove(image_id, self._now_s)
        if change is not None:
            self._note(change)

    def remove_expired(self, image_ids: list[str]) -> None:
        """Remove those of some images whose time has come."""
        for record in self._transaction.records_of(image_ids):
            if record is not None and record.is_expired(self._now_s):
                self.remove(record.image_id)

    def check_etag(self, image_id: str, record: ImageRecord | None, if_sequence: int | None) -> None:
        """Raise EtagMismatchError unless the record, None for no image, is of a change; None: of any."""
        found = 0 if record is None else record.sequence
        if if_sequence is not None and if_sequence != found:
            raise EtagMismatchError(self._spec.gallery_id, image_id, expected=if_sequence, actual=found)

    def _note(self, change: Change, record: ImageRecord | None = None, row: bytes | None = None) -> None:
        self.updates.append(Update(change=change, record=record, row=row))

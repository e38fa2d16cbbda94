"""Verify a gallery's truth: every record with its row and its thumbnail, and the log."""

from __future__ import annotations

import io
import warnings
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from matchflow_index.checks import check_features, check_labels
from matchflow_index.errors import ImageRejectedError, StoreUnavailableError
from matchflow_index.findings import UNREADABLE, Finding
from matchflow_index.match_defaults import MatchDefaults
from matchflow_index.records import RowLayout
from matchflow_index.verifying_log import LogWalk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from matchflow_index.findings import Verification
    from matchflow_index.records import GallerySpec, ImageRecord
    from matchflow_index.truth import Snapshot, StoredGallery, Truth

STEP = 256


def verify_truth(truth: Truth, gallery: StoredGallery, report: Verification, progress: Callable[[int], object]) -> None:
    """Add what is wrong with a gallery's truth to a report.

    What others change in a shared truth meanwhile is not held against it.
    """
    with truth.read(gallery) as snapshot:
        report.sequence = snapshot.sequence
        walk = _TruthWalk(snapshot, gallery.spec, report, progress)
        found = list(walk.findings())
    with truth.read(gallery) as snapshot:
        moved = _moved_since(snapshot, report.sequence)
    report.findings += [each for each in found if each.image_id not in moved]
    try:
        stored = truth.match_defaults(gallery)
        if stored is not None:
            MatchDefaults.decode(stored, gallery.spec.gallery_id)
    except StoreUnavailableError as error:
        report.findings.append(Finding(part="truth", problem=str(error)))


def _moved_since(snapshot: Snapshot, sequence: int) -> set[str]:
    try:
        return {change.image_id for change in snapshot.changes(sequence)}
    except UNREADABLE:
        # The log's own findings say so.
        return set()


class _TruthWalk:
    """One look at all images."""

    def __init__(
        self, snapshot: Snapshot, spec: GallerySpec, report: Verification, progress: Callable[[int], object]
    ) -> None:
        self._snapshot = snapshot
        self._spec = spec
        self._report = report
        self._progress = progress
        self._layout = RowLayout.of(spec)
        self._log = LogWalk(snapshot, spec.base_sequence)
        self._owners: dict[int, str] = {}
        self._last: str | None = None

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong."""
        yield from self._log.findings()
        self._report.changes = self._log.count
        records = self._snapshot.records()
        try:
            while step := list(islice(records, STEP)):
                yield from self._check_all(step)
                self._last = step[-1].image_id
        except UNREADABLE:
            yield from self._check_singly()
        yield from self._log.check_missing()

    def _check_singly(self) -> Iterator[Finding]:
        """Look at the images one by one that come after the last readable record, as far as the log knows them."""
        known = sorted(name for name, last in self._log.last.items() if not last.is_removal)
        for image_id in known:
            try:
                record = self._snapshot.record(image_id)
            except UNREADABLE as error:
                self._log.last.pop(image_id)
                yield _finding(f"the record can't be read: {error!r}", image_id)
                continue
            if record is not None:
                yield from self._check_all([record])
        where = "the first one" if self._last is None else f"one after {self._last!r}"
        yield _finding(
            f"a record can't be read, {where} or later; only {len(known)} that the log has were checked then"
        )

    def _check_all(self, records: Sequence[ImageRecord]) -> Iterator[Finding]:
        rows = self._snapshot.rows_of([record.row_id for record in records])
        for record, row in zip(records, rows, strict=True):
            self._report.images += 1
            yield from self._log.check(record)
            yield from self._check_record(record)
            yield from self._check_row(record, row)
            yield from self._check_thumbnail(record)
        self._progress(self._report.images)

    def _check_record(self, record: ImageRecord) -> Iterator[Finding]:
        owner = self._owners.setdefault(record.row_id, record.image_id)
        if owner != record.image_id:
            yield _finding(f"row {record.row_id} is also that of image {owner!r}", record.image_id)
        if not 0 <= record.sequence <= self._snapshot.sequence:
            yield _finding(
                f"the record is of change {record.sequence}; the last one is {self._snapshot.sequence}",
                record.image_id,
            )
        try:
            check_labels(record.image_id, record.labels)
        except ImageRejectedError as error:
            yield _finding(str(error), record.image_id)

    def _check_row(self, record: ImageRecord, row: bytes | None) -> Iterator[Finding]:
        if row is None:
            yield _finding(f"row {record.row_id} is missing", record.image_id)
            return
        if len(row) != self._layout.size_bytes:
            yield _finding(
                f"row {record.row_id}: expected {self._layout.size_bytes} bytes; got {len(row)}", record.image_id
            )
            return
        features = self._layout.unpack(np.frombuffer(row, np.uint8)[None])[0]
        try:
            # Values that are no numbers at all, and their squares.
            with np.errstate(all="ignore"):
                check_features(features, self._spec, f"row {record.row_id}")
        except ImageRejectedError as error:
            yield _finding(str(error), record.image_id)

    def _check_thumbnail(self, record: ImageRecord) -> Iterator[Finding]:
        thumbnail = self._snapshot.thumbnail(record.row_id)
        if thumbnail is None:
            return
        problem = _wrong_with_picture(thumbnail)
        if not self._spec.keep_thumbnails:
            problem = "the gallery keeps no thumbnails, but there is one"
        if problem:
            yield Finding(part="thumbnails", problem=problem, image_id=record.image_id)


def _wrong_with_picture(data: bytes) -> str:
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as picture:
            picture.load()
    except (OSError, SyntaxError, Image.DecompressionBombError, *UNREADABLE) as error:
        return f"the thumbnail of {len(data)} bytes is no whole picture: {error}"
    return ""


def _finding(problem: str, image_id: str | None = None) -> Finding:
    return Finding(part="truth", problem=problem, image_id=image_id)

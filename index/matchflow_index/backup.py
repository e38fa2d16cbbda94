"""Back a gallery up into one file while writes go on: the file has the state that its header names, and no other."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from matchflow_index.backup_file import BackupHeader, BackupImage, BackupRemoval, BackupWriter
from matchflow_index.errors import StoreUnavailableError
from matchflow_index.lmdb_truth import LmdbTruth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from matchflow_index.records import ImageRecord
    from matchflow_index.truth import Snapshot, StoredGallery, Truth

# Images in memory at once.
STEP = 256
# How often what changed meanwhile is read again, until nothing changes while it is read.
MOST_ROUNDS = 200


def back_up(
    truth: Truth, gallery: StoredGallery, path: Path, *, progress: Callable[[int], object] = lambda _: None
) -> BackupHeader:
    """Write a gallery into a file, and return the header that it has; `progress` hears how many entries it has.

    A file of that name is replaced once the backup is whole. Images that others removed from a shared truth while it
    was being read may be in the file, followed by their removal. Raises StoreUnavailableError: the file can't be
    written, rows are missing, or a shared truth changed faster than it could be read.
    """
    header = BackupHeader(
        spec=gallery.spec,
        uuid=gallery.uuid,
        sequence=0,
        history="",
        images=0,
        entries=0,
        match_defaults=truth.match_defaults(gallery),
    )
    with BackupWriter(path, header) as writer:
        backup = _Backup(writer, gallery, progress)
        with truth.read(gallery) as snapshot:
            backup.read_all(snapshot)
        # A read transaction of LMDB shows one state to its end.
        if not isinstance(truth, LmdbTruth):
            backup.follow(truth)
        backup.check()
        header = replace(
            header,
            sequence=backup.sequence,
            history=backup.history.hex(),
            images=len(backup.written),
            entries=writer.entries,
            match_defaults=truth.match_defaults(gallery),
        )
        writer.finish(header)
    return header


class _Backup:
    """A gallery on its way into a file, and the state that the file has."""

    def __init__(self, writer: BackupWriter, gallery: StoredGallery, progress: Callable[[int], object]) -> None:
        self._writer = writer
        self._gallery = gallery
        self._progress = progress
        self.written: set[str] = set()
        self._missing: set[str] = set()
        self.sequence = 0
        self.history = b""

    def read_all(self, snapshot: Snapshot) -> None:
        """Write all images of a snapshot."""
        self._reach(snapshot)
        records = snapshot.records()
        while step := list(islice(records, STEP)):
            self._write(snapshot, step)

    def follow(self, truth: Truth) -> None:
        """Write again what changed, until nothing has changed while that was read: then no later change is in it."""
        for _ in range(MOST_ROUNDS):
            with truth.read(self._gallery) as snapshot:
                if snapshot.sequence == self.sequence:
                    return
                if snapshot.log_start > self.sequence + 1:
                    raise StoreUnavailableError(
                        f"the log of gallery {self._gallery.spec.gallery_id} was trimmed while it was backed up: "
                        f"expected change {self.sequence + 1}; it begins at {snapshot.log_start}; try again"
                    )
                changed = dict.fromkeys(change.image_id for change in snapshot.changes(self.sequence))
                self._reach(snapshot)
                self._write_changed(snapshot, changed)
        raise StoreUnavailableError(
            f"gallery {self._gallery.spec.gallery_id} changed faster than it could be read, {MOST_ROUNDS} times"
        )

    def _reach(self, snapshot: Snapshot) -> None:
        history = snapshot.history(snapshot.sequence)
        if history is None:
            raise StoreUnavailableError(
                f"gallery {self._gallery.spec.gallery_id} is damaged: its log lacks change {snapshot.sequence}"
            )
        self.sequence, self.history = snapshot.sequence, history

    def _write_changed(self, snapshot: Snapshot, image_ids: Iterable[str]) -> None:
        ids = iter(image_ids)
        while step := list(islice(ids, STEP)):
            records = snapshot.records_of(step)
            self._write(snapshot, [record for record in records if record is not None])
            for image_id, record in zip(step, records, strict=True):
                if record is None:
                    self._missing.discard(image_id)
                    if image_id in self.written:
                        self._writer.add(BackupRemoval(image_id))
                        self.written.remove(image_id)

    def _write(self, snapshot: Snapshot, records: Sequence[ImageRecord]) -> None:
        rows = snapshot.rows_of([record.row_id for record in records])
        for record, row in zip(records, rows, strict=True):
            if row is None:
                # Whoever took the row away has noted that in the log.
                self._missing.add(record.image_id)
                continue
            thumbnail = snapshot.thumbnail(record.row_id) if self._gallery.spec.keep_thumbnails else None
            self._writer.add(BackupImage(record, row, thumbnail))
            self.written.add(record.image_id)
            self._missing.discard(record.image_id)
        self._progress(self._writer.entries)

    def check(self) -> None:
        """Raise StoreUnavailableError when there are images without a row."""
        if self._missing:
            raise StoreUnavailableError(
                f"gallery {self._gallery.spec.gallery_id} is damaged: rows of {len(self._missing)} images are missing, "
                f"that of {min(self._missing)!r} is one"
            )

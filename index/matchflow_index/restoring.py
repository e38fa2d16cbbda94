"""Bring a gallery back from a backup: into any truth, under its own id or another.

A gallery that is being restored carries a note in the place of its match defaults until all of it is there. With
that note it is for nobody: stores neither list nor open it, and whoever opens a store for writing alone deletes what a
killed restore left. A truth that others share may be being restored to right now: there it stays hidden until it is
restored again, or deleted. A kill between creation and note, one transaction apart, leaves a gallery of that id that
never had an image; the next restore takes its place.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from matchflow_index.backup_file import BackupReader, BackupRemoval
from matchflow_index.errors import BackupDamagedError, GalleryIndexError, GalleryNotFoundError
from matchflow_index.records import RowLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matchflow_index.backup_file import BackupEntry, BackupHeader
    from matchflow_index.records import GallerySpec
    from matchflow_index.truth import StoredGallery, Transaction, Truth

# No JSON: a program that knows nothing of this can't take it for match defaults.
UNFINISHED = b"being restored"


def is_unfinished(truth: Truth, gallery: StoredGallery) -> bool:
    """Tell whether a gallery is not restored to its end."""
    try:
        return truth.match_defaults(gallery) == UNFINISHED
    except GalleryNotFoundError:
        # Deleted meanwhile: whoever asks for it hears that.
        return False


def stored_gallery(truth: Truth, gallery_id: str) -> StoredGallery:
    """Return a gallery that is whole; GalleryNotFoundError."""
    stored = truth.generations(gallery_id).active
    if is_unfinished(truth, stored):
        raise GalleryNotFoundError(gallery_id)
    return stored


def restore(
    path: Path,
    truth: Truth,
    *,
    gallery_id: str | None = None,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> StoredGallery:
    """Create a gallery with all that a backup has; `progress` hears how many of how many entries are stored.

    Images, rows, thumbnails, times and match defaults are those of the backup; row ids, sequence numbers and the
    gallery's uuid are new, and it is the first generation. The file is read to its end before anything is written.
    Raises BackupDamagedError, GalleryExistsError, StoreUnavailableError; then nothing is left of it.
    """
    reader = BackupReader(path)
    _check(reader)
    spec = reader.header.spec
    spec = replace(
        spec,
        gallery_id=gallery_id or spec.gallery_id,
        create_time_s=spec.gallery_create_time_s or spec.create_time_s,
        generation=1,
        lineage="",
        gallery_create_time_s=0.0,
    )
    _make_room(truth, spec)
    gallery = truth.create(spec)
    try:
        truth.set_match_defaults(gallery, UNFINISHED)
        _fill(truth, gallery, reader, progress)
        truth.set_match_defaults(gallery, reader.header.match_defaults)
    except BaseException:
        with suppress(GalleryIndexError):
            truth.delete(spec.gallery_id)
        raise
    return gallery


def read_header(path: Path) -> BackupHeader:
    """Return what the header of a backup says."""
    return BackupReader(path).header


def _check(reader: BackupReader) -> None:
    """Read a backup to its end."""
    expected = RowLayout.of(reader.header.spec).size_bytes
    for entries in reader.entries():
        for entry in entries:
            if not isinstance(entry, BackupRemoval) and len(entry.row) != expected:
                raise BackupDamagedError(
                    f"the row of image {entry.record.image_id!r} in the backup has {len(entry.row)} bytes; "
                    f"expected {expected}"
                )


def _make_room(truth: Truth, spec: GallerySpec) -> None:
    """Delete what a restore of this gallery that was killed has left; anything else stays."""
    for stored in truth.galleries():
        if stored.spec.gallery_id == spec.gallery_id and (
            is_unfinished(truth, stored) or (stored.spec == spec and _was_never_used(truth, stored))
        ):
            truth.delete(spec.gallery_id)


def _was_never_used(truth: Truth, gallery: StoredGallery) -> bool:
    with truth.read(gallery) as snapshot:
        return snapshot.sequence == 0 and truth.match_defaults(gallery) is None


def _fill(truth: Truth, gallery: StoredGallery, reader: BackupReader, progress: Callable[[int, int], object]) -> None:
    images, done = 0, 0
    for entries in reader.entries():

        def work(transaction: Transaction, entries: Sequence[BackupEntry] = entries) -> int:
            return sum(_store(transaction, entry) for entry in entries)

        images += truth.write(gallery, work)
        done += len(entries)
        progress(done, reader.header.entries)
    if images != reader.header.images:
        raise BackupDamagedError(f"expected {reader.header.images} images in the backup; got {images}")


def _store(transaction: Transaction, entry: BackupEntry) -> int:
    """Store an entry, and return how many images there are more."""
    if isinstance(entry, BackupRemoval):
        # The time of a removal is for the log alone, and the removal here is of this transaction.
        return -1 if transaction.remove(entry.image_id, 0.0) else 0
    record = replace(entry.record, row_id=transaction.next_row_id(), sequence=transaction.sequence + 1)
    change = transaction.put(record, entry.row, entry.thumbnail)
    return 1 if change.replaced_row_id is None else 0

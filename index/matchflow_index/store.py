"""A store: the truth of all galleries, and a directory with their caches.

truth.lmdb/            the truth, unless it is on a server
caches/<uuid>/         one folder per gallery, all of it derived
writer.lock            held by the one process that may write
"""

from __future__ import annotations

import logging
import shutil
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Self

from matchflow_index import cell_norms
from matchflow_index.caches import GalleryCaches
from matchflow_index.errors import GalleryNotFoundError, StoreUnavailableError
from matchflow_index.gallery import Gallery
from matchflow_index.lmdb_environment import INITIAL_MAP_BYTES, MAX_MAP_BYTES
from matchflow_index.lmdb_truth import LmdbTruth
from matchflow_index.locking import WriterLock
from matchflow_index.restoring import is_unfinished, stored_gallery
from matchflow_index.truth import Durability
from matchflow_index.upkeep import Upkeep

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from matchflow_index.records import GallerySpec
    from matchflow_index.truth import StoredGallery, Truth

logger = logging.getLogger(__name__)

# Seconds that a thread waits for changes of others before it looks whether the store is closing.
FOLLOW_S = 0.5


class GalleryStore:
    """An open store. All methods may be called from any thread. Galleries are loaded when they are first asked for."""

    def __init__(self, path: Path, truth: Truth, *, read_only: bool, lock: WriterLock | None) -> None:
        """Use `GalleryStore.open`."""
        self._upkeep = Upkeep()
        self._path = path
        self._truth = truth
        self._read_only = read_only
        self._lock = lock
        self._loading = threading.Lock()
        self._loaded: dict[str, Gallery] = {}
        self._closed = False

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        read_only: bool = False,
        truth: Truth | None = None,
        durability: Durability = Durability.DISK,
        upkeep_s: float | None = None,
        map_bytes: int = INITIAL_MAP_BYTES,
        max_map_bytes: int = MAX_MAP_BYTES,
    ) -> GalleryStore:
        """Open the store in directory `path`; a writer creates what is missing.

        The truth is an LMDB environment there, with `durability`, unless `truth` is given; then the directory holds
        caches only, one for each process, and searches follow what other processes write. The store closes the truth.
        Read-only, any number of processes may look while one writes; searches see what was there when each gallery
        was first asked for. `upkeep_s`: every so many seconds a thread does what can wait (Gallery.maintain).
        `map_bytes` is where LMDB's map starts and `max_map_bytes` where it stops growing.
        Raises StoreUnavailableError: locked by another process, unreadable, full.
        """
        cell_norms.warm_up()
        lock = None
        if not read_only:
            try:
                path.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise StoreUnavailableError(f"a store is a folder; {path} is a file") from error
            except OSError as error:
                raise StoreUnavailableError(f"{path} can't be created: {error}") from error
            lock = WriterLock(path / "writer.lock")
        try:
            truth = truth or LmdbTruth(
                path / "truth.lmdb",
                read_only=read_only,
                durability=durability,
                map_bytes=map_bytes,
                max_map_bytes=max_map_bytes,
            )
        except StoreUnavailableError:
            if lock:
                lock.release()
            raise
        store = cls(path, truth, read_only=read_only, lock=lock)
        if not read_only:
            store._drop_unfinished()
            store._drop_orphans()
        if upkeep_s is not None and not read_only:
            store._upkeep.start("upkeep", lambda: store._maintain(upkeep_s))
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def durability(self) -> Durability:
        """What has happened to an image when `Gallery.put` returns."""
        return self._truth.durability

    def list(self) -> list[GallerySpec]:
        """Return the specifications of all galleries, in order of id."""
        self._check_open()
        return [stored.spec for stored in self._truth.galleries() if not is_unfinished(self._truth, stored)]

    def create(self, spec: GallerySpec) -> Gallery:
        """Create an empty gallery; GalleryExistsError when the id is taken."""
        self._check_open()
        self._truth.create(spec)
        return self.gallery(spec.gallery_id)

    def gallery(self, gallery_id: str) -> Gallery:
        """Return a gallery, loaded with the first call; GalleryNotFoundError."""
        with self._loading:
            self._check_open()
            if gallery_id not in self._loaded:
                self._loaded[gallery_id] = self._load(gallery_id)
            return self._loaded[gallery_id]

    def _load(self, gallery_id: str) -> Gallery:
        stored = stored_gallery(self._truth, gallery_id)
        caches = GalleryCaches(self._caches_of(stored), stored, read_only=self._read_only)
        gallery = Gallery(stored, self._truth, caches)
        if self._truth.shared and not self._read_only:
            self._upkeep.start(f"follow {gallery_id}", partial(self._follow, gallery))
        return gallery

    def delete(self, gallery_id: str) -> None:
        """Delete a gallery with all its images; GalleryNotFoundError.

        Whoever still holds the Gallery can search what it had, and gets GalleryNotFoundError for everything else.
        """
        with self._loading:
            self._check_open()
            stored = self._truth.delete(gallery_id)
            gallery = self._loaded.pop(gallery_id, None)
            if gallery:
                gallery.discard()
            shutil.rmtree(self._caches_of(stored), ignore_errors=True)

    def _follow(self, gallery: Gallery) -> bool:
        """Let a gallery follow what others write; tell whether to go on."""
        try:
            gallery.follow(FOLLOW_S)
        except GalleryNotFoundError:
            with self._loading:
                if self._loaded.get(gallery.spec.gallery_id) is gallery:
                    del self._loaded[gallery.spec.gallery_id]
                    gallery.discard()
            return False
        return True

    def _maintain(self, every_s: float) -> bool:
        if self._upkeep.stopped.wait(every_s):
            return False
        for gallery in list(self._loaded.values()):
            # It may be deleted meanwhile.
            with suppress(GalleryNotFoundError):
                gallery.maintain()
        return True

    def _caches_of(self, stored: StoredGallery) -> Path:
        return self._path / "caches" / stored.uuid

    def _drop_unfinished(self) -> None:
        """Delete galleries whose restore was cut off. In a shared truth it may still be going on."""
        if not self._truth.shared:
            for stored in self._truth.galleries():
                if is_unfinished(self._truth, stored):
                    logger.warning("removing gallery %s: its restore was cut off", stored.spec.gallery_id)
                    self._truth.delete(stored.spec.gallery_id)

    def _drop_orphans(self) -> None:
        """Remove caches whose gallery is gone: its deletion was cut off between truth and caches."""
        known = {self._caches_of(stored) for stored in self._truth.galleries()}
        for folder in set((self._path / "caches").glob("*")) - known:
            logger.info("removing %s: no gallery has these caches", folder)
            shutil.rmtree(folder, ignore_errors=True)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError(f"{self._path} is closed")

    def close(self) -> None:
        """Save all caches and let go of the store; once closed, closing does nothing."""
        self._upkeep.stop()
        with self._loading:
            if self._closed:
                return
            self._closed = True
            for gallery in self._loaded.values():
                gallery.close()
            self._loaded.clear()
            self._truth.close()
            if self._lock:
                self._lock.release()

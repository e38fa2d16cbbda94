"""A store: the truth of all galleries, and a directory with their caches.

truth.lmdb/            the truth, unless it is on a server
caches/<uuid>/         one folder per generation of a gallery, all of it derived
writer.lock            held by the one process that may write
"""

from __future__ import annotations

import logging
import shutil
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

from matchflow_index import cell_norms
from matchflow_index.caches import GalleryCaches
from matchflow_index.errors import (
    GalleryNotFoundError,
    GenerationDroppedError,
    GenerationMovedError,
    StoreUnavailableError,
)
from matchflow_index.gallery import Gallery
from matchflow_index.generation_filler import Filler
from matchflow_index.generations import GalleryGenerations
from matchflow_index.lmdb_environment import INITIAL_MAP_BYTES, MAX_MAP_BYTES
from matchflow_index.lmdb_truth import LmdbTruth
from matchflow_index.locking import WriterLock
from matchflow_index.restoring import is_unfinished, stored_gallery
from matchflow_index.truth import Durability
from matchflow_index.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from matchflow_index.generation_progress import EmbedOf
    from matchflow_index.records import GallerySpec
    from matchflow_index.truth import Generations, StoredGallery, Truth

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Seconds that a thread waits for changes of others before it looks whether the store is closing.
FOLLOW_S = 0.5
# How often a write is tried again that met a switch; each needs a switch of its own.
MOST_SWITCHES = 20


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
        # Generations by their uuid, and by gallery id what there was when somebody last looked.
        self._loaded: dict[str, Gallery] = {}
        self._there: dict[str, Generations] = {}
        self._desks: dict[str, GalleryGenerations] = {}
        self._embed_of: EmbedOf = lambda _: None
        self._reads_without_store_s = 0.0
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
        reads_without_store_s: float = 0.0,
    ) -> GalleryStore:
        """Open the store in directory `path`; a writer creates what is missing.

        The truth is an LMDB environment there, with `durability`, unless `truth` is given; then the directory holds
        caches only, one for each process, and searches follow what other processes write. The store closes the truth.
        Read-only, any number of processes may look while one writes; searches see what was there when each gallery
        was first asked for. `upkeep_s`: every so many seconds a thread does what can wait (Gallery.maintain).
        `map_bytes` is where LMDB's map starts and `max_map_bytes` where it stops growing.
        `reads_without_store_s`: how long searches go on while a truth that is shared can't be reached (Gallery.search).
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
        store._reads_without_store_s = reads_without_store_s
        if not read_only:
            store._drop_unfinished()
            store._drop_orphans()
        if upkeep_s is not None and not read_only:
            store._upkeep.start("upkeep", lambda: store._maintain(upkeep_s))
        if truth.shared and not read_only:
            store._upkeep.start("generations", store._watch)
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

    def gallery(self, gallery_id: str, generation: int = 0) -> Gallery:
        """Return a generation of a gallery, 0: the active one; loaded with the first call.

        Raises GalleryNotFoundError, GenerationNotFoundError.
        """
        # Nobody has to wait here for others who load something, or ask a store that does not answer.
        found = self._known(gallery_id, generation)
        if found is not None and not self._closed:
            return found
        with self._loading:
            self._check_open()
            there = self._there.get(gallery_id)
            if there is None or generation not in {0, *(each.spec.generation for each in there)}:
                there = self._look(gallery_id)
            stored = there.numbered(generation)
            if stored.uuid not in self._loaded:
                self._loaded[stored.uuid] = self._load(stored)
            return self._loaded[stored.uuid]

    def _known(self, gallery_id: str, generation: int) -> Gallery | None:
        """Return a generation if it is loaded."""
        for stored in self._there.get(gallery_id, ()):
            if generation in {0, stored.spec.generation}:
                return self._loaded.get(stored.uuid)
        return None

    def _load(self, stored: StoredGallery) -> Gallery:
        caches = GalleryCaches(self._caches_of(stored), stored, read_only=self._read_only)
        gallery = Gallery(stored, self._truth, caches, reads_without_store_s=self._reads_without_store_s)
        if self._truth.shared and not self._read_only:
            name = f"follow {stored.spec.gallery_id}"
            self._upkeep.start(name, partial(self._follow, gallery))
        return gallery

    def generations(self, gallery_id: str) -> Generations:
        """Look what is stored under an id now: from here on the active generation is the one that was found."""
        with self._loading:
            self._check_open()
            return self._look(gallery_id)

    def _look(self, gallery_id: str) -> Generations:
        try:
            stored_gallery(self._truth, gallery_id)
            there = self._truth.generations(gallery_id)
        except GalleryNotFoundError:
            self._there.pop(gallery_id, None)
            raise
        old, self._there[gallery_id] = self._there.get(gallery_id, ()), there
        for each in old:
            if each.uuid not in {kept.uuid for kept in there}:
                self._forget(each)
        return there

    def _forget(self, stored: StoredGallery) -> None:
        """Let go of a generation that is not in the truth any more."""
        gallery = self._loaded.pop(stored.uuid, None)
        if gallery:
            gallery.discard()
        if not self._read_only:
            shutil.rmtree(self._caches_of(stored), ignore_errors=True)

    def generations_of(self, gallery_id: str) -> GalleryGenerations:
        """Return what is done with the generations of a gallery; GalleryNotFoundError."""
        self.gallery(gallery_id)
        if gallery_id not in self._desks:
            # What computes features may be set later.
            embed_of: EmbedOf = lambda digest: self._embed_of(digest)  # noqa: E731, PLW0108
            self._desks.setdefault(gallery_id, GalleryGenerations(gallery_id, self, self._truth, embed_of))
        return self._desks[gallery_id]

    def on_active(self, gallery_id: str, work: Callable[[Gallery], Result]) -> Result:
        """Do work with the active generation, again with the next one where it was switched, and dropped, under it."""
        for _ in range(MOST_SWITCHES):
            try:
                return work(self.gallery(gallery_id))
            except (GenerationMovedError, GenerationDroppedError):
                self.generations(gallery_id)
        raise StoreUnavailableError(f"gallery {gallery_id!r} is switched too often to be written to")

    def delete_images(
        self, gallery_id: str, image_ids: Sequence[str], *, if_sequences: Mapping[str, int] | None = None
    ) -> tuple[int, int]:
        """Delete images from all generations of a gallery; see Gallery.delete."""
        return self.generations_of(gallery_id).delete_images(image_ids, if_sequences or {})

    def fill(self, embed_of: EmbedOf) -> None:
        """Fill generations from now on, in the background, with what `embed_of` has for their bundles.

        Read-only nothing is filled.
        """
        self._embed_of = embed_of
        if not self._read_only:
            filler = Filler(self._truth, self.generations_of, self._upkeep.stopped)
            self._upkeep.start("fill", filler.round)

    def _watch(self) -> bool:
        """Notice what others do to generations."""
        active = {each.spec.gallery_id: each for each in self._truth.galleries()}
        others = {each.spec.gallery_id: each for each in self._truth.others()}
        for gallery_id, there in list(self._there.items()):
            if (there.active, there.other) != (active.get(gallery_id), others.get(gallery_id)):
                with suppress(GalleryNotFoundError):
                    self.generations(gallery_id)
        self._upkeep.stopped.wait(FOLLOW_S)
        return True

    def delete(self, gallery_id: str) -> None:
        """Delete a gallery with all its generations and images; GalleryNotFoundError.

        Whoever still holds the Gallery can search what it had, and gets GalleryNotFoundError for everything else.
        """
        with self._loading:
            self._check_open()
            there = self._truth.generations(gallery_id)
            self._truth.delete(gallery_id)
            self._there.pop(gallery_id, None)
            self._desks.pop(gallery_id, None)
            for stored in there:
                self._forget(stored)

    def _follow(self, gallery: Gallery) -> bool:
        """Let a gallery follow what others write; tell whether to go on."""
        try:
            gallery.follow(FOLLOW_S)
        except GalleryNotFoundError:
            with self._loading:
                self._there.pop(gallery.spec.gallery_id, None)
                if self._loaded.pop(gallery.stored.uuid, None):
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
        known = {self._caches_of(stored) for stored in self._truth.galleries() + self._truth.others()}
        for folder in set((self._path / "caches").glob("*")) - known:
            logger.info("removing %s: no gallery has these caches", folder)
            shutil.rmtree(folder, ignore_errors=True)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError(f"{self._path} is closed")

    def close(self) -> None:
        """Save all caches and let go of the store; once closed, closing does nothing."""
        self._upkeep.stop()
        for desk in list(self._desks.values()):
            # Whose claim can't be given back has to wait for its end.
            with suppress(GalleryNotFoundError, StoreUnavailableError):
                desk.let_go()
        with self._loading:
            if self._closed:
                return
            self._closed = True
            for gallery in self._loaded.values():
                gallery.close()
            self._loaded.clear()
            self._there.clear()
            self._truth.close()
            if self._lock:
                self._lock.release()

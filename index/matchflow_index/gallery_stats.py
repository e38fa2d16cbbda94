"""What a store holds and what that takes, gallery by gallery; a server may be running."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lmdb

from matchflow_index.arrays import array_of, decode_arrays
from matchflow_index.cachefile import read_cache
from matchflow_index.coarse import decode_coarse
from matchflow_index.compaction import MOST_DATABASES
from matchflow_index.errors import CacheDamagedError, StoreUnavailableError
from matchflow_index.ivf_index import IvfIndex
from matchflow_index.opening import opened_truth, truth_folder
from matchflow_index.records import RowLayout
from matchflow_index.restoring import is_unfinished

if TYPE_CHECKING:
    from pathlib import Path

    from matchflow_index.opening import StorePlace
    from matchflow_index.truth import StoredGallery, Truth


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What a gallery's saved caches hold; the recall is that of the best 100, measured when the lists were made."""

    sequence: int
    slots: int
    dead_slots: int
    slots_bytes: int
    slab_bytes: int
    coarse_bytes: int
    coarse_kind: str
    recall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryStats:
    """What a generation of a gallery holds.

    `row_bytes` are its features alone, `caches` None without any that can be read.
    """

    gallery_id: str
    generation: int
    active: bool
    images: int
    sequence: int
    log_entries: int
    row_bytes: int
    caches: CacheStats | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """What a store holds. The bytes of its truth by part are those of LMDB's pages; a Redis server tells its own.

    `durability` is what a write survives: of a folder, as it is without any other setting of its server.
    """

    store: str
    durability: str
    truth_bytes: int | None
    truth_parts: dict[str, int]
    galleries: list[GalleryStats]


def store_stats(place: StorePlace, gallery_id: str | None = None) -> StoreStats:
    """Return the figures of a store and of all its galleries, or of one; StoreUnavailableError."""
    size, parts = (None, {}) if place.address else _lmdb_bytes(truth_folder(place))
    with opened_truth(place, read_only=True) as truth:
        galleries = [
            _gallery_stats(truth, each, place, active=each == stored)
            for stored in truth.galleries()
            if gallery_id in {None, stored.spec.gallery_id} and not is_unfinished(truth, stored)
            for each in truth.generations(stored.spec.gallery_id)
        ]
        return StoreStats(
            store=str(place),
            durability=truth.durability.value,
            truth_bytes=size,
            truth_parts=parts,
            galleries=galleries,
        )


def _lmdb_bytes(folder: Path) -> tuple[int, dict[str, int]]:
    """Return the size of an environment's file, and the pages of each of its databases in bytes."""
    try:
        with lmdb.open(os.fspath(folder), max_dbs=MOST_DATABASES, readonly=True, create=False) as env:
            with env.begin() as txn:
                names = [bytes(key) for key, _ in txn.cursor()]
            databases = {name: env.open_db(name, create=False) for name in names}
            with env.begin() as txn:
                stats = {name.decode(): txn.stat(database) for name, database in databases.items()}
        size = (folder / "data.mdb").stat().st_size
    except (lmdb.Error, OSError) as error:
        raise StoreUnavailableError(f"{folder} can't be read: {error}") from error
    return size, {
        name: each["psize"] * (each["branch_pages"] + each["leaf_pages"] + each["overflow_pages"])
        for name, each in stats.items()
    }


def _gallery_stats(truth: Truth, stored: StoredGallery, place: StorePlace, *, active: bool) -> GalleryStats:
    with truth.read(stored) as snapshot:
        images = sum(1 for _ in snapshot.records())
        sequence, start = snapshot.sequence, snapshot.log_start
    directory = place.caches_of(stored.uuid)
    return GalleryStats(
        gallery_id=stored.spec.gallery_id,
        generation=stored.spec.generation,
        active=active,
        images=images,
        sequence=sequence,
        log_entries=sequence - start + 1,
        row_bytes=images * RowLayout.of(stored.spec).size_bytes,
        caches=None if directory is None else _cache_stats(directory),
    )


def _cache_stats(directory: Path) -> CacheStats | None:
    try:
        header, payload = read_cache(directory / "slots.cache")
        live = array_of(decode_arrays(payload), "live")
        _, coarse = read_cache(directory / "coarse.cache")
        index = decode_coarse(coarse, size=header.slots, dim=header.dim)
        slab = (directory / f"cells-{header.slab_token}.slab").stat()
    except (CacheDamagedError, OSError):
        return None
    return CacheStats(
        sequence=header.sequence,
        slots=header.slots,
        dead_slots=header.slots - int(live.sum()),
        slots_bytes=(directory / "slots.cache").stat().st_size,
        slab_bytes=512 * slab.st_blocks,
        coarse_bytes=(directory / "coarse.cache").stat().st_size,
        coarse_kind=coarse[:4].decode(),
        recall=index.training.recall if isinstance(index, IvfIndex) else 1.0,
    )

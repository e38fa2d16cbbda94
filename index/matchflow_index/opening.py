"""Open the truth of a store by itself: what works on it without any cache needs no more."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matchflow_index.errors import StoreUnavailableError
from matchflow_index.lmdb_truth import LmdbTruth
from matchflow_index.locking import WriterLock
from matchflow_index.redis_address import RedisAddress, is_redis_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matchflow_index.truth import Truth

TRUTH_FOLDER = "truth.lmdb"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlace:
    """Where a store is: a folder with everything, or a Redis server and perhaps the folder of one process's caches."""

    folder: Path | None
    address: RedisAddress | None = None

    @classmethod
    def parse(cls, store: str, cache: Path | None = None) -> StorePlace:
        """Return the place that a folder's path or redis://host:port/db names; `cache` is for the latter alone.

        >>> StorePlace.parse("a/store").folder
        PosixPath('a/store')
        """
        if is_redis_address(store):
            return cls(folder=cache, address=RedisAddress.parse(store))
        if cache is not None:
            raise StoreUnavailableError(f"a store in a folder has its caches there; got {cache} for those of {store}")
        return cls(folder=Path(store))

    def __str__(self) -> str:
        """Say where it is, without the password."""
        return str(self.address or self.folder)

    def caches_of(self, uuid: str) -> Path | None:
        """Return the folder of a gallery's caches; None where nobody said."""
        return None if self.folder is None else self.folder / "caches" / uuid


@contextmanager
def opened_truth(place: StorePlace, *, read_only: bool) -> Iterator[Truth]:
    """Open a truth until the block ends. Who writes to a folder is alone in it, as a server is.

    Raises StoreUnavailableError.
    """
    lock = None if read_only or place.address else taken_lock(place)
    try:
        truth = _open(place, read_only=read_only)
        try:
            yield truth
        finally:
            truth.close()
    finally:
        if lock:
            lock.release()


def _open(place: StorePlace, *, read_only: bool) -> Truth:
    if place.address is None:
        return LmdbTruth(truth_folder(place), read_only=read_only)
    # Stores in folders need no client.
    from matchflow_index.redis_truth import RedisTruth  # noqa: PLC0415

    return RedisTruth(place.address, read_only=read_only)


def truth_folder(place: StorePlace) -> Path:
    """Return where LMDB has the truth of a store in a folder."""
    if place.folder is None:
        raise StoreUnavailableError(f"{place} is no folder")
    return place.folder / TRUTH_FOLDER


def taken_lock(place: StorePlace) -> WriterLock:
    """Return the right to write to a store's folder, which is made if there is none; release it."""
    folder = truth_folder(place).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailableError(f"the store {folder} can't be created: {error}") from error
    return WriterLock(folder / "writer.lock")

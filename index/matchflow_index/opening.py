"""Open the truth of a store by itself: what works on it without any cache needs no more."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from matchflow_index.errors import StoreUnavailableError
from matchflow_index.lmdb_truth import LmdbTruth
from matchflow_index.locking import WriterLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_index.truth import Truth

TRUTH_FOLDER = "truth.lmdb"


@contextmanager
def opened_truth(store: Path | None, address: str | None = None, *, read_only: bool) -> Iterator[Truth]:
    """Open the truth in a store's folder, or that on the Redis server at `address`, until the block ends.

    Who writes to a folder is alone in it, as a server is. Raises StoreUnavailableError.
    """
    if address is not None:
        truth = redis_truth(address, read_only=read_only)
        try:
            yield truth
        finally:
            truth.close()
    elif store is not None:
        with _lmdb_truth(store, read_only=read_only) as local:
            yield local
    else:
        raise StoreUnavailableError("expected a store's folder or the address of a Redis server; got neither")


def redis_truth(address: str, *, read_only: bool) -> Truth:
    """Open the truth on a Redis server; close it."""
    # Not everybody has the client.
    from matchflow_index.redis_address import RedisAddress  # noqa: PLC0415
    from matchflow_index.redis_truth import RedisTruth  # noqa: PLC0415

    return RedisTruth(RedisAddress.parse(address), read_only=read_only)


@contextmanager
def _lmdb_truth(store: Path, *, read_only: bool) -> Iterator[Truth]:
    lock = None if read_only else taken_lock(store)
    try:
        truth = LmdbTruth(store / TRUTH_FOLDER, read_only=read_only)
        try:
            yield truth
        finally:
            truth.close()
    finally:
        if lock:
            lock.release()


def taken_lock(store: Path) -> WriterLock:
    """Return the right to write to a store, whose folder is made if there is none; release it."""
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailableError(f"the store {store} can't be created: {error}") from error
    return WriterLock(store / "writer.lock")

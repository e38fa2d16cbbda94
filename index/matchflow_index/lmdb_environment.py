"""An LMDB environment that grows by itself: transactions, errors and the map's size; knows nothing of galleries.

The map is address space, not disk: the file is as large as what was written. LMDB can't grow it while a transaction is
open in the process, so transactions take one side of a read/write lock and growing takes the other.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import lmdb

from matchflow_index.errors import StoreUnavailableError
from matchflow_index.locking import ReadWriteLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

Result = TypeVar("Result")

INITIAL_MAP_BYTES = 1 << 30
MAX_MAP_BYTES = 1 << 46
MAX_READERS = 512


class LmdbEnvironment:
    """One environment in a directory; every commit is synchronised to disk before it returns.

    Without `synchronise_last` the page that makes a commit count follows with the next one.
    """

    def __init__(
        self,
        path: Path,
        databases: Sequence[str],
        *,
        added: Sequence[str] = (),
        read_only: bool,
        synchronise_last: bool = True,
        map_bytes: int = INITIAL_MAP_BYTES,
        max_map_bytes: int = MAX_MAP_BYTES,
    ) -> None:
        """Open it, and create it unless read-only; StoreUnavailableError when that can't be done.

        `added` are databases that older environments don't have: who only reads then finds none of that name.
        """
        self._path = path
        self._read_only = read_only
        self._max_map_bytes = max_map_bytes
        self._growth = ReadWriteLock()
        if not read_only:
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._explain(error) from error
        with self._explained():
            # A map smaller than the file is enlarged by LMDB itself.
            self._env: Any = lmdb.open(
                os.fspath(path),
                map_size=min(map_bytes, max_map_bytes),
                max_dbs=len(databases) + len(added),
                max_readers=MAX_READERS,
                readonly=read_only,
                create=not read_only,
                metasync=synchronise_last,
                # Rows are read by chance, not in order.
                readahead=False,
            )
        try:
            with self._explained():
                self.databases = {name: self._env.open_db(name.encode(), create=not read_only) for name in databases}
                for name in added:
                    with suppress(lmdb.NotFoundError):
                        self.databases[name] = self._env.open_db(name.encode(), create=not read_only)
        except StoreUnavailableError:
            self._env.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """Yield a read transaction: one unchanging view."""
        with self._growth.reading(), self._explained():
            transaction = self._begin_reading()
            if transaction is not None:
                with transaction:
                    yield transaction
                return
        # Another process grew the map; nobody may read here while we follow.
        with self._growth.writing(), self._explained():
            self._env.set_mapsize(0)
        with self._growth.reading(), self._explained(), self._env.begin() as transaction:
            yield transaction

    def _begin_reading(self) -> Any | None:
        try:
            return self._env.begin()
        except lmdb.MapResizedError:
            return None

    def write(self, work: Callable[[Any], Result]) -> Result:
        """Run `work` in one write transaction, durable when this returns; again from the start when the map grew."""
        if self._read_only:
            raise StoreUnavailableError(f"{self._path} is open read-only")
        while True:
            full_at = self._map_bytes()
            try:
                with self._growth.reading(), self._env.begin(write=True) as transaction:
                    return work(transaction)
            except lmdb.MapFullError:
                self._grow(full_at)
            except lmdb.Error as error:
                raise self._explain(error) from error

    def _map_bytes(self) -> int:
        with self._explained():
            return int(self._env.info()["map_size"])

    def _grow(self, full_at: int) -> None:
        with self._growth.writing(), self._explained():
            if self._env.info()["map_size"] > full_at:
                return  # Another thread was here first.
            if full_at >= self._max_map_bytes:
                raise StoreUnavailableError(f"{self._path} is full: it may not grow beyond {full_at} bytes")
            self._env.set_mapsize(min(2 * full_at, self._max_map_bytes))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(f"{self._path} can't be used: {error}")

    def close(self) -> None:
        """Close it once nobody is inside a transaction."""
        with self._growth.writing():
            self._env.close()

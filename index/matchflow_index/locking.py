"""Who may look and who may change: many readers or one writer, and one writing process per store."""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from matchflow_index.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class ReadWriteLock:
    """Many readers at once, or one writer alone.

    A waiting writer holds new readers back, so that a stream of searches can't starve it. Not reentrant: a thread that
    reads must neither read nor write again inside.
    """

    __slots__ = ("_changed", "_readers", "_waiting_writers", "_writing")

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._readers = 0
        self._waiting_writers = 0
        self._writing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the lock together with other readers."""
        with self._changed:
            while self._writing or self._waiting_writers:
                self._changed.wait()
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                if not self._readers:
                    self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock alone."""
        with self._changed:
            self._waiting_writers += 1
            try:
                while self._writing or self._readers:
                    self._changed.wait()
                self._writing = True
            finally:
                self._waiting_writers -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()


class WriterLock:
    """The right of one process to write to a store; the kernel takes it back when the process ends in any way."""

    def __init__(self, path: Path) -> None:
        """Take the lock on file `path`; StoreUnavailableError names the process that has it."""
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreUnavailableError(f"{path.parent} can't be opened for writing: {error}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise StoreUnavailableError(
                f"{path.parent} is open for writing in process {holder}; stop that one, or open the store read-only"
            ) from error
        self._note_holder()

    def _note_holder(self) -> None:
        """Write down who has the lock; on a full disk the lock still holds, only nameless."""
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            pass

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)

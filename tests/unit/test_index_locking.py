from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from matchflow_index import StoreUnavailableError
from matchflow_index.locking import ReadWriteLock, WriterLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE_S = 30.0


def started(*bodies: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=body, daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    return threads


def wait_until(condition: Callable[[], bool]) -> None:
    """Give other threads the processor until something holds."""
    deadline = threading.Event()
    timer = threading.Timer(PATIENCE_S, deadline.set)
    timer.start()
    while not condition():
        assert not deadline.is_set()
        os.sched_yield()
    timer.cancel()


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_readers_hold_the_lock_together() -> None:
    lock, together = ReadWriteLock(), threading.Barrier(4, timeout=PATIENCE_S)

    def read() -> None:
        with lock.reading():
            together.wait()

    join(started(read, read, read, read))


def test_a_writer_is_alone() -> None:
    lock, inside, trouble = ReadWriteLock(), [0, 0], []

    def write() -> None:
        for _ in range(300):
            with lock.writing():
                inside[1] += 1
                if inside != [0, 1]:
                    trouble.append(tuple(inside))
                inside[1] -= 1

    def read() -> None:
        for _ in range(300):
            with lock.reading():
                if inside[1]:
                    trouble.append(tuple(inside))

    join(started(write, write, read, read, read))
    assert not trouble


def test_a_waiting_writer_goes_before_readers_that_come_later() -> None:
    lock, order = ReadWriteLock(), []

    def write() -> None:
        with lock.writing():
            order.append("writer")

    def read() -> None:
        with lock.reading():
            order.append("reader")

    with lock.reading():
        threads = started(write)
        wait_until(lambda: lock._waiting_writers == 1)
        threads += started(read)
        wait_until(lambda: len(lock._changed._waiters) == 2)  # type: ignore[attr-defined]
    join(threads)
    assert order == ["writer", "reader"]


@pytest.mark.parametrize("side", ["reading", "writing"])
def test_an_exception_inside_gives_the_lock_back(side: str) -> None:
    lock = ReadWriteLock()
    with pytest.raises(ZeroDivisionError), getattr(lock, side)():
        _ = 1 // 0
    with lock.writing():
        pass


def test_a_second_writer_of_a_store_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "writer.lock")
    with pytest.raises(StoreUnavailableError, match=f"process {os.getpid()}"):
        WriterLock(tmp_path / "writer.lock")
    lock.release()
    WriterLock(tmp_path / "writer.lock").release()


def test_a_lock_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="writing"):
        WriterLock(tmp_path / "missing" / "writer.lock")


def test_a_lock_file_of_a_writer_that_died_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "writer.lock").write_text("4194305 and a long story\n")
    lock = WriterLock(tmp_path / "writer.lock")
    assert (tmp_path / "writer.lock").read_text() == f"{os.getpid()}\n"
    lock.release()

"""The threads on which everything heavy runs; the event loop only passes things on."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
STORE_THREADS = 4
PATIENT_THREADS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """One pool for each kind of work, so that none waits behind another kind.

    images: decode and preprocess. search: the two stages. store: reads and writes of the truth. patient: what may take
    seconds.
    """

    images: ThreadPoolExecutor
    search: ThreadPoolExecutor
    store: ThreadPoolExecutor
    patient: ThreadPoolExecutor

    @classmethod
    def start(cls, *, image_threads: int, search_threads: int) -> Self:
        """Return pools whose threads start with the first work."""
        return cls(
            images=ThreadPoolExecutor(image_threads, "images"),
            search=ThreadPoolExecutor(search_threads, "search"),
            store=ThreadPoolExecutor(STORE_THREADS, "store"),
            patient=ThreadPoolExecutor(PATIENT_THREADS, "patient"),
        )

    def close(self) -> None:
        """Drop what has not begun and wait for what has."""
        for pool in (self.images, self.search, self.store, self.patient):
            pool.shutdown(wait=True, cancel_futures=True)


async def on(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """Run `work` on a thread of `pool`, with the caller's context (its request id in the log)."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(pool, context.run, work)

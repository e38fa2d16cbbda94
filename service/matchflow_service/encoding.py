"""The one queue between everybody who has images and the threads that run the model."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from matchflow_matching import FeatureBatch, quantise
from matchflow_service.errors import OverloadedError, ShuttingDownError

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# What a client is told while nothing is known of the encoder's pace.
FIRST_GUESS_S_PER_IMAGE = 0.02
SHORTEST_RETRY_S = 0.1


class ImageEncoder(Protocol):
    """Runs a model on uint8 [n, H, W, 3]; gives float32 [n, D] and [n, R, D]. Called from several threads."""

    def encode(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return embeddings and cells."""
        ...


@dataclass(eq=False, slots=True, kw_only=True)
class _Parcel:
    """Images that were handed in together, and their features to be."""

    images: NDArray[np.uint8]
    arrival_s: float
    features: asyncio.Future[FeatureBatch] = field(repr=False)


class EncoderQueue:
    """Batches the images of concurrent calls and runs at most `threads` batches at a time on threads of its own.

    A batch starts when a thread is free and either `batch_size` images wait or the oldest has waited `wait_s`. Images
    handed in together stay together, so a parcel is at most `batch_size` images. `limit` images may wait.
    A thread that ends a batch takes the next full one by itself: handed out by the busy event loop, it would wait idle
    for a tenth of the time. All methods belong to one event loop.
    """

    def __init__(self, encoder: ImageEncoder, *, threads: int, batch_size: int, wait_s: float, limit: int) -> None:
        self._encoder = encoder
        self._threads = threads
        self._wait_s = wait_s
        self._limit = limit
        self._pool = ThreadPoolExecutor(threads, "encoder")
        self._loop = asyncio.get_running_loop()
        # Guards the two below, which the threads take from.
        self._lock = threading.Lock()
        self._parcels: deque[_Parcel] = deque()
        self._queued = 0
        self._running: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._room = asyncio.Event()
        self._closed = False
        self._s_per_image = FIRST_GUESS_S_PER_IMAGE
        self.batch_size = batch_size
        self.batches_run = 0
        self.images_run = 0

    @property
    def queued(self) -> int:
        """The number of images that wait."""
        return self._queued

    async def encode(self, images: NDArray[np.uint8]) -> FeatureBatch:
        """Return the quantised features of uint8 [n, H, W, 3], any n.

        Cancelling takes waiting images out of the queue. Raises OverloadedError when they do not fit it.
        """
        if self._queued + len(images) > self._limit:
            raise OverloadedError(self._queued, self._limit, max(SHORTEST_RETRY_S, self._queued * self._s_per_image))
        return await self._features(images)

    async def encode_in_turn(self, images: NDArray[np.uint8]) -> FeatureBatch:
        """Do as `encode`, but wait for room instead of raising OverloadedError."""
        while self._queued and self._queued + len(images) > self._limit:
            self._room.clear()
            await self._room.wait()
        return await self._features(images)

    async def close(self) -> None:
        """Fail what waits with ShuttingDownError and wait for what runs."""
        self._closed = True
        self._stop_timer()
        with self._lock:
            waiting = list(self._parcels)
            self._parcels.clear()
            self._queued = 0
        for parcel in waiting:
            parcel.features.set_exception(ShuttingDownError())
        self._room.set()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._pool.shutdown(wait=True)

    def _hand_in(self, images: NDArray[np.uint8]) -> _Parcel:
        if self._closed:
            raise ShuttingDownError
        parcel = _Parcel(images=images, arrival_s=self._loop.time(), features=self._loop.create_future())
        with self._lock:
            self._parcels.append(parcel)
            self._queued += len(images)
        self._start_batches()
        return parcel

    async def _features(self, images: NDArray[np.uint8]) -> FeatureBatch:
        parcels = [self._hand_in(images[i : i + self.batch_size]) for i in range(0, len(images), self.batch_size)]
        try:
            parts = [await parcel.features for parcel in parcels]
            return parts[0] if len(parts) == 1 else _concatenated(parts)
        finally:
            for parcel in parcels:
                self._withdraw(parcel)

    def _withdraw(self, parcel: _Parcel) -> None:
        """Forget a parcel whose caller has gone; does nothing to one that is finished."""
        if parcel.features.done() and not parcel.features.cancelled():
            parcel.features.exception()  # seen, or asyncio would warn of an error that nobody awaited
            return
        parcel.features.cancel()
        with self._lock:
            if parcel in self._parcels:
                self._parcels.remove(parcel)
                self._queued -= len(parcel.images)
        self._room.set()

    def _start_batches(self) -> None:
        self._stop_timer()
        while len(self._running) < self._threads:
            batch = self._take_batch()
            if not batch:
                return
            self._room.set()
            running = self._loop.run_in_executor(self._pool, self._work, batch)
            self._running.add(running)
            running.add_done_callback(self._finished)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take_batch(self) -> list[_Parcel]:
        """Return the batch to run now; when it is too early for one, return nothing and be called again in time."""
        with self._lock:
            if self._queued < self.batch_size and self._parcels:
                remaining_s = self._parcels[0].arrival_s + self._wait_s - self._loop.time()
                if remaining_s > 0:
                    self._timer = self._loop.call_later(remaining_s, self._start_batches)
                    return []
            return self._pop_batch()

    def _take_full_batch(self) -> list[_Parcel]:
        with self._lock:
            return self._pop_batch() if self._queued >= self.batch_size else []

    def _pop_batch(self) -> list[_Parcel]:
        batch: list[_Parcel] = []
        size = 0
        while self._parcels and size + len(self._parcels[0].images) <= self.batch_size:
            parcel = self._parcels.popleft()
            batch.append(parcel)
            size += len(parcel.images)
        self._queued -= size
        return batch

    def _finished(self, running: asyncio.Future[None]) -> None:
        self._running.discard(running)
        self._start_batches()

    def _work(self, batch: list[_Parcel]) -> None:
        """Run a batch, and full ones as long as there are any. Runs on a thread of the pool."""
        while batch:
            done, start_s = batch, time.perf_counter()
            outcome: FeatureBatch | Exception
            try:
                outcome = self._encode(done)
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait
                outcome = error
            seconds = time.perf_counter() - start_s
            batch = self._take_full_batch()
            self._loop.call_soon_threadsafe(self._deliver, done, outcome, seconds)

    def _deliver(self, batch: list[_Parcel], outcome: FeatureBatch | Exception, seconds: float) -> None:
        # The thread may have taken its next batch.
        self._room.set()
        if isinstance(outcome, Exception):
            for parcel in batch:
                if not parcel.features.done():
                    parcel.features.set_exception(outcome)
            return
        size = sum(len(parcel.images) for parcel in batch)
        self.batches_run += 1
        self.images_run += size
        self._s_per_image += (seconds / size / self._threads - self._s_per_image) / 8
        begin = 0
        for parcel in batch:
            end = begin + len(parcel.images)
            if not parcel.features.done():
                parcel.features.set_result(outcome.take(slice(begin, end)))
            begin = end

    def _encode(self, batch: list[_Parcel]) -> FeatureBatch:
        images = batch[0].images if len(batch) == 1 else np.concatenate([parcel.images for parcel in batch])
        return quantise(*self._encoder.encode(images))


def _concatenated(parts: list[FeatureBatch]) -> FeatureBatch:
    return FeatureBatch(
        embeddings=np.concatenate([part.embeddings for part in parts]),
        cells=np.concatenate([part.cells for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
    )

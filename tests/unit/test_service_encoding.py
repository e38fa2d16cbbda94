"""The queue before the encoder: batches, limits, cancellation, faults."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchflow_service.encoding import EncoderQueue
from matchflow_service.errors import OverloadedError, ShuttingDownError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from numpy.typing import NDArray

LIMIT_S = 30.0
DIM = 4


class CountingEncoder:
    """Turns the first pixel of an image into its features, and remembers the batches."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def encode(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return one-hot vectors."""
        with self._lock:
            self.batch_sizes.append(len(images))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        self.entered.release()
        assert self.gate.wait(LIMIT_S)
        with self._lock:
            self._at_once -= 1
        if (images == 255).any():
            raise RuntimeError("an image that the model can't take")
        embeddings = np.eye(DIM, dtype=np.float32)[images[:, 0, 0, 0] % DIM]
        return embeddings, embeddings[:, None, :]


def images(*values: int) -> NDArray[np.uint8]:
    return np.array(values, np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)


def run(work: Callable[[EncoderQueue, CountingEncoder], Awaitable[None]], **changes: Any) -> CountingEncoder:
    encoder = CountingEncoder()

    async def main() -> None:
        queue = EncoderQueue(encoder, **{"threads": 1, "batch_size": 4, "wait_s": 0.0, "limit": 64, **changes})
        try:
            async with asyncio.timeout(LIMIT_S):
                await work(queue, encoder)
        finally:
            encoder.gate.set()
            await queue.close()

    asyncio.run(main())
    return encoder


async def inside(encoder: CountingEncoder) -> None:
    """Wait until a batch is being encoded."""
    assert await asyncio.to_thread(encoder.entered.acquire, timeout=LIMIT_S)


def value_of(embedding: NDArray[np.float32]) -> int:
    return int(embedding.argmax())


def test_concurrent_callers_share_a_batch_and_each_gets_its_own_features() -> None:
    async def work(queue: EncoderQueue, _: CountingEncoder) -> None:
        results = await asyncio.gather(*(queue.encode(images(i)) for i in range(4)))
        assert [value_of(result.embeddings[0]) for result in results] == [0, 1, 2, 3]
        assert (queue.batches_run, queue.images_run, queue.queued) == (1, 4, 0)

    assert run(work, wait_s=LIMIT_S).batch_sizes == [4]


def test_a_lone_image_goes_when_it_has_waited_long_enough() -> None:
    async def work(queue: EncoderQueue, _: CountingEncoder) -> None:
        assert value_of((await queue.encode(images(2))).embeddings[0]) == 2

    assert run(work, wait_s=0.001).batch_sizes == [1]


def test_what_gathers_behind_a_running_batch_goes_together() -> None:
    async def work(queue: EncoderQueue, encoder: CountingEncoder) -> None:
        encoder.gate.clear()
        first = asyncio.ensure_future(queue.encode(images(0)))
        await inside(encoder)
        rest = [asyncio.ensure_future(queue.encode(images(i))) for i in range(1, 4)]
        await asyncio.sleep(0)
        assert queue.queued == 3
        encoder.gate.set()
        await asyncio.gather(first, *rest)

    assert run(work).batch_sizes == [1, 3]


def test_a_thread_takes_the_next_full_batches_while_the_loop_is_busy() -> None:
    async def work(queue: EncoderQueue, encoder: CountingEncoder) -> None:
        encoder.gate.clear()
        calls = [asyncio.ensure_future(queue.encode(images(0, 1, 2, 3))) for _ in range(3)]
        calls.append(asyncio.ensure_future(queue.encode(images(1, 2))))
        await asyncio.sleep(0)
        encoder.gate.set()
        # Blocks the loop on purpose. A batch that is not full is the loop's to start.
        assert all(encoder.entered.acquire(timeout=LIMIT_S) for _ in range(3))
        assert queue.queued == 2
        results = await asyncio.gather(*calls)
        assert [len(result) for result in results] == [4, 4, 4, 2]

    assert run(work).batch_sizes == [4, 4, 4, 2]


def test_as_many_batches_run_at_once_as_there_are_threads() -> None:
    async def work(queue: EncoderQueue, encoder: CountingEncoder) -> None:
        encoder.gate.clear()
        calls = [asyncio.ensure_future(queue.encode(images(0, 1, 2, 3))) for _ in range(5)]
        await inside(encoder)
        await inside(encoder)
        encoder.gate.set()
        await asyncio.gather(*calls)

    encoder = run(work, threads=2)
    assert encoder.most_at_once == 2
    assert encoder.batch_sizes == [4] * 5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 11), min_size=1, max_size=12), st.integers(1, 6), st.integers(1, 3))
def test_no_batch_is_larger_than_allowed_and_nothing_is_mixed_up(sizes: list[int], batch: int, threads: int) -> None:
    async def work(queue: EncoderQueue, _: CountingEncoder) -> None:
        async def call(size: int, start: int) -> None:
            values = [(start + i) % DIM for i in range(size)]
            result = await queue.encode(images(*values))
            assert [value_of(embedding) for embedding in result.embeddings] == values
            assert result.cells.shape == (size, 1, DIM)

        await asyncio.gather(*(call(size, start) for start, size in enumerate(sizes)))

    encoder = run(work, batch_size=batch, threads=threads, limit=1000)
    assert max(encoder.batch_sizes) <= batch
    assert sum(encoder.batch_sizes) == sum(sizes)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def work(queue: EncoderQueue, encoder: CountingEncoder) -> None:
        encoder.gate.clear()
        running = asyncio.ensure_future(queue.encode(images(0, 1, 2, 3)))
        await inside(encoder)
        waiting = asyncio.ensure_future(queue.encode(images(*[0] * 8)))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="8 of at most 8 images") as raised:
            await queue.encode(images(1))
        assert raised.value.retry_after_s >= 0.1
        encoder.gate.set()
        await asyncio.gather(running, waiting)
        await queue.encode(images(1))

    run(work, limit=8)


def test_who_waits_in_turn_is_let_in_as_room_appears() -> None:
    async def work(queue: EncoderQueue, encoder: CountingEncoder) -> None:
        encoder.gate.clear()
        running = asyncio.ensure_future(queue.encode(images(0)))
        await inside(encoder)
        calls = [asyncio.ensure_future(queue.encode_in_turn(images(1, 2, 3))) for _ in range(6)]
        await asyncio.sleep(0)
        assert queue.queued == 6
        encoder.gate.set()
        results = await asyncio.gather(running, *calls)
        assert [len(result) for result in results] == [1] + [3] * 6

    run(work, limit=8)


def test_more_than_the_whole_queue_still_gets_through_in_turn() -> None:
    async def work(queue: EncoderQueue, _: CountingEncoder) -> None:
        assert len(await queue.encode_in_turn(images(*[1] * 20))) == 20

    run(work, limit=8)


def test_a_cancelled_caller_takes_its_images_out_of_the_queue() -> None:
    async def work(queue: EncoderQueue, encoder: CountingEncoder) -> None:
        encoder.gate.clear()
        running = asyncio.ensure_future(queue.encode(images(0)))
        await inside(encoder)
        doomed = asyncio.ensure_future(queue.encode(images(1, 1, 1, 1, 1)))
        kept = asyncio.ensure_future(queue.encode(images(2)))
        await asyncio.sleep(0)
        doomed.cancel()
        await asyncio.gather(doomed, return_exceptions=True)
        assert doomed.cancelled()
        assert queue.queued == 1
        encoder.gate.set()
        await asyncio.gather(running, kept)

    assert run(work).batch_sizes == [1, 1]


def test_a_caller_that_leaves_while_its_batch_runs_disturbs_no_other() -> None:
    async def work(queue: EncoderQueue, encoder: CountingEncoder) -> None:
        encoder.gate.clear()
        leaving, staying = (asyncio.ensure_future(queue.encode(images(i))) for i in (1, 2))
        await inside(encoder)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        encoder.gate.set()
        assert value_of((await staying).embeddings[0]) == 2

    assert run(work, batch_size=2, wait_s=LIMIT_S).batch_sizes == [2]


def test_a_fault_of_the_encoder_reaches_all_of_the_batch_and_none_after_it() -> None:
    async def work(queue: EncoderQueue, _: CountingEncoder) -> None:
        calls = [queue.encode(images(value)) for value in (1, 255, 2, 3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [RuntimeError] * 4
        assert len(await queue.encode(images(0, 1, 2, 3))) == 4

    run(work, wait_s=LIMIT_S)


def test_a_fault_in_one_parcel_of_a_call_is_the_fault_of_the_call() -> None:
    async def work(queue: EncoderQueue, _: CountingEncoder) -> None:
        with pytest.raises(RuntimeError, match="can't take"):
            await queue.encode(images(1, 2, 255, 3, 1, 2))
        assert queue.queued == 0

    run(work, batch_size=2)


def test_a_fault_that_nobody_waits_for_any_more_is_dropped() -> None:
    async def work(queue: EncoderQueue, encoder: CountingEncoder) -> None:
        encoder.gate.clear()
        leaving = asyncio.ensure_future(queue.encode(images(255)))
        await inside(encoder)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        encoder.gate.set()
        assert len(await queue.encode(images(1))) == 1

    run(work)


def test_closing_fails_what_waits_and_refuses_what_comes() -> None:
    async def work(queue: EncoderQueue, encoder: CountingEncoder) -> None:
        encoder.gate.clear()
        running = asyncio.ensure_future(queue.encode(images(1)))
        await inside(encoder)
        waiting = asyncio.ensure_future(queue.encode(images(2)))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(queue.close())
        with pytest.raises(ShuttingDownError):
            await waiting
        encoder.gate.set()
        await closing
        assert len(await running) == 1
        with pytest.raises(ShuttingDownError):
            await queue.encode(images(1))

    run(work)


def test_closing_stops_the_clock_of_a_batch_that_gathers() -> None:
    async def work(queue: EncoderQueue, _: CountingEncoder) -> None:
        waiting = asyncio.ensure_future(queue.encode(images(2)))
        await asyncio.sleep(0)
        await queue.close()
        with pytest.raises(ShuttingDownError):
            await waiting

    assert run(work, wait_s=LIMIT_S).batch_sizes == []

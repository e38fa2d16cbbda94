"""The ingest stream for an event loop: the stream of threads, run beside the loop.

grpc.aio writes over the server's status when the server ends a stream that the client still sends on: instead of "no
such gallery" the caller would get INTERNAL (grpc/grpc#36066). gRPC for threads keeps the status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING

from matchflow.channel import open_channel
from matchflow.ingest_stream import IngestStream

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Iterable, Iterator

    import grpc

    from matchflow.ingest import IngestItem, IngestLedger, IngestResult, IngestSummary, OnResult


async def ingest_in_thread(
    ledger: IngestLedger,
    items: Iterable[IngestItem] | AsyncIterable[IngestItem],
    target: str,
    credentials: grpc.ChannelCredentials | None,
    on_result: OnResult | None,
) -> IngestSummary:
    """Run one ingest stream and return its summary; `on_result` is called on the loop. Cancelling ends the stream."""
    loop = asyncio.get_running_loop()
    results: asyncio.Queue[IngestResult | None] = asyncio.Queue()
    source = _FromLoop(items, loop) if isinstance(items, AsyncIterable) else items
    stream = IngestStream(ledger, source)

    def hand_over(result: IngestResult) -> None:
        loop.call_soon_threadsafe(results.put_nowait, result)

    def work() -> IngestSummary:
        with open_channel(target, credentials) as channel:
            return stream.run(channel, target, hand_over)

    working = asyncio.ensure_future(asyncio.to_thread(work))
    working.add_done_callback(lambda _: results.put_nowait(None))
    try:
        while (result := await results.get()) is not None:
            if on_result is not None:
                on_result(result)
        return await working
    finally:
        stream.cancel()
        if isinstance(source, _FromLoop):
            source.close()
        await asyncio.wait([working])
        # Looked at even when nobody is left to hear it, or asyncio complains of an error that was never retrieved.
        working.exception()


class _FromLoop:
    """Gives a thread what an asynchronous iterable of the loop has, item by item."""

    def __init__(self, items: AsyncIterable[IngestItem], loop: asyncio.AbstractEventLoop) -> None:
        self._items = aiter(items)
        self._loop = loop
        self._next: concurrent.futures.Future[IngestItem | None] | None = None
        self._closed = False

    def __iter__(self) -> Iterator[IngestItem]:
        while not self._closed:
            self._next = asyncio.run_coroutine_threadsafe(self._pull(), self._loop)
            if self._closed:  # meanwhile, so nobody would cancel this one
                self._next.cancel()
            item = self._next.result()
            if item is None:
                return
            yield item

    async def _pull(self) -> IngestItem | None:
        return await anext(self._items, None)

    def close(self) -> None:
        """Wait for no further item."""
        self._closed = True
        if self._next is not None:
            self._next.cancel()

"""The ingest stream on threads and on asyncio: sends what the ledger has room for, books what comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING

import grpc

from matchflow.errors import MatchflowError, from_rpc_error
from matchflow.ingest import INGEST_IMAGES, IngestItem, IngestLedger, IngestSummary, OnResult, ingest_request
from matchflow.v1.ingest_pb2 import IngestImagesRequest, IngestImagesResponse

if TYPE_CHECKING:
    from grpc import aio


class IngestStream:
    """One ingest stream on two threads: gRPC's own pulls the items, the caller's books and reports the results."""

    def __init__(self, ledger: IngestLedger, items: Iterable[IngestItem]) -> None:
        self._ledger = ledger
        self._items = items
        self._changed = threading.Condition()
        self._stopped = False
        self._fault: Exception | None = None

    def run(self, channel: grpc.Channel, target: str, on_result: OnResult | None) -> IngestSummary:
        """Send everything and return what became of it; errors as Client.ingest, and whatever `items` raises."""
        stream = channel.stream_stream(
            INGEST_IMAGES,
            request_serializer=IngestImagesRequest.SerializeToString,
            response_deserializer=IngestImagesResponse.FromString,
        )(self._requests())
        try:
            for reply in stream:
                with self._changed:
                    self._ledger.answered(reply)
                    self._changed.notify()
                self._report(on_result)
        except grpc.RpcError as error:
            raise self._ledger.interrupted(from_rpc_error(error, target)) from error
        finally:
            self._stop()
            stream.cancel()
        self._report(on_result)
        if self._fault is not None:
            raise self._fault
        return self._ledger.finished(target)

    def _requests(self) -> Iterator[IngestImagesRequest]:
        # An exception that left this generator would be lost in gRPC's thread; the calling thread raises it instead.
        try:
            for item in self._items:
                request = self._prepare(item)
                if request is not None:
                    if not self._wait_for_room(item, request):
                        return
                    yield request
        except Exception as error:  # noqa: BLE001
            self._fault = error

    def _prepare(self, item: IngestItem) -> IngestImagesRequest | None:
        try:
            return ingest_request(self._ledger.gallery, self._ledger.next_id(), item)
        except MatchflowError as error:
            with self._changed:
                self._ledger.refused(item, error)
            return None

    def _wait_for_room(self, item: IngestItem, request: IngestImagesRequest) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._ledger.has_room(request))
            if not self._stopped:
                self._ledger.sent(item, request)
            return not self._stopped

    def _report(self, on_result: OnResult | None) -> None:
        with self._changed:
            results = self._ledger.unreported()
        if on_result is not None:
            for result in results:
                on_result(result)

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()


class AsyncIngestStream:
    """One ingest stream on the event loop; files are read on a worker thread."""

    def __init__(self, ledger: IngestLedger, items: Iterable[IngestItem] | AsyncIterable[IngestItem]) -> None:
        self._ledger = ledger
        self._items = items
        self._room = asyncio.Event()
        self._fault: Exception | None = None

    async def run(self, channel: aio.Channel, target: str, on_result: OnResult | None) -> IngestSummary:
        """Send everything and return what became of it; errors as AsyncClient.ingest, and whatever `items` raises."""
        stream = channel.stream_stream(
            INGEST_IMAGES,
            request_serializer=IngestImagesRequest.SerializeToString,
            response_deserializer=IngestImagesResponse.FromString,
        )(self._requests())
        try:
            async for reply in stream:
                self._ledger.answered(reply)
                self._room.set()
                self._report(on_result)
        except grpc.RpcError as error:
            raise self._ledger.interrupted(from_rpc_error(error, target)) from error
        finally:
            stream.cancel()
        self._report(on_result)
        if self._fault is not None:
            raise self._fault
        return self._ledger.finished(target)

    async def _requests(self) -> AsyncIterator[IngestImagesRequest]:
        # An exception that left this generator would be lost in gRPC's task; `run` raises it instead.
        try:
            async for item in _each(self._items):
                request = await self._prepare(item)
                if request is not None:
                    await self._wait_for_room(request)
                    self._ledger.sent(item, request)
                    yield request
        except Exception as error:  # noqa: BLE001
            self._fault = error

    async def _prepare(self, item: IngestItem) -> IngestImagesRequest | None:
        try:
            return await asyncio.to_thread(ingest_request, self._ledger.gallery, self._ledger.next_id(), item)
        except MatchflowError as error:
            self._ledger.refused(item, error)
            return None

    async def _wait_for_room(self, request: IngestImagesRequest) -> None:
        while not self._ledger.has_room(request):
            self._room.clear()
            await self._room.wait()

    def _report(self, on_result: OnResult | None) -> None:
        results = self._ledger.unreported()
        if on_result is not None:
            for result in results:
                on_result(result)


async def _each(items: Iterable[IngestItem] | AsyncIterable[IngestItem]) -> AsyncIterator[IngestItem]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item

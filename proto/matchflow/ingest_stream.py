"""The ingest stream: sends what the ledger has room for, books what comes back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import grpc

from matchflow.errors import MatchflowError, from_rpc_error
from matchflow.ingest import INGEST_IMAGES, IngestItem, IngestLedger, IngestSummary, OnResult, ingest_request
from matchflow.v1.ingest_pb2 import IngestImagesRequest, IngestImagesResponse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class IngestStream:
    """One ingest stream on two threads: gRPC's own pulls the items, the caller's books and reports the results."""

    def __init__(self, ledger: IngestLedger, items: Iterable[IngestItem]) -> None:
        self._ledger = ledger
        self._items = items
        self._changed = threading.Condition()
        self._stopped = False
        # The request that waits for room.
        self._next: IngestImagesRequest | None = None
        self._call: Any = None
        self._fault: Exception | None = None

    def run(self, channel: grpc.Channel, target: str, on_result: OnResult | None) -> IngestSummary:
        """Send everything and return what became of it; errors as Client.ingest, and whatever `items` raises."""
        call = channel.stream_stream(
            INGEST_IMAGES,
            request_serializer=IngestImagesRequest.SerializeToString,
            response_deserializer=IngestImagesResponse.FromString,
        )(self._requests())
        with self._changed:
            self._call = call
            cancelled_before = self._stopped
        if cancelled_before:
            call.cancel()
        try:
            for reply in call:
                with self._changed:
                    self._ledger.answered(reply)
                    if self._next is not None and self._ledger.has_room(self._next):
                        self._changed.notify()
                self._report(on_result)
        except grpc.RpcError as error:
            raise self._ledger.interrupted(from_rpc_error(error, target)) from error
        finally:
            self.cancel()
        self._report(on_result)
        if self._fault is not None:
            raise self._fault
        return self._ledger.finished(target)

    def cancel(self) -> None:
        """End the stream, from any thread; `run` then raises unless it is over."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
            call = self._call
        if call is not None:
            call.cancel()

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
            ledger = self._ledger
            return ingest_request(ledger.gallery, ledger.next_id(), item, ledger.generation)
        except MatchflowError as error:
            with self._changed:
                self._ledger.refused(item, error)
            return None

    def _wait_for_room(self, item: IngestItem, request: IngestImagesRequest) -> bool:
        with self._changed:
            self._next = request
            self._changed.wait_for(lambda: self._stopped or self._ledger.has_room(request))
            self._next = None
            if not self._stopped:
                self._ledger.sent(item, request)
            return not self._stopped

    def _report(self, on_result: OnResult | None) -> None:
        with self._changed:
            results = self._ledger.unreported()
        if on_result is not None:
            for result in results:
                on_result(result)

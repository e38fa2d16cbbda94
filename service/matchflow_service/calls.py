"""What is true of every call: it has an id, its errors become statuses, and it is refused or awaited when stopping."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import uuid
from typing import TYPE_CHECKING, Any

import grpc
from grpc_status import rpc_status

from matchflow_service.errors import ShuttingDownError
from matchflow_service.statuses import status_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

log = logging.getLogger(__name__)

OURS = "/matchflow."
NO_REQUEST = "-"
# The id of the call in whose context the code runs.
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default=NO_REQUEST)


class CallsInFlight:
    """Counts the calls that run, and refuses new ones once the server drains."""

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._count = 0

    @property
    def count(self) -> int:
        """The number of calls that run."""
        return self._count

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a call while the block runs; raise ShuttingDownError when draining."""
        if self.draining.is_set():
            raise ShuttingDownError
        self._count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._idle.set()

    async def drain(self, limit_s: float) -> bool:
        """Refuse new calls and wait for those that run, at most `limit_s`; return whether all have ended."""
        self.draining.set()
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of matchflow.v1; health and reflection pass untouched."""

    def __init__(self, calls: CallsInFlight) -> None:
        self._calls = calls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler with this class's promises around it."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(OURS):
            return handler  # type: ignore[no-any-return]
        kind, rewrap = (
            ("stream_stream", grpc.stream_stream_rpc_method_handler)
            if handler.request_streaming
            else ("unary_unary", grpc.unary_unary_rpc_method_handler)
        )
        return rewrap(
            self._guarded(method, getattr(handler, kind)),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _guarded(self, method: str, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Any]:
        async def call(request: Any, context: Any) -> Any:
            identity = uuid.uuid4().hex
            token = request_id.set(identity)
            try:
                with self._calls.admitted():
                    return await behaviour(request, context)
            except grpc.aio.BaseError:  # the call has been aborted, or its connection is gone
                raise
            except Exception as error:  # noqa: BLE001 - this is where every exception becomes a status
                status = status_of(error, identity)
                log.info("refused %s: %s", method, error)
                await context.abort_with_status(rpc_status.to_status(status))
            finally:
                request_id.reset(token)

        return call

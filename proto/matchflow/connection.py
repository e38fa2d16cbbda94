"""A connection to a server: carries out calls that calls.py and generations.py describe, for threads or a loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, TypeVar

import grpc

from matchflow.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, open_async_channel, open_channel
from matchflow.errors import from_rpc_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from matchflow.call import Call, Page

ValueT = TypeVar("ValueT")


class Connection:
    """The part of `Client` that knows the wire."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self._channel = open_channel(target, credentials)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        self._channel.close()

    def _run(self, call: Call[ValueT], timeout_s: float | None = None) -> ValueT:
        rpc = self._channel.unary_unary(
            call.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.reply_type.FromString,
        )
        try:
            reply = rpc(call.request, timeout=self.timeout_s if timeout_s is None else timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.target) from error
        return call.convert(reply)

    def _pages(self, describe: Callable[[str], Call[Page[ValueT]]]) -> Iterator[ValueT]:
        page = self._run(describe(""))
        yield from page.values
        while page.next_token:
            page = self._run(describe(page.next_token))
            yield from page.values


class AsyncConnection:
    """The part of `AsyncClient` that knows the wire."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self._credentials = credentials
        self._channel = open_async_channel(target, credentials)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        await self._channel.close()

    async def _run(self, call: Call[ValueT], timeout_s: float | None = None) -> ValueT:
        rpc = self._channel.unary_unary(
            call.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.reply_type.FromString,
        )
        try:
            reply = await rpc(call.request, timeout=self.timeout_s if timeout_s is None else timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.target) from error
        return call.convert(reply)

    async def _pages(self, describe: Callable[[str], Call[Page[ValueT]]]) -> AsyncIterator[ValueT]:
        page = await self._run(describe(""))
        for value in page.values:
            yield value
        while page.next_token:
            page = await self._run(describe(page.next_token))
            for value in page.values:
                yield value

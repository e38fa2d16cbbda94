"""What the client talks to in its own tests: a real gRPC server on a free port that answers as the test says.

Paths and message types come from the contract's descriptors, so a client that strays from the contract gets no answer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from matchflow.async_client import AsyncClient
from matchflow.client import Client
from matchflow.v1 import gallery_pb2, generation_pb2, ingest_pb2, model_pb2, search_pb2, types_pb2

Answer = Callable[[Any], Message]
IngestAnswers = Callable[
    [Iterator[ingest_pb2.IngestImagesRequest], grpc.ServicerContext], Iterator[ingest_pb2.IngestImagesResponse]
]

METHODS = {
    f"/{service.full_name}/{method.name}": method
    for file in (gallery_pb2, generation_pb2, ingest_pb2, model_pb2, search_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
INGEST_PATH = "/matchflow.v1.IngestService/IngestImages"


def failure(reason: str, code: int, message: str, *details: Message, **metadata: str) -> status_pb2.Status:
    """Return a status as the contract wants it."""
    status = status_pb2.Status(code=code, message=message)
    info = error_details_pb2.ErrorInfo(reason=reason, domain="matchflow", metadata=metadata)
    for detail in (info, *details):
        status.details.add().Pack(detail)
    return status


@dataclass(frozen=True)
class Refusal(Exception):  # noqa: N818 - not an error of the test
    """Raised by an answer to end its call with this status."""

    status: status_pb2.Status


@dataclass
class Counterpart(grpc.GenericRpcHandler):
    """Answers each unary method by the function under its name; keeps every request."""

    target: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    ingest: IngestAnswers | None = None
    requests: list[Any] = field(default_factory=list)
    deadlines_s: list[float] = field(default_factory=list)
    # Set to let calls go on that wait for the end of the test.
    over: threading.Event = field(default_factory=threading.Event)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Find the contract's method."""
        method = METHODS.get(handler_call_details.method)
        if method is None:
            return None
        request_type, reply_type = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        kinds = {"request_deserializer": request_type.FromString, "response_serializer": reply_type.SerializeToString}
        if handler_call_details.method == INGEST_PATH:
            return grpc.stream_stream_rpc_method_handler(self.ingest, **kinds)  # type: ignore[arg-type]
        answer = self.answers.get(method.name)
        return answer and grpc.unary_unary_rpc_method_handler(self._answering(answer), **kinds)  # type: ignore[arg-type]

    def _answering(self, answer: Answer) -> Callable[[Any, grpc.ServicerContext], Message]:
        def reply(request: Any, context: grpc.ServicerContext) -> Message:
            self.requests.append(request)
            self.deadlines_s.append(context.time_remaining())
            try:
                return answer(request)
            except Refusal as refusal:
                context.abort_with_status(rpc_status.to_status(refusal.status))
                raise

        return reply


@contextmanager
def running(counterpart: Counterpart, *more: grpc.GenericRpcHandler) -> Iterator[Counterpart]:
    """Serve on a free port; `target` says where."""
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads, options=[("grpc.max_receive_message_length", 64 * 1024 * 1024)])
        server.add_generic_rpc_handlers((counterpart, *more))
        counterpart.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield counterpart
        finally:
            counterpart.over.set()
            server.stop(grace=None).wait()


class AsyncClientInDisguise:
    """An AsyncClient with the synchronous face of Client, so that one suite holds for both."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()

        async def connect() -> AsyncClient:
            return AsyncClient(*args, **settings)

        self._client = self._loop.run_until_complete(connect())

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if not callable(attribute):
            return attribute
        return lambda *args, **settings: self._wait(attribute(*args, **settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def wait(self, awaitable: Any) -> Any:
        """Return what an awaitable of the loop gives."""
        return self._wait(awaitable)

    def _wait(self, value: Any) -> Any:
        if isinstance(value, AsyncIterator):
            return iter(self._loop.run_until_complete(_all(value)))
        if isinstance(value, Awaitable):
            return self._loop.run_until_complete(_result(value))
        return value


async def _all(values: AsyncIterator[Any]) -> list[Any]:
    return [value async for value in values]


async def _result(value: Awaitable[Any]) -> Any:
    return await value


CLIENTS = {"sync": Client, "asyncio": AsyncClientInDisguise}


def flow(query_cell: int, image_cell: int, mass: float, similarity: float, penalty: float = 0.0) -> types_pb2.Flow:
    """Return a flow that adds up."""
    return types_pb2.Flow(
        query_cell=query_cell,
        image_cell=image_cell,
        query_box=types_pb2.Box(left=0, top=0, right=0.5, bottom=0.25),
        image_box=types_pb2.Box(left=0.5, top=0.5, right=1, bottom=1),
        mass=mass,
        similarity=similarity,
        penalty=penalty,
        contribution=mass * (similarity - penalty),
    )


def match_score(residual: float = 0.1) -> types_pb2.MatchScore:
    """Return a pair's score with two flows that contribute 0.525; it adds up for a residual of 0.1."""
    return types_pb2.MatchScore(
        coarse_score=0.75,
        structural_score=0.625,
        score=1.375,
        certificate=types_pb2.Certificate(iterations=12, marginal_error=5e-5, converged=True),
        flows=[flow(0, 1, 0.5, 0.8), flow(2, 3, 0.25, 0.5)],
        residual=residual,
    )


def stored_image(image_id: str, **labels: str) -> gallery_pb2.Image:
    """Return an image of gallery demo."""
    image = gallery_pb2.Image(
        name=f"galleries/demo/images/{image_id}",
        labels=types_pb2.Labels(values=labels),
        row_id=41,
        content_hash="ab" * 32,
        width_px=640,
        height_px=480,
    )
    image.update_time.FromSeconds(1_700_000_000)
    return image


def stored_generation(
    number: int = 2,
    state: generation_pb2.Generation.State.ValueType = generation_pb2.Generation.STATE_READY,
    **fields: Any,
) -> generation_pb2.Generation:
    """Return a generation of gallery demo with 3 images, under another model unless it is the first."""
    known: dict[str, Any] = {"image_count": 3, "sequence": (number - 1) * 10**12 + 9}
    generation = generation_pb2.Generation(
        name=f"galleries/demo/generations/{number}",
        model="models/lite0" if number == 1 else "models/other",
        bundle_digest=f"d{number}" * 32,
        grid=types_pb2.CellGrid(rows=4, columns=2),
        embedding_dim=128,
        state=state,
        **known | fields,
    )
    generation.create_time.FromSeconds(1_700_000_000)
    return generation

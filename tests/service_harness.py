"""A real server in a thread of the test's process, and a client that speaks the bare contract with it."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_status import rpc_status
from PIL import Image

from matchflow.v1 import (
    gallery_pb2,
    gallery_pb2_grpc,
    generation_pb2_grpc,
    ingest_pb2,
    ingest_pb2_grpc,
    model_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
    types_pb2,
)
from matchflow_matching import FeatureBatch, quantise
from matchflow_service.conversions import features_message
from matchflow_service.server import MatchflowServer
from matchflow_service.settings import ServiceSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from matchflow_bundle import Bundle

T = TypeVar("T")
LIMIT_S = 60.0
# The first server on a machine compiles every kernel before it listens.
START_LIMIT_S = 600.0
MESSAGE_BYTES = 256 * 1024 * 1024


def settings_for(bundle: Bundle, store: Path, **changes: Any) -> ServiceSettings:
    """Return the settings of a test server: any free port, and as `changes` say."""
    return ServiceSettings(**{"store": store, "bundles": [bundle.path], "port": 0, "encoder_threads": 2, **changes})


class RunningServer:
    """A MatchflowServer on an event loop in its own thread."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.server = MatchflowServer(settings)
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="server")

    def start(self) -> None:
        """Return once it listens; raise what kept it from starting."""
        self._thread.start()
        assert self._ready.wait(START_LIMIT_S)
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def begin_stop(self) -> None:
        """Tell it to stop, and come back at once."""
        self.loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        """Return once it has drained and closed."""
        if self._thread.is_alive():
            self.begin_stop()
            self._thread.join(LIMIT_S)
            assert not self._thread.is_alive()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LIMIT_S)

    @property
    def target(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.server.port}"

    @property
    def queue(self) -> Any:
        """The queue before the default model's encoder."""
        return self.server.models.named("").queue

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            async with self.server:
                self._ready.set()
                await self._stop.wait()
        except BaseException as error:  # noqa: BLE001 - start() raises it in the test's thread
            self._failure = error
            self._ready.set()


class Api:
    """The stubs of every service on one channel, and what most tests do with them."""

    def __init__(self, target: str) -> None:
        self.channel = grpc.insecure_channel(
            target,
            options=[
                ("grpc.max_send_message_length", MESSAGE_BYTES),
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ],
        )
        self.galleries = gallery_pb2_grpc.GalleryServiceStub(self.channel)
        self.generations = generation_pb2_grpc.GenerationServiceStub(self.channel)
        self.ingest = ingest_pb2_grpc.IngestServiceStub(self.channel)
        self.search = search_pb2_grpc.SearchServiceStub(self.channel)
        self.models = model_pb2_grpc.ModelServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()

    def create(self, gallery: str, **fields: Any) -> gallery_pb2.Gallery:
        """Create a gallery."""
        request = gallery_pb2.CreateGalleryRequest(gallery_id=gallery, gallery=gallery_pb2.Gallery(**fields))
        return self.galleries.CreateGallery(request, timeout=LIMIT_S)

    def put(self, items: Iterable[ingest_pb2.IngestImagesRequest]) -> list[ingest_pb2.IngestImagesResponse]:
        """Send items over one stream and return the answers in the order of their item ids."""
        answers = self.ingest.IngestImages(iter(items), timeout=LIMIT_S)
        return sorted(answers, key=lambda answer: answer.item_id)

    def put_images(self, gallery: str, images: Mapping[str, bytes], **labels: str) -> None:
        """Ingest images that must all be taken."""
        answers = self.put(
            item(gallery, name, data, item_id=i, **labels) for i, (name, data) in enumerate(images.items())
        )
        assert [answer.status.code for answer in answers] == [0] * len(images), answers

    def find(self, gallery: str, query: search_pb2.Query, **fields: Any) -> search_pb2.SearchResponse:
        """Search."""
        request = search_pb2.SearchRequest(gallery=f"galleries/{gallery}", query=query, **fields)
        return self.search.Search(request, timeout=LIMIT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a failed call or item says."""

    code: str
    reason: str
    message: str
    metadata: dict[str, str]
    violations: list[str]
    retry_after_s: float | None


def refusal_of(call: Callable[[], object]) -> Refusal:
    """Make a call that must fail, and return its google.rpc.Status."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    status = rpc_status.from_call(raised.value)
    assert status is not None, raised.value
    return read_status(status)


def read_status(status: status_pb2.Status) -> Refusal:
    """Return what a google.rpc.Status holds; it must have the project's ErrorInfo."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    retry_after_s = None
    for detail in status.details:
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
        _ = detail.Unpack(info) or detail.Unpack(bad)
    assert info.domain == "matchflow"
    code = next(code.name for code in grpc.StatusCode if code.value[0] == status.code)
    return Refusal(
        code=code,
        reason=info.reason,
        message=status.message,
        metadata=dict(info.metadata),
        violations=[violation.field for violation in bad.field_violations],
        retry_after_s=retry_after_s,
    )


def item(gallery: str, image: str, data: bytes, *, item_id: int = 0, **labels: str) -> ingest_pb2.IngestImagesRequest:
    """Return an ingest message."""
    return ingest_pb2.IngestImagesRequest(
        name=image_name(gallery, image),
        image_bytes=data,
        item_id=item_id,
        labels=types_pb2.Labels(values=labels),
    )


def image_name(gallery: str, image: str) -> str:
    """Return the full name of an image."""
    return f"galleries/{gallery}/images/{image}"


def by_name(gallery: str, image: str) -> search_pb2.Query:
    """Return a query by stored image."""
    return search_pb2.Query(image=image_name(gallery, image))


def by_bytes(data: bytes) -> search_pb2.Query:
    """Return a query by an image that is sent."""
    return search_pb2.Query(image_bytes=data)


def picture(seed: int, *, width: int = 96, height: int = 96) -> NDArray[np.uint8]:
    """Return a picture of smooth random colours, uint8 [H, W, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(rgb: NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture as a file."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int) -> bytes:
    """Return a picture as PNG; another seed gives another picture."""
    return encoded(picture(seed))


def random_features(
    count: int, *, cells: int = 16, dim: int = 128, seed: int = 0, spread: float | None = None
) -> FeatureBatch:
    """Return quantised features of unit length; `spread`: how far they stray from one image, None: all unrelated."""
    rng = np.random.default_rng(seed)
    raw = rng.standard_normal((count, cells, dim)).astype(np.float32)
    if spread is not None:
        raw = raw[:1] + np.float32(spread) * raw
    raw /= np.linalg.norm(raw, axis=2, keepdims=True)
    embeddings = raw.mean(axis=1)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return quantise(embeddings, raw)


def feature_item(gallery: str, image: str, batch: FeatureBatch, i: int, digest: str) -> ingest_pb2.IngestImagesRequest:
    """Return an ingest message with ready-made features."""
    return ingest_pb2.IngestImagesRequest(
        name=image_name(gallery, image), features=features_message(batch[i], digest), item_id=i
    )


class GatedEncoder:
    """Lets a real encoder run only while the gate is open, and keeps count: planted to hold calls in flight."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batch_sizes: list[int] = []

    def encode(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Wait at the gate, then encode."""
        self.entered.set()
        assert self.gate.wait(LIMIT_S)
        self.batch_sizes.append(len(images))
        result: tuple[NDArray[np.float32], NDArray[np.float32]] = self._encoder.encode(images)
        return result


@contextmanager
def gated(server: RunningServer) -> Iterator[GatedEncoder]:
    """Close a gate before the server's encoder; open it for good when the block ends."""
    queue = server.queue
    encoder = queue._encoder
    gate = GatedEncoder(encoder)
    queue._encoder = gate
    try:
        yield gate
    finally:
        gate.gate.set()
        queue._encoder = encoder


def eventually(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds; it is about another thread or process, which gives no other sign."""
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.005)

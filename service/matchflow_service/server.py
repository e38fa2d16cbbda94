"""The server: everything put together, started, drained and closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Self

import grpc
from threadpoolctl import threadpool_limits

from matchflow.v1 import (
    gallery_pb2_grpc,
    generation_pb2_grpc,
    ingest_pb2_grpc,
    model_pb2_grpc,
    search_pb2_grpc,
)
from matchflow_bundle import BundleError, Encoder, load_bundle
from matchflow_index import GalleryStore, StoreUnavailableError
from matchflow_index.redis_address import RedisAddress
from matchflow_index.redis_truth import RedisTruth
from matchflow_index.truth import Durability
from matchflow_matching import warm_up
from matchflow_service import logs
from matchflow_service.calls import CallInterceptor, CallsInFlight
from matchflow_service.encoding import EncoderQueue
from matchflow_service.errors import StartError
from matchflow_service.filling import Filling
from matchflow_service.gallery_service import GalleryServicer
from matchflow_service.generation_service import GenerationServicer
from matchflow_service.health import Health
from matchflow_service.images import ImageReader
from matchflow_service.ingest_service import IngestServicer
from matchflow_service.model_service import ModelServicer
from matchflow_service.models import Model, Models
from matchflow_service.search_service import SearchServicer
from matchflow_service.settings import available_cores
from matchflow_service.sides import Sides
from matchflow_service.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from matchflow_service.settings import ServiceSettings

log = logging.getLogger(__name__)

# Seconds between two looks at what can wait: images that have expired, dead slots, caches behind.
UPKEEP_S = 20.0
# Lanes beyond the encoder's threads decode the next images while those wait.
SPARE_LANES = 2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class MatchflowServer:
    """A running server; an asynchronous context manager. Leaving it drains and closes everything."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._closing = contextlib.AsyncExitStack()
        self._bound_port = 0
        self.calls: CallsInFlight
        self.models: Models
        self.sides: Sides

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self._bound_port

    async def __aenter__(self) -> Self:
        """Open the store, load and verify the bundles, listen; raises StartError."""
        try:
            await self._start()
        except BaseException:
            await self._closing.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._closing.aclose()

    async def _start(self) -> None:
        settings = self._settings
        self.calls = CallsInFlight()
        # What is entered first is closed last.
        store = await asyncio.to_thread(_open_store, settings)
        self._closing.push_async_callback(asyncio.to_thread, store.close)
        workers = Workers.start(image_threads=available_cores(), search_threads=settings.search_threads)
        self._closing.push_async_callback(asyncio.to_thread, workers.close)
        encoders = await asyncio.to_thread(_open_encoders, settings)
        self.models = Models([self._model(encoder) for encoder in encoders])
        # A request runs on one core: threads inside a matrix product would wait for each other.
        threadpool_limits(limits=1, user_api="blas")
        await asyncio.to_thread(warm_up)
        server = self._bind(settings)
        self._add_services(server, store, workers)
        health = Health(server)
        self._closing.push_async_callback(self._drain, server, health)
        await server.start()
        filling = Filling(self.models, self.sides.reader)
        self._closing.callback(filling.close)
        store.fill(filling.of)
        await health.serving()
        log.info(
            "listening",
            extra={"host": settings.host, "port": self.port, "models": [model.name for model in self.models.by_name()]},
        )

    def _model(self, encoder: Encoder) -> Model:
        settings = self._settings
        queue = EncoderQueue(
            encoder,
            threads=settings.encoder_threads,
            batch_size=settings.encoder_batch_size,
            wait_s=settings.encoder_wait_ms / 1000,
            limit=settings.encoder_queue_size,
        )
        self._closing.push_async_callback(queue.close)
        return Model(name=encoder.bundle.manifest.name, encoder=encoder, queue=queue)

    def _bind(self, settings: ServiceSettings) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[CallInterceptor(self.calls)],
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                # Two servers on one port would share the calls between two stores.
                ("grpc.so_reuseport", 0),
            ],
        )
        address = f"{settings.host}:{settings.port}"
        try:
            self._bound_port = server.add_insecure_port(address)
        except RuntimeError as error:
            # gRPC's own text says nothing more than that it failed.
            raise StartError(
                f"can't listen on {address}: is the host one of this machine's, and is no other server on that port?"
            ) from error
        return server

    def _add_services(self, server: grpc.aio.Server, store: GalleryStore, workers: Workers) -> None:
        settings, models = self._settings, self.models
        reader = ImageReader(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
        self.sides = sides = Sides(store=store, models=models, reader=reader, workers=workers)
        gallery_pb2_grpc.add_GalleryServiceServicer_to_server(
            GalleryServicer(store=store, models=models, workers=workers), server
        )
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(
            GenerationServicer(store=store, models=models, workers=workers), server
        )
        ingest_pb2_grpc.add_IngestServiceServicer_to_server(
            IngestServicer(
                store=store,
                models=models,
                reader=reader,
                workers=workers,
                lanes=settings.encoder_threads + SPARE_LANES,
                draining=self.calls.draining,
            ),
            server,
        )
        search_pb2_grpc.add_SearchServiceServicer_to_server(SearchServicer(sides), server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(models=models, reader=reader, workers=workers), server
        )

    async def _drain(self, server: grpc.aio.Server, health: Health) -> None:
        """Take no new calls, let those that run end within drain_s, then cut off what is left."""
        log.info("draining", extra={"calls": self.calls.count})
        await health.draining()
        if not await self.calls.drain(self._settings.drain_s):
            log.warning("cutting off %d calls after %g s", self.calls.count, self._settings.drain_s)
        await server.stop(None)
        log.info("stopped")


async def serve(settings: ServiceSettings, *, on_listening: Callable[[int], None] | None = None) -> None:
    """Run a server until SIGTERM or SIGINT; `on_listening` is told the port. Raises StartError."""
    logs.configure(log_format=settings.log_format, level=settings.log_level)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        async with MatchflowServer(settings) as server:
            if on_listening is not None:
                on_listening(server.port)
            await stop.wait()
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


def _open_store(settings: ServiceSettings) -> GalleryStore:
    try:
        if isinstance(settings.store, str) and settings.cache is not None:
            return _open_shared_store(settings.store, settings.cache, settings.reads_without_store_s)
        durability = Durability(settings.durability or Durability.DISK)
        return GalleryStore.open(
            Path(settings.store), read_only=settings.read_only, durability=durability, upkeep_s=UPKEEP_S
        )
    except StoreUnavailableError as error:
        raise StartError(f"can't open the store: {error}") from error


def _open_shared_store(address: str, cache: Path, reads_without_store_s: float) -> GalleryStore:
    truth = RedisTruth(RedisAddress.parse(address))
    try:
        return GalleryStore.open(cache, truth=truth, upkeep_s=UPKEEP_S, reads_without_store_s=reads_without_store_s)
    except BaseException:
        truth.close()
        raise


def _open_encoders(settings: ServiceSettings) -> list[Encoder]:
    encoders: dict[str, Encoder] = {}
    for path in settings.bundles:
        try:
            bundle = load_bundle(path)
            encoder = Encoder.open(bundle, provider=settings.provider, threads=1)
        except (BundleError, OSError) as error:
            raise StartError(f"can't load the bundle {path}: {error}") from error
        name = bundle.manifest.name
        if name in encoders:
            raise StartError(f"two bundles are named {name!r}: {encoders[name].bundle.path} and {path}; rename one")
        encoders[name] = encoder
    return list(encoders.values())

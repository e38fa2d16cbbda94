"""The servicer that puts images into galleries."""
# ruff: noqa: N802 - the methods and their arguments are those of the contract

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from matchflow.v1 import ingest_pb2_grpc
from matchflow_service import names
from matchflow_service.calls import request_id
from matchflow_service.errors import FieldInvalidError, ShuttingDownError
from matchflow_service.ingest_items import refused
from matchflow_service.ingest_place import StreamPlace
from matchflow_service.ingest_stream import IngestStream
from matchflow_service.statuses import status_of
from matchflow_service.workers import on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from matchflow.v1 import ingest_pb2
    from matchflow_index import GalleryStore
    from matchflow_service.images import ImageReader
    from matchflow_service.models import Models
    from matchflow_service.workers import Workers

log = logging.getLogger(__name__)


class IngestServicer(ingest_pb2_grpc.IngestServiceServicer):
    """One stream, one gallery, one pipeline."""

    def __init__(
        self,
        *,
        store: GalleryStore,
        models: Models,
        reader: ImageReader,
        workers: Workers,
        lanes: int,
        draining: asyncio.Event,
    ) -> None:
        self._store = store
        self._models = models
        self._reader = reader
        self._workers = workers
        self._lanes = lanes
        self._draining = draining

    async def IngestImages(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """See the contract. Answers are written as they come, so this is a coroutine, not a generator."""
        requests: AsyncIterator[ingest_pb2.IngestImagesRequest] = aiter(request_iterator)
        first = await self._first_with_a_gallery(requests, context)
        if first is None:
            return
        gallery_id = names.parse_image(first.name, "name").gallery_id
        generation = names.check_generation(first.generation, "generation")
        place = await on(self._workers.store, partial(self._place, gallery_id, generation))
        moved = partial(on, self._workers.store, partial(self._moved, gallery_id, generation))
        await IngestStream(place, moved, context.write).run(first, requests)

    async def _first_with_a_gallery(
        self, requests: AsyncIterator[ingest_pb2.IngestImagesRequest], context: Any
    ) -> ingest_pb2.IngestImagesRequest | None:
        """Return the first message that names a gallery; answer those before it."""
        while (request := await self._next(requests)) is not None:
            try:
                names.parse_image(request.name, "name")
            except FieldInvalidError as error:
                await context.write(refused(request.item_id, request.name, status_of(error, request_id.get())))
            else:
                return request
        return None

    async def _next(
        self, requests: AsyncIterator[ingest_pb2.IngestImagesRequest]
    ) -> ingest_pb2.IngestImagesRequest | None:
        """Return the next message, None at the end; raise ShuttingDownError instead of waiting while draining."""
        coming = asyncio.ensure_future(anext(requests, None))
        stopping = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait([coming, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                raise ShuttingDownError
            return coming.result()
        finally:
            coming.cancel()
            stopping.cancel()

    def _moved(self, gallery_id: str, generation: int) -> StreamPlace:
        """Return where images go after a switch, or once the generation that they went to is gone."""
        self._store.generations(gallery_id)
        return self._place(gallery_id, generation)

    def _place(self, gallery_id: str, generation: int) -> StreamPlace:
        """Return where images go now; raises GalleryNotFoundError, GenerationNotFoundError, BundleNotLoadedError."""
        follower = self._store.generations_of(gallery_id).supplied(generation) if generation else None
        gallery = self._store.gallery(gallery_id) if follower is None else follower.target
        return StreamPlace(
            gallery=gallery,
            follower=follower,
            generation=generation,
            durability=self._store.durability,
            model=self._models.of_bundle(gallery.spec.bundle_digest),
            reader=self._reader,
            workers=self._workers,
            lanes=self._lanes,
            draining=self._draining,
        )

"""The pipeline of one ingest stream: read -> [lanes: decode, encode] -> write in groups -> answer.

Each stage is one task (the lanes a few) that takes whatever has gathered before it, so that under load a hop between
event loop and threads carries many items. Items of one image pass one at a time, in the order sent; all others may
overtake each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from matchflow_index import (
    EtagMismatchError,
    GalleryNotFoundError,
    GenerationDroppedError,
    GenerationMovedError,
    ImageRejectedError,
    KnownImage,
    NewImage,
    PutOutcome,
    PutResult,
    StoreUnavailableError,
)
from matchflow_service.calls import request_id
from matchflow_service.errors import ShuttingDownError
from matchflow_service.ingest_items import (
    Item,
    ReadyItem,
    refused,
    stored,
)
from matchflow_service.statuses import status_of
from matchflow_service.workers import on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.rpc import status_pb2
    from numpy.typing import NDArray

    from matchflow.v1 import ingest_pb2
    from matchflow_index import GalleryIndexError
    from matchflow_service.ingest_place import StreamPlace

log = logging.getLogger(__name__)

_Moved: TypeAlias = GenerationMovedError | GenerationDroppedError
# With the place for which it was computed.
_Writable: TypeAlias = "tuple[Item, NewImage | KnownImage, StreamPlace]"

CHUNK_ITEMS = 16
# A commit costs about as much as writing ten images, so a group waits a little for what is still on its way.
GROUP_ITEMS = 64
GROUP_WAIT_S = 0.05
# What one stream may have on its way, answers not yet read by the client included.
MAX_ITEMS = 512
MAX_BYTES = 64 * 1024 * 1024


@dataclass(slots=True, kw_only=True)
class _Chunk:
    """What became of the items that one lane took; `inputs` uint8 [n, H, W, 3] are those of `images`."""

    place: StreamPlace
    refused: list[tuple[Item, Exception]] = field(default_factory=list)
    unchanged: list[tuple[Item, PutResult]] = field(default_factory=list)
    moved: list[tuple[Item, _Moved]] = field(default_factory=list)
    writable: list[_Writable] = field(default_factory=list)
    images: list[ReadyItem] = field(default_factory=list)
    inputs: NDArray[np.uint8] | None = None

    def stack_inputs(self) -> None:
        """Set `inputs`: on the worker, not the loop, and while the pixels are still in this core's cache."""
        try:
            self.inputs = np.stack([ready.model_input for ready in self.images if ready.model_input is not None])
        except MemoryError as error:
            self.refused += [(ready.item, error) for ready in self.images]
            self.images = []


class IngestStream:
    """Takes the messages of one stream and answers each."""

    def __init__(
        self,
        place: StreamPlace,
        find_place: Callable[[], Awaitable[StreamPlace]],
        answer: Callable[[ingest_pb2.IngestImagesResponse], Awaitable[None]],
    ) -> None:
        """Begin at a place; `find_place` says where images go after a switch.

        It raises GalleryNotFoundError, or GenerationNotFoundError for the one that was named, when they go nowhere.
        """
        self._place = place
        self._find_place = find_place
        self._moving = asyncio.Lock()
        self._answer = answer
        self._waiting: asyncio.Queue[Item] = asyncio.Queue()
        self._encoded: asyncio.Queue[list[_Writable]] = asyncio.Queue()
        self._answers: asyncio.Queue[tuple[ingest_pb2.IngestImagesResponse, int] | None] = asyncio.Queue()
        # Per image that is on its way to the disk: the later items of the same image.
        self._held: dict[str, deque[Item]] = {}
        self._items_in_flight = 0
        self._bytes_in_flight = 0
        self._moved = asyncio.Event()

    async def run(
        self, first: ingest_pb2.IngestImagesRequest, others: AsyncIterator[ingest_pb2.IngestImagesRequest]
    ) -> None:
        """Answer every message; raise ShuttingDownError when told to stop, once all that were read are answered."""
        try:
            async with asyncio.TaskGroup() as tasks:
                stages = [tasks.create_task(self._lane()) for _ in range(self._place.lanes)]
                stages.append(tasks.create_task(self._write()))
                tasks.create_task(self._send())
                reading = tasks.create_task(self._read(first, others))
                stages.append(tasks.create_task(self._stop_reading(reading)))
                await asyncio.wait([reading])
                await self._until(lambda: not self._items_in_flight)
                for stage in stages:
                    stage.cancel()
                self._answers.put_nowait(None)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        if reading.cancelled():
            raise ShuttingDownError

    async def _stop_reading(self, reading: asyncio.Task[None]) -> None:
        await self._place.draining.wait()
        reading.cancel()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._moved.clear()
            await self._moved.wait()

    async def _read(
        self, first: ingest_pb2.IngestImagesRequest, others: AsyncIterator[ingest_pb2.IngestImagesRequest]
    ) -> None:
        await self._admit(first)
        async for request in others:
            await self._admit(request)

    async def _admit(self, request: ingest_pb2.IngestImagesRequest) -> None:
        try:
            item = self._place.item(request)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with an item is that item's answer
            self._take(0)
            self._answers.put_nowait((refused(request.item_id, request.name, self._status(error)), 0))
            return
        size = len(item.data)
        await self._until(lambda: self._has_room(size))
        self._take(size)
        if item.image_id in self._held:
            self._held[item.image_id].append(item)
        else:
            self._held[item.image_id] = deque()
            self._waiting.put_nowait(item)

    def _has_room(self, size: int) -> bool:
        return not self._items_in_flight or (
            self._items_in_flight < MAX_ITEMS and self._bytes_in_flight + size <= MAX_BYTES
        )

    def _take(self, size: int) -> None:
        self._items_in_flight += 1
        self._bytes_in_flight += size

    async def _lane(self) -> None:
        while True:
            limit = min(CHUNK_ITEMS, self._place.model.queue.batch_size)
            items = [await self._waiting.get()]
            while len(items) < limit and not self._waiting.empty():
                items.append(self._waiting.get_nowait())
            await self._encode(await on(self._place.workers.images, partial(self._make_ready, items)))

    def _make_ready(self, items: list[Item]) -> _Chunk:
        place = self._place
        chunk = _Chunk(place=place)
        for item in items:
            try:
                outcome = place.ready(item)
            except (GenerationMovedError, GenerationDroppedError) as error:
                chunk.moved.append((item, error))
                continue
            except GalleryNotFoundError:
                raise  # the end of the stream, not of the item
            except Exception as error:  # noqa: BLE001 - as in _admit
                chunk.refused.append((item, error))
                continue
            match outcome:
                case PutResult():
                    chunk.unchanged.append((item, outcome))
                case KnownImage():
                    chunk.writable.append((item, outcome, place))
                case ReadyItem() if item.features:
                    chunk.writable.append((item, outcome.new_image(item.features), place))
                case ReadyItem():
                    chunk.images.append(outcome)
        if chunk.images:
            chunk.stack_inputs()
        return chunk

    async def _encode(self, chunk: _Chunk) -> None:
        for item, error in chunk.refused:
            self._refuse(item, error)
        for item, result in chunk.unchanged:
            self._finish(item, self._stored(item, result, chunk.place))
        for item, moved in chunk.moved:
            await self._move([item], chunk.place, moved)
        writable = chunk.writable
        if chunk.inputs is not None:
            try:
                features = await chunk.place.model.queue.encode_in_turn(chunk.inputs)
            except Exception as error:  # noqa: BLE001 - as in _admit
                for ready in chunk.images:
                    self._refuse(ready.item, error)
            else:
                images = [ready.new_image(features[i]) for i, ready in enumerate(chunk.images)]
                writable += [(image[0].item, image[1], chunk.place) for image in zip(chunk.images, images, strict=True)]
        if writable:
            self._encoded.put_nowait(writable)

    async def _write(self) -> None:
        while True:
            group = await self._encoded.get()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GROUP_WAIT_S):
                    while len(group) < min(GROUP_ITEMS, len(self._held)):
                        group = group + await self._encoded.get()
            await self._put(group)

    async def _put(self, group: list[_Writable]) -> None:
        place, group = self._place, self._current(group)
        if not group:
            return
        put = partial(place.put, [image for _, image, _ in group])
        try:
            results = await on(place.workers.store, put)
        except (ImageRejectedError, EtagMismatchError) as error:
            await self._put_one_by_one(group, error)
        except (GenerationMovedError, GenerationDroppedError) as error:
            await self._move([item for item, _, _ in group], place, error)
        except StoreUnavailableError as error:
            for item, _, _ in group:
                self._refuse(item, error)
        else:
            for (item, _, _), result in zip(group, results, strict=True):
                if result.outcome is PutOutcome.MISSING:
                    # Another call took the content away meanwhile; it is still here, so it is decoded after all.
                    self._waiting.put_nowait(item)
                else:
                    self._finish(item, self._stored(item, result, place))

    def _current(self, group: list[_Writable]) -> list[_Writable]:
        """Return what was computed for the place where images go now; what was not is computed anew."""
        for item, _, place in group:
            if place is not self._place:
                self._waiting.put_nowait(item)
        return [each for each in group if each[2] is self._place]

    async def _move(self, items: list[Item], place: StreamPlace, error: _Moved) -> None:
        """Go on at the generation that is active now; who named one that has changed its role hears of it."""
        if place.generation:
            for item in items:
                self._refuse(item, error)
            return
        async with self._moving:
            # Another lane may have found the new place already.
            if self._place is place:
                self._place = await self._find_place()
        for item in items:
            self._waiting.put_nowait(item)

    async def _put_one_by_one(self, group: list[_Writable], error: GalleryIndexError) -> None:
        """Find the bad item of a group, which was refused as a whole."""
        if len(group) == 1:
            self._refuse(group[0][0], error)
            return
        for each in group:
            await self._put([each])

    async def _send(self) -> None:
        while (entry := await self._answers.get()) is not None:
            answer, size = entry
            await self._answer(answer)
            self._items_in_flight -= 1
            self._bytes_in_flight -= size
            self._moved.set()

    def _status(self, error: Exception) -> status_pb2.Status:
        return status_of(error, request_id.get())

    def _stored(self, item: Item, result: PutResult, place: StreamPlace) -> ingest_pb2.IngestImagesResponse:
        return stored(item, result, place.durability, place.gallery.spec.generation)

    def _refuse(self, item: Item, error: Exception) -> None:
        self._finish(item, refused(item.item_id, item.name, self._status(error)))

    def _finish(self, item: Item, answer: ingest_pb2.IngestImagesResponse) -> None:
        self._answers.put_nowait((answer, len(item.data)))
        later = self._held[item.image_id]
        if later:
            self._waiting.put_nowait(later.popleft())
        else:
            del self._held[item.image_id]

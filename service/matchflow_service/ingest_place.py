"""Where the images of an ingest stream go: the active generation of a gallery, or one that is given features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from matchflow_index import NewImage
from matchflow_service.errors import FieldInvalidError
from matchflow_service.ingest_items import make_ready, make_supplied_ready, parse_item, parse_supplied_item

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from matchflow.v1 import ingest_pb2
    from matchflow_index import Gallery, KnownImage, PutResult
    from matchflow_index.following import Follower
    from matchflow_index.truth import Durability
    from matchflow_service.images import ImageReader
    from matchflow_service.ingest_items import Item, ReadyItem
    from matchflow_service.models import Model
    from matchflow_service.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlace:
    """Where a stream's images go, and what works on them; see IngestImagesRequest.generation for `generation`.

    `follower`: the gallery's active generation has the images, and another one, which is `gallery`, is given features.
    """

    gallery: Gallery
    follower: Follower | None
    generation: int
    durability: Durability
    model: Model
    reader: ImageReader
    workers: Workers
    lanes: int
    draining: asyncio.Event

    def item(self, request: ingest_pb2.IngestImagesRequest) -> Item:
        """Return the item in a message; raises what makes it a bad one."""
        if request.generation != self.generation:
            raise FieldInvalidError(
                "generation", f"expected {self.generation}, as the stream began; got {request.generation}"
            )
        parse = parse_item if self.follower is None else parse_supplied_item
        return parse(request, self.gallery)

    def ready(self, item: Item) -> ReadyItem | KnownImage | PutResult:
        """Return an item decoded, or what became of it without; raises what is wrong with it. Blocks."""
        if self.follower is None:
            return make_ready(item, self.gallery, self.model, self.reader)
        return make_supplied_ready(item, self.follower, self.model, self.reader)

    def put(self, images: Sequence[NewImage | KnownImage]) -> list[PutResult]:
        """Store images; see Gallery.put and Follower.supply. Blocks."""
        if self.follower is None:
            return self.gallery.put(images)
        return self.follower.supply([image for image in images if isinstance(image, NewImage)])

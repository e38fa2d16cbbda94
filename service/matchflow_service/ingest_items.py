"""One item of an ingest stream, from the message that brings it to the message that answers it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.rpc import status_pb2

from matchflow.v1 import ingest_pb2
from matchflow_index import KnownImage, NewImage, PutOutcome, PutResult
from matchflow_index.truth import Durability
from matchflow_service import names
from matchflow_service.conversions import features_hash, parse_features
from matchflow_service.errors import FieldInvalidError
from matchflow_service.image_fields import parse_etag, parse_expiry
from matchflow_service.labels import parse_labels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from matchflow_index import Gallery, Labels
    from matchflow_index.following import Follower
    from matchflow_matching import Features
    from matchflow_service.images import ImageReader
    from matchflow_service.models import Model

OUTCOMES = {
    PutOutcome.CREATED: ingest_pb2.INGEST_OUTCOME_CREATED,
    PutOutcome.UPDATED: ingest_pb2.INGEST_OUTCOME_UPDATED,
    PutOutcome.UNCHANGED: ingest_pb2.INGEST_OUTCOME_UNCHANGED,
}
DURABILITIES = {
    Durability.DISK: ingest_pb2.DURABILITY_DISK,
    Durability.PROCESS: ingest_pb2.DURABILITY_PROCESS,
    Durability.MEMORY: ingest_pb2.DURABILITY_MEMORY,
}
OK = status_pb2.Status()


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A well-formed item: encoded bytes or features, never both."""

    item_id: int
    name: str
    image_id: str
    labels: Labels
    expire_time_s: float | None
    if_sequence: int | None
    data: bytes
    features: Features | None
    bundle_digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyItem:
    """An item that has been decoded; `features` is None until `model_input` uint8 [H, W, 3] is encoded."""

    item: Item
    content_hash: str
    width_px: int = 0
    height_px: int = 0
    thumbnail: bytes | None = None
    model_input: NDArray[np.uint8] | None = None

    def new_image(self, features: Features) -> NewImage:
        """Return what the gallery stores."""
        return NewImage(
            image_id=self.item.image_id,
            content_hash=self.content_hash,
            labels=self.item.labels,
            expire_time_s=self.item.expire_time_s,
            if_sequence=self.item.if_sequence,
            width_px=self.width_px,
            height_px=self.height_px,
            features=features,
            thumbnail=self.thumbnail,
        )


def parse_item(request: ingest_pb2.IngestImagesRequest, gallery: Gallery) -> Item:
    """Return the item in a message; raises what makes it a bad one."""
    spec = gallery.spec
    image_id = names.parse_image_in(request.name, spec.gallery_id, "name")
    labels = parse_labels(request.labels, "labels")
    if_sequence = parse_etag(request.etag, "etag")
    if request.must_be_new:
        if if_sequence is not None:
            raise FieldInvalidError("must_be_new", "expected an etag or must_be_new; got both")
        if_sequence = 0
    features = None
    match request.WhichOneof("source"):
        case "features":
            gallery.require_bundle(request.features.bundle_digest)
            features = parse_features(request.features, spec.grid, spec.embedding_dim)
        case None:
            raise FieldInvalidError("source", "expected image_bytes or features; got neither")
    return Item(
        item_id=request.item_id,
        name=request.name,
        image_id=image_id,
        labels=labels,
        expire_time_s=parse_expiry(request),
        if_sequence=if_sequence,
        data=request.image_bytes,
        features=features,
        bundle_digest=request.features.bundle_digest if features is not None else None,
    )


def parse_supplied_item(request: ingest_pb2.IngestImagesRequest, gallery: Gallery) -> Item:
    """Return an item for a generation that is not active; raises what makes it a bad one."""
    for field, given in (("etag", bool(request.etag)), ("must_be_new", request.must_be_new)):
        if given:
            raise FieldInvalidError(field, "expected none with a generation that is not active; got one")
    return parse_item(request, gallery)


def make_supplied_ready(item: Item, follower: Follower, model: Model, reader: ImageReader) -> ReadyItem | PutResult:
    """Return an item for a generation that is not active, decoded, or what became of it without; blocks.

    Raises ImageError, ImageNotFoundError, ContentDiffersError.
    """
    content_hash = None if item.features else hashlib.sha256(item.data).hexdigest()
    record = follower.wanted(item.image_id, content_hash)
    target = follower.target
    if record is None:
        held = target.get(item.image_id)
        return PutResult(outcome=PutOutcome.UNCHANGED, row_id=held.row_id, sequence=target.sequence)
    if item.features:
        target.require_bundle(str(item.bundle_digest))
        return ReadyItem(item=item, content_hash=record.content_hash)
    image = reader.read(item.data, model.preprocessing, with_thumbnail=target.spec.keep_thumbnails)
    return ReadyItem(
        item=item,
        content_hash=record.content_hash,
        width_px=image.width_px,
        height_px=image.height_px,
        thumbnail=image.thumbnail,
        model_input=image.model_input,
    )


def make_ready(item: Item, gallery: Gallery, model: Model, reader: ImageReader) -> ReadyItem | KnownImage | PutResult:
    """Return the item decoded; raises ImageError, and BundleMismatchError for features of another. Blocks.

    Of an item whose content the gallery holds nothing is decoded: it is a KnownImage where its labels or its end are
    new, and where they are not, whatever its etag, its result.
    """
    content_hash = features_hash(item.features) if item.features else hashlib.sha256(item.data).hexdigest()
    record = gallery.holding(item.image_id, content_hash)
    if record is not None:
        if record.labels != item.labels or record.expire_time_s != item.expire_time_s:
            return KnownImage(
                image_id=item.image_id,
                content_hash=content_hash,
                labels=item.labels,
                expire_time_s=item.expire_time_s,
                if_sequence=item.if_sequence,
            )
        return PutResult(outcome=PutOutcome.UNCHANGED, row_id=record.row_id, sequence=gallery.sequence)
    if item.features:
        # There may have been a switch since they were read.
        gallery.require_bundle(str(item.bundle_digest))
        return ReadyItem(item=item, content_hash=content_hash)
    image = reader.read(item.data, model.preprocessing, with_thumbnail=gallery.spec.keep_thumbnails)
    return ReadyItem(
        item=item,
        content_hash=content_hash,
        width_px=image.width_px,
        height_px=image.height_px,
        thumbnail=image.thumbnail,
        model_input=image.model_input,
    )


def stored(item: Item, result: PutResult, durability: Durability, generation: int) -> ingest_pb2.IngestImagesResponse:
    """Return the answer to an item that a generation of the gallery took, in a store that promises so much."""
    return ingest_pb2.IngestImagesResponse(
        item_id=item.item_id,
        name=item.name,
        status=OK,
        outcome=OUTCOMES[result.outcome],
        row_id=result.row_id,
        sequence=result.sequence,
        durability=DURABILITIES[durability],
        generation=generation,
    )


def refused(item_id: int, name: str, status: status_pb2.Status) -> ingest_pb2.IngestImagesResponse:
    """Return the answer to an item that was not taken."""
    return ingest_pb2.IngestImagesResponse(item_id=item_id, name=name, status=status)

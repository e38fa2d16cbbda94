"""The two sides of a comparison: an image that was sent, one that is stored, or a client's own features."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from matchflow_service import names
from matchflow_service.conversions import parse_features
from matchflow_service.errors import BundleNotLoadedError, DigestsDifferError, FieldInvalidError, ThumbnailMissingError
from matchflow_service.geometry import Geometry
from matchflow_service.workers import on

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from matchflow.v1 import search_pb2, types_pb2
    from matchflow_index import Gallery, GallerySpec, GalleryStore, ImageRecord
    from matchflow_matching import CellGrid, Features
    from matchflow_service.images import ImageReader
    from matchflow_service.models import Model, Models
    from matchflow_service.names import ImageName
    from matchflow_service.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What both sides of a comparison must share."""

    bundle_digest: str
    grid: CellGrid
    embedding_dim: int
    gallery: Gallery | None = None
    """The generation that stored images of its gallery are taken from, whatever is active meanwhile."""

    @classmethod
    def of(cls, pinned: GallerySpec | Model) -> Basis:
        """Return the basis of whatever is pinned to a bundle."""
        return cls(bundle_digest=pinned.bundle_digest, grid=pinned.grid, embedding_dim=pinned.embedding_dim)

    @classmethod
    def within(cls, gallery: Gallery) -> Basis:
        """Return the basis of a generation of a gallery."""
        return replace(cls.of(gallery.spec), gallery=gallery)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One image of a comparison.

    `stored`, `record` and `gallery` are there for a stored image, `rgb` uint8 [H, W, 3] for one that was sent, where
    asked for. `store_unreachable`: the record is what the server knew last; see Gallery.known.
    """

    features: Features
    bundle_digest: str
    geometry: Geometry
    stored: ImageName | None = None
    gallery: Gallery | None = None
    record: ImageRecord | None = None
    rgb: NDArray[np.uint8] | None = None
    decode_s: float = 0.0
    encode_s: float = 0.0
    store_unreachable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Finds the features of either side. The coroutines hop to threads themselves; everything else blocks."""

    store: GalleryStore
    models: Models
    reader: ImageReader
    workers: Workers

    async def of(self, query: search_pb2.Query, field: str, basis: Basis, *, with_rgb: bool = False) -> Side:
        """Return the side that a query describes; raises what is wrong with it."""
        if query.WhichOneof("source") == "image_bytes":
            model = self.models.of_bundle(basis.bundle_digest)
            return await self.of_bytes(query.image_bytes, model, with_rgb=with_rgb)
        return await on(self.workers.search, partial(self.unsent, query, field, basis))

    async def of_bytes(self, data: bytes, model: Model, *, with_rgb: bool = False) -> Side:
        """Decode and encode an image; raises ImageError and OverloadedError."""
        start_s = time.perf_counter()
        read = partial(self.reader.read, data, model.preprocessing, with_rgb=with_rgb)
        image = await on(self.workers.images, read)
        decoded_s = time.perf_counter()
        features = (await model.queue.encode(image.model_input[None]))[0]
        return Side(
            features=features,
            bundle_digest=model.bundle_digest,
            geometry=Geometry(
                grid=model.grid,
                preprocessing=model.preprocessing,
                width_px=image.width_px,
                height_px=image.height_px,
            ),
            rgb=image.rgb,
            decode_s=decoded_s - start_s,
            encode_s=time.perf_counter() - decoded_s,
        )

    def unsent(self, query: search_pb2.Query, field: str, basis: Basis, *, without_store: bool = False) -> Side:
        """Return a side for which no model has to run: a stored image or features.

        `without_store` is for those whose reply can say that the store could not be reached.
        """
        match query.WhichOneof("source"):
            case "image":
                name = names.parse_image(query.image, f"{field}.image")
                return self._stored(name, basis, without_store=without_store)
            case "features":
                return self._of_features(query.features, basis)
            case _:
                raise FieldInvalidError(field, "expected one of image_bytes, image or features; got none")

    def _stored(self, name: ImageName, basis: Basis, *, without_store: bool) -> Side:
        pinned = basis.gallery
        same = pinned is not None and pinned.spec.gallery_id == name.gallery_id
        gallery = pinned if pinned is not None and same else self.store.gallery(name.gallery_id)
        require_same_bundle(basis.bundle_digest, gallery.spec.bundle_digest)
        image_id = name.image_id
        record, unreachable = gallery.known(image_id) if without_store else (gallery.get(image_id), False)
        return Side(
            features=gallery.features(image_id),
            bundle_digest=basis.bundle_digest,
            geometry=self.geometry(basis, record.width_px, record.height_px),
            stored=name,
            gallery=gallery,
            record=record,
            store_unreachable=unreachable,
        )

    def _of_features(self, message: types_pb2.Features, basis: Basis) -> Side:
        require_same_bundle(basis.bundle_digest, message.bundle_digest)
        return Side(
            features=parse_features(message, basis.grid, basis.embedding_dim),
            bundle_digest=basis.bundle_digest,
            geometry=self.geometry(basis, 0, 0),
        )

    def geometry(self, basis: Basis, width_px: int, height_px: int) -> Geometry:
        """Return where the cells lie in an image of that upright size."""
        try:
            preprocessing = self.models.of_bundle(basis.bundle_digest).preprocessing
        except BundleNotLoadedError:
            preprocessing = None
        return Geometry(grid=basis.grid, preprocessing=preprocessing, width_px=width_px, height_px=height_px)

    def pixels(self, side: Side) -> NDArray[np.uint8]:
        """Return what can be drawn of a side; raises ThumbnailMissingError."""
        if side.rgb is not None:
            return side.rgb
        if side.stored is None or side.gallery is None:
            raise FieldInvalidError("query.features", "expected image_bytes or image: features have no picture")
        data = side.gallery.thumbnail(side.stored.image_id)
        if data is None:
            raise ThumbnailMissingError(str(side.stored))
        return self.reader.decode(data)


def require_same_bundle(expected: str, actual: str) -> None:
    """Raise DigestsDifferError unless both sides are of one bundle."""
    if expected != actual:
        raise DigestsDifferError(expected, actual)

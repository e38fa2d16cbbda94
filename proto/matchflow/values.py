"""Galleries, images, models and features as plain frozen values."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from datetime import datetime

    from matchflow.labels import Labels
    from matchflow.matching import RerankSettings

GALLERIES = "galleries/"
IMAGES = "/images/"
MODELS = "models/"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A stored image: its gallery and its id there. What a query names when nothing shall be embedded again."""

    gallery: str
    image_id: str

    @property
    def name(self) -> str:
        """The resource name, galleries/{gallery}/images/{image}."""
        return f"{GALLERIES}{self.gallery}{IMAGES}{self.image_id}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """Return the image of a resource name; raises ValueError for any other text."""
        gallery, separator, image_id = name.removeprefix(GALLERIES).partition(IMAGES)
        if not (name.startswith(GALLERIES) and separator and gallery and image_id):
            raise ValueError(f"expected galleries/GALLERY/images/IMAGE; got {name!r}")
        return cls(gallery, image_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellGrid:
    """The rows and columns in which a model cuts an image; cell i is row i // columns, column i % columns."""

    rows: int
    columns: int

    @property
    def size(self) -> int:
        """The number of cells."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle in fractions of the upright image; right and bottom are exclusive."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a model computed of one image, as stored and scored.

    embedding: D float32 values of unit length. cells: R * D int8 values, cell after cell. cell_scales: R factors; the
    real numbers of cell i are its bytes times cell_scales[i]. numpy.frombuffer(cells, "int8").reshape(R, D) reads them.
    """

    bundle_digest: str
    embedding: tuple[float, ...] = field(repr=False)
    cells: bytes = field(repr=False)
    cell_scales: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """A gallery, pinned to one bundle; `sequence` counts its changes.

    default_rerank: how its pairs are scored when a call names no mode; None from a server that does not say.
    generation: the number of the active one, whose model, digest, grid and counts these are; 0 likewise.
    """

    id: str
    model: str
    bundle_digest: str
    grid: CellGrid
    embedding_dim: int
    image_count: int
    sequence: int
    create_time: datetime
    keeps_thumbnails: bool
    default_rerank: RerankSettings | None = None
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A stored image. Width and height are upright, in pixels; 0 for one that came as features.

    expire_time: when it is gone of itself; None: it stays. etag: changes with whatever changes about the image.
    from_thumbnail: its features were computed from the kept thumbnail; ingesting it again computes them anew.
    content_hash and update_time are missing, "" and None, in an answer that says `store_unreachable`.
    """

    ref: ImageRef
    labels: Labels
    row_id: int
    content_hash: str
    width_px: int
    height_px: int
    update_time: datetime | None
    expire_time: datetime | None = None
    etag: str = ""
    from_thumbnail: bool = False

    @property
    def id(self) -> str:
        """The id within its gallery."""
        return self.ref.image_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A bundle that the server runs, and the ONNX Runtime provider that passed its golden inputs."""

    id: str
    version: str
    bundle_digest: str
    input_height_px: int
    input_width_px: int
    grid: CellGrid
    embedding_dim: int
    execution_provider: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletedImages:
    """How many images a deletion removed, and how many were not there."""

    deleted: int
    missing: int


class Health(enum.StrEnum):
    """What grpc.health.v1 says of a service."""

    UNKNOWN = "unknown"
    SERVING = "serving"
    NOT_SERVING = "not_serving"

"""bundle.json: what a bundle says of itself."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from matchflow_bundle.errors import BundleInvalidError, ImageError
from matchflow_bundle.images import decode_image
from matchflow_bundle.preprocessing import Preprocessing, ResizePolicy
from matchflow_matching.features import CellGrid

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA_VERSION: Literal[1] = 1

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
VERSION_PATTERN = r"^[0-9A-Za-z][0-9A-Za-z._+-]{0,63}$"
ModelName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
ModelVersion = Annotated[str, StringConstraints(pattern=VERSION_PATTERN)]
PositiveCount = Annotated[int, Field(ge=1)]
Tolerance = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Deviation = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ManifestPart(BaseModel):
    """A frozen part of the manifest that knows its fields and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(ManifestPart):
    """The trained model that was exported."""

    architecture: str
    checkpoint_sha256: Sha256


class Head(ManifestPart):
    """The projection head, fitted without labels, and what it was fitted on."""

    kind: Literal["pca-whitening"]
    power: Annotated[float, Field(ge=0, le=1)]
    fitted_on_images: PositiveCount
    fitted_on_cells: PositiveCount
    skipped_images: Annotated[int, Field(ge=0)]
    images_sha256: Sha256
    explained_variance: Annotated[float, Field(ge=0, le=1)]


class Definitions(ManifestPart):
    """What the outputs mean, in words."""

    embedding: str
    cells: str
    geometry: str


class ParityReport(ManifestPart):
    """How far ONNX Runtime's outputs were from the source model's, on real images, when the bundle was written."""

    batch_sizes: tuple[PositiveCount, ...]
    images: PositiveCount
    max_abs_embedding: Deviation
    max_abs_cells: Deviation
    tolerance: Tolerance


class Goldens(ManifestPart):
    """Inputs as PNG and the outputs they gave, float32 little-endian, all in base64."""

    images_png: Annotated[tuple[str, ...], Field(min_length=1)]
    embeddings: str
    cells: str
    tolerance: Tolerance

    @classmethod
    def record(
        cls,
        images: NDArray[np.uint8],
        embeddings: NDArray[np.float32],
        cells: NDArray[np.float32],
        tolerance: float,
    ) -> Self:
        """Keep inputs uint8 [n, H, W, 3] and outputs float32 [n, D] and [n, R, D]."""
        return cls(
            images_png=tuple(_png_text(image) for image in images),
            embeddings=_float_text(embeddings),
            cells=_float_text(cells),
            tolerance=tolerance,
        )

    def images(self) -> NDArray[np.uint8]:
        """Return the inputs, uint8 [n, H, W, 3]; raise BundleInvalidError if they can't be read."""
        try:
            return np.stack([decode_image(base64.b64decode(text, validate=True)) for text in self.images_png])
        except (ImageError, binascii.Error, ValueError) as error:
            raise BundleInvalidError(f"expected golden images as PNG in base64: {error}") from error

    def outputs(self, grid: CellGrid, embedding_dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the recorded outputs, float32 [n, D] and [n, R, D]; raise BundleInvalidError for other sizes."""
        count = len(self.images_png)
        try:
            return (
                _floats(self.embeddings).reshape(count, embedding_dim),
                _floats(self.cells).reshape(count, grid.size, embedding_dim),
            )
        except (binascii.Error, ValueError) as error:
            raise BundleInvalidError(
                f"expected golden outputs of {count} images, {grid.size} cells and {embedding_dim} numbers: {error}"
            ) from error


class BundleManifest(ManifestPart):
    """All of bundle.json; frozen."""

    schema_version: Literal[1]
    name: ModelName
    version: ModelVersion
    height_px: PositiveCount
    width_px: PositiveCount
    policy: ResizePolicy
    grid_rows: PositiveCount
    grid_columns: PositiveCount
    embedding_dim: PositiveCount
    opset: PositiveCount
    model_sha256: Sha256
    source: Source
    head: Head
    definitions: Definitions
    parity: ParityReport
    goldens: Goldens
    manifest_sha256: str = ""

    @property
    def grid(self) -> CellGrid:
        """The rows and columns of cells."""
        return CellGrid(rows=self.grid_rows, columns=self.grid_columns)

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the model's input."""
        return Preprocessing(height_px=self.height_px, width_px=self.width_px, policy=self.policy)

    def sealed(self) -> Self:
        """Return the manifest with `manifest_sha256` over all its other fields."""
        return self.model_copy(update={"manifest_sha256": self._content_sha256()})

    def is_sealed(self) -> bool:
        """Whether `manifest_sha256` vouches for the other fields."""
        return self.manifest_sha256 == self._content_sha256()

    def _content_sha256(self) -> str:
        text = self.model_dump_json(exclude={"manifest_sha256"})
        return hashlib.sha256(text.encode()).hexdigest()


def _png_text(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _float_text(values: NDArray[np.float32]) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _floats(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)

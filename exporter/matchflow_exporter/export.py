"""From a trained model and a folder of images to a bundle, in one function."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003 - settings are read by tools that resolve annotations
from typing import TYPE_CHECKING

import numpy as np
import torch

from matchflow_bundle.bundle import Bundle, write_bundle
from matchflow_bundle.encoder import open_session, run_session
from matchflow_bundle.errors import BundleExistsError
from matchflow_bundle.manifest import (
    NAME_PATTERN,
    SCHEMA_VERSION,
    VERSION_PATTERN,
    BundleManifest,
    Definitions,
    Goldens,
    Head,
    Source,
)
from matchflow_bundle.preprocessing import Preprocessing, ResizePolicy
from matchflow_exporter.backbones import DEFAULT_ARCHITECTURE, load_backbone
from matchflow_exporter.errors import SettingsInvalidError
from matchflow_exporter.folder import HeadImages, choose_files, read_head_images
from matchflow_exporter.goldens import golden_images
from matchflow_exporter.graph import OPSET, BundleGraph, MapExtractor, pooling_weights, to_onnx
from matchflow_exporter.head import ProjectionHead, fit_whitening
from matchflow_exporter.parity import check_parity
from matchflow_matching.features import CellGrid

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FEATURE_BATCH = 16
LEAST_INPUT_PX = 32
MOST_INPUT_PX = 1024
GOLDEN_TOLERANCE = 1e-3
DEFINITIONS = Definitions(
    embedding=(
        "The mean over all places of the backbone's last feature map after the projection head, divided by its length. "
        "Cells are not normalised before the mean: places with strong features count more."
    ),
    cells=(
        "The same projected map pooled onto the grid, each cell divided by its length. Along an axis with at most as "
        "many cells as places a cell is the mean of the part that it covers; along one with more it is interpolated "
        "linearly at its centre. Row-major: cell i is row i // columns, column i % columns."
    ),
    geometry=(
        "Cell (r, c) covers the model's input from (c / columns, r / rows) to ((c + 1) / columns, (r + 1) / rows), "
        "as fractions of its width and height."
    ),
)
"""What the outputs mean; part of every bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What to export: the model, its input and grid, and the images that its head is fitted on."""

    name: str
    head_images: Path
    version: str = "1"
    architecture: str = DEFAULT_ARCHITECTURE
    checkpoint: Path | None = None
    height_px: int = 128
    width_px: int = 128
    policy: ResizePolicy = ResizePolicy.STRETCH
    grid: CellGrid = field(default_factory=lambda: CellGrid(rows=4, columns=4))
    embedding_dim: int = 128
    power: float = 0.25
    max_head_images: int = 500
    parity_tolerance: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse what no export could be made of."""
        for name, text, pattern in (("name", self.name, NAME_PATTERN), ("version", self.version, VERSION_PATTERN)):
            if not re.fullmatch(pattern, text):
                raise SettingsInvalidError(f"expected a {name} like {pattern}; got {text!r}")
        for name, pixels in (("height_px", self.height_px), ("width_px", self.width_px)):
            if not LEAST_INPUT_PX <= pixels <= MOST_INPUT_PX:
                raise SettingsInvalidError(f"expected {name} of {LEAST_INPUT_PX} to {MOST_INPUT_PX}; got {pixels}")
        for name, count in (("embedding_dim", self.embedding_dim), ("max_head_images", self.max_head_images)):
            if count < 1:
                raise SettingsInvalidError(f"expected {name} of at least 1; got {count}")
        if not 0 <= self.power <= 1:
            raise SettingsInvalidError(f"expected a power of 0 to 1; got {self.power}")
        if not (math.isfinite(self.parity_tolerance) and self.parity_tolerance > 0):
            raise SettingsInvalidError(f"expected a parity_tolerance above 0; got {self.parity_tolerance}")


def silent(stage: str, done: int, total: int) -> None:
    """Take progress and show none."""


def export_bundle(
    settings: ExportSettings,
    destination: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] = silent,
) -> Bundle:
    """Export a model to the bundle directory `destination` and return it.

    The same settings and images give the same digest on the same machine. `progress` is called with
    (stage, done, total). Raises an ExportError, or a BundleError when the bundle can't be written; nothing is written
    then. A ParityError says that ONNX Runtime does not do what the source model does.
    """
    if destination.exists() and not overwrite:
        raise BundleExistsError(f"expected nothing at {destination}; it exists")
    preprocessing = Preprocessing(height_px=settings.height_px, width_px=settings.width_px, policy=settings.policy)
    images = read_head_images(choose_files(settings.head_images, settings.max_head_images), preprocessing, progress)
    backbone = load_backbone(settings.architecture, settings.height_px, settings.width_px, settings.checkpoint)
    extractor = MapExtractor(backbone)
    weights = pooling_weights(extractor, settings.grid, settings.height_px, settings.width_px)
    cells = pooled_cells(extractor, weights, images.pixels, progress)
    head = fit_whitening(cells, settings.embedding_dim, settings.power)
    graph = BundleGraph(extractor, head, weights).eval()
    progress("translate", 0, 1)
    model = to_onnx(graph, settings.height_px, settings.width_px)
    progress("translate", 1, 1)
    parity = check_parity(graph, model, images.pixels, settings.parity_tolerance)
    manifest = BundleManifest(
        schema_version=SCHEMA_VERSION,
        name=settings.name,
        version=settings.version,
        height_px=settings.height_px,
        width_px=settings.width_px,
        policy=settings.policy,
        grid_rows=settings.grid.rows,
        grid_columns=settings.grid.columns,
        embedding_dim=settings.embedding_dim,
        opset=OPSET,
        model_sha256=hashlib.sha256(model).hexdigest(),
        source=Source(architecture=backbone.architecture, checkpoint_sha256=backbone.checkpoint_sha256),
        head=_describe_head(settings, images, head, len(cells)),
        definitions=DEFINITIONS,
        parity=parity,
        goldens=_record_goldens(model, settings),
    )
    return write_bundle(destination, model, manifest, overwrite=overwrite)


def pooled_cells(
    extractor: MapExtractor,
    weights: torch.Tensor,
    pixels: NDArray[np.uint8],
    progress: Callable[[str, int, int], None],
) -> NDArray[np.float64]:
    """Return the cells before projection, [n * R, C], of inputs [n, H, W, 3]; `weights` is [R, h * w]."""
    found: list[NDArray[np.float32]] = []
    for start in range(0, len(pixels), FEATURE_BATCH):
        progress("fit", start, len(pixels))
        with torch.inference_mode():
            places = extractor(torch.from_numpy(pixels[start : start + FEATURE_BATCH])).flatten(2)
            found.append((weights @ places.transpose(1, 2)).flatten(0, 1).numpy())
    progress("fit", len(pixels), len(pixels))
    return np.concatenate(found).astype(np.float64)


def _describe_head(settings: ExportSettings, images: HeadImages, head: ProjectionHead, cells: int) -> Head:
    return Head(
        kind="pca-whitening",
        power=settings.power,
        fitted_on_images=len(images.pixels),
        fitted_on_cells=cells,
        skipped_images=images.skipped,
        images_sha256=images.sha256,
        explained_variance=head.explained_variance,
    )


def _record_goldens(model: bytes, settings: ExportSettings) -> Goldens:
    inputs = golden_images(settings.height_px, settings.width_px)
    embeddings, cells = run_session(open_session(model), inputs)
    return Goldens.record(inputs, embeddings, cells, GOLDEN_TOLERANCE)

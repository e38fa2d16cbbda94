"""Real features in every shape that `make bench-matching` takes: queries from the sample images, and their shortlists.

4x4x128 comes from the benchmarks' bundle. For the other two the same backbone and a head fitted on the spot run in
torch, once; their features stay in build/bench. The whole export, translation and checks included, would take minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from bench_features import SAMPLES, sample_batch
from report import BENCH

from matchflow_bundle.preprocessing import Preprocessing, ResizePolicy
from matchflow_exporter.backbones import DEFAULT_ARCHITECTURE, load_backbone
from matchflow_exporter.export import silent
from matchflow_exporter.folder import choose_files, read_head_images
from matchflow_exporter.graph import BundleGraph, MapExtractor, pooling_weights
from matchflow_exporter.head import fit_whitening
from matchflow_matching import CellGrid, FeatureBatch, quantise

if TYPE_CHECKING:
    from pathlib import Path

    from matchflow_matching import Features

CANDIDATES = 100
# Evenly spread over designers and classes; each query has the others to choose its shortlist from.
IMAGES = 120
POWER = 0.25
BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A grid, a dimension, and the model input in pixels that has the grid as its map."""

    grid: CellGrid
    dim: int
    height_px: int
    width_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortlist:
    """A query and its best candidates by the global vector; all have the same grid."""

    query: Features
    candidates: FeatureBatch
    grid: CellGrid


GRID_4X4 = CellGrid(rows=4, columns=4)
OTHER_SHAPES = {
    "7x7x128": Shape(grid=CellGrid(rows=7, columns=7), dim=128, height_px=224, width_px=224),
    "8x4x512": Shape(grid=CellGrid(rows=8, columns=4), dim=512, height_px=256, width_px=128),
}


def real_shortlists(queries: int, other_queries: int) -> dict[str, list[Shortlist]]:
    """Return shortlists by shape: so many of 4x4x128 from all sample images, and so many of each other shape."""
    found = {"4x4x128": shortlists(sample_batch(), GRID_4X4, queries)}
    for name, shape in OTHER_SHAPES.items():
        found[name] = shortlists(kept_features(name), shape.grid, other_queries)
    return found


def shortlists(images: FeatureBatch, grid: CellGrid, queries: int) -> list[Shortlist]:
    """Return queries spread over the images, each with its best candidates by the global vector."""
    found = []
    for query in np.linspace(0, len(images), queries, endpoint=False).astype(int).tolist():
        order = np.argsort(-(images.embeddings @ images.embeddings[query]), kind="stable")
        candidates = images.take(order[order != query][:CANDIDATES])
        found.append(Shortlist(query=images[query], candidates=candidates, grid=grid))
    return found


def kept_features(name: str, folder: Path = BENCH) -> FeatureBatch:
    """Return the features of sample images in one of OTHER_SHAPES, made once and kept in `folder`."""
    path = folder / f"features-{name}.npz"
    if not path.exists():
        made = features_of_samples(OTHER_SHAPES[name])
        path.parent.mkdir(parents=True, exist_ok=True)
        incoming = path.with_suffix(".incoming.npz")
        np.savez(incoming, embeddings=made.embeddings, cells=made.cells, scales=made.scales)
        incoming.replace(path)
    with np.load(path) as kept:
        return FeatureBatch(embeddings=kept["embeddings"], cells=kept["cells"], scales=kept["scales"])


def features_of_samples(shape: Shape, images: int = IMAGES) -> FeatureBatch:
    """Return the features of evenly spread sample images in another shape, the head fitted on the same images."""
    preprocessing = Preprocessing(height_px=shape.height_px, width_px=shape.width_px, policy=ResizePolicy.STRETCH)
    pixels = read_head_images(choose_files(SAMPLES, images), preprocessing, silent).pixels
    extractor = MapExtractor(load_backbone(DEFAULT_ARCHITECTURE, shape.height_px, shape.width_px, None))
    weights = pooling_weights(extractor, shape.grid, shape.height_px, shape.width_px)
    with torch.inference_mode():
        batches = [torch.from_numpy(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
        maps = torch.cat([extractor(batch) for batch in batches])
        places = weights @ maps.flatten(2).transpose(1, 2)
        head = fit_whitening(places.flatten(0, 1).double().numpy(), shape.dim, POWER)
        # The maps are there already, so what would extract them has nothing to do.
        embeddings, cells = BundleGraph(cast("MapExtractor", torch.nn.Identity()), head, weights).eval()(maps)
    return quantise(embeddings.numpy(), cells.numpy())

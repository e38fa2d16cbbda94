"""The graph that a bundle holds: pixels in, embedding and cells out; and its translation to ONNX."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor, nn

from matchflow_bundle.encoder import INPUT_NAME, OUTPUT_NAMES
from matchflow_exporter.pooling import pooling_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matchflow_exporter.backbones import Backbone
    from matchflow_exporter.head import ProjectionHead
    from matchflow_matching.features import CellGrid

OPSET = 20
BATCH_NAME = "n"
# Batch 1 would be taken for a constant while the graph is traced.
TRACED_BATCH = 2
LEAST_LENGTH = 1e-12


class MapExtractor(nn.Module):
    """uint8 [n, H, W, 3] -> the map of the backbone, float32 [n, C, h, w]."""

    mean: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.features = backbone.features
        self.register_buffer("mean", torch.tensor(backbone.mean))
        self.register_buffer("scale", torch.tensor(backbone.scale))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise and run the backbone."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)
        features: Tensor = self.features((pixels - self.mean) / self.scale)
        return features


class BundleGraph(nn.Module):
    """uint8 images [n, H, W, 3] -> embedding [n, D] and cells [n, R, D], float32 of unit length.

    The map is projected, then pooled onto the grid (the same as pooling first: both are linear). The embedding is the
    mean of the projected map before any cell is normalised, so that strong places count more.
    """

    weights: Tensor

    def __init__(self, extractor: MapExtractor, head: ProjectionHead, weights: Tensor) -> None:
        super().__init__()
        self.extractor = extractor
        dim, channels = head.weight.shape
        self.projection = nn.Conv2d(channels, dim, 1, bias=False)
        self.projection.weight.data = torch.from_numpy(head.weight)[:, :, None, None].clone()
        self.register_buffer("weights", weights)
        self.is_map_grid = torch.equal(weights, torch.eye(len(weights)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embed a batch."""
        places = self.projection(self.extractor(images)).flatten(2)
        cells = places.transpose(1, 2)
        if not self.is_map_grid:
            cells = self.weights @ cells
        return _unit(places.mean(dim=2), 1), _unit(cells, 2)


def _unit(vectors: Tensor, dim: int) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / length.clamp_min(LEAST_LENGTH)


def pooling_weights(extractor: MapExtractor, grid: CellGrid, height_px: int, width_px: int) -> Tensor:
    """Return the matrix [R, h * w] that pools this extractor's map onto `grid`, float32."""
    with torch.inference_mode():
        rows, columns = extractor(torch.zeros(1, height_px, width_px, 3, dtype=torch.uint8)).shape[2:]
    return torch.from_numpy(pooling_matrix(grid, rows, columns)).to(torch.float32)


def to_onnx(graph: BundleGraph, height_px: int, width_px: int) -> bytes:
    """Translate to ONNX with any batch size, free of everything that tells of the machine or the day."""
    example = torch.zeros(TRACED_BATCH, height_px, width_px, 3, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_shapes={"images": {0: torch.export.Dim(BATCH_NAME)}},
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    strip_origins(model)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def strip_origins(model: onnx.ModelProto) -> None:
    """Remove stack traces, paths, doc strings and intermediate shapes, which no runtime needs."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    graph.name = "matchflow"
    del graph.metadata_props[:]
    del graph.value_info[:]
    for parts in (graph.node, graph.initializer, graph.input, graph.output):
        for part in parts:
            part.doc_string = ""
            del part.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporter from reporting what it found missing (torchvision) or deprecated in itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

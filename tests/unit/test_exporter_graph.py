"""The graph: what it computes, in torch and as ONNX, on a backbone small enough to check by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from matchflow_bundle import Bundle, BundleInvalidError
from matchflow_bundle.encoder import open_session, run_session
from matchflow_exporter import ParityError
from matchflow_exporter.backbones import Backbone
from matchflow_exporter.goldens import golden_images
from matchflow_exporter.graph import BundleGraph, MapExtractor, pooling_weights, to_onnx
from matchflow_exporter.head import ProjectionHead
from matchflow_exporter.parity import check_parity
from matchflow_matching.features import CellGrid

HEIGHT, WIDTH, DIM, CHANNELS = 24, 40, 3, 5


def small_backbone() -> Backbone:
    """A map of 3 x 5 places from an input of 24 x 40."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = nn.Sequential(nn.Conv2d(3, CHANNELS, 8, stride=8), nn.BatchNorm2d(CHANNELS), nn.ReLU6()).eval()
    return Backbone(architecture="small", checkpoint_sha256="0" * 64, features=features, mean=127.0, scale=128.0)


def small_graph(grid: CellGrid) -> BundleGraph:
    draw = np.random.default_rng(1)
    head = ProjectionHead(
        weight=draw.standard_normal((DIM, CHANNELS)).astype(np.float32),
        explained_variance=1.0,
    )
    extractor = MapExtractor(small_backbone())
    return BundleGraph(extractor, head, pooling_weights(extractor, grid, HEIGHT, WIDTH)).eval()


def some_images(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(2).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (2, 2), (7, 4)])
def test_the_graph_does_what_the_bundle_says_of_it(rows: int, columns: int) -> None:
    graph, images = small_graph(CellGrid(rows=rows, columns=columns)), some_images(2)
    with torch.inference_mode():
        embeddings, cells = (output.numpy() for output in graph(torch.from_numpy(images)))
        pixels = (torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)) - 127) / 128
        places = graph.extractor.features(pixels).flatten(2).numpy()
    projected = np.einsum("dc,nch->ndh", graph.projection.weight.detach().numpy()[:, :, 0, 0], places)
    mean = projected.mean(axis=2)
    np.testing.assert_allclose(embeddings, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5)
    pooled = np.einsum("rh,ndh->nrd", graph.weights.numpy(), projected)
    np.testing.assert_allclose(cells, pooled / np.linalg.norm(pooled, axis=2, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("grid", [CellGrid(rows=3, columns=5), CellGrid(rows=6, columns=2)])
def test_onnx_takes_any_batch(grid: CellGrid) -> None:
    graph = small_graph(grid)
    session = open_session(to_onnx(graph, HEIGHT, WIDTH))
    for count in (1, 2, 5, 7):
        images = some_images(count)
        with torch.inference_mode():
            wanted = graph(torch.from_numpy(images))
        for got, want in zip(run_session(session, images), wanted, strict=True):
            np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


def test_a_map_without_any_response_gives_zeros_and_no_nan() -> None:
    graph = small_graph(CellGrid(rows=3, columns=5))
    graph.projection.weight.data.zero_()
    with torch.inference_mode():
        assert all((output == 0).all() for output in graph(torch.from_numpy(some_images(1))))


def test_translating_twice_gives_the_same_bytes_without_a_trace_of_the_machine() -> None:
    first, second = (to_onnx(small_graph(CellGrid(rows=2, columns=2)), HEIGHT, WIDTH) for _ in range(2))
    assert first == second
    model = onnx.load_model_from_string(first)
    assert not model.metadata_props
    assert not model.graph.value_info
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert b".py" not in first


def test_the_real_graph_is_folded_and_turns_nothing_but_its_input_and_its_cells(sample_bundle: Bundle) -> None:
    graph = onnx.load_model_from_string(sample_bundle.read_model()).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["Conv"] == 50
    assert kinds["Transpose"] == 2
    # Folded away: BatchNorm into convolutions, padding into their pads, shapes into constants.
    assert not kinds.keys() & {"BatchNormalization", "Pad", "Shape", "Constant", "Identity", "Dropout", "Gather"}
    assert kinds.total() < 120
    image = graph.input[0].type.tensor_type
    assert image.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_param or dim.dim_value for dim in image.shape.dim] == ["n", 128, 128, 3]


def test_parity_is_reported_over_all_batch_sizes() -> None:
    graph = small_graph(CellGrid(rows=3, columns=5))
    report = check_parity(graph, to_onnx(graph, HEIGHT, WIDTH), some_images(20), 1e-4)
    assert report.batch_sizes == (1, 2, 7)
    assert report.images == 10
    assert max(report.max_abs_embedding, report.max_abs_cells) < 1e-5


def test_parity_is_checked_on_the_few_images_there_are() -> None:
    graph = small_graph(CellGrid(rows=3, columns=5))
    assert check_parity(graph, to_onnx(graph, HEIGHT, WIDTH), some_images(3), 1e-4).images == 3


def test_a_planted_mismatch_is_refused() -> None:
    graph = small_graph(CellGrid(rows=3, columns=5))
    model = to_onnx(graph, HEIGHT, WIDTH)
    graph.projection.weight.data[1, 2] += 0.05
    with pytest.raises(ParityError, match=r"off from torch by .* expected at most 0\.0001"):
        check_parity(graph, model, some_images(7), 1e-4)


def test_outputs_that_are_not_finite_are_a_mismatch() -> None:
    graph = small_graph(CellGrid(rows=3, columns=5))
    model = to_onnx(graph, HEIGHT, WIDTH)
    graph.projection.weight.data[1, 2] = torch.nan
    with pytest.raises(ParityError, match="nan"):
        check_parity(graph, model, some_images(7), 1e-4)


def test_outputs_of_another_shape_are_a_mismatch() -> None:
    model = to_onnx(small_graph(CellGrid(rows=3, columns=5)), HEIGHT, WIDTH)
    with pytest.raises(ParityError, match=r"expected cells \(1, 4, 3\) at batch 1; got \(1, 15, 3\)"):
        check_parity(small_graph(CellGrid(rows=2, columns=2)), model, some_images(7), 1e-4)


def test_a_model_that_does_not_load_is_refused() -> None:
    with pytest.raises(BundleInvalidError):
        check_parity(small_graph(CellGrid(rows=2, columns=2)), b"no model", some_images(7), 1e-4)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (256, 128), (32, 300)])
def test_golden_images_are_four_different_pictures_of_any_size(height: int, width: int) -> None:
    images = golden_images(height, width)
    assert images.shape == (4, height, width, 3)
    assert images.dtype == np.uint8
    assert all(image.std() > 20 for image in images)
    np.testing.assert_array_equal(images, golden_images(height, width))

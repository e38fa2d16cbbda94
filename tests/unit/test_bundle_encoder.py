"""The encoder: the right provider, the right answers, at any batch size, from any thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from matchflow_bundle import (
    Bundle,
    BundleInvalidError,
    Encoder,
    EncoderInputError,
    ProviderUnavailableError,
    decode_image,
)
from matchflow_bundle.encoder import open_session
from matchflow_bundle.manifest import Goldens
from matchflow_matching.features import quantise

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(scope="module")
def encoder(sample_bundle: Bundle) -> Encoder:
    return Encoder.open(sample_bundle)


@pytest.fixture(scope="module")
def inputs(sample_bundle: Bundle, sample_images: dict[str, list[Path]]) -> NDArray[np.uint8]:
    files = [path for designer in sorted(sample_images) for path in sample_images[designer][:3]]
    preprocessing = sample_bundle.manifest.preprocessing
    return np.stack([preprocessing.apply(decode_image(path.read_bytes())) for path in files[:12]])


def test_an_encoder_knows_its_bundle_and_provider(encoder: Encoder, sample_bundle: Bundle) -> None:
    assert encoder.bundle is sample_bundle
    assert encoder.provider == "CPUExecutionProvider"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_any_batch_gives_unit_vectors_that_matching_takes(
    encoder: Encoder, inputs: NDArray[np.uint8], count: int
) -> None:
    embeddings, cells = encoder.encode(inputs[:count])
    assert embeddings.dtype == cells.dtype == np.float32
    assert embeddings.shape == (count, 128)
    assert cells.shape == (count, 16, 128)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(cells, axis=2), 1, atol=1e-5)
    assert len(quantise(embeddings, cells)) == count


def test_an_image_gets_the_same_features_in_any_batch(encoder: Encoder, inputs: NDArray[np.uint8]) -> None:
    together = encoder.encode(inputs)
    for index in range(len(inputs)):
        alone = encoder.encode(inputs[index : index + 1])
        np.testing.assert_allclose(together[0][index], alone[0][0], atol=2e-5)
        np.testing.assert_allclose(together[1][index], alone[1][0], atol=2e-5)


def test_no_images_give_no_features(encoder: Encoder) -> None:
    embeddings, cells = encoder.encode(np.zeros((0, 128, 128, 3), np.uint8))
    assert embeddings.shape == (0, 128)
    assert cells.shape == (0, 16, 128)


def test_images_of_one_colour_still_have_features(encoder: Encoder) -> None:
    flat = np.stack([np.full((128, 128, 3), value, np.uint8) for value in (0, 127, 255)])
    embeddings, cells = encoder.encode(flat)
    assert len(quantise(embeddings, cells)) == 3


def test_a_strided_view_is_encoded_as_its_copy(encoder: Encoder, inputs: NDArray[np.uint8]) -> None:
    mirrored = inputs[:2, :, ::-1]
    np.testing.assert_array_equal(encoder.encode(mirrored)[0], encoder.encode(np.ascontiguousarray(mirrored))[0])


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 128, 128, 3), np.float32),
        np.zeros((1, 3, 128, 128), np.uint8),
        np.zeros((1, 128, 127, 3), np.uint8),
        np.zeros((128, 128, 3), np.uint8),
    ],
)
def test_images_that_the_model_does_not_take_are_refused(encoder: Encoder, images: NDArray[Any]) -> None:
    with pytest.raises(EncoderInputError, match="expected uint8 images"):
        encoder.encode(images)


def test_threads_share_an_encoder(encoder: Encoder, inputs: NDArray[np.uint8]) -> None:
    expected = encoder.encode(inputs[:4])[1]
    with ThreadPoolExecutor(4) as pool:
        for embeddings_cells in pool.map(lambda _: encoder.encode(inputs[:4]), range(8)):
            np.testing.assert_array_equal(embeddings_cells[1], expected)


def test_more_threads_give_the_same_answers(sample_bundle: Bundle, inputs: NDArray[np.uint8], encoder: Encoder) -> None:
    two = Encoder.open(sample_bundle, threads=2)
    np.testing.assert_allclose(two.encode(inputs[:4])[1], encoder.encode(inputs[:4])[1], atol=2e-5)


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "NoSuchExecutionProvider", ""])
def test_a_provider_that_is_not_here_is_refused(sample_bundle: Bundle, provider: str) -> None:
    if provider in onnxruntime.get_available_providers():
        pytest.skip(f"{provider} is here")
    with pytest.raises(ProviderUnavailableError, match=r"ONNX Runtime offers here .*CPUExecutionProvider"):
        Encoder.open(sample_bundle, provider=provider)


def test_a_provider_that_onnx_runtime_offers_but_falls_back_from_is_refused(
    sample_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What happens on a machine with the GPU build of ONNX Runtime and no driver: a session, on the CPU.
    everywhere = [*onnxruntime.get_available_providers(), "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: everywhere)
    opened = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda model, options, **_: opened(model, options, ["CPUExecutionProvider"])
    )
    with pytest.raises(ProviderUnavailableError, match="ONNX Runtime chose CPUExecutionProvider"):
        Encoder.open(sample_bundle, provider="CUDAExecutionProvider")


def test_bytes_that_are_no_model_are_refused() -> None:
    for model in (b"", b"no model at all"):
        with pytest.raises(BundleInvalidError, match="can't load the model"):
            open_session(model)


def test_a_manifest_that_describes_another_model_is_refused(sample_bundle: Bundle) -> None:
    manifest = sample_bundle.manifest
    smaller = Goldens.record(
        np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 128), np.float32), np.zeros((1, 16, 128), np.float32), 1e-3
    )
    changes = {"height_px": 64, "width_px": 64, "goldens": smaller}
    with pytest.raises(BundleInvalidError, match="does not take what the manifest says"):
        Encoder.open(replace(sample_bundle, manifest=manifest.model_copy(update=changes)))
    images = manifest.goldens.images()
    narrower = Goldens.record(images, np.zeros((4, 64), np.float32), np.zeros((4, 16, 64), np.float32), 1e-3)
    changes = {"embedding_dim": 64, "goldens": narrower}
    with pytest.raises(BundleInvalidError, match=r"expected embedding of shape \[4, 64\]; got \[4, 128\]"):
        Encoder.open(replace(sample_bundle, manifest=manifest.model_copy(update=changes)))


def test_goldens_that_the_model_does_not_take_are_refused(sample_bundle: Bundle) -> None:
    for changes in ({"height_px": 64}, {"embedding_dim": 64}, {"grid_rows": 2}):
        changed = sample_bundle.manifest.model_copy(update=changes)
        with pytest.raises(BundleInvalidError):
            Encoder.open(replace(sample_bundle, manifest=changed))

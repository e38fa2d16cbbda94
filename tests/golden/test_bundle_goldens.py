"""A bundle runs only where it gives what it gave when it was written."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from matchflow_bundle import Bundle, Encoder, GoldenMismatchError, load_bundle, write_bundle
from matchflow_bundle.errors import BundleInvalidError
from matchflow_bundle.manifest import Goldens

if TYPE_CHECKING:
    from pathlib import Path


def with_goldens(bundle: Bundle, goldens: Goldens) -> Bundle:
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"goldens": goldens}))


def test_a_bundle_passes_its_own_goldens(sample_bundle: Bundle) -> None:
    manifest = sample_bundle.manifest
    encoder = Encoder.open(sample_bundle)
    embeddings, cells = encoder.encode(manifest.goldens.images())
    expected = manifest.goldens.outputs(manifest.grid, manifest.embedding_dim)
    np.testing.assert_allclose(embeddings, expected[0], atol=manifest.goldens.tolerance)
    np.testing.assert_allclose(cells, expected[1], atol=manifest.goldens.tolerance)


def test_the_goldens_tell_images_apart_by_far_more_than_their_tolerance(sample_bundle: Bundle) -> None:
    manifest = sample_bundle.manifest
    embeddings, _ = manifest.goldens.outputs(manifest.grid, manifest.embedding_dim)
    for first in range(len(embeddings)):
        for second in range(first):
            assert np.abs(embeddings[first] - embeddings[second]).max() > 50 * manifest.goldens.tolerance


@pytest.mark.parametrize("output", [0, 1])
def test_recorded_outputs_that_the_model_does_not_give_are_refused(sample_bundle: Bundle, output: int) -> None:
    manifest = sample_bundle.manifest
    goldens = manifest.goldens
    outputs = [values.copy() for values in goldens.outputs(manifest.grid, manifest.embedding_dim)]
    outputs[output][..., 5] += 0.01
    planted = Goldens.record(goldens.images(), outputs[0], outputs[1], goldens.tolerance)
    with pytest.raises(GoldenMismatchError, match=r"off by 0\.01.* on CPUExecutionProvider; expected at most 0\.001"):
        Encoder.open(with_goldens(sample_bundle, planted))


def test_recorded_outputs_that_are_not_finite_are_refused(sample_bundle: Bundle) -> None:
    manifest = sample_bundle.manifest
    embeddings, cells = manifest.goldens.outputs(manifest.grid, manifest.embedding_dim)
    planted = Goldens.record(manifest.goldens.images(), np.full_like(embeddings, np.nan), cells, 1e-3)
    with pytest.raises(GoldenMismatchError, match="nan"), np.errstate(invalid="ignore"):
        Encoder.open(with_goldens(sample_bundle, planted))


def test_a_model_with_other_weights_is_refused_even_when_its_bundle_is_sealed_anew(
    sample_bundle: Bundle, tmp_path: Path
) -> None:
    model = onnx.load_model_from_string(sample_bundle.read_model())
    for weights in model.graph.initializer:
        if weights.name == "projection.weight":
            changed = numpy_helper.to_array(weights).copy()
            changed[0] *= np.float32(1.5)
            weights.CopyFrom(numpy_helper.from_array(changed, weights.name))
    content = model.SerializeToString()
    manifest = sample_bundle.manifest.model_copy(update={"model_sha256": hashlib.sha256(content).hexdigest()})
    forged = write_bundle(tmp_path / "forged", content, manifest)
    assert load_bundle(forged.path).digest != sample_bundle.digest
    with pytest.raises(GoldenMismatchError, match="embedding of the golden inputs is off by"):
        Encoder.open(forged)


def test_a_model_with_other_names_is_refused(sample_bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(sample_bundle.read_model())
    model.graph.output.reverse()
    content = model.SerializeToString()
    manifest = sample_bundle.manifest.model_copy(update={"model_sha256": hashlib.sha256(content).hexdigest()})
    with pytest.raises(BundleInvalidError, match="expected input images and outputs"):
        Encoder.open(write_bundle(tmp_path / "other", content, manifest))

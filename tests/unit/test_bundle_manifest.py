"""bundle.json: what it says, and that nobody changed it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

from matchflow_bundle import BundleInvalidError, BundleManifest, Preprocessing, ResizePolicy
from matchflow_bundle.manifest import Goldens
from matchflow_matching.features import CellGrid

if TYPE_CHECKING:
    from matchflow_bundle import Bundle


@pytest.fixture
def manifest(sample_bundle: Bundle) -> BundleManifest:
    return sample_bundle.manifest


def altered(manifest: BundleManifest, **changes: Any) -> BundleManifest:
    return BundleManifest.model_validate_json(json.dumps(manifest.model_dump(mode="json") | changes))


def test_the_manifest_says_what_the_model_takes_and_gives(manifest: BundleManifest) -> None:
    assert manifest.grid == CellGrid(rows=4, columns=4)
    assert manifest.preprocessing == Preprocessing(height_px=128, width_px=128, policy=ResizePolicy.STRETCH)
    assert manifest.embedding_dim == 128
    assert manifest.source.architecture == "efficientnet-lite0"
    assert manifest.head.power == 0.25
    assert manifest.head.fitted_on_cells == 16 * manifest.head.fitted_on_images
    assert manifest.parity.batch_sizes == (1, 2, 7)
    assert 0 < manifest.parity.max_abs_cells <= manifest.parity.tolerance
    for text in (manifest.definitions.embedding, manifest.definitions.cells, manifest.definitions.geometry):
        assert len(text) > 50


def test_the_manifest_survives_json(manifest: BundleManifest) -> None:
    again = BundleManifest.model_validate_json(manifest.model_dump_json())
    assert again == manifest
    assert again.is_sealed()


def test_a_changed_field_breaks_the_seal(manifest: BundleManifest) -> None:
    for changes in ({"name": "other"}, {"version": "2"}, {"grid_rows": 2, "grid_columns": 8}, {"policy": "pad"}):
        changed = altered(manifest, **changes)
        assert not changed.is_sealed()
        assert changed.sealed().is_sealed()


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 2},
        {"name": ""},
        {"name": "Upper Case"},
        {"name": "../elsewhere"},
        {"name": "a/b"},
        {"name": "x" * 64},
        {"name": "ends-with-"},
        {"version": ""},
        {"height_px": 0},
        {"grid_rows": -1},
        {"policy": "squeeze"},
        {"model_sha256": "abc"},
        {"surprise": 1},
    ],
)
def test_a_manifest_outside_the_schema_is_refused(manifest: BundleManifest, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        altered(manifest, **changes)


def test_a_manifest_is_frozen(manifest: BundleManifest) -> None:
    with pytest.raises(ValidationError):
        manifest.name = "other"


def test_goldens_give_back_what_was_recorded() -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
    embeddings = draw.standard_normal((2, 5)).astype(np.float32)
    cells = draw.standard_normal((2, 6, 5)).astype(np.float32)
    goldens = Goldens.record(images, embeddings, cells, 1e-3)
    np.testing.assert_array_equal(goldens.images(), images)
    got = goldens.outputs(CellGrid(rows=2, columns=3), 5)
    np.testing.assert_array_equal(got[0], embeddings)
    np.testing.assert_array_equal(got[1], cells)


def test_goldens_of_other_sizes_are_refused(manifest: BundleManifest) -> None:
    with pytest.raises(BundleInvalidError, match="4 images, 9 cells"):
        manifest.goldens.outputs(CellGrid(rows=3, columns=3), 128)
    with pytest.raises(BundleInvalidError, match="127 numbers"):
        manifest.goldens.outputs(manifest.grid, 127)


@pytest.mark.parametrize("text", ["not base64!", "AAAA", "AAA"])
def test_goldens_that_are_no_floats_in_base64_are_refused(manifest: BundleManifest, text: str) -> None:
    with pytest.raises(BundleInvalidError, match="golden outputs"):
        manifest.goldens.model_copy(update={"embeddings": text}).outputs(manifest.grid, 128)


def test_golden_images_that_are_none_are_refused(manifest: BundleManifest) -> None:
    pictures = manifest.goldens.images_png
    other_size = Goldens.record(
        np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 2), np.float32), np.zeros((1, 1, 2), np.float32), 1e-3
    ).images_png
    for broken in (("AAAA",), ("not base64!",), (pictures[0], *other_size)):
        with pytest.raises(BundleInvalidError, match="golden images"):
            manifest.goldens.model_copy(update={"images_png": broken}).images()

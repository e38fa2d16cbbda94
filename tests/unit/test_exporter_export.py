"""Exports of the real model: any input, any grid; deterministic; and nothing written that is not right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from matchflow_bundle import Bundle, BundleExistsError, Encoder, ResizePolicy, decode_image
from matchflow_exporter import (
    ExportSettings,
    HeadFitError,
    HeadImagesError,
    ParityError,
    SettingsInvalidError,
    export_bundle,
)
from matchflow_matching.features import CellGrid

if TYPE_CHECKING:
    from pathlib import Path


def tiny(folder: Path, **changes: Any) -> ExportSettings:
    """An export that takes a second or two to fit."""
    options: dict[str, Any] = {
        "name": "tiny",
        "head_images": folder,
        "height_px": 64,
        "width_px": 64,
        "grid": CellGrid(rows=2, columns=2),
        "embedding_dim": 16,
        "max_head_images": 12,
    }
    return ExportSettings(**(options | changes))


def encodes(bundle: Bundle, folder: Path) -> None:
    """Check that a bundle passes its goldens and takes batches of any size."""
    manifest = bundle.manifest
    encoder = Encoder.open(bundle)
    files = sorted(folder.glob("*.png"))[:7]
    images = np.stack([manifest.preprocessing.apply(decode_image(path.read_bytes())) for path in files])
    for count in (1, 2, 7):
        embeddings, cells = encoder.encode(images[:count])
        assert embeddings.shape == (count, manifest.embedding_dim)
        assert cells.shape == (count, manifest.grid.size, manifest.embedding_dim)
        np.testing.assert_allclose(np.linalg.norm(cells, axis=2), 1, atol=1e-5)


@pytest.fixture
def folder(sample_images: dict[str, list[Path]]) -> Path:
    return sample_images["twemoji"][0].parent


@pytest.mark.parametrize(
    ("size", "cells_along", "policy"),
    [
        ((256, 128), (8, 4), ResizePolicy.PAD),
        ((112, 160), (3, 5), ResizePolicy.CENTER_CROP),
    ],
)
def test_any_input_and_grid_is_exported_and_passes_its_goldens(
    folder: Path, tmp_path: Path, size: tuple[int, int], cells_along: tuple[int, int], policy: ResizePolicy
) -> None:
    grid = CellGrid(rows=cells_along[0], columns=cells_along[1])
    settings = tiny(folder, height_px=size[0], width_px=size[1], grid=grid, policy=policy)
    bundle = export_bundle(settings, tmp_path / "bundle")
    assert (bundle.manifest.grid, bundle.manifest.policy) == (grid, policy)
    encodes(bundle, folder)


def test_exporting_twice_gives_the_same_digest_and_reports_its_progress(folder: Path, tmp_path: Path) -> None:
    # 6 x 5 cells of a map of 2 x 3: finer than the map along both axes.
    settings = tiny(folder, width_px=96, grid=CellGrid(rows=6, columns=5))
    seen: list[tuple[str, int, int]] = []
    first = export_bundle(settings, tmp_path / "a", progress=lambda *step: seen.append(step))
    encodes(first, folder)
    second = export_bundle(settings, tmp_path / "elsewhere" / "b")
    assert first.digest == second.digest
    assert first.manifest == second.manifest
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == ["read", "fit", "translate"]
    assert {(stage, total) for stage, done, total in seen if done == total} == {
        ("read", 12),
        ("fit", 12),
        ("translate", 1),
    }


def test_a_model_beyond_the_tolerance_is_not_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="expected at most 1e-12"):
        export_bundle(tiny(folder, parity_tolerance=1e-12), tmp_path / "refused")
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_not_replaced_unless_asked(folder: Path, sample_bundle: Bundle) -> None:
    with pytest.raises(BundleExistsError):
        export_bundle(tiny(folder), sample_bundle.path)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadImagesError):
        export_bundle(tiny(tmp_path), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_too_few_images_for_the_dimensions_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(HeadFitError, match="more than 128 cells"):
        export_bundle(tiny(folder, embedding_dim=128), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height_px": 31}, "height_px of 32 to 1024; got 31"),
        ({"width_px": 5000}, "width_px of 32 to 1024; got 5000"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"max_head_images": 0}, "max_head_images"),
        ({"power": -0.1}, "power"),
        ({"power": float("nan")}, "power"),
        ({"parity_tolerance": 0.0}, "parity_tolerance"),
        ({"parity_tolerance": float("inf")}, "parity_tolerance"),
        ({"name": "No Such Name!"}, "name"),
        ({"version": ""}, "version"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_read(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsInvalidError, match=message):
        tiny(tmp_path, **changes)

"""What every test stands on: strict numerics, the sample images, and one real bundle."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from matchflow_bundle import Bundle, BundleError, BundleExistsError, load_bundle
from matchflow_matching import CellGrid

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples" / "emoji"
BUNDLE_CACHE = ROOT / "build" / "test-bundles"
BUNDLE_SOURCES = ("exporter", "constraints.txt", "samples/emoji")


@pytest.fixture(autouse=True)
def _strict_numerics() -> Iterator[None]:
    with np.errstate(all="raise"):
        yield


@pytest.fixture(autouse=True)
def _no_log_of_others() -> Iterator[None]:
    """A server that ran inside a test logs to the output of that test, which no later one may write to."""
    yield
    root = logging.getLogger()
    for handler in root.handlers.copy():
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Journals of imports stay out of the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def sample_images() -> dict[str, list[Path]]:
    """The sample emoji by designer, each list in the order of file names (so of code points)."""
    folders = sorted(path for path in SAMPLES.glob("*") if path.is_dir())
    assert folders, f"expected sample images below {SAMPLES}; `make samples` makes them"
    return {folder.name: sorted(folder.glob("*.png")) for folder in folders}


@pytest.fixture(scope="session")
def sample_bundle(sample_images: dict[str, list[Path]]) -> Bundle:
    """EfficientNet-lite0 at 128 px, 4 x 4 cells of 128, its head fitted on the samples; kept between runs."""
    assert sample_images
    return _kept_or_exported("lite0")


@pytest.fixture(scope="session")
def other_bundle(sample_images: dict[str, list[Path]]) -> Bundle:
    """Another model of the same backbone, at 96 px with 3 x 3 cells of 64; kept between runs."""
    assert sample_images
    return _kept_or_exported("other", height_px=96, width_px=96, embedding_dim=64, cells=3)


def _kept_or_exported(name: str, *, cells: int = 4, **settings: int) -> Bundle:
    path = BUNDLE_CACHE / f"{name}-{_sources_digest()}"
    try:
        return load_bundle(path)
    except BundleError:
        return _export(path, name, cells, settings)


def _export(path: Path, name: str, cells: int, settings: dict[str, int]) -> Bundle:
    # torch takes seconds to import, and a kept bundle needs none of it.
    from matchflow_exporter import ExportSettings, export_bundle  # noqa: PLC0415

    wanted: dict[str, Any] = {**settings, "grid": CellGrid(rows=cells, columns=cells)}
    try:
        return export_bundle(ExportSettings(name=name, head_images=SAMPLES, **wanted), path, overwrite=path.exists())
    except BundleExistsError:
        # Another test run finished it first.
        return load_bundle(path)


def _sources_digest() -> str:
    digest = hashlib.sha256()
    for source in BUNDLE_SOURCES:
        root = ROOT / source
        files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.suffix in {".py", ".png"})
        for path in files:
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]

"""Real features for benchmarks: the sample images, and as many perturbed copies of them as wanted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from matchflow_bundle import Encoder, decode_image, load_bundle
from matchflow_exporter import ExportSettings, export_bundle
from matchflow_matching import FeatureBatch, dequantise, quantise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_bundle import Bundle

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLES = ROOT / "samples" / "emoji"
BUNDLE = ROOT / "build" / "bench" / "bundle"


def sample_bundle() -> Bundle:
    """Return the benchmarks' bundle, exported once: lite0, 128 px, 4x4 cells, D = 128, fitted on the sample images."""
    if not BUNDLE.exists():
        export_bundle(ExportSettings(name="bench", head_images=SAMPLES), BUNDLE)
    return load_bundle(BUNDLE)


def sample_files() -> list[Path]:
    """Return every sample image."""
    return sorted(SAMPLES.rglob("*.png"))


def sample_batch() -> FeatureBatch:
    """Return the features of every sample image."""
    bundle = sample_bundle()
    preprocessing = bundle.manifest.preprocessing
    inputs = np.stack([preprocessing.apply(decode_image(path.read_bytes())) for path in sample_files()])
    encoder = Encoder.open(bundle)
    parts = [encoder.encode(inputs[start : start + 32]) for start in range(0, len(inputs), 32)]
    return quantise(np.concatenate([g for g, _ in parts]), np.concatenate([z for _, z in parts]))


def perturbed(batch: FeatureBatch, count: int, *, noise: float = 0.35, seed: int = 0) -> FeatureBatch:
    """Return `count` images like those of `batch`: each cell moved by Gaussian noise of length about `noise`."""
    rng = np.random.default_rng(seed)
    base = dequantise(batch)
    chosen = rng.integers(0, len(batch), count)  # before all else: see sources()
    dim = base.shape[2]
    cells = base[chosen] + rng.normal(scale=noise / dim**0.5, size=(count, *base.shape[1:])).astype(np.float32)
    embeddings = batch.embeddings[chosen] + rng.normal(scale=noise / dim**0.5, size=(count, dim)).astype(np.float32)
    return quantise(unit(embeddings), unit(cells))


def sources(batch: FeatureBatch, count: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return which image of `batch` each of those that `perturbed` returns is like, int64 [count]."""
    return np.random.default_rng(seed).integers(0, len(batch), count)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors [..., D] of unit length."""
    lengths: NDArray[np.float32] = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / lengths

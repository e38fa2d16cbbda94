"""`make bench-ingest`: images per second through the whole server, against bare ONNX Runtime on the same model.

The server decodes, preprocesses, embeds, makes thumbnails and commits to disk; a client in another process sends
encoded images over one stream. The yardstick calls the same encoder, with as many threads and the same batch size, on
inputs that already lie in memory. Both run in turn, several times; the ratio is taken pair by pair.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from bench_features import ROOT, sample_bundle, sample_files
from local_server import local_server
from PIL import Image, ImageEnhance
from report import write_report

import matchflow
from matchflow_bundle import Encoder, decode_image
from matchflow_service.settings import ServiceSettings

IMAGES = 1_500
ROUNDS = 5


def encoded_images(count: int) -> list[bytes]:
    """Return distinct images: the samples as they are, then brightened a little more on every turn."""
    files = sample_files()
    images = [path.read_bytes() for path in files]
    while len(images) < count:
        turn, index = divmod(len(images), len(files))
        brighter = ImageEnhance.Brightness(Image.open(files[index]).convert("RGB")).enhance(1 + turn / 50)
        buffer = io.BytesIO()
        brighter.save(buffer, "PNG")
        images.append(buffer.getvalue())
    return images[:count]


def bare_rate(encoder: Encoder, inputs: np.ndarray, settings: ServiceSettings) -> float:
    """Return the images per second that the encoder alone embeds from memory."""
    size = settings.encoder_batch_size
    batches = [inputs[start : start + size] for start in range(0, len(inputs), size)]
    with ThreadPoolExecutor(settings.encoder_threads) as pool:
        start = time.perf_counter()
        list(pool.map(encoder.encode, batches))
        return len(inputs) / (time.perf_counter() - start)


def server_rate(client: matchflow.Client, gallery: str, images: list[bytes]) -> float:
    """Return the images per second that go through the server into a new gallery."""
    client.create_gallery(gallery)
    items = [matchflow.IngestItem(id=f"{n:05}", image=image) for n, image in enumerate(images)]
    start = time.perf_counter()
    summary = client.ingest(gallery, items)
    seconds = time.perf_counter() - start
    if summary.created != len(images):
        raise RuntimeError(f"expected {len(images)} images to be created; got {summary}")
    client.delete_gallery(gallery)
    return len(images) / seconds


def main() -> None:
    """Measure and write build/bench/ingest.json."""
    bundle = sample_bundle()
    settings = ServiceSettings(store=Path("unused"), bundles=[bundle.path])
    images = encoded_images(IMAGES)
    preprocessing = bundle.manifest.preprocessing
    inputs = np.stack([preprocessing.apply(decode_image(image)) for image in images])
    encoder = Encoder.open(bundle)
    bare, served = [], []
    folder = Path(tempfile.mkdtemp(prefix="bench-ingest-", dir=ROOT / "build"))
    try:
        with (
            local_server(bundle=bundle.path, store=folder / "store", log=folder / "server.log") as target,
            matchflow.Client(target, timeout_s=600) as client,
        ):
            server_rate(client, "warm-up", images[:200])
            bare_rate(encoder, inputs[:200], settings)
            for turn in range(ROUNDS):
                bare.append(bare_rate(encoder, inputs, settings))
                served.append(server_rate(client, f"turn-{turn}", images))
    finally:
        shutil.rmtree(folder)
    ratios = [ours / theirs for ours, theirs in zip(served, bare, strict=True)]
    figures = {
        "ratio_to_onnxruntime": float(np.median(ratios)),
        "images_per_s": float(np.median(served)),
        "onnxruntime_images_per_s": float(np.median(bare)),
    }
    details = {
        "images": IMAGES,
        "rounds": ROUNDS,
        "ratios": ratios,
        "encoder_threads": settings.encoder_threads,
        "batch_size": settings.encoder_batch_size,
        "mean_image_bytes": float(np.mean([len(image) for image in images])),
    }
    write_report("ingest", figures=figures, details=details, command="make bench-ingest")


if __name__ == "__main__":
    main()

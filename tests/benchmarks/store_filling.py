"""Galleries of perturbed sample features, filled as ingest fills them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench_features import perturbed

from matchflow_index import GallerySpec, NewImage

if TYPE_CHECKING:
    from matchflow_bundle import Bundle
    from matchflow_index import Gallery
    from matchflow_matching import FeatureBatch

BATCH = 1_000
CHUNK = 20_000


def fill(gallery: Gallery, base: FeatureBatch, start: int, stop: int) -> float:
    """Put images `start` to `stop` and return how many seconds that took, the making of features left out."""
    spent_s = 0.0
    for n in range(start, stop, CHUNK):
        batch = perturbed(base, min(CHUNK, stop - n), seed=n)
        for first in range(0, len(batch), BATCH):
            images = [
                NewImage(
                    image_id=f"image-{n + k:07}",
                    content_hash=f"{n + k:064x}",
                    labels={"camera": f"c{(n + k) % 50}", "frame": float(n + k)},
                    width_px=0,
                    height_px=0,
                    features=batch[k],
                )
                for k in range(first, min(first + BATCH, len(batch)))
            ]
            begun_s = time.perf_counter()
            gallery.put(images)
            spent_s += time.perf_counter() - begun_s
    return spent_s


def spec(bundle: Bundle) -> GallerySpec:
    """Return the specification of the gallery."""
    grid = bundle.manifest.grid
    return GallerySpec(
        gallery_id="bench",
        model=bundle.manifest.name,
        bundle_digest=bundle.digest,
        grid=grid,
        embedding_dim=bundle.manifest.embedding_dim,
        keep_thumbnails=False,
        create_time_s=time.time(),
    )

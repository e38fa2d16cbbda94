"""`make bench-store`: ready-made features into a gallery, on LMDB and on Redis, in batches as ingest makes them.

Both are durable as they are by default: LMDB synchronises every commit, Redis its append-only file every second. The
time is that of Gallery.put, the caches that searches need included. Reading rows back from Redis is held against a bare
MGET of the same keys.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bench_features import ROOT, sample_batch, sample_bundle
from redis_server import running_redis
from report import BENCH, write_report
from store_filling import fill, spec

from matchflow_index import GalleryStore
from matchflow_index.redis_address import RedisAddress
from matchflow_index.redis_truth import RedisTruth

if TYPE_CHECKING:
    from redis_server import RedisServer

    from matchflow_bundle import Bundle
    from matchflow_index import Gallery
    from matchflow_index.truth import Truth
    from matchflow_matching import FeatureBatch

IMAGES = 40_000
GATHERED, TURNS = 100, 300
ROW_KEY = re.compile(rb"\}:r(\d+)$")


def images_per_s(gallery: Gallery, base: FeatureBatch, images: int) -> float:
    """Return how many images a second a new gallery takes."""
    return images / fill(gallery, base, 0, images)


def gather_over_mget(truth: Truth, gallery: Gallery, server: RedisServer) -> float:
    """Return the time of reading 100 rows over that of a bare MGET of their keys, medians of turns in alternation."""
    client = server.client()
    with truth.read(gallery.stored) as snapshot:
        row_ids = [record.row_id for record in snapshot.records()]
        keys = _keys(client)
        rng = np.random.default_rng(0)
        ours, bare = list[float](), list[float]()
        for turn in range(TURNS):
            chosen = [row_ids[k] for k in rng.choice(len(row_ids), GATHERED, replace=False)]
            names = [keys[row_id] for row_id in chosen]
            # Who comes second finds the rows in the processor's caches: they take turns.
            for own in (turn % 2 == 0, turn % 2 == 1):
                begun_s = time.perf_counter()
                rows = snapshot.rows_of(chosen) if own else client.mget(names)
                (ours if own else bare).append(time.perf_counter() - begun_s)
                if any(row is None for row in rows):
                    raise RuntimeError("rows are missing")
    return float(np.median(ours) / np.median(bare))


def _keys(client: Any) -> dict[int, bytes]:
    """Return the key of each row by row id, as the server has them."""
    names: list[bytes] = client.keys("*}:r*")
    return {int(found[1]): name for name in names if (found := ROW_KEY.search(name))}


def redis_figures(bundle: Bundle, base: FeatureBatch, folder: Path, images: int) -> dict[str, float]:
    """Return how fast a gallery on a Redis server takes images, and how fast rows come back."""
    with running_redis(folder / "redis") as server:
        truth = RedisTruth(RedisAddress.parse(server.url))
        with GalleryStore.open(folder / "caches", truth=truth) as store:
            gallery = store.create(spec(bundle))
            return {
                "redis_images_per_s": images_per_s(gallery, base, images),
                "redis_gather_over_mget": gather_over_mget(truth, gallery, server),
            }


def main(arguments: list[str] | None = None) -> None:
    """Measure and write build/bench/store.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--folder", type=Path, default=BENCH, help="where the report goes")
    given = parser.parse_args(arguments)
    bundle, base = sample_bundle(), sample_batch()
    folder = Path(tempfile.mkdtemp(prefix="bench-store-", dir=ROOT / "build"))
    try:
        with GalleryStore.open(folder / "lmdb") as store:
            figures = {"lmdb_images_per_s": images_per_s(store.create(spec(bundle)), base, given.images)}
        figures |= redis_figures(bundle, base, folder, given.images)
    finally:
        shutil.rmtree(folder)
    details = {
        "images": given.images,
        "batch": 1_000,
        "redis": "appendonly yes, appendfsync everysec",
        "rows": GATHERED,
    }
    write_report("store", figures, details, command="make bench-store", folder=given.folder)


if __name__ == "__main__":
    main()

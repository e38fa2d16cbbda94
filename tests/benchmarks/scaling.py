"""`make bench-scale`: a gallery of SIZE images on one machine: memory, disk, start, search, recall.

The features are those of the sample images, perturbed. The store is filled in this process, in batches as ingest makes
them; then a server is started on it, bound to one core, and searched by stored image id. Times of searches are those
that the server reports. Growth is reported at sizes in between, with a plot.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bench_features import ROOT, sample_batch, sample_bundle
from local_server import local_server
from PIL import Image
from report import BENCH, write_report
from store_filling import CHUNK, fill, spec
from storing import redis_figures

import matchflow
from matchflow_index import GalleryStore
from matchflow_index.ivf_index import best_by_cosine
from matchflow_index.records import RowLayout
from matchflow_service.scatter import ScatterPoint, ScatterTexts, render_scatter

if TYPE_CHECKING:
    from matchflow_bundle import Bundle
    from matchflow_index import Gallery
    from matchflow_matching import FeatureBatch

SIZE = 1_000_000
QUERIES, WARM_UP = 300, 30
REDIS_IMAGES = 10_000
RECALL_QUERIES, RECALL_DEPTH = 200, 100
GATHERED = 100


def recall(gallery: Gallery) -> float:
    """Return the share of the true best 100 by cosine that the coarse stage finds for own vectors."""
    shelf = gallery._shelf
    live = shelf.live_slots
    queries = np.random.default_rng(9).choice(live, RECALL_QUERIES, replace=False)
    vectors = shelf.slab.gather_embeddings(queries)
    best = best_by_cosine(
        vectors,
        (
            (live[at : at + CHUNK], shelf.slab.gather_embeddings(live[at : at + CHUNK]))
            for at in range(0, len(live), CHUNK)
        ),
        RECALL_DEPTH,
    )
    found = []
    for vector, true in zip(vectors, best, strict=True):
        slots, _ = shelf.coarse.propose(vector, 2 * RECALL_DEPTH, None)
        found.append(np.isin(true, slots).mean())
    return float(np.mean(found))


def gather_ms(gallery: Gallery) -> float:
    """Return the median time of gathering 100 random slots from the warm slab."""
    shelf, rng, times = gallery._shelf, np.random.default_rng(3), []
    shelf.slab.checksums()
    for _ in range(200):
        slots = rng.choice(shelf.size, GATHERED, replace=False)
        begun_s = time.perf_counter()
        shelf.slab.gather(slots)
        times.append(time.perf_counter() - begun_s)
    return 1e3 * float(np.median(times))


def disk_bytes(folder: Path) -> int:
    """Return what the files of a store take on disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def resident_mb(pid: int) -> float:
    """Return the memory of a process that is its own: page cache apart."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} does not say how much memory it has")


def process_of(target: str) -> int:
    """Return the process of the server on a port: the one whose command line names it."""
    port = target.rpartition(":")[2].encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"serve" in words and port in words and b"taskset" not in words:
            return int(path.parent.name)
    raise RuntimeError(f"no server on {target}")


def served(bundle: Bundle, folder: Path, size: int) -> dict[str, float]:
    """Start a server on the store and return start_s, times of searches and its memory."""
    core = min(os.sched_getaffinity(0))
    prefix = ("taskset", "--cpu-list", str(core))
    begun_s, times = time.perf_counter(), []
    with (
        local_server(bundle=bundle.path, store=folder / "store", log=folder / "server.log", prefix=prefix) as target,
        matchflow.Client(target, timeout_s=120) as client,
    ):
        client.search(matchflow.ImageRef("bench", f"image-{0:07}"), gallery="bench")
        start_s = time.perf_counter() - begun_s
        rows = np.random.default_rng(1).integers(0, size, QUERIES + WARM_UP)
        for row in rows:
            answer = client.search(matchflow.ImageRef("bench", f"image-{row:07}"), gallery="bench", top_k=10, depth=100)
            times.append(answer.timings.total_ms)
        memory = resident_mb(process_of(target))
    return {
        "start_s": start_s,
        "search_p50_ms": float(np.median(times[WARM_UP:])),
        "search_p95_ms": float(np.percentile(times[WARM_UP:], 95)),
        "resident_mb": memory,
    }


def measure(base: FeatureBatch, bundle: Bundle, folder: Path, start: int, stop: int) -> dict[str, float]:
    """Let the gallery grow from `start` to `stop` images and return its figures."""
    with GalleryStore.open(folder / "store") as store:
        gallery = store.gallery("bench")
        spent_s = fill(gallery, base, start, stop)
        begun_s = time.perf_counter()
        gallery.maintain()
        lists_s = time.perf_counter() - begun_s
        found = {
            "images": float(stop),
            "put_images_per_s": (stop - start) / spent_s,
            "maintain_s": lists_s,
            "coarse_recall_at_100": recall(gallery),
            "gather_100_ms": gather_ms(gallery),
        }
        raw = stop * RowLayout.of(gallery.spec).size_bytes
    return found | served(bundle, folder, stop) | {"disk_over_raw": disk_bytes(folder / "store") / raw}


def sizes(size: int) -> list[int]:
    """Return the sizes at which growth is looked at: 10,000 and its powers of about three, up to `size`."""
    return sorted({step for step in (10_000, 30_000, 100_000, 300_000) if step < size} | {size})


PANELS = {
    "search_p50_ms": ("Search by stored image", "depth 100, top 10, one core", "p50 in the server, ms"),
    "resident_mb": ("Memory of the server", "resident, page cache left out", "MB"),
    "start_s": ("From the start of the server to its first answer", "caches saved", "s"),
    "disk_over_raw": ("Disk, truth and caches", "in units of the raw feature bytes", "times"),
}


def draw(curve: list[dict[str, float]], path: Path) -> None:
    """Draw how time, memory and disk grow with the number of images."""
    drawn = []
    for name, (title, subtitle, unit) in PANELS.items():
        points = [ScatterPoint(x=step["images"], y=step[name], label=f"{step[name]:.3g}") for step in curve]
        texts = ScatterTexts(title=title, subtitle=subtitle, x_label="images", y_label=unit)
        drawn.append(Image.open(io.BytesIO(render_scatter(points, texts, curve=True))))
    width, height = drawn[0].size
    whole = Image.new("RGB", (2 * width, height * -(-len(drawn) // 2)))
    for place, panel in enumerate(drawn):
        whole.paste(panel, (width * (place % 2), height * (place // 2)))
    whole.save(path)


def main(arguments: list[str] | None = None) -> None:
    """Measure and write build/bench/scale.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--size", type=int, default=int(os.environ.get("SIZE") or SIZE))
    parser.add_argument("--folder", type=Path, default=BENCH, help="where the report goes")
    given = parser.parse_args(arguments)
    bundle, base = sample_bundle(), sample_batch()
    folder = Path(tempfile.mkdtemp(prefix="bench-scale-", dir=ROOT / "build"))
    curve: list[dict[str, Any]] = []
    try:
        with GalleryStore.open(folder / "store") as store:
            store.create(spec(bundle))
        for start, stop in zip([0, *sizes(given.size)], sizes(given.size), strict=False):
            curve.append(measure(base, bundle, folder, start, stop))
            print({name: round(value, 3) for name, value in curve[-1].items()}, flush=True)
        redis = redis_figures(bundle, base, folder, REDIS_IMAGES)
    finally:
        shutil.rmtree(folder)
    given.folder.mkdir(parents=True, exist_ok=True)
    draw(curve, given.folder / "scale.png")
    command = f"make bench-scale SIZE={given.size}"
    figures = curve[-1] | {"redis_gather_over_mget": redis["redis_gather_over_mget"]}
    write_report("scale", figures, {"curve": curve}, command=command, folder=given.folder)


if __name__ == "__main__":
    main()

"""`make bench-search`: two-stage search by stored image id in a gallery of 10,000, timed inside the server on one core.

The gallery holds features of the sample images and perturbed copies of them, sent as ready-made features. The server
process is bound to one core; the client runs on another. Times are those that the server reports with each reply: from
the request's arrival to the reply, transport excluded.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from bench_features import ROOT, perturbed, sample_batch, sample_bundle
from local_server import local_server
from report import write_report

import matchflow

IMAGES = 10_000
QUERIES = 400
DEPTH = 100
TOP_K = 10
STAGES = ("coarse_ms", "gather_ms", "match_ms", "explain_ms", "total_ms")


def fill(client: matchflow.Client, digest: str) -> None:
    """Create the gallery and send the features."""
    batch = perturbed(sample_batch(), IMAGES)
    client.create_gallery("bench")
    items = (
        matchflow.IngestItem(
            id=f"{n:05}",
            image=matchflow.Features(
                bundle_digest=digest,
                embedding=tuple(batch.embeddings[n].tolist()),
                cells=batch.cells[n].tobytes(),
                cell_scales=tuple(batch.scales[n].astype(np.float32).tolist()),
            ),
        )
        for n in range(IMAGES)
    )
    summary = client.ingest("bench", items)
    if summary.created != IMAGES:
        raise RuntimeError(f"expected {IMAGES} images to be created; got {summary}")


def times(client: matchflow.Client, mode: matchflow.RerankMode) -> dict[str, list[float]]:
    """Return the server's stage times over the queries, after a warm-up."""
    found: dict[str, list[float]] = {stage: [] for stage in STAGES}
    rng = np.random.default_rng(1)
    for n, row in enumerate(rng.integers(0, IMAGES, QUERIES + 20)):
        query = matchflow.ImageRef("bench", f"{row:05}")
        answer = client.search(query, gallery="bench", top_k=TOP_K, depth=DEPTH, mode=mode)
        if n >= 20:
            for stage in STAGES:
                found[stage].append(getattr(answer.timings, stage))
    return found


def main() -> None:
    """Measure and write build/bench/search.json."""
    bundle = sample_bundle()
    core = min(os.sched_getaffinity(0))
    folder = Path(tempfile.mkdtemp(prefix="bench-search-", dir=ROOT / "build"))
    try:
        with (
            local_server(
                bundle=bundle.path,
                store=folder / "store",
                log=folder / "server.log",
                prefix=("taskset", "--cpu-list", str(core)),
            ) as target,
            matchflow.Client(target) as client,
        ):
            fill(client, bundle.digest)
            structural = times(client, matchflow.RerankMode.STRUCTURAL)
            coarse = times(client, matchflow.RerankMode.NONE)
    finally:
        shutil.rmtree(folder)
    figures = {
        "p50_ms": float(np.median(structural["total_ms"])),
        "p95_ms": float(np.percentile(structural["total_ms"], 95)),
        "coarse_only_p50_ms": float(np.median(coarse["total_ms"])),
        **{f"{stage[:-3]}_p50_ms": float(np.median(structural[stage])) for stage in STAGES[:-1]},
    }
    details = {"images": IMAGES, "queries": QUERIES, "depth": DEPTH, "top_k": TOP_K, "max_flows": 8, "cores": 1}
    write_report("search", figures=figures, details=details, command="make bench-search")


if __name__ == "__main__":
    main()

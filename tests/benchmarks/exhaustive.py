"""`make bench-exhaustive`: what it costs to prove that the first ten hits are those of the whole gallery.

Two galleries: 10,000 perturbed copies of the sample images, as in `make bench-search`, where every query has a dozen
near copies, and the sample images themselves, where nothing is nearly equal. Queries are stored images, which are left
out of their own answers. Searches run in this process on one core; brute force matches the whole gallery and sorts it,
and every answer that is called exact is compared with it. Times are medians.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from bench_features import perturbed, sample_batch
from report import write_report

from matchflow_index import GallerySpec, GalleryStore, ImageFilter, NewImage, SearchQuery
from matchflow_matching import CellGrid, FeatureBatch, MatchMode, MatchSettings, match, warm_up

if TYPE_CHECKING:
    from matchflow_index import Gallery

GRID = CellGrid(rows=4, columns=4)
IMAGES = 10_000
QUERIES = 40
TOP_K = 10
DEPTH = 100
# Pairs that brute force matches at once: the fastest of 64 to 8,192.
BRUTE_CHUNK = 512
METHODS = {
    "structural": MatchSettings(),
    "position_aware": MatchSettings.of(MatchMode.POSITION_AWARE),
    "position_aware_plus_cosine": MatchSettings.of(MatchMode.POSITION_AWARE, global_weight=1.0),
    "earth_mover": MatchSettings.of(MatchMode.EARTH_MOVER),
    "partial": MatchSettings.of(MatchMode.PARTIAL),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of one gallery and one way to match: times in ms, and shares of 1."""

    two_stage_ms: float
    exhaustive_ms: float
    brute_force_ms: float
    exact_at_depth: float
    unsolved: float


def filled(store: GalleryStore, name: str, batch: FeatureBatch, grid: CellGrid = GRID) -> Gallery:
    """Return a new gallery that holds a batch, image 00007 being its row 7."""
    spec = GallerySpec(
        gallery_id=name,
        model="bench",
        bundle_digest="sha256:bench",
        grid=grid,
        embedding_dim=batch.embeddings.shape[1],
        keep_thumbnails=False,
        create_time_s=time.time(),
    )
    gallery = store.create(spec)
    for start in range(0, len(batch), 1000):
        gallery.put(
            [
                NewImage(image_id=f"{k:05}", content_hash=f"{k}", labels={}, width_px=0, height_px=0, features=batch[k])
                for k in range(start, min(start + 1000, len(batch)))
            ]
        )
    return gallery


def brute_force(batch: FeatureBatch, row: int, settings: MatchSettings, grid: CellGrid, top_k: int) -> list[str]:
    """Return the ids of the best images for one of them, itself left out, by matching all."""
    scores = np.concatenate(
        [
            match(batch[row], batch.take(slice(start, start + BRUTE_CHUNK)), settings, grid=grid).score
            for start in range(0, len(batch), BRUTE_CHUNK)
        ]
    )
    order = np.argsort(-scores, kind="stable")
    return [f"{k:05}" for k in order[order != row][:top_k].tolist()]


def measure(
    gallery: Gallery, batch: FeatureBatch, settings: MatchSettings, rows: list[int], *, top_k: int = TOP_K
) -> Measured:
    """Search for some rows in all three ways; RuntimeError when brute force contradicts an answer called exact."""
    grid = gallery.spec.grid
    found: dict[str, list[float]] = {name: [] for name in Measured.__slots__}
    for row in rows:
        start_s = time.perf_counter()
        expected = brute_force(batch, row, settings, grid, top_k)
        found["brute_force_ms"].append(1e3 * (time.perf_counter() - start_s))
        for exhaustively, taken_ms in ((False, found["two_stage_ms"]), (True, found["exhaustive_ms"])):
            query = SearchQuery(
                features=batch[row],
                top_k=top_k,
                depth=DEPTH,
                settings=settings,
                max_flows=0,
                filter=ImageFilter(exclude=frozenset({f"{row:05}"})),
                exhaustive=exhaustively,
            )
            start_s = time.perf_counter()
            answer = gallery.search(query)
            taken_ms.append(1e3 * (time.perf_counter() - start_s))
            hits = [hit.record.image_id for hit in answer.hits]
            if (answer.exact and hits != expected) or (exhaustively and not answer.exact):
                raise RuntimeError(f"query {row}: matching everything gives {expected}; got {hits}")
            if exhaustively:
                found["unsolved"].append(answer.proved_below / (len(batch) - 1))
            else:
                found["exact_at_depth"].append(answer.exact)
    shares = {"exact_at_depth", "unsolved"}
    return Measured(**{name: float((np.mean if name in shares else np.median)(found[name])) for name in found})


def figures_of(galleries: dict[str, tuple[Gallery, FeatureBatch]], queries: int) -> dict[str, float]:
    """Return every figure, named by what it is, the way to match and the gallery."""
    figures: dict[str, float] = {}
    for name, (gallery, batch) in galleries.items():
        rows = np.linspace(0, len(batch), queries, endpoint=False).astype(int).tolist()
        for method, settings in METHODS.items():
            found = measure(gallery, batch, settings, rows)
            for figure in Measured.__slots__:
                figures[f"{figure}_{method}_{name}"] = getattr(found, figure)
    return figures


def main() -> None:
    """Measure and write build/bench/exhaustive.json."""
    warm_up()
    samples = sample_batch()
    batches = {"10k": perturbed(samples, IMAGES), "samples": samples}
    with tempfile.TemporaryDirectory(prefix="bench-exhaustive-") as folder, GalleryStore.open(Path(folder)) as store:
        galleries = {name: (filled(store, name, batch), batch) for name, batch in batches.items()}
        figures = figures_of(galleries, QUERIES)
    details = {
        "images": {name: len(batch) for name, batch in batches.items()},
        "queries": QUERIES,
        "top_k": TOP_K,
        "depth": DEPTH,
    }
    write_report("exhaustive", figures=figures, details=details, command="make bench-exhaustive")


if __name__ == "__main__":
    main()

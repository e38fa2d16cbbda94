"""`make bench-filter`: 10,000 random filters in a gallery large enough for lists, against brute force.

Every filter lets through about one of SELECTIVITIES of the images, in one of the ways that KINDS name: independent of
what the images look like, or hand in hand with it (`source`, the sample that an image was made of), where the images
nearest to the query may all be outside. Some images are relabelled and some deleted after the lists were made. Brute
force knows the labels from arrays of its own and computes every cosine; a hit that it does not let through is a wrong
id. One filter in ten is searched with the second stage, whose hits must be inside too.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from bench_features import ROOT, perturbed, sample_batch, sample_bundle, sources
from report import BENCH, write_report

from matchflow_index import (
    GallerySpec,
    GalleryStore,
    ImageFilter,
    KnownImage,
    LabelCondition,
    LabelRange,
    NewImage,
    SearchQuery,
)
from matchflow_matching import MatchSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from matchflow_index import Gallery, Hit, LabelValue
    from matchflow_matching import FeatureBatch

IMAGES = 100_000
FILTERS = 10_000
SELECTIVITIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9)
TOP_K = 10
CHUNK, BATCH = 10_000, 1_000
RELABELLED = DELETED = 1_000
RERANKED_EVERY = 10
CAMERAS, PEOPLE = 50, 2_000
LARGEST_SET = 1_000
START = datetime(2026, 1, 1, tzinfo=UTC)
YEAR_S = 365 * 86_400
# Cosines of float32 that only the order of a sum tells apart.
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What brute force goes by: labels and cosines of N images, in arrays that the store has never seen."""

    embeddings: NDArray[np.float32]
    source: NDArray[np.int64]
    camera: NDArray[np.int64]
    person: NDArray[np.int64]
    age: NDArray[np.float64]
    taken_s: NDArray[np.int64]
    checked: NDArray[np.bool_]
    live: NDArray[np.bool_]

    @classmethod
    def random(cls, count: int, dim: int, rng: np.random.Generator) -> Truth:
        """Return labels for so many images; embeddings and sources are zero until they are known."""
        return cls(
            embeddings=np.zeros((count, dim), np.float32),
            source=np.zeros(count, np.int64),
            camera=rng.integers(0, CAMERAS, count),
            person=rng.integers(0, PEOPLE, count),
            age=rng.uniform(0, 100, count),
            taken_s=rng.integers(0, YEAR_S, count),
            checked=rng.random(count) < 0.3,
            live=np.ones(count, np.bool_),
        )

    def labels(self, k: int) -> dict[str, LabelValue]:
        """Return the labels of image `k`, as they are stored."""
        labels: dict[str, LabelValue] = {
            "source": f"s{self.source[k]}",
            "camera": f"c{self.camera[k]}",
            "person": f"p{self.person[k]}",
            "age": float(self.age[k]),
            "taken": START + timedelta(seconds=int(self.taken_s[k])),
        }
        return labels | ({"checked": "yes"} if self.checked[k] else {})


Filtered: TypeAlias = "tuple[ImageFilter, NDArray[np.bool_]]"


def texts(field: str, codes: NDArray[np.int64], chosen: NDArray[np.int64], *, negated: bool = False) -> Filtered:
    """Return the filter for a text among the chosen ones, or for none of them, and what it lets through."""
    values = frozenset(f"{field[0]}{code}" for code in chosen)
    condition = LabelCondition(field=field, any_of=values, negated=negated)
    return ImageFilter(conditions=(condition,)), np.isin(codes, chosen) != negated


def some(codes: int, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return about that share of the codes, at least one and no more than a condition may name."""
    count = min(max(1, round(codes * share)), LARGEST_SET, codes)
    return rng.choice(codes, count, replace=False)


def both(one: Filtered, other: Filtered) -> Filtered:
    """Return the filter for what passes both."""
    return ImageFilter(conditions=one[0].conditions + other[0].conditions), one[1] & other[1]


def ages(truth: Truth, share: float, rng: np.random.Generator, *, negated: bool = False) -> Filtered:
    """Return the filter for a range of numbers, or for all outside of one."""
    width = 100 * (1 - share if negated else share)
    low = rng.uniform(0, 100 - width)
    condition = LabelCondition(field="age", within=LabelRange(gte=low, lt=low + width), negated=negated)
    return ImageFilter(conditions=(condition,)), ((truth.age >= low) & (truth.age < low + width)) != negated


def times(truth: Truth, share: float, rng: np.random.Generator) -> Filtered:
    """Return the filter for a range of times."""
    width_s = max(1, round(YEAR_S * share))
    low_s = int(rng.integers(0, YEAR_S - width_s + 1))
    within = LabelRange(gte=START + timedelta(seconds=low_s), lt=START + timedelta(seconds=low_s + width_s))
    passing = (truth.taken_s >= low_s) & (truth.taken_s < low_s + width_s)
    return ImageFilter(conditions=(LabelCondition(field="taken", within=within),)), passing


def presence(truth: Truth, share: float, rng: np.random.Generator) -> Filtered:
    """Return the filter for having a label, or for not having it, narrowed by a range of times."""
    negated = share > 0.3
    has = LabelCondition(field="checked", negated=negated)
    rest = min(1.0, share / (0.7 if negated else 0.3))
    return both((ImageFilter(conditions=(has,)), truth.checked != negated), times(truth, rest, rng))


def named(truth: Truth, share: float, rng: np.random.Generator) -> Filtered:
    """Return the filter for some images by id."""
    chosen = rng.choice(len(truth.live), min(10_000, round(share * len(truth.live))), replace=False)
    passing = np.zeros(len(truth.live), np.bool_)
    passing[chosen] = True
    return ImageFilter(any_ids=frozenset(map(image_id, chosen))), passing


KINDS: dict[str, Callable[[Truth, float, np.random.Generator], Filtered]] = {
    "numbers": ages,
    "not_numbers": lambda truth, share, rng: ages(truth, share, rng, negated=True),
    "times": times,
    "people": lambda truth, share, rng: texts("person", truth.person, some(PEOPLE, share, rng)),
    "not_cameras": lambda truth, share, rng: texts("camera", truth.camera, some(CAMERAS, 1 - share, rng), negated=True),
    "sources": lambda truth, share, rng: texts("source", truth.source, some(int(truth.source.max()) + 1, share, rng)),
    "not_sources": lambda truth, share, rng: texts(
        "source", truth.source, some(int(truth.source.max()) + 1, 1 - share, rng), negated=True
    ),
    "numbers_and_times": lambda truth, share, rng: both(ages(truth, share**0.5, rng), times(truth, share**0.5, rng)),
    "presence": presence,
    "images": named,
}


def image_id(k: int) -> str:
    """Return the id of image `k`."""
    return f"image-{k:07}"


def fill(gallery: Gallery, base: FeatureBatch, truth: Truth) -> None:
    """Put perturbed copies of the samples with their labels; `truth` learns their embeddings and sources."""
    for start in range(0, len(truth.live), CHUNK):
        stop = min(start + CHUNK, len(truth.live))
        batch = perturbed(base, stop - start, seed=start)
        truth.source[start:stop] = sources(base, stop - start, seed=start)
        truth.embeddings[start:stop] = batch.embeddings
        for first in range(start, stop, BATCH):
            gallery.put(
                [
                    NewImage(
                        image_id=image_id(k),
                        content_hash=f"{k:064x}",
                        labels=truth.labels(k),
                        width_px=0,
                        height_px=0,
                        features=batch[k - start],
                    )
                    for k in range(first, min(first + BATCH, stop))
                ]
            )


def disturb(gallery: Gallery, truth: Truth, rng: np.random.Generator) -> None:
    """Give some images other labels and delete some others."""
    chosen = rng.choice(len(truth.live), RELABELLED + DELETED, replace=False)
    moved, gone = chosen[:RELABELLED], chosen[RELABELLED:]
    truth.age[moved] = rng.uniform(0, 100, len(moved))
    truth.camera[moved] = rng.integers(0, CAMERAS, len(moved))
    truth.checked[moved] = ~truth.checked[moved]
    gallery.put(
        [KnownImage(image_id=image_id(k), content_hash=f"{k:064x}", labels=truth.labels(int(k))) for k in moved]
    )
    truth.live[gone] = False
    gallery.delete(map(image_id, gone))


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came of the filters of one kind and selectivity."""

    searches: int = 0
    wrong: int = 0
    expected: int = 0
    found: int = 0
    passing: int = 0

    def add(self, other: Tally) -> None:
        """Count another one in."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def recall(self) -> float:
        """The share of the true best that were found; 1 when there were none to find."""
        return self.found / self.expected if self.expected else 1.0


def asked(truth: Truth, rng: np.random.Generator, kind: str, share: float) -> Filtered:
    """Return a filter with some images excluded besides, and what passes it."""
    image_filter, passing = KINDS[kind](truth, share, rng)
    excluded = rng.choice(len(truth.live), int(rng.integers(0, 20)), replace=False)
    passing = passing & truth.live
    passing[excluded] = False
    return replace(image_filter, exclude=frozenset(map(image_id, excluded))), passing


def tallied(hits: Sequence[Hit], passing: NDArray[np.bool_], cosines: NDArray[np.float32]) -> Tally:
    """Compare the hits of a coarse search with brute force; a tie at the end of the ten is won by either."""
    slots = np.array([int(hit.record.image_id.removeprefix("image-")) for hit in hits], np.int64)
    inside = cosines[passing]
    count = min(TOP_K, len(inside))
    least = float(np.partition(inside, -count)[-count]) if count else 0.0
    right = slots[passing[slots]]
    return Tally(
        searches=1,
        wrong=len(slots) - len(right),
        expected=count,
        found=min(count, int((cosines[right] >= least - ROUNDING).sum())),
        passing=len(inside),
    )


def measure(gallery: Gallery, truth: Truth, filters: int, rng: np.random.Generator) -> dict[tuple[str, float], Tally]:
    """Search with random filters and return what came of them by kind and selectivity."""
    tallies: dict[tuple[str, float], Tally] = defaultdict(Tally)
    kinds = list(KINDS)
    for n in range(filters):
        kind, share = kinds[n % len(kinds)], SELECTIVITIES[n // len(kinds) % len(SELECTIVITIES)]
        image_filter, passing = asked(truth, rng, kind, share)
        row = int(rng.choice(np.flatnonzero(truth.live)))
        query = SearchQuery(
            features=gallery.features(image_id(row)), top_k=TOP_K, settings=None, filter=image_filter, max_flows=0
        )
        cosines = truth.embeddings @ query.features.embedding
        tally = tallied(gallery.search(query).hits, passing, cosines)
        if n % RERANKED_EVERY == 0:
            matched = gallery.search(replace(query, settings=MatchSettings()))
            tally.wrong += tallied(matched.hits, passing, cosines).wrong
        tallies[kind, share].add(tally)
    return tallies


def total(tallies: Iterable[Tally]) -> Tally:
    """Return the sum."""
    summed = Tally()
    for tally in tallies:
        summed.add(tally)
    return summed


def main(arguments: list[str] | None = None) -> None:
    """Measure and write build/bench/filter.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--filters", type=int, default=FILTERS)
    parser.add_argument("--folder", type=Path, default=BENCH, help="where the report goes")
    given = parser.parse_args(arguments)
    bundle, base, rng = sample_bundle(), sample_batch(), np.random.default_rng(4)
    truth = Truth.random(given.images, base.embeddings.shape[1], rng)
    (ROOT / "build").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-filter-", dir=ROOT / "build"))
    spec = GallerySpec(
        gallery_id="bench",
        model="bench",
        bundle_digest=bundle.digest,
        grid=bundle.manifest.grid,
        embedding_dim=base.embeddings.shape[1],
        keep_thumbnails=False,
        create_time_s=time.time(),
    )
    try:
        with GalleryStore.open(folder / "store") as store:
            gallery = store.create(spec)
            fill(gallery, base, truth)
            gallery.maintain()
            disturb(gallery, truth, rng)
            start_s = time.perf_counter()
            tallies = measure(gallery, truth, given.filters, rng)
            spent_s = time.perf_counter() - start_s
            coarse_recall = gallery.recall
    finally:
        shutil.rmtree(folder)
    report(tallies, {"images": given.images, "seconds": round(spent_s, 1), "lists_recall": coarse_recall}, given.folder)


def report(tallies: dict[tuple[str, float], Tally], details: dict[str, Any], folder: Path) -> None:
    """Write the figures: the worst recall over selectivities, and in the details over kinds too."""
    by_share = {share: total(t for (_, s), t in tallies.items() if s == share) for share in SELECTIVITIES}
    by_kind = {kind: total(t for (k, _), t in tallies.items() if k == kind) for kind in KINDS}
    everything = total(tallies.values())
    figures = {
        "wrong_ids": everything.wrong,
        "min_recall_at_10": min(tally.recall for tally in by_share.values()),
        "min_recall_at_10_of_a_kind": min(tally.recall for tally in by_kind.values()),
        "filters": everything.searches,
    }
    details |= {
        "top_k": TOP_K,
        "reranked_every": RERANKED_EVERY,
        "recall_by_selectivity": {str(share): tally.recall for share, tally in by_share.items()},
        "mean_passing_by_selectivity": {
            str(share): tally.passing / max(1, tally.searches) for share, tally in by_share.items()
        },
        "recall_by_kind": {kind: tally.recall for kind, tally in by_kind.items()},
        "worst_kind_and_selectivity": min(
            ([tally.recall, kind, share] for (kind, share), tally in tallies.items()), default=None
        ),
    }
    write_report("filter", figures=figures, details=details, command="make bench-filter", folder=folder)


if __name__ == "__main__":
    main()

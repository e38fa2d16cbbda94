"""Ask two generations of a gallery the same, and say where they differ."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.errors import ImageNotFoundError
from matchflow_index.filters import ImageFilter
from matchflow_index.queries import SearchQuery

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matchflow_index.answers import Hit
    from matchflow_index.gallery import Gallery
    from matchflow_index.labels import LabelValue

# The images on which the two agree least that are named.
MOST_DISAGREEMENTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonQuery:
    """What is compared: the best `top_k` hits for so many stored images, the same ones for the same `seed`.

    `label`: hits with the query's value of it are right; None: nothing is said of that. `deadline` is a time of
    time.monotonic() in seconds after which nothing more is asked.
    """

    queries: int = 200
    top_k: int = 10
    label: str | None = None
    seed: int = 0
    deadline: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreShift:
    """The score of the one generation less that of the active one, over all `pairs` of query and hit that both have."""

    pairs: int
    mean: float = 0.0
    p5: float = 0.0
    median: float = 0.0
    p95: float = 0.0

    @classmethod
    def of(cls, differences: list[float]) -> ScoreShift:
        """Return the shift of some differences."""
        if not differences:
            return cls(pairs=0)
        p5, median, p95 = np.percentile(differences, [5, 50, 95]).tolist()
        return cls(pairs=len(differences), mean=float(np.mean(differences)), p5=p5, median=median, p95=p95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of it. `overlap` is the mean share of common hits, `same_first` how often the first hit is the same.

    The precisions are the shares of the `labelled` queries whose first hit is right: those whose value of the label
    another image has too; None without any. `disagreements` are queries with their overlap, the worst first.
    """

    active_generation: int
    generation: int
    queries: int
    top_k: int
    overlap: float
    same_first: float
    score_shift: ScoreShift
    labelled: int
    active_precision: float | None
    precision: float | None
    disagreements: list[tuple[str, float]]


@dataclass(slots=True)
class _Tally:
    overlaps: list[tuple[float, str]] = field(default_factory=list)
    same_first: int = 0
    differences: list[float] = field(default_factory=list)
    labelled: int = 0
    right: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, image_id: str, answers: list[list[Hit]]) -> None:
        scores = [{hit.record.image_id: hit.score for hit in hits} for hits in answers]
        both = scores[0].keys() & scores[1].keys()
        # Two empty answers agree.
        self.overlaps.append((len(both) / max(map(len, scores)) if any(scores) else 1.0, image_id))
        self.same_first += _first(answers[0]) == _first(answers[1])
        self.differences += [scores[1][name] - scores[0][name] for name in both]

    def judge(self, label: str, value: LabelValue, answers: list[list[Hit]]) -> None:
        self.labelled += 1
        for place, hits in enumerate(answers):
            self.right[place] += bool(hits) and hits[0].record.labels.get(label) == value


def compare(active: Gallery, other: Gallery, query: ComparisonQuery) -> Comparison:
    """Search both generations with images that both have, each with its own match defaults; StoreUnavailableError."""
    tally = _Tally()
    for image_id in _drawn(active, other, query):
        if query.deadline is not None and time.monotonic() >= query.deadline:
            break
        try:
            answers = [_hits(gallery, image_id, query.top_k) for gallery in (active, other)]
            value = None if query.label is None else active.get(image_id).labels.get(query.label)
        except ImageNotFoundError:
            # Removed meanwhile.
            continue
        tally.add(image_id, answers)
        if query.label is not None and value is not None and active.has_another(image_id, query.label, value):
            tally.judge(query.label, value, answers)
    asked = len(tally.overlaps)
    precisions = [right / tally.labelled if tally.labelled else None for right in tally.right]
    worst = sorted(entry for entry in tally.overlaps if entry[0] < 1)[:MOST_DISAGREEMENTS]
    return Comparison(
        active_generation=active.spec.generation,
        generation=other.spec.generation,
        queries=asked,
        top_k=query.top_k,
        overlap=sum(overlap for overlap, _ in tally.overlaps) / max(1, asked),
        same_first=tally.same_first / max(1, asked),
        score_shift=ScoreShift.of(tally.differences),
        labelled=tally.labelled,
        active_precision=precisions[0],
        precision=precisions[1],
        disagreements=[(image_id, overlap) for overlap, image_id in worst],
    )


def _drawn(active: Gallery, other: Gallery, query: ComparisonQuery) -> Iterator[str]:
    """Yield the ids of the images to ask with: a sample that only depends on the seed and on which images there are."""

    def place(image_id: str) -> bytes:
        return blake2b(f"{query.seed}/{image_id}".encode(), digest_size=8).digest()

    left = query.queries
    # Few of them, if any, the active generation lacks.
    for image_id in heapq.nsmallest(4 * query.queries, other.image_ids(), key=lambda name: (place(name), name)):
        if left and active.count_of([image_id]):
            left -= 1
            yield image_id


def _hits(gallery: Gallery, image_id: str, top_k: int) -> list[Hit]:
    defaults = gallery.match_defaults
    query = SearchQuery(
        features=gallery.features(image_id),
        top_k=top_k,
        depth=defaults.depth,
        settings=defaults.settings,
        max_flows=0,
        filter=ImageFilter(exclude=frozenset({image_id})),
    )
    return gallery.search(query).hits


def _first(hits: list[Hit]) -> str | None:
    return hits[0].record.image_id if hits else None

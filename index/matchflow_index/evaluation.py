"""How well a method ranks a labelled gallery: P@1, R-Precision and MAP@R.

For a query with R relevant images (other images of its class in the gallery that is searched), rel(i) in {0, 1} of the
i-th ranked image and P(i) the share of relevant ones among the first i:

    P@1 = rel(1)      R-Precision = sum_{i<=R} rel(i) / R      MAP@R = sum_{i<=R} P(i) rel(i) / R

as in Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020. The query is never in its own gallery, the
ranking holds the whole gallery, and ties break by image id. The best `depth` by cosine are re-ranked; below them the
coarse order goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.errors import InvalidQueryError
from matchflow_index.labels import as_text
from matchflow_matching import MatchMode, MatchSettings, global_cosines, match

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from matchflow_index.sight import Sight
    from matchflow_matching import CellGrid, FeatureBatch, Features


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """N images with their labels, wherever they come from; all are cut into `grid`."""

    image_ids: tuple[str, ...]
    labels: tuple[Mapping[str, str], ...]
    grid: CellGrid
    features: FeatureBatch


def labelled_images(sight: Sight, grid: CellGrid) -> LabelledImages:
    """Return everything in a gallery of that grid, copied, in order of row id."""
    with sight.still() as shelf:
        slots = shelf.live_slots
        slots = slots[np.argsort(shelf.slots.row_ids.values[slots])]
        row_ids = shelf.slots.row_ids.values[slots].tolist()
        records = sight.records_of(shelf.slots.ids.of(slots)).found
        kept = [
            (slot, record)
            for slot, row_id, record in zip(slots.tolist(), row_ids, records, strict=True)
            if record is not None and record.row_id == row_id
        ]
        features = shelf.slab.gather(np.array([slot for slot, _ in kept], np.int64))
    return LabelledImages(
        image_ids=tuple(record.image_id for _, record in kept),
        labels=tuple({name: as_text(value) for name, value in record.labels.items()} for _, record in kept),
        grid=grid,
        features=features,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A named way of scoring the candidates."""

    name: str
    settings: MatchSettings


METHODS = (
    Method(name="cosine", settings=MatchSettings(mode=MatchMode.COSINE)),
    Method(name="max_sim", settings=MatchSettings(mode=MatchMode.MAX_SIM, global_weight=0.0)),
    Method(name="chamfer", settings=MatchSettings(mode=MatchMode.CHAMFER, global_weight=0.0)),
    Method(name="same_cell", settings=MatchSettings(mode=MatchMode.SAME_CELL, global_weight=0.0)),
    Method(name="stripes", settings=MatchSettings(mode=MatchMode.STRIPES, global_weight=0.0)),
    Method(name="structural", settings=MatchSettings(mode=MatchMode.STRUCTURAL, global_weight=0.0)),
    Method(name="structural_plus_cosine", settings=MatchSettings(mode=MatchMode.STRUCTURAL, global_weight=1.0)),
    Method(name="position_aware", settings=MatchSettings.of(MatchMode.POSITION_AWARE)),
)
# Ten times the time per pair of the slowest above: ranking a gallery of thousands by them takes many minutes.
EXACT_METHODS = (
    Method(name="earth_mover", settings=MatchSettings.of(MatchMode.EARTH_MOVER)),
    Method(name="partial", settings=MatchSettings.of(MatchMode.PARTIAL)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Means over the queries, each 0 to 1."""

    p_at_1: float
    r_precision: float
    map_at_r: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """What was measured, and on what.

    `classes` counts the classes of the queries and `gallery` the images that each query is ranked against.
    `skipped` queries had no class or no relevant image; the metrics are over the `queries` that are left.
    """

    classes: int
    gallery: int
    queries: int
    skipped: int
    depth: int
    methods: Mapping[str, Metrics] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return the report as one flat object for JSON, a method's metrics under its name."""
        counts: dict[str, object] = {
            "classes": self.classes,
            "gallery": self.gallery,
            "queries": self.queries,
            "skipped": self.skipped,
            "depth": self.depth,
        }
        return counts | {
            name: {"p_at_1": m.p_at_1, "r_precision": m.r_precision, "map_at_r": m.map_at_r}
            for name, m in self.methods.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """What each query gave.

    queries [Q]: the places of the queries in the images, without those that were skipped. values float64 [Q, M, 3]:
    P@1, R-Precision and MAP@R of each of `methods`. The counts are those of EvaluationReport.
    """

    methods: tuple[str, ...]
    queries: NDArray[np.intp]
    values: NDArray[np.float64]
    classes: int
    gallery: int
    skipped: int
    depth: int

    def report(self) -> EvaluationReport:
        """Return the means over the queries; zeros when no query could be measured."""
        means = self.values.sum(axis=0) / max(1, len(self.values))
        return EvaluationReport(
            classes=self.classes,
            gallery=self.gallery,
            queries=len(self.queries),
            skipped=self.skipped,
            depth=self.depth,
            methods={
                name: Metrics(p_at_1=p_at_1, r_precision=r_precision, map_at_r=map_at_r)
                for name, (p_at_1, r_precision, map_at_r) in zip(self.methods, means.tolist(), strict=True)
            },
        )


def silent(done: int, total: int) -> None:
    """Tell nobody about the progress."""


def evaluate(
    images: LabelledImages,
    *,
    class_field: str,
    query_field: str | None = None,
    query_values: frozenset[str] = frozenset(),
    methods: Sequence[Method] = METHODS,
    depth: int = 0,
    progress: Callable[[int, int], None] = silent,
) -> EvaluationReport:
    """Rank the gallery for every query by every method and return the means; see `measure_queries`."""
    return measure_queries(
        images,
        class_field=class_field,
        query_field=query_field,
        query_values=query_values,
        methods=methods,
        depth=depth,
        progress=progress,
    ).report()


def measure_queries(
    images: LabelledImages,
    *,
    class_field: str,
    query_field: str | None = None,
    query_values: frozenset[str] = frozenset(),
    methods: Sequence[Method] = METHODS,
    depth: int = 0,
    progress: Callable[[int, int], None] = silent,
) -> Measurements:
    """Rank the gallery for every query by every method.

    Images with one of `query_values` in label `query_field` are the queries, against all images that have none of them;
    without `query_field` every image is a query against all others. Relevant is what has the same `class_field`.
    `depth` 0 re-ranks the whole gallery. `progress` is told (queries done, queries in all).
    Raises InvalidQueryError when there is no query, no gallery or a negative depth.
    """
    if depth < 0:
        raise InvalidQueryError(f"depth must be at least 0; got {depth}")
    classes = _codes([labels.get(class_field) for labels in images.labels])
    asks = np.array([query_field is None or each.get(query_field) in query_values for each in images.labels], bool)
    searched = np.arange(len(asks)) if query_field is None else np.flatnonzero(~asks)
    # Who is searched beside its own query is left out of the ranking, not out of the batch that is matched.
    queries, gallery_size = np.flatnonzero(asks), len(searched) - int(query_field is None)
    if not len(queries) or gallery_size < 1:
        raise InvalidQueryError(f"expected queries and a gallery; got {len(queries)} queries and {gallery_size} images")
    gallery = _Gallery.of(images, searched)
    measured: dict[int, list[tuple[float, float, float]]] = {}
    for done, query in enumerate(queries.tolist(), start=1):
        relevant = (classes[searched] == classes[query]) & (classes[searched] >= 0) & (searched != query)
        if relevant.any():
            own = query if query_field is None else None
            orders = gallery.rankings(images.features[query], own, methods, depth)
            measured[query] = [measure(relevant[order]) for order in orders]
        progress(done, len(queries))
    return Measurements(
        methods=tuple(method.name for method in methods),
        queries=np.array(list(measured), np.intp),
        values=np.array(list(measured.values()), np.float64).reshape(-1, len(methods), 3),
        classes=len(set(classes[queries].tolist()) - {-1}),
        gallery=gallery_size,
        skipped=len(queries) - len(measured),
        depth=depth,
    )


def measure(relevant: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return P@1, R-Precision and MAP@R of one ranking, best first, that holds all relevant images.

    Three of five are relevant, at places 1, 3 and 4, so R = 3: P@1 is 1; two of the first three are relevant; and
    MAP@R is (1/1 + 2/3) / 3.

    >>> measure(np.array([True, False, True, True, False]))
    (1.0, 0.6666666666666666, 0.5555555555555555)
    """
    r = int(relevant.sum())
    head = relevant[:r]
    precisions = np.cumsum(head) / np.arange(1, r + 1)
    return float(head[0]), float(head.mean()), float((precisions * head).sum() / r)


def _codes(names: Sequence[str | None]) -> NDArray[np.intp]:
    """Return a number for each name, the same for equal ones; -1 for none."""
    codes: dict[str, int] = {}
    return np.array([-1 if name is None else codes.setdefault(name, len(codes)) for name in names], np.intp)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gallery:
    """What is ranked: features, and the place of each image in the order of ids."""

    features: FeatureBatch
    grid: CellGrid
    places: NDArray[np.intp]

    @classmethod
    def of(cls, images: LabelledImages, rows: NDArray[np.intp]) -> _Gallery:
        places = np.empty(len(images.image_ids), np.intp)
        places[sorted(range(len(places)), key=lambda k: images.image_ids[k])] = np.arange(len(places))
        everything = len(rows) == len(places)
        features = images.features if everything else images.features.take(rows)
        return cls(features=features, grid=images.grid, places=places[rows])

    def rankings(
        self, query: Features, own: int | None, methods: Sequence[Method], depth: int
    ) -> list[NDArray[np.intp]]:
        """Return, per method, the positions from best to worst, without position `own`."""
        cosines = global_cosines(query.embedding, self.features.embeddings)
        coarse = self._order(cosines, own)
        if not 0 < depth < len(coarse):
            return [self._order(scores, own) for scores in method_scores(query, self.features, self.grid, methods)]
        head = coarse[:depth]
        return [
            np.concatenate([head[np.lexsort((self.places[head], -scores))], coarse[depth:]])
            for scores in method_scores(query, self.features.take(head), self.grid, methods)
        ]

    def _order(self, scores: NDArray[np.float32], own: int | None) -> NDArray[np.intp]:
        order = np.lexsort((self.places, -scores))
        return order if own is None else order[order != own]


def method_scores(
    features: Features, candidates: FeatureBatch, grid: CellGrid, methods: Sequence[Method]
) -> list[NDArray[np.float32]]:
    """Return the scores float32 [N] of each method, as `match` gives them.

    Methods that differ only in the weight of the cosine share one run of the solver.
    """
    runs = {}
    scores = []
    for method in methods:
        weight, settings = method.settings.global_weight, replace(method.settings, global_weight=0.0)
        if settings not in runs:
            runs[settings] = match(features, candidates, settings, grid=grid)
        scores.append(runs[settings].structural + np.float32(weight) * runs[settings].cosine)
    return scores

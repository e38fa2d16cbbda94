"""How well many ways of matching rank, query by query, at one run of each solver."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching import MatchMode, global_cosines, match

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from matchflow_index.match_defaults import MatchDefaults
    from matchflow_index.tuning_halves import Exam
    from matchflow_matching import MatchSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Means over the queries, each 0 to 1; definitions in matchflow_index.evaluation."""

    p_at_1: float
    map_at_r: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """How much higher one way's MAP@R is than another's on the same queries, with its standard error."""

    mean: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Qualities:
    """P@1 and MAP@R of C ways for Q queries, float64 [Q, C], and the class of each query [Q], 0 to K - 1."""

    p_at_1: NDArray[np.float64]
    map_at_r: NDArray[np.float64]
    classes: NDArray[np.intp]

    def quality(self, way: int) -> Quality:
        """Return the means of one way."""
        return Quality(
            p_at_1=float(self.p_at_1.mean(axis=0)[way]),
            map_at_r=float(self.map_at_r.mean(axis=0)[way]),
        )

    def leads(self, way: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return how far `way` leads each way in MAP@R, and the standard errors of that, float64 [C].

        Queries of one class look for the same images, so it is the K classes that count as independent: with e the
        differences less their mean, the error is sqrt(K / (K - 1) * sum over classes of (sum of e)^2) / Q.
        """
        differences = self.map_at_r[:, [way]] - self.map_at_r
        means = differences.mean(axis=0)
        count = int(self.classes.max()) + 1
        sums = np.zeros((count, differences.shape[1]))
        np.add.at(sums, self.classes, differences - means)
        errors = np.sqrt(count / (count - 1) * (sums**2).sum(axis=0)) / len(differences)
        return means, errors

    def lead(self, way: int, over: int) -> Lead:
        """Return how far one way leads another."""
        means, errors = self.leads(way)
        return Lead(mean=float(means[over]), error=float(errors[over]))


def assess(exam: Exam, ways: Sequence[MatchDefaults], progress: Callable[[int, int], None]) -> Qualities:
    """Return how well each way ranks; ways that differ in global weight or depth alone share one run of the solver."""
    p_at_1, map_at_r = (np.empty((len(exam.queries), len(ways))) for _ in range(2))
    runs = _runs(ways)
    for row, query in enumerate(exam.queries):
        progress(row, len(exam.queries))
        _assess_query(exam, query, runs, (p_at_1[row], map_at_r[row]))
    progress(len(exam.queries), len(exam.queries))
    classes = np.unique(exam.classes[list(exam.queries)], return_inverse=True)[1]
    return Qualities(p_at_1=p_at_1, map_at_r=map_at_r, classes=classes)


# Solver settings -> the ways that share them, each with its number.
Runs = dict["MatchSettings", list[tuple[int, "MatchDefaults"]]]


def _runs(ways: Sequence[MatchDefaults]) -> Runs:
    runs: Runs = {}
    for number, way in enumerate(ways):
        runs.setdefault(replace(way.settings, global_weight=0.0), []).append((number, way))
    return runs


def _assess_query(exam: Exam, query: int, runs: Runs, rows: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    """Fill the query's row of P@1 and that of MAP@R."""
    features, gallery = exam.images.features[query], exam.gallery(query)
    cosines = global_cosines(features.embedding, exam.images.features.embeddings[gallery])
    coarse = gallery[np.lexsort((exam.places[gallery], -cosines))]
    relevant = exam.classes[coarse] == exam.classes[query]
    depths = {depth: exam.depth(query, depth) for depth in {way.depth for ways in runs.values() for _, way in ways}}
    head = coarse[: max(depths.values())]
    batch, by_id = exam.images.features.take(head), np.argsort(exam.places[head])
    for settings, ways in runs.items():
        weights = sorted({way.settings.global_weight for _, way in ways})
        wanted = sorted({depths[way.depth] for _, way in ways})
        if settings.mode is MatchMode.COSINE:
            orders = np.broadcast_to(np.arange(len(head)), (len(weights), len(head)))
        else:
            matches = match(features, batch, settings, grid=exam.images.grid)
            # As `match` adds them.
            scores = matches.structural + np.array(weights, np.float32)[:, None] * matches.cosine
            orders = by_id[np.argsort(-scores[:, by_id], axis=1, kind="stable")]
        found = measured(relevant, orders, np.array(wanted))
        for number, way in ways:
            at = weights.index(way.settings.global_weight), wanted.index(depths[way.depth])
            for row, values in zip(rows, found, strict=True):
                row[number] = values[at]


def measured(
    relevant: NDArray[np.bool_], orders: NDArray[np.intp], depths: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return P@1 and MAP@R, float64 [W, K], of W orders of a shortlist at K depths, the coarse order behind each.

    relevant bool [N]: of all images in coarse order, at least one. orders [W, n]: the first n of these by falling
    score. depths [K], 1 to n: the order of the first few is that of all n without the others, as each keeps its score.
    What is relevant lies at places 1 and 2, so R = 2; of the first three place 2 scores highest, then 0, then 1:

    >>> p_at_1, map_at_r = measured(np.array([False, True, True, False]), np.array([[2, 0, 1]]), np.array([2, 3]))
    >>> p_at_1.tolist(), map_at_r.tolist()
    ([[0.0, 1.0]], [[0.25, 0.5]])
    """
    r = int(relevant.sum())
    ranked = relevant[orders][:, None]  # [W, 1, n]
    inside = orders[:, None] < depths[:, None]  # [W, K, n]
    places = np.cumsum(inside, axis=2)
    hits = inside & ranked
    precisions = np.cumsum(hits, axis=2) / np.maximum(places, 1)
    totals = (precisions * (hits & (places <= r))).sum(axis=2)
    # Behind the shortlist all is in coarse order, and so are the counts of what is relevant up to there.
    tail = np.zeros(len(relevant) + 1)
    tail[1 : r + 1] = np.cumsum((np.cumsum(relevant) / np.arange(1, len(relevant) + 1) * relevant)[:r])
    tail[r + 1 :] = tail[r]
    totals += tail[r] - tail[np.minimum(depths, r)]
    firsts = np.take_along_axis(hits, inside.argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    return firsts.astype(np.float64), totals / r

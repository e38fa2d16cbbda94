"""The deletion test: blank the cells that an explanation names, embed again, score again.

An explanation that names what the score rests on makes it fall faster than random cells do. The ratio of the two mean
drops depends on more than the explanation: cells in the middle of an image reach into more features than those at its
border, so any order that starts in the middle does well. Two controls show how much of a ratio that is: the order that
belongs to another pair, and one fixed order for all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from blanking import BlankedFeatures, Blanking, Fill

from matchflow_matching import FeatureBatch, MatchingFlow, cell_shares, explain, match, top_flows
from matchflow_matching.support import supported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from matchflow_matching import Features, Flow, MatchSettings

    Order = tuple[int, ...]
    Drops = NDArray[np.float64]

NO_CELLS: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A query and a true match of it, by their names, and the class of both."""

    query: str
    image: str
    label: str


class Scorer(Protocol):
    """Scores a pair whose query has some cells blanked."""

    def __call__(self, pair: Pair, cells: frozenset[int], fill: Fill) -> float:
        """Return the score; without cells, that of the images as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchScorer:
    """The score that the contributions sum to, of features by the real model."""

    features: BlankedFeatures
    settings: MatchSettings

    def __call__(self, pair: Pair, cells: frozenset[int], fill: Fill) -> float:
        """Return the structural score."""
        query = self.features[_blanking(pair, cells, fill)]
        image = FeatureBatch.stack([self.features[Blanking(image=pair.image)]])
        return float(match(query, image, self.settings, grid=self.features.grid).structural[0])

    def explained(self, pair: Pair) -> Explained:
        """Return the matching flow of the images as they are, and what goes with it."""
        query, image = (self.features[Blanking(image=name)] for name in (pair.query, pair.image))
        grid = self.features.grid
        return Explained(flow=explain(query, image, self.settings, grid=grid), query=query, image=image)


def _blanking(pair: Pair, cells: frozenset[int], fill: Fill) -> Blanking:
    return Blanking(image=pair.query, cells=cells, fill=fill) if cells else Blanking(image=pair.query)


def embed_blankings(
    features: BlankedFeatures, pairs: Sequence[Pair], chosen: Iterable[Sequence[frozenset[int]]], fill: Fill
) -> None:
    """Embed in full batches what scoring will ask for: `chosen` has one set of cells per pair, any number of times."""
    features.embed(Blanking(image=name) for pair in pairs for name in (pair.query, pair.image))
    features.embed(_blanking(pair, cells, fill) for sets in chosen for pair, cells in zip(pairs, sets, strict=True))


def drops(scorer: Scorer, pairs: Sequence[Pair], cells: Sequence[frozenset[int]], fill: Fill) -> Drops:
    """Return by how much each pair's score falls when its cells are blanked, float64 [pairs]."""
    return np.array(
        [scorer(pair, NO_CELLS, fill) - scorer(pair, blanks, fill) for pair, blanks in zip(pairs, cells, strict=True)]
    )


def random_cells(cells: int, count: int, pairs: int, seed: int) -> list[frozenset[int]]:
    """Return `count` different cells for each pair, all sets equally likely."""
    rng = np.random.default_rng(seed)
    return [frozenset(rng.choice(cells, count, replace=False).tolist()) for _ in range(pairs)]


def ratio(named: Drops, at_random: Drops) -> float:
    """Return mean drop over mean drop."""
    return float(named.mean() / at_random.mean())


def ratio_error(named: Drops, at_random: Drops, labels: Sequence[str]) -> float:
    """Return the ratio's standard error, to first order, taking the pairs of one class as one observation."""
    residuals = named - ratio(named, at_random) * at_random
    by_class = [residuals[[each == label for each in labels]].sum() for label in dict.fromkeys(labels)]
    return float(np.sqrt(np.square(by_class).sum()) / at_random.sum())


def contributions(flow: MatchingFlow) -> NDArray[np.float32]:
    """Return what each flow adds to the score, float32 [Rx, Rq]."""
    parts: NDArray[np.float32] = flow.plan * (flow.similarities - flow.penalties)
    return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A pair's matching flow, with the grids of both sides, and the features that it was computed from."""

    flow: MatchingFlow
    query: Features
    image: Features


def by_shares(pair: Explained) -> Order:
    """Return all query cells by what they contribute when each shares with those around it, largest first."""
    return _descending(cell_shares(pair.flow, pair.query, pair.image)[0])


def by_support(pair: Explained) -> Order:
    """Return all query cells by the sum of their supported contributions, largest first."""
    grid = pair.flow.image_grid
    assert grid is not None
    return _descending(supported(contributions(pair.flow), grid, pair.flow.query_grid).sum(axis=0))


def by_contribution(pair: Explained) -> Order:
    """Return all query cells by the sum of their contributions, largest first."""
    return _descending(contributions(pair.flow).sum(axis=0))


def by_supported_flows(pair: Explained) -> Order:
    """Return the query cells in the order in which the flows name them, the best supported flow first."""
    return _named(each.query_cell for each in top_flows(pair.flow, pair.flow.plan.size))


def by_flows(pair: Explained) -> Order:
    """Return the query cells in the order in which the flows name them, the largest contribution first."""
    return _named(each.query_cell for each in flows_by_contribution(pair.flow))


ORDERS: dict[str, Callable[[Explained], Order]] = {
    "shares": by_shares,
    "support": by_support,
    "contribution": by_contribution,
    "flows_by_support": by_supported_flows,
    "flows_by_contribution": by_flows,
}
CONTROLLED = ("shares", "contribution")


def flows_by_contribution(flow: MatchingFlow) -> list[Flow]:
    """Return all flows of positive mass, the largest contribution first: the order without grids."""
    return top_flows(replace(flow, image_grid=None, query_grid=None), flow.plan.size)


def fixed_order(pairs: Sequence[Explained]) -> Order:
    """Return the one order that fits all pairs best: by shares, the mean over the pairs."""
    shares = [cell_shares(pair.flow, pair.query, pair.image)[0] for pair in pairs]
    return _descending(np.mean(shares, axis=0))


def _descending(values: NDArray[np.float32]) -> Order:
    return tuple(np.argsort(-values, kind="stable").tolist())


def _named(cells: Iterable[int]) -> Order:
    return tuple(dict.fromkeys(cells))


def orders(pairs: Sequence[Explained], labels: Sequence[str]) -> dict[str, list[Order]]:
    """Return for each way of ranking, and for the controls, the order of the cells of every pair."""
    table = {name: [order(pair) for pair in pairs] for name, order in ORDERS.items()}
    others = [_another(index, labels) for index in range(len(labels))]
    for name in CONTROLLED:
        table[f"{name}_of_another_pair"] = [table[name][other] for other in others]
    return table | {"fixed": [fixed_order(pairs)] * len(pairs)}


def _another(index: int, labels: Sequence[str]) -> int:
    """Return the next pair of another class."""
    steps = range(1, len(labels))
    return next(other for step in steps if labels[other := (index + step) % len(labels)] != labels[index])


def first(order: Sequence[Order], count: int) -> list[frozenset[int]]:
    """Return each pair's first `count` cells."""
    return [frozenset(cells[:count]) for cells in order]


def curve(scorer: Scorer, pairs: Sequence[Pair], sets: Sequence[Sequence[frozenset[int]]], fill: Fill) -> list[float]:
    """Return the mean drop for each of several choices of cells, each with one set per pair."""
    return [float(drops(scorer, pairs, cells, fill).mean()) for cells in sets]

"""Choose how a labelled gallery is matched: on one half of its classes, checked on the other.

The rule: the way with the highest MAP@R on the tuning half is the best. Of all whose MAP@R is within one standard error
of it (of the paired difference, classes independent) the cheapest is chosen, by a fixed scale of costs; among equally
cheap ones the simplest, then the one with the highest MAP@R. Neither measured times nor anything of the other half has
a say, so the same images, labels and options give the same choice again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Self

import numpy as np

from matchflow_index.errors import InvalidQueryError
from matchflow_index.tuning_grid import NO_SECOND_STAGE, PLAIN_MODES, candidates, depths_for, relative_cost, terms
from matchflow_index.tuning_halves import Half, TuningTask, exams
from matchflow_index.tuning_quality import Lead, Qualities, Quality, assess
from matchflow_matching import MatchMode, global_cosines, match

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from matchflow_index.evaluation import LabelledImages
    from matchflow_index.match_defaults import MatchDefaults
    from matchflow_index.tuning_halves import Exam

TIMED_QUERIES = 25
# Reported whatever is chosen: no second stage at all, and cells compared in place, without any transport.
REFERENCE_MODES = frozenset({MatchMode.COSINE, MatchMode.SAME_CELL})


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRow:
    """One way of matching that is reported.

    best_of_mode: the highest MAP@R of its mode on the tuning half. present: what the gallery had so far. behind: how
    far behind the best it is on the tuning half. query_ms: median time of a query: the cosines of the whole gallery,
    fetching and matching a shortlist of that depth, on the calling thread.
    """

    way: MatchDefaults
    chosen: bool
    best_of_mode: bool
    present: bool
    tuning: Quality
    held_out: Quality
    behind: Lead
    query_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfCounts:
    """What one half is made of; `images` are those that are searched, images without a class included."""

    classes: int
    queries: int
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningReport:
    """What was tried, what was chosen, and how good it is.

    rows: the reported ways, the cheapest mode first. gains: how far the choice leads in MAP@R on the half held out,
    over no second stage and over the present defaults (None when there are none). depths: the chosen settings at every
    depth, on the tuning half. tried: the number of ways among which the choice was.
    """

    tried: int
    counts: dict[Half, HalfCounts]
    rows: tuple[TuningRow, ...]
    gain_over_cosine: Lead
    gain_over_present: Lead | None
    depths: tuple[tuple[int, Quality], ...]

    @property
    def chosen(self) -> TuningRow:
        """The row of the choice."""
        return next(row for row in self.rows if row.chosen)


def silent(phase: str, done: int, total: int) -> None:
    """Tell nobody about the progress."""


def tune(
    images: LabelledImages,
    task: TuningTask,
    *,
    modes: Collection[MatchMode] = PLAIN_MODES,
    depths: Sequence[int] = (),
    present: MatchDefaults | None = None,
    progress: Callable[[str, int, int], None] = silent,
) -> TuningReport:
    """Choose among `modes` and `depths` (none: the usual ones), and report on the half held out.

    `present`: the gallery's defaults so far; they are a candidate like any other if their mode is one. `progress` is
    told (what is being done, how much of it, of how much).
    Raises InvalidQueryError without modes, for a depth below 1, and where the halves have too few classes.
    """
    if not modes:
        raise InvalidQueryError("expected at least one mode to choose from; got none")
    halves = exams(images, task)
    ways = candidates(set(modes) | REFERENCE_MODES, depths or depths_for(len(images.image_ids)))
    if present is not None and present.settings.mode is MatchMode.COSINE:
        present = NO_SECOND_STAGE
    if present is not None and present not in ways:
        ways.append(present)
    tuning = assess(halves[Half.TUNING], ways, lambda *done: progress("tuning half", *done))
    choice = _Choice.among(ways, tuning, modes, present)
    shown = choice.shown()
    shown_ways = [ways[k] for k in shown]
    held_out = assess(halves[Half.HELD_OUT], shown_ways, lambda *done: progress("half held out", *done))
    times_ms = query_times_ms(halves[Half.TUNING], shown_ways, lambda *done: progress("time", *done))
    chosen, cosine = shown.index(choice.chosen), shown_ways.index(NO_SECOND_STAGE)
    return TuningReport(
        tried=len(choice.eligible),
        counts={half: _counts(exam) for half, exam in halves.items()},
        rows=choice.rows(shown, held_out, times_ms),
        gain_over_cosine=held_out.lead(chosen, cosine),
        gain_over_present=None if present is None else held_out.lead(chosen, shown_ways.index(present)),
        depths=choice.depths(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """What the tuning half says: ways by their numbers, the best of each mode among `leaders`."""

    ways: Sequence[MatchDefaults]
    tuning: Qualities
    present: MatchDefaults | None
    eligible: Sequence[int]
    leaders: Sequence[int]
    best: int
    chosen: int

    @classmethod
    def among(
        cls,
        ways: Sequence[MatchDefaults],
        tuning: Qualities,
        modes: Collection[MatchMode],
        present: MatchDefaults | None,
    ) -> Self:
        of_mode: dict[MatchMode, list[int]] = {}
        for k, way in enumerate(ways):
            of_mode.setdefault(way.settings.mode, []).append(k)
        eligible = [k for mode, numbers in of_mode.items() if mode in modes for k in numbers]
        return cls(
            ways=ways,
            tuning=tuning,
            present=present,
            eligible=eligible,
            leaders=[best_of(ways, tuning, numbers) for numbers in of_mode.values()],
            best=best_of(ways, tuning, eligible),
            chosen=choose(ways, tuning, eligible),
        )

    def shown(self) -> list[int]:
        """Return the ways to report: by mode, in the order of MatchMode, then as they were tried."""
        modes = list(MatchMode)
        present = [] if self.present is None else [self.ways.index(self.present)]
        return sorted(
            {*self.leaders, self.chosen, *present}, key=lambda k: (modes.index(self.ways[k].settings.mode), k)
        )

    def rows(self, shown: Sequence[int], held_out: Qualities, times_ms: Sequence[float]) -> tuple[TuningRow, ...]:
        """Return the rows of the ways shown, which `held_out` and `times_ms` are of."""
        behind, errors = self.tuning.leads(self.best)
        return tuple(
            TuningRow(
                way=self.ways[k],
                chosen=k == self.chosen,
                best_of_mode=k in self.leaders,
                present=self.ways[k] == self.present,
                tuning=self.tuning.quality(k),
                held_out=held_out.quality(row),
                behind=Lead(mean=float(behind[k]), error=float(errors[k])),
                query_ms=times_ms[row],
            )
            for row, k in enumerate(shown)
        )

    def depths(self) -> tuple[tuple[int, Quality], ...]:
        """Return the chosen settings at every depth; nothing for no second stage."""
        settings = self.ways[self.chosen].settings
        if settings.mode is MatchMode.COSINE:
            return ()
        same = [k for k, way in enumerate(self.ways) if way.settings == settings]
        return tuple(
            (self.ways[k].depth, self.tuning.quality(k)) for k in sorted(same, key=lambda k: self.ways[k].depth)
        )


def best_of(ways: Sequence[MatchDefaults], qualities: Qualities, eligible: Sequence[int]) -> int:
    """Return the way with the highest MAP@R; between equals P@1, cost, simplicity and the order given decide."""
    p_at_1, map_at_r = qualities.p_at_1.mean(axis=0), qualities.map_at_r.mean(axis=0)
    return min(eligible, key=lambda k: (-map_at_r[k], -p_at_1[k], relative_cost(ways[k]), terms(ways[k].settings), k))


def choose(ways: Sequence[MatchDefaults], qualities: Qualities, eligible: Sequence[int]) -> int:
    """Return the cheapest way within one standard error of the best; between equals the simplest, then the better."""
    p_at_1, map_at_r = qualities.p_at_1.mean(axis=0), qualities.map_at_r.mean(axis=0)
    behind, errors = qualities.leads(best_of(ways, qualities, eligible))
    close = [k for k in eligible if behind[k] <= errors[k]]
    return min(close, key=lambda k: (relative_cost(ways[k]), terms(ways[k].settings), -map_at_r[k], -p_at_1[k], k))


def query_times_ms(exam: Exam, ways: Sequence[MatchDefaults], progress: Callable[[int, int], None]) -> list[float]:
    """Return the median time of a query in the whole gallery for each way, in milliseconds.

    All ways are timed with one query before the next, so that what else the machine does falls on all of them.
    """
    queries = exam.queries[:TIMED_QUERIES]
    taken: list[list[float]] = [[] for _ in ways]
    # The first time is for the processor's caches, and for kernels that are not compiled yet.
    for done, query in enumerate((queries[0], *queries)):
        progress(done, len(queries))
        for way, times in zip(ways, taken, strict=True):
            start = time.perf_counter()
            _search(exam.images, query, way)
            times.append(time.perf_counter() - start)
    return [1e3 * median(times[1:]) for times in taken]


def _search(images: LabelledImages, query: int, way: MatchDefaults) -> None:
    """Do what a query costs: the coarse stage over all images and, unless that is all, the second one."""
    features, count = images.features[query], min(way.depth, len(images.image_ids))
    cosines = global_cosines(features.embedding, images.features.embeddings)
    head = np.argpartition(-cosines, count - 1)[:count]
    head = head[np.argsort(-cosines[head])]
    if way.settings.mode is not MatchMode.COSINE:
        np.argsort(-match(features, images.features.take(head), way.settings, grid=images.grid).score)


def _counts(exam: Exam) -> HalfCounts:
    return HalfCounts(classes=exam.class_count, queries=len(exam.queries), images=int(exam.members.sum()))

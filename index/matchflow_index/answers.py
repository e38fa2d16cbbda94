"""What a search answers: hits with their numbers and flows, and how far they are proved."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.queries import is_late, second_stage
from matchflow_matching import MatchMode, explain_batch, top_flows
from matchflow_matching.settings import TRANSPORT_MODES

if TYPE_CHECKING:
    from matchflow_index.queries import SearchQuery
    from matchflow_index.rankings import Ranking, RerankState
    from matchflow_index.records import ImageRecord
    from matchflow_index.sight import RecordsOf
    from matchflow_matching import CellGrid, Flow, Matches

logger = logging.getLogger(__name__)

# Those that find the best plan there is, and say how far they are from it.
EXACT_MODES = frozenset({MatchMode.EARTH_MOVER, MatchMode.PARTIAL})
# Hits explained between two looks at the clock.
EXPLAIN_STEP = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """How far the solver got for a pair; see matchflow_matching.Matches. `duality_gap`: exact solvers only."""

    iterations: int
    marginal_error: float
    converged: bool
    query_uniform: bool
    image_uniform: bool
    duality_gap: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One answer. The contributions of `flows` and `residual` add up to `structural`.

    `score` is structural + global_weight * cosine; for a hit that was not re-ranked it is the cosine, `structural` is
    None and there are no flows. `certificate` is there only for transport. `coarse_rank` 0 is the best by cosine.
    """

    record: ImageRecord
    coarse_rank: int
    cosine: float
    structural: float | None
    score: float
    certificate: Certificate | None
    flows: list[Flow]
    residual: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTimings:
    """Where the time went, in seconds."""

    coarse_s: float
    gather_s: float
    match_s: float
    explain_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchAnswer:
    """Hits, best first; `depth_done` images were matched; `sequence` is the last change that is reflected.

    held_back: how many hits were left out since the truth has them no more, or not as the filter wants them.

    exact: the hits, and their order, are proved to be those that matching every image inside the filter would have
    given, with the same top_k and min_score; without the second stage, those of computing every cosine.
    proved_below: images inside the filter that were not matched since a bound keeps them below the last hit.
    store_unreachable: the truth could not be asked: the hits are what was known at `sequence`, and their records have
    neither content hash nor update time.
    """

    hits: list[Hit]
    held_back: int
    rerank_state: RerankState
    depth_done: int
    exact: bool
    proved_below: int
    sequence: int
    timings: SearchTimings
    store_unreachable: bool = False


def answer(ranking: Ranking, query: SearchQuery, grid: CellGrid, records_of: RecordsOf) -> SearchAnswer:
    """Return the hits of a ranking, described; none that the truth has no more, or not as the filter wants it."""
    best = ranking.best(query)
    start_s = time.perf_counter()
    flows = explained(ranking, query, [k for k, _ in best if k < ranking.count], grid)
    records = records_of([ranking.shortlist.image_ids[k] for k, _ in best])
    kept = [
        describe(ranking, query, record, (k, score), flows.get(k, []))
        for (k, score), record in zip(best, records.found, strict=True)
        if record is not None and passes(record, ranking, k, query)
    ]
    explain_s = time.perf_counter() - start_s
    exact = ranking.is_proved(best, query) and len(kept) == len(best)
    unmatched = ranking.shortlist.total - ranking.matched
    return SearchAnswer(
        hits=kept,
        held_back=len(best) - len(kept),
        rerank_state=ranking.state,
        depth_done=ranking.matched,
        exact=exact,
        proved_below=unmatched if exact and second_stage(query) else ranking.below,
        sequence=ranking.shortlist.sequence,
        timings=SearchTimings(
            coarse_s=ranking.shortlist.coarse_s,
            gather_s=ranking.shortlist.gather_s,
            match_s=ranking.match_s,
            explain_s=explain_s,
        ),
        store_unreachable=records.store_unreachable,
    )


def explained(ranking: Ranking, query: SearchQuery, places: list[int], grid: CellGrid) -> dict[int, list[Flow]]:
    """Return the flows of candidates by their place in the shortlist.

    They are the first thing to go without when time is up: from then on nothing is returned.
    """
    flows: dict[int, list[Flow]] = {}
    settings = second_stage(query)
    for start in range(0, len(places) if settings and query.max_flows else 0, EXPLAIN_STEP):
        if settings is None or is_late(query):
            break
        step = places[start : start + EXPLAIN_STEP]
        candidates = ranking.shortlist.features.take(np.array(step))
        plans = explain_batch(query.features, candidates, settings, grid=grid)
        flows |= {k: top_flows(plan, query.max_flows) for k, plan in zip(step, plans, strict=True)}
    return flows


def describe(
    ranking: Ranking, query: SearchQuery, record: ImageRecord, place: tuple[int, float], flows: list[Flow]
) -> Hit:
    """Return a place in the shortlist, with its score, as a hit; without flows, its structural score is residual."""
    k, score = place
    settings, matches = second_stage(query), ranking.matches if k < ranking.count else None
    structural = None if matches is None else float(matches.structural[k])
    return Hit(
        record=record,
        coarse_rank=int(ranking.shortlist.coarse_ranks[k]),
        cosine=float(ranking.shortlist.cosines[k]),
        structural=structural,
        score=score,
        certificate=None if matches is None or settings is None else certificate(matches, k, settings.mode),
        flows=flows,
        residual=(structural or 0.0) - sum(flow.contribution for flow in flows),
    )


def certificate(matches: Matches, row: int, mode: MatchMode) -> Certificate | None:
    """Return the certificate of one pair; None for modes that solve nothing."""
    if mode not in TRANSPORT_MODES:
        return None
    return Certificate(
        iterations=int(matches.iterations[row]),
        marginal_error=float(matches.marginal_error[row]),
        converged=bool(matches.converged[row]),
        query_uniform=bool(matches.query_uniform[row]),
        image_uniform=bool(matches.image_uniform[row]),
        duality_gap=float(matches.duality_gap[row]) if mode in EXACT_MODES else None,
    )


def passes(record: ImageRecord, ranking: Ranking, k: int, query: SearchQuery) -> bool:
    """Check a hit once more against what the truth says of it now.

    No fault of an index, and no change since it was made, may show what the caller excluded or what is gone.
    """
    shortlist = ranking.shortlist
    if record.row_id == shortlist.row_ids[k] and not record.is_expired(query.now_s) and query.filter.accepts(record):
        return True
    if record.sequence <= shortlist.sequence:
        logger.error("the coarse index proposed image %r against the filter; it was held back", record.image_id)
    return False

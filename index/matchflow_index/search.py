"""Two-stage search: coarse by global cosine, then re-ranked by structural matching, then explained.

Order of an answer: the re-ranked by falling score, then the others in coarse order; ties by image id.
"""

from __future__ import annotations

import enum
import logging
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from matchflow_index.errors import InvalidQueryError
from matchflow_index.filters import ImageFilter
from matchflow_index.shortlist import propose
from matchflow_matching import MatchMode, MatchSettings, explain, match, top_flows

if TYPE_CHECKING:
    from matchflow_index.records import ImageRecord
    from matchflow_index.shelf import Shelf
    from matchflow_index.shortlist import Shortlist
    from matchflow_matching import Features, Flow, Matches

logger = logging.getLogger(__name__)

# Candidates matched between two looks at the clock.
CHUNK = 32


class RerankState(enum.StrEnum):
    """How far the second stage got."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    SKIPPED_DEADLINE = "skipped_deadline"
    NOT_REQUESTED = "not_requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchQuery:
    """What is searched for, and how.

    `settings` None, or of mode COSINE: coarse order only. `depth` candidates are matched, and hits beyond `top_k` are
    not returned. `min_score` leaves out hits whose score is below. `deadline` is a time of time.monotonic() in seconds:
    once it has passed, the candidates that are left keep their coarse order.
    """

    features: Features
    top_k: int = 10
    depth: int = 100
    settings: MatchSettings | None = field(default_factory=MatchSettings)
    max_flows: int = 8
    filter: ImageFilter = field(default_factory=ImageFilter)
    min_score: float | None = None
    deadline: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """How far the solver got for a pair; see matchflow_matching.Matches."""

    iterations: int
    marginal_error: float
    converged: bool
    query_uniform: bool
    image_uniform: bool


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
    """Hits, best first; `depth_done` candidates were matched; `sequence` is the last change that is reflected."""

    hits: list[Hit]
    rerank_state: RerankState
    depth_done: int
    sequence: int
    timings: SearchTimings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """A place in the shortlist with its score; `matches` and `row` say where the score is from, None: not re-ranked."""

    rank: int
    score: float
    matches: Matches | None = None
    row: int = 0


def search(shelf: Shelf, query: SearchQuery) -> SearchAnswer:
    """Answer a query in two stages. The features must fit the gallery; raises InvalidQueryError for the rest."""
    check_query(query)
    wanted = max(query.top_k, query.depth) if reranks(query) else query.top_k
    shortlist = propose(shelf, query.features.embedding, wanted, query.filter)

    match_start_s = time.perf_counter()
    ranking, depth_done = rerank(shortlist, query)
    explain_start_s = time.perf_counter()
    chosen = [scored for scored in ranking if query.min_score is None or scored.score >= query.min_score]
    hits = [describe(shortlist, query, scored) for scored in chosen[: query.top_k]]
    end_s = time.perf_counter()

    return SearchAnswer(
        hits=[hit for hit in hits if passes(hit, query.filter)],
        rerank_state=rerank_state(query, depth_done, min(query.depth, len(shortlist.records))),
        depth_done=depth_done,
        sequence=shortlist.sequence,
        timings=SearchTimings(
            coarse_s=shortlist.coarse_s,
            gather_s=shortlist.gather_s,
            match_s=explain_start_s - match_start_s,
            explain_s=end_s - explain_start_s,
        ),
    )


def check_query(query: SearchQuery) -> None:
    """Raise InvalidQueryError for a query that makes no sense."""
    if query.top_k < 1:
        raise InvalidQueryError(f"top_k must be at least 1; got {query.top_k}")
    if query.depth < 1:
        raise InvalidQueryError(f"depth must be at least 1; got {query.depth}")
    if query.max_flows < 0:
        raise InvalidQueryError(f"max_flows must be at least 0; got {query.max_flows}")
    if query.min_score is not None and math.isnan(query.min_score):
        raise InvalidQueryError("min_score must be a number; got nan")


def reranks(query: SearchQuery) -> bool:
    """Tell whether the query asks for the second stage."""
    return query.settings is not None and query.settings.mode is not MatchMode.COSINE


def rerank(shortlist: Shortlist, query: SearchQuery) -> tuple[list[_Scored], int]:
    """Return the whole shortlist in its final order, and how many of it were matched."""
    done: list[_Scored] = []
    if query.settings is not None and reranks(query):
        depth = min(query.depth, len(shortlist.records))
        for start in range(0, depth, CHUNK):
            if is_late(query):
                break
            candidates = shortlist.features.take(slice(start, min(start + CHUNK, depth)))
            matches = match(query.features, candidates, query.settings)
            for row, score in enumerate(matches.score.tolist()):
                done.append(_Scored(rank=start + row, score=score, matches=matches, row=row))
    rest = [_Scored(rank=k, score=float(shortlist.cosines[k])) for k in range(len(done), len(shortlist.records))]
    done.sort(key=lambda scored: (-scored.score, shortlist.records[scored.rank].image_id))
    return done + rest, len(done)


def is_late(query: SearchQuery) -> bool:
    """Tell whether the query's deadline has passed."""
    return query.deadline is not None and time.monotonic() >= query.deadline


def rerank_state(query: SearchQuery, depth_done: int, depth: int) -> RerankState:
    """Return how far the second stage got, of `depth` candidates."""
    if not reranks(query):
        return RerankState.NOT_REQUESTED
    if depth_done == depth:
        return RerankState.COMPLETE
    return RerankState.PARTIAL if depth_done else RerankState.SKIPPED_DEADLINE


def describe(shortlist: Shortlist, query: SearchQuery, scored: _Scored) -> Hit:
    """Return a place of the ranking as a hit, with its flows."""
    record, cosine = shortlist.records[scored.rank], float(shortlist.cosines[scored.rank])
    matches = scored.matches
    if matches is None or query.settings is None:
        return Hit(
            record=record,
            coarse_rank=scored.rank,
            cosine=cosine,
            structural=None,
            score=scored.score,
            certificate=None,
            flows=[],
            residual=0.0,
        )
    structural = float(matches.structural[scored.row])
    flows: list[Flow] = []
    # Flows are the first thing to go without when time is up; the residual then says that all is left unexplained.
    if query.max_flows and not is_late(query):
        plan = explain(query.features, shortlist.features[scored.rank], query.settings)
        flows = top_flows(plan, query.max_flows)
    return Hit(
        record=record,
        coarse_rank=scored.rank,
        cosine=cosine,
        structural=structural,
        score=scored.score,
        certificate=certificate(matches, scored.row) if query.settings.mode is MatchMode.STRUCTURAL else None,
        flows=flows,
        residual=structural - sum(flow.contribution for flow in flows),
    )


def certificate(matches: Matches, row: int) -> Certificate:
    """Return the certificate of one pair."""
    return Certificate(
        iterations=int(matches.iterations[row]),
        marginal_error=float(matches.marginal_error[row]),
        converged=bool(matches.converged[row]),
        query_uniform=bool(matches.query_uniform[row]),
        image_uniform=bool(matches.image_uniform[row]),
    )


def passes(hit: Hit, image_filter: ImageFilter) -> bool:
    """Check a hit against the filter once more: no fault of an index may show what the caller excluded."""
    if image_filter.accepts(hit.record):
        return True
    logger.error("the coarse index proposed image %r against the filter; it was held back", hit.record.image_id)
    return False

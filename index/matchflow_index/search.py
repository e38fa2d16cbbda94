"""Two-stage search: coarse by global cosine, then re-ranked by structural matching, then explained.

Order of an answer: the re-ranked by falling score, then the others in coarse order; ties by image id.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.answers import EXACT_MODES, SearchAnswer, answer
from matchflow_index.exhaustive import widen
from matchflow_index.limits import unmatched_limit
from matchflow_index.queries import SMALLEST_CHUNK, SearchQuery, check_query, is_late, second_stage, within_slice
from matchflow_index.rankings import Ranking, RerankState, joined
from matchflow_index.shortlist import propose
from matchflow_matching import match

if TYPE_CHECKING:
    from matchflow_index.shortlist import Shortlist
    from matchflow_index.sight import Sight
    from matchflow_matching import CellGrid, Matches, MatchSettings


def search(sight: Sight, query: SearchQuery, grid: CellGrid) -> SearchAnswer:
    """Answer a query in a gallery of that grid.

    The features must fit the gallery; raises InvalidQueryError for the rest.
    """
    check_query(query)
    ranking = two_stages(sight, query, grid)
    best = ranking.best(query)
    if not query.exhaustive or ranking.is_proved(best, query):
        return answer(ranking, query, grid, sight.records_of)
    # Should time be up before there is anything better, these are answered as they were when they were found.
    names = [ranking.shortlist.image_ids[k] for k, _ in best]
    known = sight.records_of(names)
    widest = widen(sight, query, grid, ranking)
    if widest.shortlist is ranking.shortlist:
        return answer(widest, query, grid, lambda _: known)
    return answer(widest, query, grid, sight.records_of)


def two_stages(sight: Sight, query: SearchQuery, grid: CellGrid) -> Ranking:
    """Return the shortlist with the first `depth` of it matched, or as many as the deadline lets be."""
    settings = second_stage(query)
    # With groups, hits that are left out make room for others further down.
    wanted = max(query.top_k, query.depth) if settings or query.group_by is not None else query.top_k
    shortlist = propose(sight, query, wanted)
    if settings is None:
        return Ranking(
            shortlist=shortlist,
            matches=None,
            matched=0,
            below=0,
            limit=-math.inf,
            state=RerankState.NOT_REQUESTED,
            match_s=0.0,
        )
    start_s = time.perf_counter()
    depth = min(query.depth, len(shortlist.image_ids))
    matches = match_first(shortlist, depth, query, settings, grid)
    visited = 0 if matches is None else len(matches.score)
    solved = 0 if matches is None else int(np.count_nonzero(matches.solved))
    if visited == depth:
        state = RerankState.COMPLETE
    else:
        state = RerankState.PARTIAL if visited else RerankState.SKIPPED_DEADLINE
    return Ranking(
        shortlist=shortlist,
        matches=matches,
        matched=solved,
        below=visited - solved,
        limit=unmatched_limit(query, settings, shortlist, visited),
        state=state,
        match_s=time.perf_counter() - start_s,
    )


def match_first(
    shortlist: Shortlist, depth: int, query: SearchQuery, settings: MatchSettings, grid: CellGrid
) -> Matches | None:
    """Return the matches of the first `depth` candidates, or of fewer when time is up; None: of none.

    By exact solvers, which cost many times their bound, candidates are not solved that can't be among the hits.
    """
    # With groups, an image far down the list may be a hit.
    skips = settings.mode in EXACT_MODES and query.group_by is None
    # Until one is measured, pairs may take forever.
    matches, start, pair_s = None, 0, math.inf
    while start < depth and not is_late(query):
        first_step = skips and matches is None
        at_once = min(max(SMALLEST_CHUNK, query.top_k) if first_step else depth, depth - start)
        chunk = slice(start, start + within_slice(query, at_once, pair_s))
        start_s = time.perf_counter()
        floor = kept_score(matches, query.top_k) if skips else None
        found = match(query.features, shortlist.features.take(chunk), settings, grid=grid, floor=floor)
        matches, start = joined(matches, found), chunk.stop
        solved = int(np.count_nonzero(found.solved))
        pair_s = min(pair_s, (time.perf_counter() - start_s) / max(1, solved))
    return matches


def kept_score(matches: Matches | None, count: int) -> float | None:
    """Return the lowest of the `count` best scores, None while there are fewer."""
    if matches is None or len(matches.score) < count:
        return None
    return float(np.partition(matches.score, -count)[-count])

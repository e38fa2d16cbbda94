"""What a search has found before anything is described: candidates, their matches, and what is known of the rest."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.limits import holds_all
from matchflow_index.queries import second_stage
from matchflow_index.shortlist import best_first
from matchflow_matching import Matches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_index.queries import SearchQuery
    from matchflow_index.shortlist import Shortlist


class RerankState(enum.StrEnum):
    """How far the second stage got."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    SKIPPED_DEADLINE = "skipped_deadline"
    NOT_REQUESTED = "not_requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Candidates, and what is known of all others; an answer is made of it.

    matches: of the first candidates in the shortlist, in its order, None: of none; those that are not solved score less
    than `top_k` others. matched: how many images were solved in all, and below: how many a bound keeps below the best
    `top_k`. limit: what all others inside the filter score at most, -inf when there are none.
    """

    shortlist: Shortlist
    matches: Matches | None
    matched: int
    below: int
    limit: float
    state: RerankState
    match_s: float

    @property
    def count(self) -> int:
        """How many of the shortlist have matches, from its start."""
        return 0 if self.matches is None else len(self.matches.score)

    def best(self, query: SearchQuery) -> list[tuple[int, float]]:
        """Return place in the shortlist and score of the hits, best first.

        The matched come by falling score, then by image id; the others follow in coarse order, with their cosine. Of
        a group, only the first are hits.
        """
        scores = self.shortlist.cosines
        order = np.arange(len(scores))
        if self.matches is not None:
            scores = np.concatenate([self.matches.score, scores[self.count :]])
            order[: self.count] = best_first(self.matches.score, self.shortlist.image_ids.__getitem__)
        if self.shortlist.groups is not None:
            order = order[within_groups(self.shortlist.groups[order], query.group_limit)]
        falling = scores[order].tolist()
        chosen = [
            (k, score)
            for k, score in zip(order.tolist(), falling, strict=True)
            if query.min_score is None or score >= query.min_score
        ]
        return chosen[: query.top_k]

    def is_proved(self, best: list[tuple[int, float]], query: SearchQuery) -> bool:
        """Tell whether the hits are proved to be those of matching everything; see SearchAnswer.exact."""
        if second_stage(query) is None:
            # The shortlist is the head of the coarse order where that is known; see shortlist.propose.
            return self._is_head(len(best), query)
        return all(k < self.count for k, _ in best) and holds_all([score for _, score in best], query, self.limit)

    def _is_head(self, hits: int, query: SearchQuery) -> bool:
        outside = self.shortlist.outside
        if outside == -math.inf:
            return True
        # Fewer than asked for are all there are above `min_score`, unless it was groups that left some out.
        enough = hits == query.top_k or self.shortlist.groups is None
        return outside < math.inf and (enough or (query.min_score is not None and outside < query.min_score))


def within_groups(groups: NDArray[np.int32], limit: int) -> NDArray[np.bool_]:
    """Return which of the entries with groups int32 [n], best first, are among the first `limit` of theirs; 0: none.

    >>> within_groups(np.array([7, 7, 0, 7, 0, 2], np.int32), 2).tolist()
    [True, True, True, False, True, True]
    """
    kept, seen = np.ones(len(groups), np.bool_), dict[int, int]()
    for place, group in enumerate(groups.tolist()):
        seen[group] = seen.get(group, 0) + 1
        kept[place] = not group or seen[group] <= limit
    return kept


def taken(matches: Matches, rows: NDArray[np.intp]) -> Matches:
    """Return the matches of some rows, in that order."""
    return Matches(**{each.name: getattr(matches, each.name)[rows] for each in fields(matches)})


def joined(first: Matches | None, second: Matches) -> Matches:
    """Return one after the other."""
    if first is None:
        return second
    return Matches(
        **{each.name: np.concatenate([getattr(m, each.name) for m in (first, second)]) for each in fields(second)}
    )

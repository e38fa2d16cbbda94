"""What is asked of a gallery."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from matchflow_index.errors import InvalidQueryError
from matchflow_index.filters import ImageFilter
from matchflow_matching import MatchMode, MatchSettings

if TYPE_CHECKING:
    from matchflow_matching import Features

# With a deadline, no more pairs are matched at once than take about so long, but at least so many.
SLICE_S = 0.01
SMALLEST_CHUNK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchQuery:
    """What is searched for, and how.

    `settings` None, or of mode COSINE: coarse order only. `depth` candidates are matched, save those that provably
    can't be among the hits; hits beyond `top_k` are not returned. `min_score` leaves out hits whose score is below.
    `deadline` is a time of time.monotonic() in seconds: once it has passed, the candidates that are left keep their
    coarse order.
    `exhaustive`: match as many more as it takes to prove that the hits are those of the whole gallery, until the
    deadline; `depth` is then where it starts.
    `group_by`: of the images with the same text for this label, at most `group_limit` are hits, the best; images
    without it are not limited. `now_s`, in seconds since 1970, decides which images have expired.
    """

    features: Features
    top_k: int = 10
    depth: int = 100
    settings: MatchSettings | None = field(default_factory=MatchSettings)
    max_flows: int = 8
    filter: ImageFilter = field(default_factory=ImageFilter)
    min_score: float | None = None
    deadline: float | None = None
    exhaustive: bool = False
    group_by: str | None = None
    group_limit: int = 1
    now_s: float = field(default_factory=time.time)


def check_query(query: SearchQuery) -> None:
    """Raise InvalidQueryError for a query that makes no sense."""
    if query.top_k < 1:
        raise InvalidQueryError(f"top_k must be at least 1; got {query.top_k}")
    if query.depth < 1:
        raise InvalidQueryError(f"depth must be at least 1; got {query.depth}")
    if query.max_flows < 0:
        raise InvalidQueryError(f"max_flows must be at least 0; got {query.max_flows}")
    if query.group_limit < 1:
        raise InvalidQueryError(f"group_limit must be at least 1; got {query.group_limit}")
    if query.min_score is not None and math.isnan(query.min_score):
        raise InvalidQueryError("min_score must be a number; got nan")


def second_stage(query: SearchQuery) -> MatchSettings | None:
    """Return how candidates are matched, None when only the coarse stage is asked for."""
    settings = query.settings
    return None if settings is None or settings.mode is MatchMode.COSINE else settings


def is_late(query: SearchQuery) -> bool:
    """Tell whether the query's deadline has passed."""
    return query.deadline is not None and time.monotonic() >= query.deadline


def within_slice(query: SearchQuery, count: int, pair_s: float) -> int:
    """Return how many of `count` pairs may be matched before the next look at the clock; one takes about `pair_s`."""
    if query.deadline is None:
        return count
    return min(count, max(SMALLEST_CHUNK, int(SLICE_S / max(pair_s, 1e-9))))

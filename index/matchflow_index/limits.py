"""What an image can score at most, as far as that is known without matching it.

A structural score is sum_ij P_ij (S_ij - w d2_ij) with masses P_ij >= 0 that sum to 1 (or are all 0), d2_ij >= 0 and
|S_ij| <= |z_x[i]| |z_q[j]|. So no image scores more than max_i |z_x[i]| * max_j |z_q[j]| + global_weight * cosine.
Cells would be of unit length but for their quantisation, and ready-made features may be anything: the stored lengths
count.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_index.queries import SearchQuery
    from matchflow_index.shortlist import Shortlist
    from matchflow_matching import Features, MatchSettings


def longest_cell(image: Features) -> float:
    """Return the length of the longest cell of an image, computed in float64."""
    cells = image.cells.astype(np.float64)
    lengths = np.sqrt(np.einsum("rd,rd->r", cells, cells)) * np.abs(image.scales.astype(np.float64))
    return float(lengths.max())


def score_limits(
    query: Features, settings: MatchSettings, lengths: NDArray[np.floating], cosines: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return what images [N] score at most; lengths [N] are those of their longest cells, cosines [N] to the query."""
    reach = longest_cell(query) * lengths.astype(np.float64)
    # Each of the R additions and products of a plan's column and of its score rounds by 2^-24 of what it yields; four
    # times that is allowed, and as much for adding the cosine.
    rounding = (len(query.cells) + 8) * 2.0**-22
    weighted = settings.global_weight * cosines.astype(np.float64)
    limits: NDArray[np.float64] = reach * (1 + rounding) + weighted + 2.0**-22 * (1 + reach + settings.global_weight)
    return limits


def unmatched_limit(query: SearchQuery, settings: MatchSettings, shortlist: Shortlist, matched: int) -> float:
    """Return what the images inside the filter score at most that are not among the first of the shortlist."""
    best: float = max([*shortlist.cosines[matched : matched + 1].tolist(), shortlist.outside])
    if math.isinf(best):
        return best
    limits = score_limits(query.features, settings, np.array([shortlist.longest_cell]), np.array([best]))
    return float(limits[0])


def holds_all(scores: list[float], query: SearchQuery, limit: float) -> bool:
    """Tell whether hits with these scores, best first, are those that matching every image would have given.

    They are when no image that was not matched can score as much as the last of them: it would have to score strictly
    less, since the image id decides between equals. Where fewer than `top_k` are left, the others must stay below
    `min_score`. `limit` is what an image that was not matched scores at most, -inf when there is none.
    """
    if limit == -math.inf:
        return True
    if len(scores) == query.top_k:
        return scores[-1] > limit
    return query.min_score is not None and query.min_score > limit

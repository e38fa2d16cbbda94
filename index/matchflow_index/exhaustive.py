"""Exhaustive search: match as much of a gallery as it takes to prove that no other image belongs among the hits.

Images are visited by falling cosine, in chunks. What an image scores at most is known from its cosine and the lengths
of its cells (limits.py): those that can't reach the last of the best `top_k` are never looked at, and when nothing
ahead can, the search is over. In a chunk, `match` leaves out pairs that a bound from their similarities keeps below it.
So every image is matched, or proved to score strictly less than the last hit; equal scores are never skipped, since the
image id decides between them.

All of it is one moment of the gallery: what the slots hold is kept while anybody looks (see Shelf.pin), and what
does change is copied under the lock. Nothing is locked while images are matched.
"""

from __future__ import annotations

import bisect
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.coarse import embeddings_of
from matchflow_index.limits import score_limits
from matchflow_index.queries import SMALLEST_CHUNK, is_late, second_stage, within_slice
from matchflow_index.rankings import Ranking, RerankState, joined, taken, within_groups
from matchflow_index.shortlist import Shortlist, best_first, readable
from matchflow_matching import global_cosines, match

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_index.image_ids import ImageIds
    from matchflow_index.queries import SearchQuery
    from matchflow_index.sight import Sight
    from matchflow_index.slab import CellSlab
    from matchflow_matching import CellGrid, Matches, MatchSettings

# Images matched at once: the first time, and as many as take about so many bytes while they are matched. More of them
# leave the processor's cache: 500 pairs of 4x4x128 at once take two thirds of the time of 4,000.
FIRST_CHUNK = 128
CHUNK_BYTES = 1 << 22
# Rows whose cosines are computed between two looks at the clock.
COSINE_STEP = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A gallery inside a filter, as it was at one moment; entries k [n] in order of slot.

    slots int64 [n], row_ids int64 [n], cosines float32 [n], lengths float32 [n] (of the longest cells); groups int32
    [n] as in Shortlist.
    """

    slab: CellSlab
    ids: ImageIds
    slots: NDArray[np.int64]
    row_ids: NDArray[np.int64]
    groups: NDArray[np.int32] | None
    cosines: NDArray[np.float32]
    lengths: NDArray[np.float32]
    sequence: int

    def image_id(self, k: int) -> str:
        """Return the id of an entry's image."""
        return self.ids[int(self.slots[k])]

    def coarse_ranks(self, entries: list[int]) -> list[int]:
        """Return the places of some entries in coarse order: by falling cosine, then by image id."""
        if not entries:
            return []
        rising = np.sort(self.cosines[self.cosines >= self.cosines[entries].min()])
        equals: dict[float, list[str]] = {}
        ranks = []
        for k in entries:
            cosine = self.cosines[k]
            if float(cosine) not in equals:
                same = np.flatnonzero(self.cosines == cosine).tolist()
                equals[float(cosine)] = sorted(self.image_id(other) for other in same)
            better = len(rising) - int(np.searchsorted(rising, cosine, "right"))
            ranks.append(better + bisect.bisect_left(equals[float(cosine)], self.image_id(k)))
        return ranks


def look(sight: Sight, query: SearchQuery) -> Moment | None:
    """Return the gallery as it is now; None when time is up before that is done."""
    with sight.still(pinned=True) as shelf:
        selection = shelf.select(query.filter, query.now_s)
        slots = shelf.live_slots if selection.allowed is None else np.flatnonzero(selection.allowed)
        slots = slots[~np.isin(slots, list(selection.without))]
        cosines = np.empty(len(slots), np.float32)
        for start in range(0, len(slots), COSINE_STEP):
            if is_late(query):
                return None
            step = slots[start : start + COSINE_STEP]
            embeddings = embeddings_of(shelf.coarse, shelf.slab, step)
            cosines[start : start + len(step)] = global_cosines(query.features.embedding, embeddings)
        return Moment(
            slab=shelf.slab,
            ids=shelf.slots.ids,
            slots=slots,
            row_ids=shelf.slots.row_ids.values[slots],
            groups=None if query.group_by is None else shelf.slots.labels.codes(query.group_by)[slots],
            cosines=readable(cosines),
            lengths=shelf.cell_norms[slots],
            sequence=shelf.sequence,
        )


class Best:
    """The best entries that were matched so far, best first."""

    def __init__(self, moment: Moment, query: SearchQuery) -> None:
        """Keep up to `top_k`, nothing below `min_score`, and of a group no more than its limit."""
        self._moment = moment
        self._count = query.top_k
        self._group_limit = query.group_limit
        self._least = -math.inf if query.min_score is None else query.min_score
        self.entries: list[int] = []
        self.matches: Matches | None = None

    @property
    def floor(self) -> float:
        """What a score must reach to be kept, -inf as long as any is."""
        if self.matches is None or len(self.entries) < self._count:
            return self._least
        return float(self.matches.score[-1])

    def add(self, entries: NDArray[np.intp], matches: Matches) -> None:
        """Look at further entries."""
        good = np.flatnonzero(matches.solved & (matches.score >= self.floor))
        if not len(good):
            return
        found = self.entries + entries[good].tolist()
        everything = joined(self.matches, taken(matches, good))
        order = best_first(everything.score, lambda k: self._moment.image_id(found[k]))
        if self._moment.groups is not None:
            # What is left out here has as many better ones in its group as may be hits, whatever comes.
            order = order[within_groups(self._moment.groups[found][order], self._group_limit)]
        order = order[: self._count]
        self.entries = [found[k] for k in order]
        self.matches = taken(everything, order)


def widen(sight: Sight, query: SearchQuery, grid: CellGrid, first: Ranking) -> Ranking:
    """Return the best of the whole gallery inside the filter, proved, unless the deadline comes before that.

    `first` is what the two stages gave; it is returned, as PARTIAL, when the time did not suffice for more.
    """
    start_s = time.perf_counter()
    settings, moment = second_stage(query), look(sight, query)
    unproved = replace(first, state=RerankState.PARTIAL if first.count else first.state)
    if settings is None or moment is None:
        return unproved
    pair_s = first.match_s / first.matched if first.matched else math.inf
    walk = Walk(moment, query, settings, grid, pair_s=pair_s)
    walk.go(first)
    # Ended early, it has not even seen what the two stages saw.
    if not walk.proved and walk.visited < max(query.top_k, first.count):
        return unproved
    return walk.ranking(first, time.perf_counter() - start_s)


class Walk:
    """A way through a moment by falling cosine.

    Of the images inside the filter, `visited` were looked at, `solved` of them matched, and `dismissed` are known to
    stay below the floor; all others score at most `limit`, -inf when there are none.
    """

    def __init__(
        self, moment: Moment, query: SearchQuery, settings: MatchSettings, grid: CellGrid, *, pair_s: float
    ) -> None:
        """Prepare; `pair_s` is about how long it takes to match a pair, in seconds, inf where that is not known."""
        self._moment = moment
        self._query = query
        self._settings = settings
        self._grid = grid
        self._pair_s = pair_s
        self._limits = score_limits(query.features, settings, moment.lengths, moment.cosines)
        layout = moment.slab.layout
        pair_bytes = 2 * layout.size_bytes + 4 * layout.cells * len(query.features.cells)
        self._largest = max(SMALLEST_CHUNK, CHUNK_BYTES // pair_bytes)
        self.best = Best(moment, query)
        self.visited = self.solved = self.dismissed = 0
        self.limit = math.inf
        self.gather_s = 0.0

    @property
    def proved(self) -> bool:
        """Whether nothing that was not visited can be among the best."""
        return self.limit == -math.inf or self.limit < self.best.floor

    def go(self, first: Ranking) -> None:
        """Visit images until no other can be among the best, or time is up.

        What was matched already counts, unless the gallery has changed since; then as many are visited first.
        """
        cosines, size = self._moment.cosines, max(FIRST_CHUNK, first.count, self._query.top_k)
        others = np.ones(len(cosines), np.bool_)
        if first.matches is not None and first.shortlist.sequence == self._moment.sequence:
            head = np.searchsorted(self._moment.slots, first.shortlist.slots[: first.count])
            others[head] = False
            self.best.add(head, first.matches)
            self.visited, self.solved = first.count, first.matched
            self.limit = float(self._limits[others].max(initial=-np.inf))
        else:
            head = np.argpartition(-cosines, size)[:size] if size < len(cosines) else np.arange(len(cosines))
            others[head] = False
            self._visit_all(head, size, beyond=float(self._limits[others].max(initial=-np.inf)))
        if self.proved or is_late(self._query):
            return
        left = np.flatnonzero(others & (self._limits >= self.best.floor))
        self.dismissed = len(cosines) - len(head) - len(left)
        self._visit_all(left, 2 * size, beyond=-math.inf)

    def _visit_all(self, entries: NDArray[np.intp], size: int, *, beyond: float) -> None:
        """Visit entries, `size` of them at first; those that are not among them score at most `beyond`."""
        order = entries[np.argsort(-self._moment.cosines[entries])]
        limits = self._limits[order]
        ahead = np.maximum.accumulate(np.append(limits, beyond)[::-1])[::-1]
        place, self.limit = 0, float(ahead[0])
        while place < len(order) and not self.proved and not is_late(self._query):
            step = slice(place, min(place + self._at_once(size), len(order)))
            self._visit(order[step][limits[step] >= self.best.floor])
            self.visited += step.stop - place
            place, self.limit = step.stop, float(ahead[step.stop])
            size = 2 * size

    def _at_once(self, size: int) -> int:
        """Return how many of `size` images are matched at once."""
        return within_slice(self._query, min(size, self._largest), self._pair_s)

    def _visit(self, entries: NDArray[np.intp]) -> None:
        if not len(entries):
            return
        gather_start_s = time.perf_counter()
        features = self._moment.slab.gather(self._moment.slots[entries])
        start_s = time.perf_counter()
        floor = None if self.best.floor == -math.inf else self.best.floor
        matches = match(self._query.features, features, self._settings, grid=self._grid, floor=floor)
        self.best.add(entries, matches)
        solved = int(np.count_nonzero(matches.solved))
        self.solved += solved
        self.gather_s += start_s - gather_start_s
        self._pair_s = min(self._pair_s, (time.perf_counter() - start_s) / max(1, solved))

    def ranking(self, first: Ranking, spent_s: float) -> Ranking:
        """Return the best as a ranking that took `spent_s` seconds more than `first`."""
        moment, entries = self._moment, self.best.entries
        chosen = np.array(entries, np.intp)
        shortlist = Shortlist(
            image_ids=[moment.image_id(k) for k in entries],
            slots=moment.slots[chosen],
            row_ids=moment.row_ids[chosen],
            groups=None if moment.groups is None else moment.groups[chosen],
            cosines=moment.cosines[chosen],
            coarse_ranks=np.array(moment.coarse_ranks(entries), np.intp),
            features=moment.slab.gather(moment.slots[chosen]),
            total=len(moment.slots),
            outside=first.shortlist.outside,
            longest_cell=first.shortlist.longest_cell,
            sequence=moment.sequence,
            coarse_s=first.shortlist.coarse_s,
            gather_s=first.shortlist.gather_s + self.gather_s,
        )
        return Ranking(
            shortlist=shortlist,
            matches=self.best.matches,
            matched=self.solved,
            below=(len(moment.slots) if self.proved else self.visited + self.dismissed) - self.solved,
            limit=self.limit,
            state=RerankState.COMPLETE if self.proved else RerankState.PARTIAL,
            match_s=first.match_s + spent_s - self.gather_s,
        )

"""The coarse stage: the best images by global cosine, with their features, as one value that no writer can touch."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching import global_cosines

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from matchflow_index.queries import SearchQuery
    from matchflow_index.shelf import Selection, Shelf
    from matchflow_index.sight import Sight
    from matchflow_matching.features import FeatureBatch

# FAISS sums in another order than we do: proposals this far beyond the cut are looked at again.
SPARE_PROPOSALS = 32
# A filter that lets no more images than this pass has all of them looked at.
FEW_ROWS = 4_096
# The cosine that `match` gives where a stored number is not finite.
UNREADABLE_COSINE = np.float32(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortlist:
    """Candidates with their features, and what is known of the images inside the filter that are not among them.

    `slots` int64 [n], `row_ids` int64 [n], `cosines` float32 [n], `coarse_ranks` int [n]: 0 is the best by cosine, then
    by image id; `groups` int32 [n], 0 for an image without the label to group by, None when there is none. `total`
    images are inside the filter; those outside the shortlist have cosines of at most `outside` (-inf: there are none;
    inf: unknown, since the coarse index does not look at all) and cells no longer than `longest_cell`. `sequence` is
    the last change that all this reflects; times are in seconds.
    """

    image_ids: list[str]
    slots: NDArray[np.int64]
    row_ids: NDArray[np.int64]
    cosines: NDArray[np.float32]
    coarse_ranks: NDArray[np.intp]
    groups: NDArray[np.int32] | None
    features: FeatureBatch
    total: int
    outside: float
    longest_cell: float
    sequence: int
    coarse_s: float
    gather_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proposal:
    """Slots int64 [n] with their true cosines float32 [n]; what is inside the filter but not here has at most `unseen`.

    inf: unknown.
    """

    slots: NDArray[np.int64]
    cosines: NDArray[np.float32]
    unseen: float


def propose(sight: Sight, query: SearchQuery, count: int) -> Shortlist:
    """Return the `count` best images inside the filter in coarse order, or all when there are fewer.

    FAISS only proposes: the cosine that counts is computed as `match` computes it, so a pair has the same one in every
    answer. Where the coarse index is complete, all images are fetched that FAISS, being off by `summation_error` at
    most, can have put on the wrong side of the cut; the image id decides between equals. So the order is that of the
    whole gallery. Lists of quantised vectors miss some: see ivf_index.py.
    """
    start_s = time.perf_counter()
    with sight.still() as shelf:
        selection = shelf.select(query.filter, query.now_s)
        found = _proposed(shelf, query.features.embedding, count, selection)
        ids = shelf.slots.ids
        order = best_first(found.cosines, lambda k: ids[int(found.slots[k])])
        chosen = order[:count]
        slots = found.slots[chosen]
        gather_start_s = time.perf_counter()
        features = shelf.slab.gather(slots)
        gather_s = time.perf_counter() - gather_start_s
        outside = [*found.cosines[order[count : count + 1]].tolist()]
        if len(found.slots) < selection.count:
            outside.append(found.unseen)
        return Shortlist(
            image_ids=ids.of(slots),
            slots=slots,
            row_ids=shelf.slots.row_ids.values[slots],
            cosines=found.cosines[chosen],
            coarse_ranks=np.arange(len(chosen)),
            groups=None if query.group_by is None else shelf.slots.labels.codes(query.group_by)[slots],
            features=features,
            total=selection.count,
            outside=max(outside, default=-math.inf),
            longest_cell=shelf.longest_cell,
            sequence=shelf.sequence,
            coarse_s=time.perf_counter() - start_s - gather_s,
            gather_s=gather_s,
        )


def _proposed(shelf: Shelf, embedding: NDArray[np.float32], count: int, selection: Selection) -> _Proposal:
    if shelf.coarse.complete:
        return _proposed_by_all(shelf, embedding, count, selection)
    if selection.allowed is not None and selection.count <= FEW_ROWS:
        slots = np.flatnonzero(selection.allowed)
        return _Proposal(slots=slots, cosines=_cosines(shelf, embedding, slots), unseen=-math.inf)
    fetch = 2 * count + SPARE_PROPOSALS + len(selection.without)
    slots, _ = shelf.coarse.propose(embedding, fetch, selection.allowed)
    slots = _but(slots, selection.without)
    unseen = -math.inf if len(slots) == selection.count else math.inf
    return _Proposal(slots=slots, cosines=_cosines(shelf, embedding, slots), unseen=unseen)


def _proposed_by_all(shelf: Shelf, embedding: NDArray[np.float32], count: int, selection: Selection) -> _Proposal:
    error = summation_error(len(embedding))
    allowed = selection.allowed
    if allowed is None and shelf.count < shelf.size:
        # Dead slots are zero vectors here, and better than any image that points away from the query.
        allowed = shelf.slots.live.values
    fetch = count + SPARE_PROPOSALS + len(selection.without)
    while True:
        slots, values = shelf.coarse.propose(embedding, fetch, allowed)
        all_found, least = len(slots) < fetch, float(values[-1]) if len(values) else -math.inf
        slots = _but(slots, selection.without)
        cosines = _cosines(shelf, embedding, slots)
        if all_found or least < np.partition(cosines, -count)[-count] - error:
            break
        fetch *= 2
    # Images that FAISS could not read, and so never proposes, have the least cosine.
    unseen = float(UNREADABLE_COSINE) if all_found else least + error
    return _Proposal(slots=slots, cosines=cosines, unseen=unseen)


def _but(slots: NDArray[np.int64], without: frozenset[int]) -> NDArray[np.int64]:
    return slots[~np.isin(slots, list(without))] if without else slots


def _cosines(shelf: Shelf, embedding: NDArray[np.float32], slots: NDArray[np.int64]) -> NDArray[np.float32]:
    return readable(global_cosines(embedding, shelf.slab.gather_embeddings(slots)))


def summation_error(dim: int) -> float:
    """Return how far two float32 inner products of unit vectors [dim] can be apart, whatever their order of summation.

    Each is within about dim * 2^-24 |a| |b| of the true value (Higham, Accuracy and Stability of Numerical Algorithms,
    section 3.1), and stored vectors are of unit length within 1e-3.
    """
    return 2 * 1.01 * (dim + 2) * 2.0**-24


def readable(cosines: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines with what is not finite replaced, as `match` does it."""
    return np.where(np.isfinite(cosines), cosines, UNREADABLE_COSINE)


def best_first(values: NDArray[np.float32], image_id: Callable[[int], str]) -> NDArray[np.intp]:
    """Return the positions of values [n] by falling value, then by image id.

    >>> best_first(np.array([0.5, 0.9, 0.5], np.float32), ["b", "c", "a"].__getitem__).tolist()
    [1, 2, 0]
    """
    order = np.argsort(-values, kind="stable")
    if (values[order[1:]] == values[order[:-1]]).any():
        # Only then are the ids looked at: there are hundreds of them in each search.
        falling = (-values).tolist()
        order = np.array(sorted(range(len(falling)), key=lambda k: (falling[k], image_id(k))), np.intp)
    return order

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

    from matchflow_index.filters import ImageFilter
    from matchflow_index.records import ImageRecord
    from matchflow_index.shelf import Shelf
    from matchflow_matching.features import FeatureBatch

# FAISS sums in another order than we do: proposals this far beyond the cut are looked at again.
SPARE_PROPOSALS = 32
# The cosine that `match` gives where a stored number is not finite.
UNREADABLE_COSINE = np.float32(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortlist:
    """Candidates with their features, and what is known of the images inside the filter that are not among them.

    `slots` int64 [n], `cosines` float32 [n], `coarse_ranks` int [n]: 0 is the best by cosine, then by image id. `total`
    images are inside the filter; those outside the shortlist have cosines of at most `outside` (-inf: there are none)
    and cells no longer than `longest_cell`. `sequence` is the last change that all this reflects; times are in seconds.
    """

    records: list[ImageRecord]
    slots: NDArray[np.int64]
    cosines: NDArray[np.float32]
    coarse_ranks: NDArray[np.intp]
    features: FeatureBatch
    total: int
    outside: float
    longest_cell: float
    sequence: int
    coarse_s: float
    gather_s: float


def propose(shelf: Shelf, embedding: NDArray[np.float32], count: int, image_filter: ImageFilter) -> Shortlist:
    """Return the `count` best images inside the filter in coarse order, or all when there are fewer.

    FAISS only proposes: the cosine that counts is computed as `match` computes it, so a pair has the same one in every
    answer. All images are fetched that FAISS, being off by `summation_error` at most, can have put on the wrong side of
    the cut; the image id decides between equals. So the order is that of the whole gallery.
    """
    gather_s, start_s = 0.0, time.perf_counter()
    error = summation_error(len(embedding))
    with shelf.lock.reading():
        allowed = shelf.allowed(image_filter)
        fetch = count + SPARE_PROPOSALS
        while True:
            slots, values = shelf.coarse.propose(embedding, fetch, allowed)
            gather_start_s = time.perf_counter()
            features = shelf.slab.gather(slots)
            gather_s += time.perf_counter() - gather_start_s
            cosines = readable(global_cosines(embedding, features.embeddings))
            if len(slots) < fetch or values[-1] < np.partition(cosines, -count)[-count] - error:
                break
            fetch *= 2
        records = [shelf.records[slot] for slot in slots.tolist()]
        total = len(shelf.records) if allowed is None else int(np.count_nonzero(allowed))
        longest_cell, sequence = shelf.longest_cell, shelf.sequence
    order = best_first(cosines, lambda k: records[k].image_id)
    chosen = order[:count]
    # Images that FAISS could not read, and so never proposes, have the least cosine.
    unseen = [float(values[-1]) + error] if len(slots) == fetch else [float(UNREADABLE_COSINE)]
    outside = [*cosines[order[count : count + 1]].tolist(), *(unseen if len(slots) < total else [])]
    return Shortlist(
        records=[records[k] for k in chosen],
        slots=slots[chosen],
        cosines=cosines[chosen],
        coarse_ranks=np.arange(len(chosen)),
        features=features.take(chosen),
        total=total,
        outside=max(outside, default=-math.inf),
        longest_cell=longest_cell,
        sequence=sequence,
        coarse_s=time.perf_counter() - start_s - gather_s,
        gather_s=gather_s,
    )


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

"""The coarse stage: the best images by global cosine, with their features, as one value that no writer can touch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching import global_cosines

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_index.filters import ImageFilter
    from matchflow_index.records import ImageRecord
    from matchflow_index.shelf import Shelf
    from matchflow_matching.features import FeatureBatch

# FAISS sums in another order than we do: proposals this far beyond the cut, and this close to it, are looked at again.
SPARE_PROPOSALS = 32
FAISS_ERROR = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortlist:
    """Candidates in coarse order: by falling cosine, then by image id.

    `cosines` float32 [n]; `sequence` is the last change that it reflects; times are in seconds.
    """

    records: list[ImageRecord]
    cosines: NDArray[np.float32]
    features: FeatureBatch
    sequence: int
    coarse_s: float
    gather_s: float


def propose(shelf: Shelf, embedding: NDArray[np.float32], count: int, image_filter: ImageFilter) -> Shortlist:
    """Return the `count` best images inside the filter, or all when there are fewer.

    FAISS only proposes: the cosine that counts is computed as `match` computes it, so a pair has the same one in every
    answer. Images of equal cosine at the cut are all fetched before the image id decides.
    """
    gather_s, start_s = 0.0, time.perf_counter()
    with shelf.lock.reading():
        allowed = shelf.allowed(image_filter)
        fetch = count + SPARE_PROPOSALS
        while True:
            slots, values = shelf.coarse.propose(embedding, fetch, allowed)
            gather_start_s = time.perf_counter()
            features = shelf.slab.gather(slots)
            gather_s += time.perf_counter() - gather_start_s
            cosines = global_cosines(embedding, features.embeddings)
            if len(slots) < fetch or values[-1] < np.partition(cosines, -count)[-count] - FAISS_ERROR:
                break
            fetch *= 2
        records = [record for slot in slots.tolist() if (record := shelf.records[slot])]
        sequence = shelf.sequence
    order = coarse_order(cosines, [record.image_id for record in records])[:count]
    return Shortlist(
        records=[records[k] for k in order],
        cosines=cosines[order],
        features=features.take(order),
        sequence=sequence,
        coarse_s=time.perf_counter() - start_s - gather_s,
        gather_s=gather_s,
    )


def coarse_order(cosines: NDArray[np.float32], image_ids: list[str]) -> NDArray[np.intp]:
    """Return the positions by falling cosine, then by image id.

    >>> coarse_order(np.array([0.5, 0.9, 0.5], np.float32), ["b", "c", "a"]).tolist()
    [1, 2, 0]
    """
    falling = (-cosines).tolist()
    return np.array(sorted(range(len(falling)), key=lambda k: (falling[k], image_ids[k])), np.intp)

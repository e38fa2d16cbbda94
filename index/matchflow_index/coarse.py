"""The coarse index of a gallery: exact while it is small, lists of quantised vectors from then on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from matchflow_index.errors import CacheDamagedError
from matchflow_index.flat_index import FlatIndex
from matchflow_index.ivf_index import IvfIndex, best_by_cosine, training_slots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from matchflow_index.slab import CellSlab

# From so many images on, searching all of them takes longer than a millisecond or two, and lists take over.
LARGEST_FLAT = 50_000
# The share of the true best 100 that lists must find on a sample of the gallery's own vectors.
RECALL_AIM = 0.985
RECALL_QUERIES, RECALL_DEPTH = 200, 100
# Lists are made anew when there are so many times more images than they were made for, or when the mean squared
# distance of the latest vectors to their centroids has grown by so much.
GROWTH, DRIFT = 3.0, 1.25
# The latest vectors that are looked at for that; fewer tell nothing.
LATEST = 2_000
STEP_ROWS = 16_384


class CoarseIndex(Protocol):
    """Embeddings by slot. Searches may run side by side, but not beside `add` or `remove`."""

    @property
    def complete(self) -> bool:
        """Whether `propose` looks at every slot."""
        ...

    @property
    def size(self) -> int:
        """The number of slots that were added."""
        ...

    def add(self, embeddings: NDArray[np.float32]) -> None:
        """Add embeddings float32 [N, D] as the next slots."""
        ...

    def remove(self, slots: NDArray[np.int64]) -> None:
        """Forget the embeddings of some slots, which may not be proposed any more."""
        ...

    def propose(
        self, embedding: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the slots [n] of the `count` best cosines and FAISS's values for them [n], best first.

        `allowed` bool [slots] says which slots may be proposed; None: all. n < count when there are no more.
        """
        ...

    def encode(self) -> bytes:
        """Return the index as bytes."""
        ...


KINDS: dict[bytes, type[FlatIndex | IvfIndex]] = {b"flat": FlatIndex, b"ivf8": IvfIndex}


def encode_coarse(index: CoarseIndex) -> bytes:
    """Return an index of either kind as bytes."""
    kind = next(name for name, kind in KINDS.items() if isinstance(index, kind))
    return kind + index.encode()


def decode_coarse(data: bytes, *, size: int, dim: int) -> CoarseIndex:
    """Return the index that `encode_coarse` wrote; CacheDamagedError when it isn't one of that size and dimension."""
    kind = KINDS.get(data[:4])
    if kind is None:
        raise CacheDamagedError(f"expected one of {sorted(KINDS)}; got {data[:4]!r}")
    return kind.decode(data[4:], size=size, dim=dim)


def embeddings_of(index: CoarseIndex, slab: CellSlab, slots: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the embeddings float32 [n, D] of slots [n >= 1] in ascending order, from where that is quickest."""
    return index.embeddings(slots) if isinstance(index, FlatIndex) else slab.gather_embeddings(slots)


def filled(index: CoarseIndex, slab: CellSlab, stop: int) -> None:
    """Add the slots of a slab to an index, from where it ends up to `stop`."""
    for start in range(index.size, stop, STEP_ROWS):
        index.add(slab.embeddings(start, min(start + STEP_ROWS, stop)))


def wanted_lists(index: CoarseIndex, slab: CellSlab, live: NDArray[np.int64], largest_flat: int = LARGEST_FLAT) -> str:
    """Return why a gallery should get new lists; empty when it needs none."""
    if len(live) <= largest_flat:
        return ""
    if not isinstance(index, IvfIndex):
        return f"{len(live)} images are too many to look at each"
    if len(live) > GROWTH * index.training.images:
        return f"{len(live)} images, and the lists were made for {index.training.images}"
    if len(live) >= LATEST:
        spread = index.spread(slab.gather_embeddings(live[-LATEST:]))
        if spread > DRIFT * index.training.spread:
            return f"the latest vectors are {spread:.3f} from their centroids, once it was {index.training.spread:.3f}"
    return ""


def trained(slab: CellSlab, live: NDArray[np.int64], stop: int, seed: int = 0) -> IvfIndex:
    """Return lists that hold the live ones among the first `stop` slots, with the recall that they have."""
    index = IvfIndex.train(slab.gather_embeddings(training_slots(live, seed)), len(live))
    filled(index, slab, stop)
    dead = _others(live, stop)
    if len(dead):
        index.remove(dead)
    queries = slab.gather_embeddings(_sample(live, seed))
    depth = min(RECALL_DEPTH, len(live))
    best = best_by_cosine(queries, _live_chunks(slab, live), depth)
    index.tune(queries, best, RECALL_AIM)
    return index


def _live_chunks(slab: CellSlab, live: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    for start in range(0, len(live), STEP_ROWS):
        slots = live[start : start + STEP_ROWS]
        yield slots, slab.gather_embeddings(slots)


def _others(live: NDArray[np.int64], stop: int) -> NDArray[np.int64]:
    others = np.ones(stop, np.bool_)
    others[live] = False
    return np.flatnonzero(others)


def _sample(live: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed + 1).choice(live, min(RECALL_QUERIES, len(live)), replace=False)

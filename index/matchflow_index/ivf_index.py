"""The coarse index of large galleries: lists of vectors around centroids (IVF), each value in 8 bits (SQ8), by FAISS.

Only the `nprobe` lists nearest to the query are searched, so that good images may be missed: how many of the best 100
are found (the recall) is measured on the gallery's own vectors whenever the centroids are made, and `nprobe` is the
least that reaches the aim.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from matchflow_index.errors import CacheDamagedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

# Vectors to find centroids from, for each of them (FAISS warns below 39), and how often they are moved.
VECTORS_PER_LIST = 40
ROUNDS = 10
LEAST_LISTS, MOST_LISTS = 16, 4096
# Filters that let less than this share pass are searched in all lists: their images may lie anywhere.
FEW = 0.1
# A filter may leave out just the lists nearest to the query: so many are searched at least, and four times as many as
# its share asks for (`make bench-filter`: 0.99 instead of 0.94 in the worst cell).
LEAST_FILTERED = 32
_LENGTH = struct.Struct("<I")
# FAISS's own stubs lack these.
_HASHTABLE: Any = getattr(faiss, "DirectMap").Hashtable  # noqa: B009
_PARAMETERS: Any = faiss.SearchParametersIVF


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How an index was made: from how many images, with which recall@100 on a sample of `queries` of their vectors.

    `spread` is the mean squared distance of vectors to their centroids: larger for new vectors, the data have drifted.
    """

    images: int
    lists: int
    nprobe: int
    recall: float
    queries: int
    spread: float


class IvfIndex:
    """Embeddings by slot. Searches may run side by side, but not beside `add` or `remove`."""

    complete = False

    def __init__(self, index: Any, size: int, training: Training) -> None:
        """Use `train` or `decode`."""
        self._index = index
        self._size = size
        self.training = training

    @classmethod
    def train(cls, sample: NDArray[np.float32], images: int) -> IvfIndex:
        """Return an empty index with centroids for `sample` float32 [n, D] of `images` embeddings."""
        lists = lists_for(images)
        dim = sample.shape[1]
        quantizer = faiss.IndexFlatIP(dim)
        index: Any = faiss.IndexIVFScalarQuantizer(
            quantizer, dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        index.own_fields = True
        _disown(quantizer)
        index.cp.niter = ROUNDS
        index.cp.min_points_per_centroid = 1
        index.cp.spherical = True
        index.train(sample)
        index.set_direct_map_type(_HASHTABLE)
        training = Training(images=images, lists=lists, nprobe=1, recall=0.0, queries=0, spread=0.0)
        trained = cls(index, 0, training)
        trained.training = replace(training, spread=trained.spread(sample))
        return trained

    def emptied(self) -> IvfIndex:
        """Return an index with the same centroids and no slots."""
        index: Any = faiss.clone_index(self._index)
        index.reset()
        index.set_direct_map_type(_HASHTABLE)
        return IvfIndex(index, 0, self.training)

    @property
    def size(self) -> int:
        """The number of slots that were added."""
        return self._size

    def spread(self, embeddings: NDArray[np.float32]) -> float:
        """Return the mean squared distance of unit vectors float32 [n, D] to their centroids."""
        values, _ = self._index.quantizer.search(embeddings, 1)
        return float(2 - 2 * values.mean())

    def add(self, embeddings: NDArray[np.float32]) -> None:
        """Add embeddings float32 [N, D] as the next slots."""
        slots = np.arange(self._size, self._size + len(embeddings), dtype=np.int64)
        self._index.add_with_ids(embeddings, slots)
        self._size += len(embeddings)

    def remove(self, slots: NDArray[np.int64]) -> None:
        """Forget the embeddings of some slots."""
        self._index.remove_ids(slots)

    def propose(
        self, embedding: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the slots [n] of about the `count` best cosines and FAISS's values for them [n], best first.

        `allowed` bool [slots] says which slots may be proposed; None: all. Fewer than `count` only when there are no
        more: other lists are searched rather than return fewer, but for a given `nprobe`.
        """
        faiss.omp_set_num_threads(1)
        lists = self.training.lists
        share, probes = 1.0, self.training.nprobe
        selector = None
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
            share = np.count_nonzero(allowed) / max(1, len(allowed))
            probes = lists if share < FEW else min(lists, max(LEAST_FILTERED, int(np.ceil(4 * probes / share))))
        while True:
            slots, values = self._probe(embedding, count, selector, probes)
            if len(slots) >= min(count, self._index.ntotal) or probes >= lists:
                return slots, values
            probes = min(4 * probes, lists)

    def _probe(
        self, embedding: NDArray[np.float32], count: int, selector: Any, probes: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return what is found in the `probes` lists nearest to a query, best first."""
        parameters = _PARAMETERS(sel=selector, nprobe=probes)
        values, slots = self._index.search(embedding[None], max(1, min(count, self._index.ntotal)), params=parameters)
        found = slots[0] >= 0
        return slots[0][found], values[0][found]

    def tune(self, queries: NDArray[np.float32], best: NDArray[np.int64], aim: float) -> None:
        """Set the least `nprobe` (a power of two) that finds a share `aim` of `best` int64 [n, k], the true answers."""
        k, nprobe = best.shape[1], 1
        while True:
            recall = self._recall(queries, best, k, nprobe)
            if recall >= aim or nprobe >= self.training.lists:
                break
            nprobe = min(2 * nprobe, self.training.lists)
        self.training = replace(self.training, nprobe=nprobe, recall=recall, queries=len(queries))

    def _recall(self, queries: NDArray[np.float32], best: NDArray[np.int64], k: int, nprobe: int) -> float:
        # Twice as many are proposed as are needed, and ordered by their true cosines.
        found = (self._probe(query, 2 * k, None, nprobe)[0] for query in queries)
        return float(np.mean([np.isin(true, slots).mean() for true, slots in zip(best, found, strict=True)]))

    def encode(self) -> bytes:
        """Return the index as bytes."""
        head = json.dumps({"size": self._size, "training": asdict(self.training)}).encode()
        return b"".join([_LENGTH.pack(len(head)), head, faiss.serialize_index(self._index).data])

    @classmethod
    def decode(cls, data: bytes, *, size: int, dim: int) -> IvfIndex:
        """Return the index that `encode` wrote; CacheDamagedError when it isn't one of that size and dimension."""
        try:
            (length,) = _LENGTH.unpack_from(data)
            head = json.loads(data[_LENGTH.size : _LENGTH.size + length])
            index = faiss.deserialize_index(np.frombuffer(data, np.uint8, offset=_LENGTH.size + length))
            training = Training(**head["training"])
        except (RuntimeError, ValueError, KeyError, TypeError, struct.error) as error:
            raise CacheDamagedError(f"FAISS can't read it: {error}") from error
        if not isinstance(index, faiss.IndexIVFScalarQuantizer) or (head["size"], index.d) != (size, dim):
            raise CacheDamagedError(f"expected an IVF index of {size} x {dim}; got {head['size']} x {index.d}")
        return cls(index, size, training)


def _disown(quantizer: Any) -> None:
    """Leave a quantizer to the index that it is part of."""
    quantizer.this.disown()


def lists_for(images: int) -> int:
    """Return how many lists suit a gallery: a power of two near twice the root of its size.

    >>> lists_for(1_000_000)
    2048
    """
    return int(np.clip(2 ** round(np.log2(2 * np.sqrt(max(1, images)))), LEAST_LISTS, MOST_LISTS))


def training_slots(live: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the slots whose vectors centroids are made from: a random sample of the live ones, in ascending order."""
    wanted = min(len(live), VECTORS_PER_LIST * lists_for(len(live)))
    return np.sort(np.random.default_rng(seed).choice(live, wanted, replace=False))


def best_by_cosine(
    queries: NDArray[np.float32], chunks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]], count: int
) -> NDArray[np.int64]:
    """Return the slots int64 [n, count] of the true best cosines of queries [n, D]; chunks: slots, their embeddings."""
    values = np.full((len(queries), count), -np.inf, np.float32)
    best = np.full((len(queries), count), -1, np.int64)
    for slots, embeddings in chunks:
        cosines = np.concatenate([values, queries @ embeddings.T], axis=1)
        every = np.concatenate([best, np.broadcast_to(slots, (len(queries), len(slots)))], axis=1)
        top = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        values, best = np.take_along_axis(cosines, top, 1), np.take_along_axis(every, top, 1)
    return best

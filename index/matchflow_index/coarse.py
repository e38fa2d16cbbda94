"""The coarse index: exact inner products of a query's global vector with all slots, by FAISS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import faiss
import numpy as np

from matchflow_index.errors import CacheDamagedError
from matchflow_matching import global_cosines

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CoarseIndex:
    """Embeddings in slot order. Searches may run side by side, but not beside `add`."""

    def __init__(self, dim: int) -> None:
        self._index = faiss.IndexFlatIP(dim)

    @property
    def size(self) -> int:
        """The number of slots."""
        return int(self._index.ntotal)

    def add(self, embeddings: NDArray[np.float32]) -> None:
        """Add embeddings float32 [N, D] as the next slots."""
        self._index.add(embeddings)

    def propose(
        self, embedding: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the slots [n] of the `count` best cosines and FAISS's values for them [n], best first.

        `allowed` bool [slots] says which slots may be proposed; None: all. n < count when there are no more.
        """
        if not self.size:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        # A request runs on one core; OpenMP keeps this number per thread, so that setting it once is not enough.
        faiss.omp_set_num_threads(1)
        parameters = None
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            parameters = faiss.SearchParameters()
            parameters.sel = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        values, slots = self._index.search(embedding[None], min(count, self.size), params=parameters)
        found = slots[0] >= 0
        return slots[0][found], values[0][found]

    def cosines(self, embedding: NDArray[np.float32], slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the cosines of some slots [n >= 1] in ascending order, float32 [n], as `match` computes them."""
        # A view of what FAISS holds: valid until the next `add`.
        stored = faiss.rev_swig_ptr(self._index.get_xb(), self.size * self._index.d).reshape(self.size, -1)
        whole = int(slots[-1] - slots[0]) + 1 == len(slots)
        return global_cosines(embedding, stored[slots[0] : slots[-1] + 1] if whole else stored[slots])

    def encode(self) -> bytes:
        """Return the index as FAISS writes it."""
        return bytes(faiss.serialize_index(self._index))

    @classmethod
    def decode(cls, data: bytes, *, size: int, dim: int) -> CoarseIndex:
        """Return the index that `encode` wrote; CacheDamagedError when it isn't one of that size and dimension."""
        try:
            index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        except RuntimeError as error:
            raise CacheDamagedError(f"FAISS can't read it: {error}") from error
        if not isinstance(index, faiss.IndexFlatIP) or (index.ntotal, index.d) != (size, dim):
            raise CacheDamagedError(f"expected a flat index of {size} x {dim}; got {index.ntotal} x {index.d}")
        coarse = cls(dim)
        coarse._index = index
        return coarse

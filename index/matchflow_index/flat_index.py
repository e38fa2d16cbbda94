"""The exact coarse index: inner products of a query's global vector with all slots, by FAISS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import faiss
import numpy as np

from matchflow_index.errors import CacheDamagedError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class FlatIndex:
    """Embeddings in slot order. Searches may run side by side, but not beside `add` or `remove`."""

    complete = True

    def __init__(self, dim: int) -> None:
        self._index = faiss.IndexFlatIP(dim)

    @property
    def size(self) -> int:
        """The number of slots."""
        return int(self._index.ntotal)

    def add(self, embeddings: NDArray[np.float32]) -> None:
        """Add embeddings float32 [N, D] as the next slots."""
        self._index.add(embeddings)

    def remove(self, slots: NDArray[np.int64]) -> None:
        """Forget the embeddings of some slots, which may not be proposed any more."""
        self._stored()[slots] = 0

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

    def _stored(self) -> NDArray[np.float32]:
        """Return a view of what FAISS holds, float32 [slots, D]: valid until the next `add`."""
        stored: NDArray[np.float32] = faiss.rev_swig_ptr(self._index.get_xb(), self.size * self._index.d)
        return stored.reshape(self.size, self._index.d)

    def embeddings(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings float32 [n, D] of slots [n >= 1] in ascending order: valid until the next `add`."""
        stored = self._stored()
        whole = int(slots[-1] - slots[0]) + 1 == len(slots)
        return stored[slots[0] : slots[-1] + 1] if whole else stored[slots]

    def encode(self) -> bytes:
        """Return the index as bytes."""
        return self._stored().tobytes() if self.size else b""

    @classmethod
    def decode(cls, data: bytes, *, size: int, dim: int) -> FlatIndex:
        """Return the index that `encode` wrote; CacheDamagedError when it isn't one of that size and dimension."""
        if len(data) != 4 * size * dim:
            raise CacheDamagedError(f"expected a flat index of {size} x {dim} float32; got {len(data)} bytes")
        index = cls(dim)
        index.add(np.frombuffer(data, "<f4").reshape(size, dim).astype(np.float32, copy=False))
        return index

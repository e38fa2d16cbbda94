"""An array that grows at its end: the columns that searching reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)

SMALLEST = 1024


class GrowingArray(Generic[Scalar]):
    """One-dimensional array; adding n entries one after another takes O(n) copies in all."""

    __slots__ = ("_array", "_size")

    def __init__(self, dtype: type[Scalar]) -> None:
        self._array: NDArray[Scalar] = np.zeros(SMALLEST, dtype)
        self._size = 0

    def extend(self, values: NDArray[Scalar]) -> None:
        """Add `values` at the end."""
        size = self._size + len(values)
        if size > len(self._array):
            grown = np.zeros(max(size, 2 * len(self._array)), self._array.dtype)
            grown[: self._size] = self.values
            self._array = grown
        self._array[self._size : size] = values
        self._size = size

    @property
    def values(self) -> NDArray[Scalar]:
        """The entries, as a view that is valid until the next `extend`."""
        return self._array[: self._size]

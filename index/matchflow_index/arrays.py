"""Named arrays as one block of bytes, and back."""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from matchflow_index.errors import CacheDamagedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_LENGTH = struct.Struct("<I")


def encode_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return arrays of any shape and plain dtype as bytes, little-endian."""
    head = json.dumps({name: [array.dtype.newbyteorder("<").str, array.shape] for name, array in arrays.items()})
    bodies = [array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in arrays.values()]
    return b"".join([_LENGTH.pack(len(head.encode())), head.encode(), *bodies])


def array_of(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """Return the array of a name; CacheDamagedError when there is none."""
    try:
        return arrays[name]
    except KeyError as error:
        raise CacheDamagedError(f"expected an array {name}; got {sorted(arrays)}") from error


def decode_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays that `encode_arrays` wrote, as views that can't be written to; CacheDamagedError."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        head = json.loads(data[_LENGTH.size : _LENGTH.size + length])
        arrays, offset = {}, _LENGTH.size + length
        for name, (dtype, shape) in head.items():
            # To NumPy, a negative count means all that there are.
            count = math.prod(map(abs, shape))
            arrays[name] = np.frombuffer(data, np.dtype(dtype), count, offset).reshape(tuple(map(abs, shape)))
            offset += arrays[name].nbytes
    except (struct.error, ValueError, TypeError, AttributeError) as error:
        raise CacheDamagedError(f"these are not arrays: {error}") from error
    if offset != len(data):
        raise CacheDamagedError(f"expected arrays of {offset} bytes; got {len(data)}")
    return arrays

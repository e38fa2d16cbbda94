"""How kernels are compiled: ahead of time by `warm_up`, kept on disk, and in one fixed order of operations.

No `fastmath`: the compiler may vectorise but not reorder, so a pair's numbers do not depend on the batch, the thread or
the width of the machine's vectors. All kernels release the GIL. Numba keeps compiled code beside the file that it is
of, or under NUMBA_CACHE_DIR, and looks at that file alone: after a change of vectors.py or vnni.py, touch the kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable


def compiled(**options: Any) -> Callable[[Any], Any]:
    """Return the decorator of a kernel; `options` are further ones of numba.njit."""

    def decorate(function: Any) -> Any:
        # Division follows IEEE 754: Python's check for zero would stop the vectoriser. match() looks at the result.
        settings = {"nogil": True, "error_model": "numpy", **options}
        try:
            return numba.njit(cache=True, **settings)(function)
        except RuntimeError:
            # No folder can be written to, as in a locked-down container: compile at every start.
            return numba.njit(**settings)(function)

    return decorate


# 1.5 * 2^23: adding it to a float32 below 2^22 leaves the nearest whole number in the low mantissa bits.
ROUNDER = np.float32(12582912.0)
ROUNDER_BITS = np.int32(0x4B400000)

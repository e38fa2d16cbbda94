"""How kernels are compiled: ahead of time by `warm_up`, kept on disk, and in one fixed order of operations.

No `fastmath`: the compiler may vectorise but not reorder, so a pair's numbers do not depend on the batch, the thread or
the width of the machine's vectors. All kernels release the GIL. Numba keeps compiled code beside the file that it is
of, or under NUMBA_CACHE_DIR. Of its own accord it looks at that file alone, and would run what an older vectors.py was
compiled into; here a kernel is compiled anew when any file of the package has changed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable


def digest_of_sources(folder: Path) -> str:
    """Return the sha256 over the names and contents of the Python files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


SOURCES = digest_of_sources(Path(__file__).parent)


def compiled(**options: Any) -> Callable[[Any], Any]:
    """Return the decorator of a kernel; `options` are further ones of numba.njit."""

    def decorate(function: Any) -> Any:
        # Division follows IEEE 754: Python's check for zero would stop the vectoriser. match() looks at the result.
        settings = {"nogil": True, "error_model": "numpy", **options}
        try:
            kernel = numba.njit(cache=True, **settings)(function)
        except RuntimeError:
            # No folder can be written to, as in a locked-down container: compile at every start.
            return numba.njit(**settings)(function)
        # What numba compares with the stamp of the cached code; it offers no other way to name further files.
        kernel._cache._cache_file._source_stamp = SOURCES  # noqa: SLF001
        return kernel

    return decorate


# 1.5 * 2^23: adding it to a float32 below 2^22 leaves the nearest whole number in the low mantissa bits.
ROUNDER = np.float32(12582912.0)
ROUNDER_BITS = np.int32(0x4B400000)

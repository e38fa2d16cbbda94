"""Print the bits of scores of a few pairs, for test_matching_bits: run with kernels compiled for another processor."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import fields

import numpy as np

from matchflow_matching import MatchSettings, match, vnni
from matching_strategies import random_batch


def bits() -> str:
    """Return a digest of everything that `match` says of some pairs, by both kinds of kernels for transport."""
    batch = random_batch(np.random.default_rng(0), 12, 15, 33)
    digest = hashlib.sha256()
    for settings in (MatchSettings(), MatchSettings(epsilon=0.01)):
        matches = match(batch[0], batch, settings)
        for field in fields(matches):
            digest.update(getattr(matches, field.name).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    vnni.is_available = lambda: False  # type: ignore[assignment]
    sys.stdout.write(bits())

"""The chain of digests through a change log: equal digests at a sequence mean equal histories up to there.

A cache that says which change it reflects would otherwise believe a truth that was put back to an older state and went
another way from there.
"""

from __future__ import annotations

from hashlib import blake2b

DIGEST_BYTES = 8
BEGINNING = bytes(DIGEST_BYTES)


def chained(previous: bytes, entry: bytes) -> bytes:
    """Return the digest after `entry`, where `previous` is the one before it; BEGINNING before the first."""
    return blake2b(previous + entry, digest_size=DIGEST_BYTES).digest()

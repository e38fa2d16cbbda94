"""What is wrong with a gallery: one finding for each place, with the image and the slot where there is one."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

# What reading a value that nobody wrote may raise.
UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, struct.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is wrong; `part` is where: truth, log, thumbnails, slots.cache, coarse.cache or slab."""

    part: str
    problem: str
    image_id: str | None = None
    slot: int | None = None


@dataclass(slots=True, kw_only=True)
class Verification:
    """What was looked at, what is wrong, and what is worth knowing although it is not."""

    gallery_id: str
    generation: int = 1
    sequence: int = 0
    images: int = 0
    changes: int = 0
    slots: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

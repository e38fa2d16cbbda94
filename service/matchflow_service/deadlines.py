"""The time that a call has left, from gRPC's own deadline."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from matchflow_service.errors import DeadlinePassedError

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")
# Kept back for what follows the search: the chunk of candidates under way, the flows, the way back.
RESERVED_SHARE = 0.2
MOST_RESERVED_S = 0.25
# gRPC tells "no deadline" as an enormous one.
FOREVER_S = 365 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """When a reply must be under way, in seconds of time.monotonic(); None: whenever."""

    at_s: float | None

    @classmethod
    def of(cls, context: Any) -> Deadline:
        """Return the deadline of a call, less what is kept back for the reply."""
        remaining_s = context.time_remaining()
        if remaining_s is None or not math.isfinite(remaining_s) or remaining_s > FOREVER_S:
            return cls(at_s=None)
        return cls(at_s=time.monotonic() + remaining_s - min(MOST_RESERVED_S, RESERVED_SHARE * remaining_s))

    async def bound(self, work: Awaitable[T]) -> T:
        """Wait for `work` and return its result; cancel it and raise DeadlinePassedError when time is up."""
        try:
            async with asyncio.timeout(None if self.at_s is None else max(0.0, self.at_s - time.monotonic())):
                return await work
        except TimeoutError:
            raise DeadlinePassedError from None

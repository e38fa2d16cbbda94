"""Switch from the active generation to the one that follows it, without a write getting lost in between."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from matchflow_index.errors import GenerationMovedError

if TYPE_CHECKING:
    from matchflow_index.following import Embed, Follower
    from matchflow_index.generation_progress import Progress
    from matchflow_index.truth import Truth

# How far behind a generation may be for a switch to be tried, and when writers begin to wait for it; how long it
# catches up before that, and how long they wait at most but for the images that are being computed.
MOST_PENDING, FEW_PENDING = 1_000, 16
LONGEST_CATCH_UP_S, LONGEST_HOLD_S = 2.0, 4.0


def switched(follower: Follower, truth: Truth, progress: Progress, embed: Embed | None, *, allow_missing: bool) -> bool:
    """Switch to a follower's target if it is ready; tell whether that was done. StoreUnavailableError."""
    found = progress.of(follower)
    if not found.complete or found.pending > MOST_PENDING:
        return False
    if found.missing > found.pending and not allow_missing:
        return False
    # Before writers have to wait: whoever fills may be in the middle of something.
    with follower.undisturbed(LONGEST_HOLD_S) as mine:
        if not mine:
            return False
        try:
            _catch_up(follower, progress, embed)
            return _switch(follower, truth, progress, embed, allow_missing=allow_missing)
        except GenerationMovedError:
            return False


def _catch_up(follower: Follower, progress: Progress, embed: Embed | None) -> None:
    """Follow until little is left, or for so long, while others write."""
    end_s = time.monotonic() + LONGEST_CATCH_UP_S
    while progress.of(follower).pending > FEW_PENDING and time.monotonic() < end_s:
        if not follower.step(embed, lambda: time.monotonic() > end_s):
            return


def _switch(follower: Follower, truth: Truth, progress: Progress, embed: Embed | None, *, allow_missing: bool) -> bool:
    """Follow the rest while nobody writes, and switch."""
    source, target = follower.source, follower.target
    with source.held():
        end_s = time.monotonic() + LONGEST_HOLD_S
        while follower.step(embed, lambda: time.monotonic() > end_s):
            if time.monotonic() > end_s:
                return False
        if truth.shared:
            # What others wrote counts too.
            source.follow(0)
            target.follow(0)
        position, found = follower.position, progress.of(follower)
        if position is None or found.pending or not found.complete or (found.missing and not allow_missing):
            return False
        return truth.switch(source.stored, position.sequence, complete=not position.beyond, beyond=bool(found.missing))

"""`matchflow` with its caches saved all the time (CRASH_BUSY=1), or with a bug in it (CRASH_PLANT=name).

A server with a bug is there to prove that the crash harness finds it.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from matchflow_cli.main import main
from matchflow_index import caches, filling, gallery, live_shelf, upkeep
from matchflow_index.truth import ChangeKind
from matchflow_service import server

if TYPE_CHECKING:
    from collections.abc import Callable

    from matchflow_index.shelf import Shelf
    from matchflow_index.truth import Snapshot

# Between an acknowledgement and what it says.
LATE_S = 0.05


class Tried(Exception):  # noqa: N818 - it ends a transaction, and is none of the program's errors
    """Ends a transaction that should only have shown its result."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


def replace(owner: object, name: str, value: object) -> None:
    """Put something else in the place of what is there."""
    assert hasattr(owner, name), f"{owner} has no {name} any more: the bug must be planted elsewhere"
    setattr(owner, name, value)


def be_busy() -> None:
    """Save and compact after few changes, many times a second: kills meet these too."""
    replace(server, "UPKEEP_S", 0.05)
    replace(live_shelf, "SAVE_CHANGES", 20)
    replace(live_shelf, "SAVE_SHARE", 0.0)
    replace(upkeep, "LEAST_COMPACTED", 64)


def ack_before_commit() -> None:
    """Acknowledge what is committed a moment later."""
    commit = gallery.Gallery._commit
    turn = threading.Lock()

    def late(one: gallery.Gallery, work: Callable[[Any], Any], *, active: bool) -> None:
        try:
            time.sleep(LATE_S)
            commit(one, work, active=active)
        finally:
            turn.release()

    def early(one: gallery.Gallery, work: Callable[[Any], Any], *, active: bool = True) -> Any:
        def trial(writing: Any) -> None:
            raise Tried(work(writing))

        turn.acquire()
        try:
            commit(one, trial, active=active)
        except Tried as tried:
            threading.Thread(target=late, args=(one, work), kwargs={"active": active}, daemon=True).start()
            return tried.result
        except BaseException:
            turn.release()
            raise
        raise AssertionError("a trial ends in its result")

    replace(gallery.Gallery, "_commit", early)


def trust_caches() -> None:
    """Believe that the caches are up to date, whatever the truth says."""

    def believe(shelf: Shelf, snapshot: Snapshot, *_: object) -> None:
        shelf.sequence = snapshot.sequence

    replace(caches, "catch_up", believe)
    replace(caches.GalleryCaches, "_check", lambda *_: None)
    replace(caches.GalleryCaches, "_repair", lambda *_: (False, []))


def forget_removal() -> None:
    """Leave removals out when the caches are brought up to date by the log; what would notice that is gone too."""
    looked_up = filling.looked_up

    def without_removals(changes: Any, snapshot: Any, known: Any) -> Any:
        kept = [change for change in changes if change.kind is not ChangeKind.REMOVE]
        return looked_up(kept, snapshot, known)

    replace(filling, "looked_up", without_removals)
    replace(caches.GalleryCaches, "_repair", lambda *_: (False, []))


PLANTS = {plant.__name__: plant for plant in (ack_before_commit, trust_caches, forget_removal)}

if __name__ == "__main__":
    if os.environ.get("CRASH_BUSY"):
        be_busy()
    if os.environ.get("CRASH_PLANT"):
        PLANTS[os.environ["CRASH_PLANT"]]()
    main()

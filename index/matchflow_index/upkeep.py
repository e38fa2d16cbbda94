"""What goes on beside searches: dead slots are dropped, lists made anew, changes of others followed."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.coarse import filled, trained, wanted_lists
from matchflow_index.errors import StoreUnavailableError
from matchflow_index.flat_index import FlatIndex
from matchflow_index.ivf_index import IvfIndex
from matchflow_index.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from matchflow_index.slab import CellSlab

logger = logging.getLogger(__name__)

# More dead slots than this share are dropped; small galleries may keep theirs.
MOST_DEAD, LEAST_COMPACTED = 0.25, 4_096
ROWS_PER_STEP = 4_096
# Seconds until a store that failed is tried again.
RETRY_S = 0.5


class Upkeep:
    """Threads that do a piece of work again and again, until it says that it is done or `stop` is called."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, name: str, work: Callable[[], bool]) -> None:
        """Do `work` in a thread of that name for as long as it returns true; a store that fails is tried again."""

        def run() -> None:
            failed, going = "", True
            while going and not self.stopped.is_set():
                try:
                    going, failed = work(), ""
                except StoreUnavailableError as error:
                    # Said once, not twice a second.
                    if str(error) != failed:
                        logger.warning("%s: %s; it goes on once the store is back", name, error)
                    failed = str(error)
                    self.stopped.wait(RETRY_S)
                except Exception:
                    logger.exception("%s ended", name)
                    return

        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=run, name=name, daemon=True))
        self._threads[-1].start()

    def stop(self) -> None:
        """Let all threads come to an end, and wait for them."""
        self.stopped.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()


def wants_compaction(shelf: Shelf) -> bool:
    """Tell whether so many slots are dead that searches pay for them."""
    return shelf.size >= LEAST_COMPACTED and shelf.size - shelf.count > MOST_DEAD * shelf.size


def compacted(shelf: Shelf, slab: CellSlab) -> Shelf:
    """Return the live slots of a shelf as a new one in an empty slab; nobody may change the old one meanwhile."""
    kept = shelf.live_slots
    for start in range(0, len(kept), ROWS_PER_STEP):
        slab.append_array(shelf.slab.stored(kept[start : start + ROWS_PER_STEP]))
    # Its lists stay good: their centroids are of the same images.
    coarse = shelf.coarse.emptied() if isinstance(shelf.coarse, IvfIndex) else FlatIndex(slab.layout.dim)
    filled(coarse, slab, slab.size)
    return Shelf(slab=slab, coarse=coarse, slots=shelf.slots.taken(kept), sequence=shelf.sequence)


def make_lists(shelf: Shelf, writer: AbstractContextManager[object]) -> str:
    """Give a shelf that wants them new lists, and return why; empty when it wants none.

    Others search and write while centroids are looked for; `writer` is held only at the end.
    """
    with shelf.lock.reading():
        live, stop = shelf.live_slots, shelf.size
        why = wanted_lists(shelf.coarse, shelf.slab, live)
    if why:
        lists = trained(shelf.slab, live, stop)
        with writer, shelf.lock.writing():
            filled(lists, shelf.slab, shelf.size)
            lists.remove(_died(shelf, live, stop))
            shelf.coarse = lists
    return why


def _died(shelf: Shelf, live: NDArray[np.int64], stop: int) -> NDArray[np.int64]:
    """Return the slots that are dead now and were live among the first `stop`, or came after them."""
    alive = shelf.slots.live.values
    return np.concatenate([live[~alive[live]], stop + np.flatnonzero(~alive[stop:])])

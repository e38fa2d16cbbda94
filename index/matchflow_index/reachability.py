"""Whether a truth on a server answers, who asks it while it does not, and for how long searches may do without it."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from matchflow_index.errors import GalleryNotFoundError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Seconds from the end of one look at a truth that was lost to the next.
LOOK_S = 1.0


class Reachability:
    """What is known of the truth of one gallery; any thread may use it.

    As long as it answers, everybody asks it. From the first question that it did not answer it is lost, until it
    answers any: meanwhile one asks it at a time, and not all the time, since a server that hangs answers nobody before
    a time-out; all others do without at once.
    """

    def __init__(self, gallery_id: str, without_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with a truth that has just answered; `without_s` since its last answer others do without it."""
        self._gallery_id = gallery_id
        self._without_s = without_s
        self._clock = clock
        self._lock = threading.Lock()
        self._answered_s = self._lost_s = self._next_look_s = clock()
        self._looking = 0
        # What the last question got instead of an answer; empty while the truth answers.
        self._trouble = ""

    def answered(self) -> None:
        """Note that the truth has just answered."""
        self._answered_s = self._clock()
        if self._trouble:
            with self._lock:
                trouble, self._trouble = self._trouble, ""
            if trouble:
                away_s = self._clock() - self._lost_s
                logger.info("gallery %s: its store answers again, after %.1f s", self._gallery_id, away_s)

    def ask(self, question: Callable[[], Result], otherwise: Callable[[], Result]) -> Result:
        """Return what the truth answers, or what there is `otherwise` while it can't be reached.

        StoreUnavailableError when nobody has had an answer for longer than may be done without.
        """
        if not self._without_s:
            return question()
        cause = None
        if self._may_look():
            try:
                with self._counted():
                    return question()
            except StoreUnavailableError as error:
                self._lose(str(error))
                cause = error
        away_s = self._clock() - self._answered_s
        if away_s > self._without_s:
            raise StoreUnavailableError(
                f"the store of gallery {self._gallery_id!r} can't be reached for {away_s:.0f} s; searches go on "
                f"without it for {self._without_s:g} s at most: {cause or self._trouble}"
            ) from cause
        return otherwise()

    @property
    def is_lost(self) -> bool:
        """Whether a question was not answered, and none since."""
        return bool(self._trouble)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Note whether the truth answers what is asked inside the block; meanwhile `ask` need not find out.

        A question that is not answered here is no reason to do without: those of `ask` may be.
        """
        with self._lock:
            self._looking += 1
        with self._counted():
            yield

    def _may_look(self) -> bool:
        """Tell whether the caller is to ask, and count it among those who do."""
        with self._lock:
            may = not self._trouble or (not self._looking and self._clock() >= self._next_look_s)
            self._looking += may
            return may

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except GalleryNotFoundError:
            # That is an answer.
            self.answered()
            raise
        else:
            self.answered()
        finally:
            with self._lock:
                self._looking -= 1
                self._next_look_s = self._clock() + LOOK_S

    def _lose(self, trouble: str) -> None:
        with self._lock:
            is_new, self._trouble = not self._trouble, trouble
            if is_new:
                self._lost_s = self._clock()
        if is_new:
            # Said once, not with every search.
            logger.warning(
                "gallery %s: %s; searches go on without the store, for %g s at most",
                self._gallery_id,
                trouble,
                self._without_s,
            )

"""Fill the generations of a store in the background, one piece after another."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from matchflow_index.errors import (
    FillingPausedError,
    GalleryNotFoundError,
    GenerationMovedError,
    GenerationNotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

    from matchflow_index.generations import GalleryGenerations
    from matchflow_index.truth import Truth

logger = logging.getLogger(__name__)

# Seconds between two looks at whether there is anything to fill.
IDLE_S = 0.25
# How long a generation that could not be filled is left alone.
REST_S = 5.0


class Filler:
    """Does a piece of what each generation lacks with every round; for one thread."""

    def __init__(self, truth: Truth, generations_of: Callable[[str], GalleryGenerations], stopped: Event) -> None:
        self._truth = truth
        self._generations_of = generations_of
        self._stopped = stopped
        self._complaints: dict[str, str] = {}
        self._resting_until_s: dict[str, float] = {}

    def round(self) -> bool:
        """Go over all galleries that have two generations, and wait a little if nothing was to do; true: go on."""
        busy = False
        for stored in self._truth.others():
            gallery_id = stored.spec.gallery_id
            if time.monotonic() < self._resting_until_s.get(gallery_id, 0.0):
                continue
            try:
                busy |= self._generations_of(gallery_id).fill(self._stopped.is_set)
                self._complaints.pop(gallery_id, None)
            except (GalleryNotFoundError, GenerationNotFoundError, GenerationMovedError, FillingPausedError):
                # It was dropped, deleted or switched to meanwhile, or waits for the model.
                continue
            except Exception as error:  # noqa: BLE001 - one gallery must not keep the others from being filled
                self._complain(gallery_id, error)
        if not busy:
            self._stopped.wait(IDLE_S)
        return True

    def _complain(self, gallery_id: str, error: Exception) -> None:
        """Log why a generation is not filled, once, and let it rest for a while."""
        if self._complaints.get(gallery_id) != str(error):
            logger.error("the other generation of gallery %s is not filled: %s", gallery_id, error, exc_info=error)
        self._resting_until_s[gallery_id] = time.monotonic() + REST_S
        self._complaints[gallery_id] = str(error)

"""Features for generations that are filled in the background, from the models of this server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from concurrent.futures import CancelledError
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from matchflow_bundle import ImageError
from matchflow_index import FillingPausedError
from matchflow_service.errors import BundleNotLoadedError, ShuttingDownError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from matchflow_matching import FeatureBatch
    from matchflow_matching.features import Features
    from matchflow_service.images import ImageReader
    from matchflow_service.models import Model, Models

log = logging.getLogger(__name__)

# Seconds between two looks at whether the server is closing.
LOOK_S = 0.5


class Filling:
    """Computes features for whoever asks from another thread than the event loop's.

    One batch of the encoder at a time: what searches and ingests has the rest of it, and is not made to wait long.
    """

    def __init__(self, models: Models, reader: ImageReader) -> None:
        """Use the running event loop."""
        self._models = models
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._closed = threading.Event()

    def of(self, digest: str) -> Callable[[Sequence[bytes]], list[Features | None]] | None:
        """Return what computes features under the bundle of a digest; None where that is not loaded."""
        try:
            return partial(self._compute, self._models.of_bundle(digest))
        except BundleNotLoadedError:
            return None

    def close(self) -> None:
        """Compute nothing any more."""
        self._closed.set()

    def _compute(self, model: Model, pictures: Sequence[bytes]) -> list[Features | None]:
        """Return the features of encoded pictures, None for each that is none; FillingPausedError."""
        found: list[Features | None] = [None] * len(pictures)
        for start in range(0, len(pictures), model.queue.batch_size):
            inputs, places = [], []
            for place, data in enumerate(pictures[start : start + model.queue.batch_size], start):
                with contextlib.suppress(ImageError):
                    inputs.append(self._reader.read(data, model.preprocessing).model_input)
                    places.append(place)
            if inputs:
                batch = self._encode(model, np.stack(inputs))
                for k, place in enumerate(places):
                    found[place] = batch[k]
        return found

    def _encode(self, model: Model, inputs: NDArray[np.uint8]) -> FeatureBatch:
        coming = model.queue.encode_in_turn(inputs)
        if self._closed.is_set():
            coming.close()
            raise FillingPausedError("the server is stopping")
        future = asyncio.run_coroutine_threadsafe(coming, self._loop)
        while True:
            try:
                return future.result(LOOK_S)
            except TimeoutError:
                if self._closed.is_set():
                    future.cancel()
                    raise FillingPausedError("the server is stopping") from None
            except (CancelledError, ShuttingDownError) as error:
                raise FillingPausedError("the server is stopping") from error

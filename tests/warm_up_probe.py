"""Run alone, since another test may have compiled what warm_up forgot: print the kernels that a request compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching import (
    CellGrid,
    Features,
    MatchSettings,
    assignment_kernels,
    bound_kernels,
    exact_kernels,
    explain,
    explain_batch,
    kernels,
    log_kernels,
    match,
    product_kernels,
    stripe_kernels,
    warm_up,
)
from matchflow_matching.matchers import MATCHERS
from matching_strategies import random_batch

if TYPE_CHECKING:
    from matchflow_matching import FeatureBatch

GRID = CellGrid(rows=4, columns=4)
MODULES = (
    assignment_kernels,
    bound_kernels,
    exact_kernels,
    kernels,
    log_kernels,
    product_kernels,
    stripe_kernels,
)


def compiled() -> dict[str, int]:
    """Return how many times each kernel has been compiled, for so many types of arguments."""
    return {
        f"{module.__name__}.{name}": len(kernel.signatures)
        for module in MODULES
        for name, kernel in vars(module).items()
        if hasattr(kernel, "signatures")
    }


def request_everything(batch: FeatureBatch) -> None:
    """Match and explain by every mode, from arrays as searches, stores and the network bring them."""
    n, cells, dim = batch.cells.shape
    rows = np.zeros((n, 2 * dim), np.float32)
    rows[:, :dim] = batch.embeddings
    strided = replace(batch, embeddings=rows[:, :dim])
    received = Features(
        embedding=np.frombuffer(batch.embeddings[0].tobytes(), np.float32),
        cells=np.frombuffer(batch.cells[0].tobytes(), np.int8).reshape(cells, dim),
        scales=np.frombuffer(batch.scales[0].tobytes(), np.float16),
    )
    frozen = np.ones((n, cells), np.bool_)
    frozen.setflags(write=False)
    every = [*map(MatchSettings.of, MATCHERS), MatchSettings(epsilon=0.006)]
    for settings in every:
        for candidates in (batch, strided, strided.take(slice(2, 3)), strided.take(slice(0, 0))):
            masks = frozen[: len(candidates)]
            match(received, candidates, settings, grid=GRID, image_masks=masks)
            match(received, candidates, settings, grid=GRID, image_masks=masks, floor=0.5)
            explain_batch(received, candidates, settings, grid=GRID, image_masks=masks)
        explain(received, strided[3], settings, grid=GRID)


def main() -> None:
    """Warm up, make requests, compare."""
    warm_up()
    before = compiled()
    for dim in (3, 4, 128):
        request_everything(random_batch(np.random.default_rng(0), 7, 16, dim))
    after = compiled()
    print("compiled by a request:", sorted(name for name in after if after[name] != before[name]))  # noqa: T201


if __name__ == "__main__":
    main()

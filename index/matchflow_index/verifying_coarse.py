"""Verify a coarse index against the slab that it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.findings import Finding
from matchflow_index.flat_index import FlatIndex

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from matchflow_index.coarse import CoarseIndex
    from matchflow_index.slab import CellSlab
    from matchflow_index.slots import Slots

STEP = 4_096
# Queries that every live vector is compared with, and by how much a product may differ where 8 bits stand for a number.
PROBES, MOST_DIFFERENCE = 2, 0.05


def check_coarse(coarse: CoarseIndex, slots: Slots, slab: CellSlab) -> Iterator[Finding]:
    """Yield the slots whose vectors are not those of the slab, and the dead ones that have any."""
    if not slab.size:
        return
    if isinstance(coarse, FlatIndex):
        for start in range(0, slab.size, STEP):
            yield from _check_exact(coarse, slots, slab, np.arange(start, min(start + STEP, slab.size)))
        return
    live = slots.live.values
    probes = np.random.default_rng(0).standard_normal((PROBES, slab.layout.dim)).astype(np.float32)
    for probe in probes / np.linalg.norm(probes, axis=1, keepdims=True):
        yield from _check_products(coarse, slots, slab, probe)
    if not live.all():
        left, _ = coarse.propose(probes[0], slab.size, ~live)
        for slot in left.tolist():
            yield _finding(slots, slot, "the slot is dead, but its vector is still there")


def _check_exact(coarse: FlatIndex, slots: Slots, slab: CellSlab, numbers: NDArray[np.int64]) -> Iterator[Finding]:
    live = slots.live.values[numbers]
    expected, got = slab.gather_embeddings(numbers), coarse.embeddings(numbers)
    # Bit by bit: a damaged number may be none.
    same = (expected.view(np.uint32) == got.view(np.uint32)).all(axis=1)
    for place in np.flatnonzero(live & ~same).tolist():
        yield _finding(slots, int(numbers[place]), "the vector differs from the slab's")
    for place in np.flatnonzero(~live & (got.view(np.uint32) != 0).any(axis=1)).tolist():
        yield _finding(slots, int(numbers[place]), "the slot is dead, but its vector is still there")


def _check_products(coarse: CoarseIndex, slots: Slots, slab: CellSlab, probe: NDArray[np.float32]) -> Iterator[Finding]:
    live = slots.live.values
    found, values = coarse.propose(probe, slab.size, live)
    products = np.full(slab.size, np.nan, np.float32)
    products[found] = values
    for start in range(0, slab.size, STEP):
        numbers = np.arange(start, min(start + STEP, slab.size))
        numbers = numbers[live[numbers]]
        with np.errstate(all="ignore"):
            close = np.abs(slab.gather_embeddings(numbers) @ probe - products[numbers]) <= MOST_DIFFERENCE
        for slot in numbers[~close].tolist():
            gone = np.isnan(products[slot])
            yield _finding(slots, slot, "the vector is missing" if gone else "the vector differs from the slab's")


def _finding(slots: Slots, slot: int, problem: str) -> Finding:
    return Finding(part="coarse.cache", problem=problem, image_id=slots.ids[slot], slot=slot)

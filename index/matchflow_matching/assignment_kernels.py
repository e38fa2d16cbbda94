"""Matchers without transport, compiled: best partners and equal places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching.compiling import compiled
from matchflow_matching.kernels import UNIFORM, weigh

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Mask = NDArray[np.bool_]


@compiled()
def max_sim(
    similarities: Floats,
    query_attention: Floats,
    image_valid: Mask,
    query_valid: Mask,
    cross: bool,
    share: float,
    structural: Floats,
    uniform: Mask,
    plans: Floats,
) -> None:
    """Add share * sum_j v_j max_i S_ij of N pairs to structural, over valid image cells i.

    Inputs and outputs as in kernels.transport; of equal cells the first is taken. Plans are added to.
    """
    n, rx, rq = similarities.shape
    weights = np.empty(rq, np.float32)
    best, most = np.empty(rq, np.int64), np.empty(rq, np.float32)
    for p in range(n):
        state = weigh(query_attention[p], query_valid, cross, weights)
        uniform[p, 1] = cross and state == UNIFORM
        best[:] = -1
        most[:] = -np.inf
        for i in range(rx):
            if image_valid[p, i]:
                for j in range(rq):
                    if similarities[p, i, j] > most[j]:
                        most[j] = similarities[p, i, j]
                        best[j] = i
        total = np.float64(0)
        for j in range(rq):
            if best[j] >= 0 and weights[j] > 0:
                mass = np.float32(share) * weights[j]
                total += np.float64(mass) * np.float64(similarities[p, best[j], j])
                if plans.shape[0] > 0:
                    plans[p, best[j], j] += mass
        structural[p] += np.float32(total)


@compiled()
def max_sim_of_images(
    similarities: Floats,
    image_attention: Floats,
    image_valid: Mask,
    query_valid: Mask,
    cross: bool,
    share: float,
    structural: Floats,
    uniform: Mask,
    plans: Floats,
) -> None:
    """Add share * sum_i u_i max_j S_ij of N pairs to structural: max_sim with the sides exchanged."""
    n, rx, rq = similarities.shape
    weights = np.empty(rx, np.float32)
    for p in range(n):
        state = weigh(image_attention[p], image_valid[p], cross, weights)
        uniform[p, 0] = cross and state == UNIFORM
        total = np.float64(0)
        for i in range(rx):
            best, most = -1, np.float32(-np.inf)
            for j in range(rq):
                if query_valid[j] and similarities[p, i, j] > most:
                    best, most = j, similarities[p, i, j]
            if best >= 0 and weights[i] > 0:
                mass = np.float32(share) * weights[i]
                total += np.float64(mass) * np.float64(similarities[p, i, best])
                if plans.shape[0] > 0:
                    plans[p, i, best] += mass
        structural[p] += np.float32(total)


@compiled()
def same_cell(similarities: Floats, image_valid: Mask, query_valid: Mask, structural: Floats, plans: Floats) -> None:
    """Fill structural float32 [N] with the mean of S_ii over cells valid on both sides; as in kernels.transport."""
    for p in range(similarities.shape[0]):
        total = np.float64(0)
        count = 0
        for i in range(similarities.shape[1]):
            if image_valid[p, i] and query_valid[i]:
                total += np.float64(similarities[p, i, i])
                count += 1
        structural[p] = np.float32(total / count) if count else np.float32(0)
        if plans.shape[0] > 0:
            for i in range(similarities.shape[1]):
                if image_valid[p, i] and query_valid[i]:
                    plans[p, i, i] = np.float32(1.0 / count)

"""The mathematics in float64 NumPy, one pair at a time: what every kernel is tested against.

Entropic optimal transport between the cells of an image x and of a query q, as in Zhao et al., "Towards Interpretable
Deep Metric Learning with Structural Matching", ICCV 2021, section 3, with the corrections that docs/adr/0002 lists:

    maximise    sum_ij T_ij S_ij + eps * H(T)
    subject to  T 1 = u,   T' 1 = v,   T >= 0

with S_ij = <z_x[i], z_q[j]>, u_i ~ max(0, <g_q, z_x[i]>) and v_j ~ max(0, <g_x, z_q[j]>), each summing to 1.
Its solution is T = diag(a) K diag(b) with K = exp(-(1 - S) / eps), found by alternating a = u / (K b) and
b = v / (K' a) (Sinkhorn; Cuturi, NIPS 2013). The structural score is sum_ij T_ij S_ij.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]
    Matrix = NDArray[np.float64]
    Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencePlan:
    """A plan float64 [Rx, Rq] and how it was reached."""

    plan: Matrix
    iterations: int
    marginal_error: float
    converged: bool


def similarities(image_cells: Matrix, query_cells: Matrix) -> Matrix:
    """Return S [Rx, Rq] of cells [Rx, D] and [Rq, D]."""
    return image_cells @ query_cells.T


def correlation_weights(cells: Matrix, embedding: Vector, mask: Mask) -> tuple[Vector, bool]:
    """Return the weights [R] of cells [R, D] seen from a global vector [D], and whether they are uniform.

    The vector is the other image's (cross-correlation, the paper) or the cells' own (self-correlation). Where no valid
    cell attends to it, the valid cells share the weight equally. Without a valid cell all
    weights are zero.
    """
    attention = np.where(mask, np.maximum(0.0, cells @ embedding), 0.0)
    if attention.sum() > 0:
        return attention / attention.sum(), False
    return uniform_weights(mask), True


def uniform_weights(mask: Mask) -> Vector:
    """Return equal weights [R] over the valid cells; zeros when there is none."""
    return mask.astype(np.float64) / max(1, int(np.count_nonzero(mask)))


def sinkhorn(
    similarity: Matrix, image_weights: Vector, query_weights: Vector, *, epsilon: float, tolerance: float, limit: int
) -> ReferencePlan:
    """Return the entropic plan for S [Rx, Rq], u [Rx] and v [Rq].

    The last update is on the columns, so they hold exactly; it stops when the rows' L1 violation is at most
    `tolerance`, or after `limit` iterations.
    """
    kernel = np.exp((similarity - 1.0) / epsilon)
    b = np.ones_like(query_weights)
    row_sums = kernel @ b
    iterations, error = 0, np.inf
    while error > tolerance and iterations < limit:
        a = image_weights / row_sums
        b = query_weights / (kernel.T @ a)
        row_sums = kernel @ b
        error = float(np.abs(a * row_sums - image_weights).sum())
        iterations += 1
    plan = a[:, None] * kernel * b[None, :]
    return ReferencePlan(plan=plan, iterations=iterations, marginal_error=error, converged=error <= tolerance)


def max_sim(similarity: Matrix, query_weights: Vector, image_mask: Mask) -> float:
    """Return sum_j v_j max_i S_ij over valid image cells i: an upper bound of every transport score with this v."""
    return float(query_weights @ similarity[image_mask].max(axis=0))


def same_cell(similarity: Matrix, image_mask: Mask, query_mask: Mask) -> float:
    """Return the mean of S_ii over the cells that are valid on both sides; 0 when there is none."""
    valid = image_mask & query_mask
    return float(np.diagonal(similarity)[valid].mean()) if valid.any() else 0.0

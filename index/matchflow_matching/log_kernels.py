"""Entropic transport in the log domain, float64: for costs so far apart that float32 kernels would underflow.

The same problem and the same order of updates as kernels.transport, some ten times slower. With f and g the logarithms
of the scaling vectors and E = (S - 1) / eps: f_i = ln u_i - ln sum_j exp(E_ij + g_j), and g likewise
(Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized transport problems", 2019, section 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching.compiling import compiled
from matchflow_matching.kernels import NO_VALID_CELL, UNIFORM, weigh

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]
    Integers = NDArray[np.int32]
    Mask = NDArray[np.bool_]


@compiled(inline="always")
def _log_sum(exponents: Doubles, logarithms: Doubles) -> float:
    """Return ln sum_j exp(exponents_j + logarithms_j); -inf where all are."""
    largest = -np.inf
    for j in range(exponents.size):
        largest = max(largest, exponents[j] + logarithms[j])
    if largest == -np.inf:
        return largest
    total = 0.0
    for j in range(exponents.size):
        total += np.exp(exponents[j] + logarithms[j] - largest)
    return float(largest + np.log(total))


@compiled(inline="always")
def _update(exponents: Doubles, weights: Floats, others: Doubles, out: Doubles) -> None:
    """Fill out [R] with ln weights - ln sum_j exp(exponents + others); -inf where the weight is zero."""
    for i in range(out.size):
        out[i] = np.log(np.float64(weights[i])) - _log_sum(exponents[i], others) if weights[i] > 0 else -np.inf


@compiled()
def transport(
    similarities: Floats,
    image_attention: Floats,
    query_attention: Floats,
    image_valid: Mask,
    query_valid: Mask,
    skipped: Mask,
    cross: bool,
    epsilon: float,
    tolerance: float,
    limit: int,
    structural: Floats,
    iterations: Integers,
    errors: Floats,
    uniform: Mask,
    plans: Floats,
) -> None:
    """Score N pairs; arguments as those of kernels.transport, less the last."""
    n, rx, rq = similarities.shape
    exponents, transposed = np.empty((rx, rq), np.float64), np.empty((rq, rx), np.float64)
    u, v = np.empty(rx, np.float32), np.empty(rq, np.float32)
    f, g, next_f = np.empty(rx, np.float64), np.empty(rq, np.float64), np.empty(rx, np.float64)
    for p in range(n):
        if skipped[p]:
            continue
        image_state = weigh(image_attention[p], image_valid[p], cross, u)
        query_state = weigh(query_attention[p], query_valid, cross, v)
        uniform[p, 0] = cross and image_state == UNIFORM
        uniform[p, 1] = cross and query_state == UNIFORM
        if NO_VALID_CELL in (image_state, query_state):
            continue
        for i in range(rx):
            for j in range(rq):
                exponents[i, j] = (np.float64(similarities[p, i, j]) - 1.0) / epsilon
                transposed[j, i] = exponents[i, j]
        g[:] = 0.0
        _update(exponents, u, g, f)
        count, error = 0, np.inf
        while True:
            _update(transposed, v, f, g)
            count += 1
            _update(exponents, u, g, next_f)
            error = 0.0
            for i in range(rx):
                # (T1)_i = u_i exp(f_i - next_f_i)
                if u[i] > 0:
                    error += abs(u[i] * np.exp(f[i] - next_f[i]) - u[i])
            if not error > tolerance or count >= limit:
                break
            f[:] = next_f
        iterations[p], errors[p] = count, np.float32(error)
        total = 0.0
        for i in range(rx):
            for j in range(rq):
                mass = np.exp(f[i] + exponents[i, j] + g[j])
                total += mass * similarities[p, i, j]
                if plans.shape[0] > 0:
                    plans[p, i, j] = np.float32(mass)
        structural[p] = np.float32(total)

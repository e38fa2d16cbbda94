"""Random and adversarial features, and the float64 reference applied to what is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from matchflow_matching import FeatureBatch, Marginals, MatchSettings, dequantise, quantise, reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_matching import Features

SETTINGS = MatchSettings(tolerance=1e-6, max_iterations=10_000)


def random_batch(rng: np.random.Generator, n: int, cells: int, dim: int, spread: float = 1.0) -> FeatureBatch:
    """Return n images whose cells scatter around a common direction: the larger `spread`, the less they agree."""
    raw = rng.normal(size=dim) + spread * rng.normal(size=(n, cells, dim))
    raw /= np.linalg.norm(raw, axis=2, keepdims=True)
    mean = raw.mean(axis=1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    return quantise(mean.astype(np.float32), raw.astype(np.float32))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Features, FeatureBatch]:
    """Draw a query and 1-5 candidates with grids of their own."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim = draw(st.sampled_from([2, 3, 8, 33, 128]))
    spread = draw(st.sampled_from([0.0, 0.3, 1.0, 10.0]))
    query = random_batch(rng, 1, draw(st.integers(1, 20)), dim, spread)[0]
    return query, random_batch(rng, draw(st.integers(1, 5)), draw(st.integers(1, 20)), dim, spread)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencePair:
    """What reference.py makes of one stored pair; `similarity` is less the penalties of a spatial weight."""

    similarity: NDArray[np.float64]
    image_weights: NDArray[np.float64]
    query_weights: NDArray[np.float64]
    image_uniform: bool
    query_uniform: bool
    plan: reference.ReferencePlan

    @property
    def structural(self) -> float:
        """sum_ij T_ij S_ij."""
        return float((self.plan.plan * self.similarity).sum())


def reference_pair(
    query: Features,
    image: Features,
    settings: MatchSettings = SETTINGS,
    *,
    query_mask: NDArray[np.bool_] | None = None,
    image_mask: NDArray[np.bool_] | None = None,
    distances: NDArray[np.float64] | None = None,
) -> ReferencePair:
    """Return the float64 solution for the stored int8 values; `distances` [Rx, Rq] are those of a spatial weight."""
    z_q = dequantise(FeatureBatch.stack([query]))[0].astype(np.float64)
    z_x = dequantise(FeatureBatch.stack([image]))[0].astype(np.float64)
    query_mask = np.ones(len(z_q), np.bool_) if query_mask is None else query_mask
    image_mask = np.ones(len(z_x), np.bool_) if image_mask is None else image_mask
    g_q, g_x = query.embedding.astype(np.float64), image.embedding.astype(np.float64)
    if settings.marginals is Marginals.UNIFORM:
        u, u_uniform = reference.uniform_weights(image_mask), False
        v, v_uniform = reference.uniform_weights(query_mask), False
    else:
        own = settings.marginals is Marginals.SELF_CORRELATION
        u, u_uniform = reference.correlation_weights(z_x, g_x if own else g_q, image_mask)
        v, v_uniform = reference.correlation_weights(z_q, g_q if own else g_x, query_mask)
    similarity = reference.similarities(z_x, z_q)
    if distances is not None:
        similarity = similarity - settings.spatial_weight * distances
    return ReferencePair(
        similarity=similarity,
        image_weights=u,
        query_weights=v,
        image_uniform=u_uniform,
        query_uniform=v_uniform,
        plan=reference.sinkhorn(
            similarity, u, v, epsilon=settings.epsilon, tolerance=settings.tolerance, limit=settings.max_iterations
        ),
    )

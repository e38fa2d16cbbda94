"""The settings, the results and the entry points: score candidates, and show the matching flow of one pair."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching import kernels, product_kernels, vnni
from matchflow_matching.errors import FeaturesInvalidError, SettingsInvalidError
from matchflow_matching.features import FeatureBatch, Features
from matchflow_matching.products import Products, multiply, plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

EPSILON_RANGE = (0.03, 10.0)
TOLERANCE_RANGE = (1e-6, 1.0)
ITERATIONS_RANGE = (1, 10_000)
GLOBAL_WEIGHT_RANGE = (0.0, 10.0)
# What a candidate gets whose stored numbers are not finite: the least that a cosine can be, so it never leads.
UNREADABLE_SCORE = np.float32(-1.0)


class MatchMode(enum.StrEnum):
    """How a pair is scored; S are the cosines of image cells (rows) and query cells (columns)."""

    COSINE = "cosine"
    """The global vectors only."""
    MAX_SIM = "max_sim"
    """sum_j v_j max_i S_ij: each query cell takes its best image cell."""
    SAME_CELL = "same_cell"
    """Mean of S_ii: equal positions, no transport. The control."""
    STRUCTURAL = "structural"
    """sum_ij T_ij S_ij with T the entropic optimal transport plan: the paper."""


class Marginals(enum.StrEnum):
    """How the weight of each cell is found."""

    CROSS_CORRELATION = "cross_correlation"
    """max(0, cosine with the other image's global vector), normalised to sum 1."""
    UNIFORM = "uniform"
    """The same for every valid cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchSettings:
    """How to match. Raises SettingsInvalidError for a value out of its range.

    global_weight: factor of the cosine in the final score, 0 to 10 (the paper: 1). epsilon: entropic regularisation,
    0.03 to 10; below, float32 kernels underflow. tolerance: a pair stops at this L1 violation of its row marginal,
    1e-6 to 1. max_iterations: 1 to 10,000.
    """

    mode: MatchMode = MatchMode.STRUCTURAL
    global_weight: float = 1.0
    marginals: Marginals = Marginals.CROSS_CORRELATION
    epsilon: float = 0.05
    tolerance: float = 1e-4
    max_iterations: int = 200

    def __post_init__(self) -> None:
        """Refuse what is out of range, NaN included."""
        for name, (low, high) in {
            "global_weight": GLOBAL_WEIGHT_RANGE,
            "epsilon": EPSILON_RANGE,
            "tolerance": TOLERANCE_RANGE,
            "max_iterations": ITERATIONS_RANGE,
        }.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SettingsInvalidError(f"{name} must be from {low:g} to {high:g}; got {value:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """N scored pairs and their certificates; every array has one entry per candidate, in the order given.

    cosine, structural, score: float32 [N], always finite; score = structural + global_weight * cosine.
    iterations int32 [N], marginal_error float32 [N], converged bool [N]: zero, zero and true without transport.
    query_uniform, image_uniform bool [N]: that side attended nowhere to the other, so its weights fell back to uniform.
    """

    cosine: NDArray[np.float32]
    structural: NDArray[np.float32]
    score: NDArray[np.float32]
    iterations: NDArray[np.int32]
    marginal_error: NDArray[np.float32]
    converged: NDArray[np.bool_]
    query_uniform: NDArray[np.bool_]
    image_uniform: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchingFlow:
    """The full plan of one pair: rows are image cells [Rx], columns are query cells [Rq].

    plan, similarities: float32 [Rx, Rq]; sum(plan * similarities) = structural score up to float32 rounding.
    image_weights float32 [Rx], query_weights float32 [Rq]: the marginals. All zero for MatchMode.COSINE.
    """

    plan: NDArray[np.float32]
    similarities: NDArray[np.float32]
    image_weights: NDArray[np.float32]
    query_weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One entry of a plan; contribution = mass * similarity."""

    query_cell: int
    image_cell: int
    mass: float
    similarity: float
    contribution: float


def match(
    query: Features,
    candidates: FeatureBatch,
    settings: MatchSettings,
    *,
    query_mask: NDArray[np.bool_] | None = None,
    image_masks: NDArray[np.bool_] | None = None,
) -> Matches:
    """Score `query` against N candidates.

    A pair's numbers are bit-equal whatever else is in the batch. Masks: bool [Rq] and bool [N, Rx], true for cells that
    count. A candidate with numbers that are not finite gets -1 for cosine and structural, and is not converged.
    Raises FeaturesInvalidError when shapes disagree or the query is not finite.
    """
    products = multiply(query, candidates, query_mask, image_masks)
    return _score(query, candidates, products, settings, plans=None)


def global_cosines(embedding: NDArray[np.float32], embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines float32 [N] of embedding [D] with embeddings [N, D], bit-equal to those of `match`."""
    cosines = np.empty(len(embeddings), np.float32)
    product_kernels.cosines(plain(embedding), plain(embeddings), cosines)
    return cosines


def explain(
    query: Features,
    image: Features,
    settings: MatchSettings,
    *,
    query_mask: NDArray[np.bool_] | None = None,
    image_mask: NDArray[np.bool_] | None = None,
) -> MatchingFlow:
    """Return the plan behind the structural score that `match` gives this pair; errors as there."""
    batch = FeatureBatch.stack([image])
    products = multiply(query, batch, query_mask, None if image_mask is None else image_mask[None])
    plans = np.zeros((1, len(image.cells), len(query.cells)), np.float32)
    _score(query, batch, products, settings, plans=plans)
    plan = plans[0]
    return MatchingFlow(
        plan=plan,
        similarities=products.similarities[0],
        image_weights=plan.sum(axis=1),
        query_weights=plan.sum(axis=0),
    )


def top_flows(flow: MatchingFlow, count: int) -> list[Flow]:
    """Return the `count` entries with the largest contribution and positive mass, largest first.

    Equal contributions come in order of image cell, then query cell. Raises SettingsInvalidError for a negative count.
    """
    if count < 0:
        raise SettingsInvalidError(f"the number of flows must be at least 0; got {count}")
    contributions = (flow.plan * flow.similarities).ravel()
    order = np.argsort(-contributions, kind="stable")
    chosen = order[flow.plan.ravel()[order] > 0][:count]
    masses, similarities = flow.plan.ravel()[chosen].tolist(), flow.similarities.ravel()[chosen].tolist()
    columns = flow.plan.shape[1]
    return [
        Flow(
            query_cell=cell % columns,
            image_cell=cell // columns,
            mass=mass,
            similarity=similarity,
            contribution=mass * similarity,
        )
        for cell, mass, similarity in zip(chosen.tolist(), masses, similarities, strict=True)
    ]


def warm_up() -> None:
    """Compile every kernel, so that no request pays for it (seconds the first time; then from the cache on disk)."""
    # Byte products take dimensions that are multiples of 4; all others go by BLAS.
    for dim in (vnni.BYTES_PER_STEP, vnni.BYTES_PER_STEP + 1):
        image = Features(
            embedding=np.full(dim, dim**-0.5, np.float32),
            cells=np.ones((2, dim), np.int8),
            scales=np.ones(2, np.float16),
        )
        for mode in MatchMode:
            # Memory layouts differ between one candidate and several, and each is compiled on its own.
            match(image, FeatureBatch.stack([image, image]), MatchSettings(mode=mode))
            explain(image, image, MatchSettings(mode=mode))


def _score(
    query: Features,
    candidates: FeatureBatch,
    products: Products,
    settings: MatchSettings,
    *,
    plans: NDArray[np.float32] | None,
) -> Matches:
    n = len(candidates)
    outputs = _Outputs.empty(n, global_cosines(query.embedding, candidates.embeddings))
    match settings.mode:
        case MatchMode.STRUCTURAL:
            _transport(products, settings, outputs, plans)
        case MatchMode.MAX_SIM:
            _max_sim(products, settings, outputs, plans)
        case MatchMode.SAME_CELL:
            _same_cell(products, outputs, plans)
        case MatchMode.COSINE:
            pass
    readable = products.readable
    # A sum is finite only when all its terms are.
    if not (readable.all() and math.isfinite((outputs.cosine + outputs.structural).sum(dtype=np.float64))):
        readable = readable & np.isfinite(outputs.cosine) & np.isfinite(outputs.structural)
        outputs.cosine[~readable] = UNREADABLE_SCORE
        outputs.structural[~readable] = UNREADABLE_SCORE
    return Matches(
        cosine=outputs.cosine,
        structural=outputs.structural,
        score=outputs.structural + np.float32(settings.global_weight) * outputs.cosine,
        iterations=outputs.iterations,
        marginal_error=outputs.errors,
        converged=(outputs.errors <= np.float32(settings.tolerance)) & readable,
        query_uniform=outputs.uniform[:, 1],
        image_uniform=outputs.uniform[:, 0],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outputs:
    cosine: NDArray[np.float32]
    structural: NDArray[np.float32]
    iterations: NDArray[np.int32]
    errors: NDArray[np.float32]
    uniform: NDArray[np.bool_]

    @classmethod
    def empty(cls, n: int, cosine: NDArray[np.float32]) -> _Outputs:
        return cls(
            cosine=cosine,
            structural=np.zeros(n, np.float32),
            iterations=np.zeros(n, np.int32),
            errors=np.zeros(n, np.float32),
            uniform=np.zeros((n, 2), np.bool_),
        )


def _transport(
    products: Products, settings: MatchSettings, outputs: _Outputs, plans: NDArray[np.float32] | None
) -> None:
    _, rows, columns = products.similarities.shape
    kernels.transport(
        products.similarities,
        products.image_attention,
        products.query_attention,
        products.image_valid,
        products.query_valid,
        settings.marginals is Marginals.CROSS_CORRELATION,
        settings.epsilon,
        settings.tolerance,
        settings.max_iterations,
        outputs.structural,
        outputs.iterations,
        outputs.errors,
        outputs.uniform,
        np.empty((0, rows, columns), np.float32) if plans is None else plans,
    )


def _max_sim(products: Products, settings: MatchSettings, outputs: _Outputs, plans: NDArray[np.float32] | None) -> None:
    n, _, columns = products.similarities.shape
    weights = np.empty((n, columns), np.float32)
    choices = np.empty((n, columns), np.int32)
    kernels.max_sim(
        products.similarities,
        products.query_attention,
        products.image_valid,
        products.query_valid,
        settings.marginals is Marginals.CROSS_CORRELATION,
        outputs.structural,
        weights,
        outputs.uniform,
        choices,
    )
    if plans is not None:
        pairs, cells = np.nonzero(choices >= 0)
        plans[pairs, choices[pairs, cells], cells] = weights[pairs, cells]


def _same_cell(products: Products, outputs: _Outputs, plans: NDArray[np.float32] | None) -> None:
    _, rows, columns = products.similarities.shape
    if rows != columns:
        raise FeaturesInvalidError(f"same_cell needs as many image cells as query cells; got {rows} and {columns}")
    kernels.same_cell(products.similarities, products.image_valid, products.query_valid, outputs.structural)
    if plans is not None:
        valid = products.image_valid & products.query_valid
        diagonal = np.arange(rows)
        plans[:, diagonal, diagonal] = valid / np.maximum(1, valid.sum(axis=1, keepdims=True))

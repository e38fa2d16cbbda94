"""The settings, the results and the one entry point: match a query against a batch of candidates."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from matchflow_matching.features import FeatureBatch, Features


class MatchMode(enum.StrEnum):
    """How a pair is scored; the definitions are in `match`."""

    COSINE = "cosine"
    MAX_SIM = "max_sim"
    SAME_CELL = "same_cell"
    STRUCTURAL = "structural"


class Marginals(enum.StrEnum):
    """How the weight of each cell is found."""

    CROSS_CORRELATION = "cross_correlation"
    UNIFORM = "uniform"


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchSettings:
    """How to match. `global_weight` is the factor of the cosine in the final score (1: the paper)."""

    mode: MatchMode = MatchMode.STRUCTURAL
    global_weight: float = 1.0
    marginals: Marginals = Marginals.CROSS_CORRELATION
    epsilon: float = 0.05
    tolerance: float = 1e-4
    max_iterations: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """N scored pairs and their certificates; every array has one entry per candidate, in the order given.

    cosine, structural, score: float32 [N]; `structural` is zero for MatchMode.COSINE.
    iterations int32 [N], marginal_error float32 [N], converged bool [N]: zero, zero and true without transport.
    query_uniform, image_uniform bool [N]: that side's weights fell back to uniform.
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
    image_weights float32 [Rx], query_weights float32 [Rq]: the marginals.
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
) -> Matches: ...


def explain(
    query: Features,
    image: Features,
    settings: MatchSettings,
    *,
    query_mask: NDArray[np.bool_] | None = None,
    image_mask: NDArray[np.bool_] | None = None,
) -> MatchingFlow: ...


def top_flows(flow: MatchingFlow, count: int) -> list[Flow]: ...

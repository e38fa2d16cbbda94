"""The entry points and their results: score candidates, and show the matching flow of a pair."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching import product_kernels, vnni
from matchflow_matching.errors import FeaturesInvalidError, SettingsInvalidError
from matchflow_matching.features import CellGrid, FeatureBatch, Features
from matchflow_matching.matchers import BOUNDS, MATCHERS, Problem, Solution, penalties
from matchflow_matching.products import multiply, plain
from matchflow_matching.settings import Marginals, MatchMode, MatchSettings
from matchflow_matching.support import shared, supported

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The cosine of a candidate whose stored numbers are not finite: the least that there is, so it never leads.
UNREADABLE_COSINE = np.float32(-1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """N scored pairs and their certificates; every array has one entry per candidate, in the order given.

    cosine, structural, score: float32 [N], always finite; score = structural + global_weight * cosine.
    iterations int32 [N], marginal_error float32 [N], converged bool [N]: zero, zero and true without transport.
    duality_gap float32 [N]: what a better plan could win at most, for the exact matchers; zero for the others.
    query_uniform, image_uniform bool [N]: that side attended nowhere, so its weights fell back to uniform.
    upper_bound float32 [N]: no less than score. solved bool [N]: false where `match` was given a floor that the bound
    stays below; score and structural are then bounds themselves.
    """

    cosine: NDArray[np.float32]
    structural: NDArray[np.float32]
    score: NDArray[np.float32]
    iterations: NDArray[np.int32]
    marginal_error: NDArray[np.float32]
    converged: NDArray[np.bool_]
    duality_gap: NDArray[np.float32]
    query_uniform: NDArray[np.bool_]
    image_uniform: NDArray[np.bool_]
    upper_bound: NDArray[np.float32]
    solved: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchingFlow:
    """The full plan of one pair: rows are image cells [Rx], columns are query cells [Rq].

    plan, similarities, penalties: float32 [Rx, Rq]; the penalties are the spatial weight times the squared distance of
    the cells. sum(plan * (similarities - penalties)) = structural score up to float32 rounding.
    image_weights float32 [Rx], query_weights float32 [Rq]: the plan's sums. All zero for MatchMode.COSINE.
    image_grid, query_grid: where the cells lie; None where nobody said.
    """

    plan: NDArray[np.float32]
    similarities: NDArray[np.float32]
    penalties: NDArray[np.float32]
    image_weights: NDArray[np.float32]
    query_weights: NDArray[np.float32]
    image_grid: CellGrid | None = None
    query_grid: CellGrid | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One entry of a plan; contribution = mass * (similarity - penalty)."""

    query_cell: int
    image_cell: int
    mass: float
    similarity: float
    penalty: float
    contribution: float


def match(
    query: Features,
    candidates: FeatureBatch,
    settings: MatchSettings,
    *,
    grid: CellGrid | None = None,
    image_grid: CellGrid | None = None,
    query_mask: NDArray[np.bool_] | None = None,
    image_masks: NDArray[np.bool_] | None = None,
    floor: float | None = None,
) -> Matches:
    """Score `query` against N candidates.

    A pair's numbers are bit-equal whatever else is in the batch. `grid` is that of the query, and of the candidates
    unless `image_grid` says otherwise; a spatial weight and STRIPES need it. Masks: bool [Rq] and bool [N, Rx], true
    for cells that count. `floor`: leave pairs unsolved whose score a bound proves to be below it; see Matches.
    A candidate with numbers that are not finite gets the least cosine and structural score that there are, and is not
    converged.
    Raises FeaturesInvalidError when shapes disagree, a grid is missing or the query is not finite.
    """
    problem = _problem(
        query,
        candidates,
        settings,
        query_grid=grid,
        image_grid=image_grid,
        query_mask=query_mask,
        image_masks=image_masks,
    )
    cosine = global_cosines(query.embedding, candidates.embeddings)
    return _matches(problem, Solution.empty(problem.products.similarities.shape, with_plans=False), cosine, floor)


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
    grid: CellGrid | None = None,
    image_grid: CellGrid | None = None,
    query_mask: NDArray[np.bool_] | None = None,
    image_mask: NDArray[np.bool_] | None = None,
) -> MatchingFlow:
    """Return the plan behind the structural score that `match` gives this pair; arguments and errors as there."""
    return explain_batch(
        query,
        FeatureBatch.stack([image]),
        settings,
        grid=grid,
        image_grid=image_grid,
        query_mask=query_mask,
        image_masks=None if image_mask is None else image_mask[None],
    )[0]


def explain_batch(
    query: Features,
    candidates: FeatureBatch,
    settings: MatchSettings,
    *,
    grid: CellGrid | None = None,
    image_grid: CellGrid | None = None,
    query_mask: NDArray[np.bool_] | None = None,
    image_masks: NDArray[np.bool_] | None = None,
) -> list[MatchingFlow]:
    """Return the plans behind the structural scores of N candidates; arguments and errors as those of `match`."""
    problem = _problem(
        query,
        candidates,
        settings,
        query_grid=grid,
        image_grid=image_grid,
        query_mask=query_mask,
        image_masks=image_masks,
    )
    solution = Solution.empty(problem.products.similarities.shape, with_plans=True)
    MATCHERS[settings.mode](problem, solution)
    # As in `match`: what is no number says nothing about the pair.
    found = np.isfinite(solution.structural) & np.isfinite(solution.plans).all(axis=(1, 2))
    solution.plans[~(found & problem.products.readable)] = 0
    return [
        MatchingFlow(
            plan=plan,
            similarities=similarities,
            penalties=problem.penalties,
            image_weights=plan.sum(axis=1),
            query_weights=plan.sum(axis=0),
            image_grid=problem.image_grid,
            query_grid=problem.query_grid,
        )
        for plan, similarities in zip(solution.plans, problem.products.similarities, strict=True)
    ]


def top_flows(flow: MatchingFlow, count: int) -> list[Flow]:
    """Return the `count` entries of positive mass that the flows around them support best, best first.

    Support: see `matchflow_matching.support.supported`. Equal support goes by contribution, then image cell, then query
    cell. Without grids there is no support to tell: largest contribution first. The order takes nothing from an entry's
    own contribution, and all entries together are the same in either order.
    Raises SettingsInvalidError for a negative count.
    """
    if count < 0:
        raise SettingsInvalidError(f"the number of flows must be at least 0; got {count}")
    masses = flow.plan.ravel().astype(np.float64)
    contributions = masses * (flow.similarities.astype(np.float64) - flow.penalties).ravel()
    support: NDArray[np.floating] = contributions
    if flow.image_grid and flow.query_grid:
        support = supported(_contributions(flow), flow.image_grid, flow.query_grid).ravel()
    order = np.lexsort((-contributions, -support))
    chosen = order[masses[order] > 0][:count]
    columns = flow.plan.shape[1]
    return [
        Flow(
            query_cell=cell % columns,
            image_cell=cell // columns,
            mass=mass,
            similarity=similarity,
            penalty=penalty,
            contribution=contribution,
        )
        for cell, mass, similarity, penalty, contribution in zip(
            chosen.tolist(),
            masses[chosen].tolist(),
            flow.similarities.ravel()[chosen].tolist(),
            flow.penalties.ravel()[chosen].tolist(),
            contributions[chosen].tolist(),
            strict=True,
        )
    ]


def cell_shares(
    flow: MatchingFlow, query: Features, image: Features
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what each cell contributes when it shares with close ones: of the query [Rq], of the image [Rx], float32.

    See `matchflow_matching.support.shared`; either side sums to the structural score. `query` and `image` are what the
    flow was computed from. Raises FeaturesInvalidError when the flow has no grids, or the features are of another size.
    """
    if flow.image_grid is None or flow.query_grid is None:
        raise FeaturesInvalidError(
            f"expected a flow with the grids of both sides; got {flow.query_grid} for the query, {flow.image_grid} for "
            "the image"
        )
    if not flow.plan.any():
        # Nothing contributes; the features of an unreadable image would make it no number at all.
        return np.zeros_like(flow.query_weights), np.zeros_like(flow.image_weights)
    parts = _contributions(flow)
    return shared(parts.sum(axis=0), query, flow.query_grid), shared(parts.sum(axis=1), image, flow.image_grid)


def warm_up() -> None:
    """Compile every kernel, so that no request pays for it (seconds the first time; then from the cache on disk)."""
    grid = CellGrid(rows=2, columns=1)
    chosen = [MatchSettings.of(mode) for mode in MATCHERS]
    # All mass from one end of the grid to the other, which float32 kernels don't carry.
    afar = MatchSettings.of(MatchMode.POSITION_AWARE, spatial_weight=100.0)
    near_end, far_end = np.array([True, False]), np.array([[False, True]])
    # Products of bytes take dimensions that are multiples of 4; all others go by words.
    for dim in (vnni.BYTES_PER_STEP, vnni.BYTES_PER_STEP + 1):
        image = Features(
            embedding=np.full(dim, dim**-0.5, np.float32),
            cells=np.ones((2, dim), np.int8),
            scales=np.ones(2, np.float16),
        )
        for settings in chosen:
            # Memory layouts differ between one candidate and several, and each is compiled on its own.
            for count in (1, 2):
                candidates = FeatureBatch.stack([image] * count)
                match(image, candidates, settings, grid=grid, floor=0.0)
                top_flows(explain_batch(image, candidates, settings, grid=grid)[0], 1)
        match(image, FeatureBatch.stack([image]), afar, grid=grid, query_mask=near_end, image_masks=far_end)


def _problem(
    query: Features,
    candidates: FeatureBatch,
    settings: MatchSettings,
    *,
    query_grid: CellGrid | None,
    image_grid: CellGrid | None,
    query_mask: NDArray[np.bool_] | None,
    image_masks: NDArray[np.bool_] | None,
) -> Problem:
    own = settings.marginals is Marginals.SELF_CORRELATION
    products = multiply(query, candidates, query_mask, image_masks, own_attention=own)
    n, rx, rq = products.similarities.shape
    image_grid = image_grid or query_grid
    distant = penalties((rx, rq), settings, image_grid, query_grid)
    return Problem(
        products=products,
        settings=settings,
        penalties=distant,
        values=products.similarities - distant if settings.spatial_weight else products.similarities,
        skipped=np.zeros(n, np.bool_),
        image_grid=image_grid,
        query_grid=query_grid,
    )


@np.errstate(under="ignore")
def _contributions(flow: MatchingFlow) -> NDArray[np.float32]:
    parts: NDArray[np.float32] = flow.plan * (flow.similarities - flow.penalties)
    return parts


def _matches(problem: Problem, solution: Solution, cosine: NDArray[np.float32], floor: float | None) -> Matches:
    settings, readable = problem.settings, problem.products.readable
    cosine[~readable] = UNREADABLE_COSINE
    weighted = np.float32(settings.global_weight) * cosine
    bounds = None
    if floor is not None and settings.mode in BOUNDS:
        bounds = BOUNDS[settings.mode](problem)
        np.less(bounds + weighted, floor, out=problem.skipped)
    MATCHERS[settings.mode](problem, solution)
    structural = solution.structural
    if bounds is not None:
        structural[problem.skipped] = bounds[problem.skipped]
    # A sum is finite only when all its terms are.
    if not (readable.all() and math.isfinite((cosine + structural).sum(dtype=np.float64))):
        readable = readable & np.isfinite(cosine) & np.isfinite(structural)
        cosine[~readable] = UNREADABLE_COSINE
        structural[~readable] = UNREADABLE_COSINE - np.float32(settings.spatial_weight)
        solution.errors[~readable] = 0
        solution.gaps[~readable] = 0
        weighted = np.float32(settings.global_weight) * cosine
    score = structural + weighted
    tolerance = np.float32(settings.tolerance)
    return Matches(
        cosine=cosine,
        structural=structural,
        score=score,
        iterations=solution.iterations,
        marginal_error=solution.errors,
        converged=(solution.errors <= tolerance) & (solution.gaps <= tolerance) & readable,
        duality_gap=solution.gaps,
        query_uniform=solution.uniform[:, 1],
        image_uniform=solution.uniform[:, 0],
        upper_bound=score if bounds is None else np.where(readable, bounds + weighted, score),
        solved=~problem.skipped,
    )

"""The family of matchers behind one interface: each fills scores, certificates and plans from the same products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from matchflow_matching import assignment_kernels, bound_kernels, exact_kernels, kernels, log_kernels, stripe_kernels
from matchflow_matching.errors import FeaturesInvalidError
from matchflow_matching.positions import squared_distances
from matchflow_matching.settings import Marginals, MatchMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from matchflow_matching.features import CellGrid
    from matchflow_matching.products import Products
    from matchflow_matching.settings import MatchSettings

# Costs reach 2 + spatial_weight. Up to this many epsilons of it, all that float32 kernels compute stays normal:
# exp(-67) times weights down to 1e-8. Beyond, it depends on the pair.
FLOAT32_EPSILONS = 67.0
# An exact solver needs one to three pivots per cell; beyond this many a pair is given up, and its gap says so.
PIVOTS_PER_CELL = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """N pairs to match. `penalties` float32 [Rx, Rq]: w * d2; `values` float32 [N, Rx, Rq]: S less the penalties.

    `skipped` bool [N]: pairs to leave alone.
    """

    products: Products
    settings: MatchSettings
    penalties: NDArray[np.float32]
    values: NDArray[np.float32]
    skipped: NDArray[np.bool_]
    image_grid: CellGrid | None
    query_grid: CellGrid | None

    @property
    def attentive(self) -> bool:
        """Whether weights come from attention."""
        return self.settings.marginals is not Marginals.UNIFORM


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What a matcher fills, zero before: structural float32 [N], and as in matching.Matches and kernels.transport.

    plans float32 [N, Rx, Rq], or [0, Rx, Rq] when no plan is wanted.
    """

    structural: NDArray[np.float32]
    iterations: NDArray[np.int32]
    errors: NDArray[np.float32]
    gaps: NDArray[np.float32]
    uniform: NDArray[np.bool_]
    plans: NDArray[np.float32]

    @classmethod
    def empty(cls, shape: tuple[int, int, int], *, with_plans: bool) -> Solution:
        """Return zeros for similarities of `shape`."""
        n, rx, rq = shape
        return cls(
            structural=np.zeros(n, np.float32),
            iterations=np.zeros(n, np.int32),
            errors=np.zeros(n, np.float32),
            gaps=np.zeros(n, np.float32),
            uniform=np.zeros((n, 2), np.bool_),
            plans=np.zeros((n if with_plans else 0, rx, rq), np.float32),
        )


def penalties(
    shape: tuple[int, int], settings: MatchSettings, image_grid: CellGrid | None, query_grid: CellGrid | None
) -> NDArray[np.float32]:
    """Return w * d2, float32 [Rx, Rq]; FeaturesInvalidError when grids are needed and missing, or do not fit."""
    for side, grid, cells in (("image", image_grid, shape[0]), ("query", query_grid, shape[1])):
        if grid and grid.size != cells:
            raise FeaturesInvalidError(
                f"the {side} has {cells} cells; its grid of {grid.rows} x {grid.columns} has {grid.size}"
            )
    if not settings.spatial_weight:
        return np.zeros(shape, np.float32)
    if image_grid is None or query_grid is None:
        raise FeaturesInvalidError(f"{settings.mode} with a spatial weight needs the grids of both sides; got none")
    return np.float32(settings.spatial_weight) * squared_distances(image_grid, query_grid)


def _cosine(_problem: Problem, _solution: Solution) -> None:
    """Leave everything zero: the final score adds the cosine."""


def _transport(problem: Problem, solution: Solution) -> None:
    products, settings = problem.products, problem.settings
    pairs = (
        problem.values,
        products.image_attention,
        products.query_attention,
        products.image_valid,
        products.query_valid,
    )
    how = (problem.attentive, settings.epsilon, settings.tolerance, settings.max_iterations)
    filled = (solution.structural, solution.iterations, solution.errors, solution.uniform, solution.plans)
    carried = np.ones(len(problem.values), np.bool_)
    kernels.transport(*pairs, problem.skipped, *how, *filled, carried)
    if (2 + settings.spatial_weight) / settings.epsilon > FLOAT32_EPSILONS and not carried.all():
        log_kernels.transport(*pairs, problem.skipped | carried, *how, *filled)


def _max_sim(problem: Problem, solution: Solution, share: float = 1.0) -> None:
    products = problem.products
    assignment_kernels.max_sim(
        problem.values,
        products.query_attention,
        products.image_valid,
        products.query_valid,
        problem.attentive,
        share,
        solution.structural,
        solution.uniform,
        solution.plans,
    )


def _chamfer(problem: Problem, solution: Solution) -> None:
    products = problem.products
    _max_sim(problem, solution, 0.5)
    assignment_kernels.max_sim_of_images(
        problem.values,
        products.image_attention,
        products.image_valid,
        products.query_valid,
        problem.attentive,
        0.5,
        solution.structural,
        solution.uniform,
        solution.plans,
    )


def _same_cell(problem: Problem, solution: Solution) -> None:
    products = problem.products
    _, rows, columns = problem.values.shape
    if rows != columns:
        raise FeaturesInvalidError(f"same_cell needs as many image cells as query cells; got {rows} and {columns}")
    assignment_kernels.same_cell(
        products.similarities, products.image_valid, products.query_valid, solution.structural, solution.plans
    )


def _exact(problem: Problem, solution: Solution) -> None:
    products = problem.products
    _, rows, columns = problem.values.shape
    exact_kernels.exact_transport(
        problem.values,
        products.image_attention,
        products.query_attention,
        products.image_valid,
        products.query_valid,
        problem.skipped,
        problem.attentive,
        problem.settings.matched_mass,
        PIVOTS_PER_CELL * (rows + columns),
        solution.structural,
        solution.iterations,
        solution.errors,
        solution.gaps,
        solution.uniform,
        solution.plans,
    )


def _stripes(problem: Problem, solution: Solution) -> None:
    image, query = problem.image_grid, problem.query_grid
    if image is None or query is None:
        raise FeaturesInvalidError("stripes needs the grids of both sides; got none")
    if image.columns != query.columns:
        raise FeaturesInvalidError(
            f"stripes needs as many columns on both sides; got {image.columns} in the image and {query.columns}"
        )
    products = problem.products
    stripe_kernels.align_stripes(
        problem.values,
        products.image_valid,
        products.query_valid,
        query.columns,
        solution.structural,
        solution.plans,
    )


def _column_bounds(problem: Problem) -> NDArray[np.float32]:
    """Return bounds that an entropic plan meets even before it converges: its columns are exact, its rows are not."""
    products = problem.products
    bounds = np.empty(len(problem.values), np.float32)
    bound_kernels.column_bounds(
        problem.values,
        products.query_attention,
        products.image_valid,
        products.query_valid,
        problem.attentive,
        bounds,
    )
    return bounds + bound_slack(max(problem.values.shape[1:]))


def _least_bounds(problem: Problem) -> NDArray[np.float32]:
    products = problem.products
    n = len(problem.values)
    rows, columns = np.zeros(n, np.float32), np.zeros(n, np.float32)
    bound_kernels.transport_bounds(
        problem.values,
        products.image_attention,
        products.query_attention,
        products.image_valid,
        products.query_valid,
        problem.attentive,
        problem.settings.matched_mass,
        rows,
        columns,
    )
    return np.minimum(rows, columns)


MATCHERS: Mapping[MatchMode, Callable[[Problem, Solution], None]] = {
    MatchMode.COSINE: _cosine,
    MatchMode.MAX_SIM: _max_sim,
    MatchMode.CHAMFER: _chamfer,
    MatchMode.SAME_CELL: _same_cell,
    MatchMode.STRIPES: _stripes,
    MatchMode.STRUCTURAL: _transport,
    MatchMode.POSITION_AWARE: _transport,
    MatchMode.EARTH_MOVER: _exact,
    MatchMode.PARTIAL: _exact,
}
# Upper bounds of structural scores, float32 [N], for matchers that cost much more than their bound.
BOUNDS: Mapping[MatchMode, Callable[[Problem], NDArray[np.float32]]] = {
    MatchMode.STRUCTURAL: _column_bounds,
    MatchMode.POSITION_AWARE: _column_bounds,
    MatchMode.EARTH_MOVER: _least_bounds,
    MatchMode.PARTIAL: _least_bounds,
}


def bound_slack(cells: int) -> np.float32:
    """Return what float32 rounding may lift a score above its bound, for sides of up to `cells` cells.

    Each of the R additions and products that a plan's column sum and its score are made of rounds by 2^-24 of a number
    of at most 1; four times that is allowed.
    """
    return np.float32((cells + 8) * 2.0**-22)

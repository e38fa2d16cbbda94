"""How far scores are from the float64 reference, and whether anything that is not a finite number comes out.

The reference here is reference.sinkhorn for many pairs at once: float64 from the stored int8 cells, their float16
scales and the float32 global vectors as they are, unrounded. It shares no code with the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from adversarial import damaged, is_finite

from matchflow_matching import (
    FeatureBatch,
    FeaturesInvalidError,
    Marginals,
    MatchMode,
    MatchSettings,
    explain_batch,
    match,
)
from matchflow_matching.settings import SPATIAL_MODES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adversarial import Case
    from numpy.typing import NDArray

    from matchflow_matching import CellGrid

    Array = NDArray[np.float64]

TOLERANCE = 1e-6
MOST_ITERATIONS = 10_000
# Iterations between two looks at which pairs still go on.
STRIDE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceScores:
    """Final scores float64 [N] and whether each pair came to the tolerance, bool [N]."""

    scores: Array
    converged: NDArray[np.bool_]


def reference_scores(pairs: Case, settings: MatchSettings) -> ReferenceScores:
    """Return the float64 scores of entropic transport, STRUCTURAL or POSITION_AWARE."""
    query_cells = _stored(pairs.query.cells, pairs.query.scales)
    image_cells = _stored(pairs.candidates.cells, pairs.candidates.scales)
    query_embedding = pairs.query.embedding.astype(np.float64)
    image_embeddings = pairs.candidates.embeddings.astype(np.float64)
    query_masks = np.broadcast_to(pairs.query_mask, (len(image_cells), len(query_cells)))
    similarities = image_cells @ query_cells.T
    match settings.marginals:
        case Marginals.CROSS_CORRELATION:
            image_attention = image_cells @ query_embedding
            query_attention = image_embeddings @ query_cells.T
        case Marginals.SELF_CORRELATION:
            image_attention = np.einsum("nid,nd->ni", image_cells, image_embeddings)
            query_attention = np.broadcast_to(query_cells @ query_embedding, query_masks.shape)
        case Marginals.UNIFORM:
            image_attention, query_attention = np.zeros(pairs.image_masks.shape), np.zeros(query_masks.shape)
    u, v = weights(image_attention, pairs.image_masks), weights(query_attention, query_masks)
    values = similarities
    if settings.mode is MatchMode.POSITION_AWARE:
        values = values - settings.spatial_weight * squared_distances(pairs.image_grid, pairs.query_grid)
    structural, converged = np.zeros(len(u)), np.ones(len(u), np.bool_)
    # Without a valid cell on both sides there is nothing to move, and the score is 0.
    solved = np.flatnonzero((u.sum(axis=1) > 0) & (v.sum(axis=1) > 0))
    if len(solved):
        plans, converged[solved] = entropic_plans(
            np.exp((values[solved] - 1) / settings.epsilon),
            u[solved],
            v[solved],
            settings.tolerance,
            settings.max_iterations,
        )
        structural[solved] = (plans * values[solved]).sum(axis=(1, 2))
    cosines = image_embeddings @ query_embedding
    return ReferenceScores(scores=structural + settings.global_weight * cosines, converged=converged)


def _stored(cells: NDArray[np.int8], scales: NDArray[np.float16]) -> Array:
    return cells.astype(np.float64) * scales.astype(np.float64)[..., None]


def weights(attention: Array, valid: NDArray[np.bool_]) -> Array:
    """Return max(0, attention) over valid cells, rows [N, R] summing to 1; equal where none is positive."""
    positive = np.where(valid, np.maximum(0.0, attention), 0.0)
    positive = np.where(positive.sum(axis=1, keepdims=True) > 0, positive, valid)
    totals = positive.sum(axis=1, keepdims=True)
    return positive / np.where(totals > 0, totals, 1)


def squared_distances(image_grid: CellGrid, query_grid: CellGrid) -> Array:
    """Return the squared distance of every image cell to every query cell, [Rx, Rq], one pair of cells at a time."""
    height, width = query_grid.rows - 1, query_grid.columns - 1
    found = np.zeros((image_grid.size, query_grid.size))
    for i in range(image_grid.size):
        for j in range(query_grid.size):
            (x_row, x_column), (q_row, q_column) = _place(image_grid, i), _place(query_grid, j)
            distance = (height * (x_row - q_row)) ** 2 + (width * (x_column - q_column)) ** 2
            found[i, j] = distance / max(1, height**2 + width**2)
    return found


def _place(grid: CellGrid, cell: int) -> tuple[float, float]:
    row, column = divmod(cell, grid.columns)
    return (
        row / (grid.rows - 1) if grid.rows > 1 else 0.5,
        column / (grid.columns - 1) if grid.columns > 1 else 0.5,
    )


def entropic_plans(kernels: Array, u: Array, v: Array, tolerance: float, limit: int) -> tuple[Array, NDArray[np.bool_]]:
    """Return plans [N, Rx, Rq] for kernels exp(-cost / eps) and marginals, and which pairs came to the tolerance.

    Each pair stops on its own, as in reference.sinkhorn.
    """
    a, b = np.zeros_like(u), np.ones_like(v)
    converged = np.zeros(len(u), np.bool_)
    going = np.arange(len(u))
    kernel, transposed, rows, columns = kernels, kernels.transpose(0, 2, 1), u, v
    own_a, own_b = a, b
    sums = _times(kernel, own_b)
    for iteration in range(limit):
        own_a = rows / sums
        own_b = columns / _times(transposed, own_a)
        sums = _times(kernel, own_b)
        reached = np.abs(own_a * sums - rows).sum(axis=1) <= tolerance
        stopped = reached & ~converged[going]
        a[going[stopped]], b[going[stopped]] = own_a[stopped], own_b[stopped]
        converged[going[stopped]] = True
        if converged.all():
            break
        if iteration % STRIDE == STRIDE - 1:
            kept = ~converged[going]
            if kept.sum() * 2 <= len(kept):
                going, kernel, transposed = going[kept], kernel[kept], transposed[kept]
                rows, columns, own_a, own_b, sums = rows[kept], columns[kept], own_a[kept], own_b[kept], sums[kept]
    late = ~converged[going]
    a[going[late]], b[going[late]] = own_a[late], own_b[late]
    return a[:, :, None] * kernels * b[:, None, :], converged


def _times(matrices: Array, factors: Array) -> Array:
    product: Array = np.matmul(matrices, factors[:, :, None])[:, :, 0]
    return product


def score_errors(
    chosen: Sequence[tuple[str, Case]], modes: Sequence[MatchMode], tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """Return the largest score error by mode and family, and how many pairs there were and did not converge."""
    errors: dict[str, dict[str, float]] = {mode.value: {} for mode in modes}
    unconverged = 0
    for mode in modes:
        # The mix with the cosine is part of the score, whatever a mode recommends.
        settings = MatchSettings.of(mode, tolerance=tolerance, max_iterations=MOST_ITERATIONS, global_weight=1.0)
        for family, case in chosen:
            expected = reference_scores(case, settings)
            found = match(
                case.query,
                case.candidates,
                settings,
                grid=case.query_grid,
                image_grid=case.image_grid,
                query_mask=case.query_mask,
                image_masks=case.image_masks,
            )
            unconverged += int((~found.converged | ~expected.converged).sum())
            worst = float(np.abs(found.score.astype(np.float64) - expected.scores).max(initial=0.0))
            errors[mode.value][family] = max(worst, errors[mode.value].get(family, 0.0))
    return {
        "max_score_error": max(max(families.values()) for families in errors.values()),
        "pairs": sum(len(case.candidates) for _, case in chosen),
        "unconverged": unconverged,
        "by_family": errors,
    }


def non_finite_numbers(
    rng: np.random.Generator,
    chosen: Sequence[tuple[str, Case]],
    modes: Sequence[MatchMode],
    damaged_queries: float = 0.25,
) -> dict[str, int]:
    """Return how many numbers of match and explain_batch are not finite for damaged features, with how many pairs.

    A query that is not finite has to be refused: where it is not, all that comes out counts. A damaged query that is
    finite may be.
    """
    counts = {"non_finite_out": 0, "pairs": 0, "refused_queries": 0}
    for _, case in chosen:
        broken = replace(case, candidates=damaged(rng, case.candidates))
        if rng.random() < damaged_queries:
            broken = replace(broken, query=damaged(rng, FeatureBatch.stack([case.query] * 8))[int(rng.integers(8))])
        for mode in modes:
            if mode in {MatchMode.SAME_CELL, MatchMode.STRIPES} and case.query_grid != case.image_grid:
                continue
            _count(broken, drawn_settings(rng, mode), counts, may_refuse=broken.query is not case.query)
    return counts


def drawn_settings(rng: np.random.Generator, mode: MatchMode) -> MatchSettings:
    """Return settings of a mode at random, the ends of their ranges included."""
    given: dict[str, Any] = {
        "marginals": Marginals(str(rng.choice(list(Marginals)))),
        "global_weight": float(rng.choice([0.0, 1.0, 10.0])),
        "epsilon": float(rng.choice([0.005, 0.05, 0.05, 10.0])),
        "max_iterations": int(rng.choice([1, 200])),
    }
    if mode in SPATIAL_MODES:
        given["spatial_weight"] = float(rng.choice([0.0, 1.0, 100.0]))
    return MatchSettings.of(mode, **given)


def _count(case: Case, settings: MatchSettings, counts: dict[str, int], *, may_refuse: bool) -> None:
    given: dict[str, Any] = {
        "grid": case.query_grid,
        "image_grid": case.image_grid,
        "query_mask": case.query_mask,
        "image_masks": case.image_masks,
    }
    readable = is_finite(case.query)
    # The damage overflows in what is computed about it; the outputs are what counts.
    with np.errstate(all="ignore"):
        for work in (match, explain_batch):
            try:
                results: Any = work(case.query, case.candidates, settings, **given)
            except FeaturesInvalidError:
                if not may_refuse:
                    raise
                counts["refused_queries"] += 1
                continue
            outputs = results if isinstance(results, list) else [results]
            for output in outputs:
                for array in numbers(output).values():
                    counts["non_finite_out"] += array.size if not readable else int((~np.isfinite(array)).sum())
    counts["pairs"] += len(case.candidates)


def numbers(output: Any) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of a result by name."""
    values = {field.name: getattr(output, field.name) for field in fields(output)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

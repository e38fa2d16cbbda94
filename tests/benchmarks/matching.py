"""`make bench-matching`: 100 candidates on one thread, against torch and against one bare matrix product.

Three yardsticks run in turns with our kernel: the algorithm of the authors' released code (released.py), the same
corrected algorithm as ours in torch, batched until every pair meets our L1 tolerance, and a single float32 BLAS product
of the shapes that any matcher has to multiply. All get what they would hold in memory: we int8 cells and float16
scales, they float32. Features are real in every shape, see matching_shapes.py; errors are in matching_errors.py.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from adversarial import cases
from matching_errors import non_finite_numbers, score_errors
from matching_shapes import CANDIDATES, real_shortlists
from released import Released
from report import BENCH, write_report
from threadpoolctl import threadpool_limits

from matchflow_matching import FeatureBatch, MatchMode, MatchSettings, dequantise, match, warm_up
from matchflow_matching.products import multiply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matching_shapes import Shortlist

    from matchflow_matching import Features

QUERIES = 24
OTHER_QUERIES = 6
TURNS = 4
CALLS_PER_TURN = 5
# Of a call that takes longer than this, a turn takes one.
LONG_MS = 20.0
TOLERANCE, DEFAULT_TOLERANCE = 1e-3, 1e-4
ERROR_PAIRS = 10_000
DAMAGED_PAIRS = 2_000
ERROR_MODES = (MatchMode.STRUCTURAL, MatchMode.POSITION_AWARE)


def median_ms(*calls: Callable[[], object], turns: int = TURNS) -> list[float]:
    """Return the median milliseconds of each call, in turns of a few calls each so that drift hits all alike."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(turns):
        for call, own in zip(calls, times, strict=True):
            repeats = CALLS_PER_TURN if _timed(call) < LONG_MS else 1
            own.extend(_timed(call) for _ in range(repeats))
    return [float(np.median(own)) for own in times]


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


class TorchYardstick:
    """The algorithm of docs/adr/0002, batched over candidates in torch float32."""

    def __init__(self, query: Features, candidates: FeatureBatch, epsilon: float) -> None:
        """Hold what torch would hold: dequantised tensors."""
        self.z_x = torch.from_numpy(dequantise(candidates))
        self.z_q = torch.from_numpy(dequantise(FeatureBatch.stack([query]))[0])
        self.g_x = torch.from_numpy(candidates.embeddings.copy())
        self.g_q = torch.from_numpy(query.embedding.copy())
        self.epsilon = epsilon

    @staticmethod
    def normalise(weights: torch.Tensor) -> torch.Tensor:
        """Return weights [N, R] that sum to 1, uniform where none is positive."""
        weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, torch.ones_like(weights))
        return weights / weights.sum(1, keepdim=True)

    @torch.inference_mode()
    def score(self, tolerance: float, limit: int) -> tuple[torch.Tensor, int]:
        """Return final scores [N] and the iterations that the slowest pair needed."""
        similarity = torch.einsum("nid,jd->nij", self.z_x, self.z_q)
        u = torch.relu(self.z_x @ self.g_q)
        v = torch.relu(torch.einsum("jd,nd->nj", self.z_q, self.g_x))
        u, v = self.normalise(u), self.normalise(v)
        kernel = torch.exp((similarity - 1) / self.epsilon)
        b = torch.ones_like(v)
        row_sums = torch.einsum("nij,nj->ni", kernel, b)
        steps = 0
        while steps < limit:
            a = u / row_sums
            b = v / torch.einsum("nij,ni->nj", kernel, a)
            row_sums = torch.einsum("nij,nj->ni", kernel, b)
            steps += 1
            if float((a * row_sums - u).abs().sum(1).max()) <= tolerance:
                break
        structural = torch.einsum("ni,nij,nij,nj->n", a, kernel, similarity, b)
        return structural + self.g_x @ self.g_q, steps


class BareProduct:
    """One BLAS product of the shapes of a match: [N * (R + 1), D] by [D, R + 1], cells and global vectors, float32."""

    def __init__(self, query: Features, candidates: FeatureBatch) -> None:
        """Lay out both matrices and the result."""
        self.rows = np.concatenate([dequantise(candidates), candidates.embeddings[:, None]], axis=1)
        self.rows = self.rows.reshape(-1, self.rows.shape[2])
        query_rows = np.concatenate([dequantise(FeatureBatch.stack([query]))[0], query.embedding[None]])
        self.columns = np.ascontiguousarray(query_rows.T)
        self.out = np.empty((len(self.rows), self.columns.shape[1]), np.float32)

    def multiply(self) -> None:
        """Fill `out`."""
        np.matmul(self.rows, self.columns, out=self.out)


def measure(shortlist: Shortlist, turns: int = TURNS) -> dict[str, float]:
    """Return times, iterations and differences for one query and its candidates, at both tolerances."""
    query, candidates = shortlist.query, shortlist.candidates
    chosen, default = MatchSettings(tolerance=TOLERANCE), MatchSettings(tolerance=DEFAULT_TOLERANCE)
    torch_same, released = TorchYardstick(query, candidates, chosen.epsilon), Released.of(query, candidates)
    product = BareProduct(query, candidates)
    limit = default.max_iterations
    times = dict(
        zip(
            ("ms", "default_ms", "blas_ms", "products_ms", "early_ms", "full_ms", "torch_ms", "torch_default_ms"),
            median_ms(
                lambda: match(query, candidates, chosen),
                lambda: match(query, candidates, default),
                product.multiply,
                lambda: multiply(query, candidates, None, None),
                lambda: released.score(early_stop=True),
                lambda: released.score(early_stop=False),
                lambda: torch_same.score(TOLERANCE, limit),
                lambda: torch_same.score(DEFAULT_TOLERANCE, limit),
                turns=turns,
            ),
            strict=True,
        )
    )
    ours, default_ours = match(query, candidates, chosen), match(query, candidates, default)
    differences = [
        np.abs(found.score - torch_same.score(settings.tolerance, limit)[0].numpy()).max()
        for found, settings in ((ours, chosen), (default_ours, default))
    ]
    early = released.score(early_stop=True)
    return {
        **times,
        "over_blas": times["ms"] / times["blas_ms"],
        "speedup_vs_released": times["early_ms"] / times["ms"],
        "speedup_vs_released_full": times["full_ms"] / times["ms"],
        "speedup_vs_torch": times["torch_ms"] / times["ms"],
        "speedup_vs_torch_default": times["torch_default_ms"] / times["default_ms"],
        "mean_iterations": float(ours.iterations.mean()),
        "mean_iterations_default": float(default_ours.iterations.mean()),
        "released_iterations": float(early.iterations),
        "unconverged": float((~ours.converged).sum()),
        "largest_difference_from_torch": float(max(differences)),
        "largest_difference_from_released": float(np.abs(default_ours.score - early.scores.numpy()).max()),
    }


def medians(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each measurement over queries; ratios are taken query by query."""
    return {name: float(np.median([result[name] for result in results])) for name in results[0]}


def timing_figures(shapes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the figures about time from the medians of each shape."""
    cells4 = shapes["4x4x128"]
    return {
        "ms_4x4x128": cells4["ms"],
        "ms_4x4x128_default_tolerance": cells4["default_ms"],
        "speedup_vs_released_full_4x4x128": cells4["speedup_vs_released_full"],
        **{f"speedup_vs_released_{name}": shapes[name]["speedup_vs_released"] for name in shapes},
        "over_blas_4x4x128": cells4["over_blas"],
        "over_blas_7x7x128": shapes["7x7x128"]["over_blas"],
        "speedup_vs_torch_same_tolerance": cells4["speedup_vs_torch_default"],
        "largest_score_difference": max(result["largest_difference_from_torch"] for result in shapes.values()),
    }


def distinct_candidates(lists: Sequence[Shortlist]) -> FeatureBatch:
    """Return every image that is a candidate somewhere, once."""
    every = FeatureBatch.stack([each.candidates[n] for each in lists for n in range(len(each.candidates))])
    return every.take(np.unique(every.embeddings, axis=0, return_index=True)[1])


def run(
    found: Mapping[str, Sequence[Shortlist]], *, error_pairs: int, damaged_pairs: int, turns: int = TURNS
) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure all and return (figures, details); adversarial pairs are made from the candidates of 4x4x128."""
    shapes = {name: medians([measure(each, turns) for each in lists]) for name, lists in found.items()}
    rng = np.random.default_rng(0)
    images, grid = distinct_candidates(found["4x4x128"]), found["4x4x128"][0].grid
    errors = score_errors(cases(rng, images, grid, error_pairs), ERROR_MODES)
    finite = non_finite_numbers(rng, cases(rng, images, grid, damaged_pairs), list(MatchMode))
    figures = {
        **timing_figures(shapes),
        "max_score_error": errors["max_score_error"],
        "non_finite_out": float(finite["non_finite_out"]),
    }
    details = {
        "candidates": CANDIDATES,
        "queries": {name: len(lists) for name, lists in found.items()},
        "features": "real in every shape: sample images and their shortlists by the global vector",
        "threads": 1,
        "tolerance": TOLERANCE,
        "default_tolerance": DEFAULT_TOLERANCE,
        "shapes": shapes,
        "errors": errors,
        "non_finite": finite,
    }
    return figures, details


def main(arguments: list[str] | None = None) -> None:
    """Measure every shape and write matching.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=BENCH, help="where the report goes")
    folder: Path = parser.parse_args(arguments).folder
    found = real_shortlists(QUERIES, OTHER_QUERIES)
    torch.set_num_threads(1)
    warm_up()
    with threadpool_limits(1):
        figures, details = run(found, error_pairs=ERROR_PAIRS, damaged_pairs=DAMAGED_PAIRS)
    write_report("matching", figures, details, command="make bench-matching", folder=folder)


if __name__ == "__main__":
    main()

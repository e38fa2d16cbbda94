"""`make bench-matching`: 100 candidates on one thread, our kernel against the same algorithm in torch.

The yardstick runs all pairs of the batch together, as one would write it in torch, until every pair meets the same L1
marginal tolerance. Both get what they would hold in memory: we int8 cells and float16 scales, torch float32. Features
are those of sample images and their shortlists; shapes other than 4x4x128 are random.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from bench_features import sample_batch
from report import write_report
from threadpoolctl import threadpool_limits

from matchflow_matching import FeatureBatch, MatchSettings, dequantise, match, warm_up
from matchflow_matching.products import multiply, whole_numbers
from matching_strategies import random_batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from matchflow_matching import Features

CANDIDATES = 100
QUERIES = 24
TURNS = 4
CALLS_PER_TURN = 5
TOLERANCES = (1e-3, 1e-4)


def median_ms(*calls: Callable[[], object]) -> list[float]:
    """Return the median milliseconds of each call, in turns of a few calls each so that drift hits all alike."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(TURNS):
        for call, own in zip(calls, times, strict=True):
            call()
            for _ in range(CALLS_PER_TURN):
                start = time.perf_counter()
                call()
                own.append((time.perf_counter() - start) * 1e3)
    return [float(np.median(own)) for own in times]


class TorchYardstick:
    """The algorithm of docs/adr/0002, batched over candidates in torch float32."""

    def __init__(self, query: Features, candidates: FeatureBatch, epsilon: float) -> None:
        """Hold what torch would hold: dequantised tensors."""
        self.z_x = torch.from_numpy(dequantise(candidates))
        self.z_q = torch.from_numpy(dequantise(FeatureBatch.stack([query]))[0])
        self.g_x = torch.from_numpy(candidates.embeddings)
        self.g_q = torch.from_numpy(query.embedding)
        self.attention_g_x = torch.from_numpy(whole_numbers(candidates.embeddings)).float()
        self.attention_g_q = torch.from_numpy(whole_numbers(query.embedding[None])[0]).float()
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
        u = torch.relu(self.z_x @ self.attention_g_q)
        v = torch.relu(torch.einsum("jd,nd->nj", self.z_q, self.attention_g_x))
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


def shortlists(images: FeatureBatch) -> list[tuple[Features, FeatureBatch]]:
    """Return queries spread over the images, each with its best candidates by the global vector."""
    pairs = []
    for query in range(0, len(images), len(images) // QUERIES):
        order = np.argsort(-(images.embeddings @ images.embeddings[query]), kind="stable")
        pairs.append((images[query], images.take(order[order != query][:CANDIDATES])))
    return pairs


def measure(query: Features, candidates: FeatureBatch, tolerance: float) -> dict[str, float]:
    """Return times, the ratio and the largest difference for one shape and tolerance."""
    chosen = MatchSettings(tolerance=tolerance)
    yardstick = TorchYardstick(query, candidates, chosen.epsilon)
    ours = match(query, candidates, chosen)
    theirs, steps = yardstick.score(tolerance, chosen.max_iterations)
    ms, torch_ms, products_ms = median_ms(
        lambda: match(query, candidates, chosen),
        lambda: yardstick.score(tolerance, chosen.max_iterations),
        lambda: multiply(query, candidates, None, None),
    )
    return {
        "ms": ms,
        "torch_ms": torch_ms,
        "products_ms": products_ms,
        "speedup": torch_ms / ms,
        "mean_iterations": float(ours.iterations.mean()),
        "torch_iterations": float(steps),
        "unconverged": float((~ours.converged).sum()),
        "largest_score_difference": float(np.abs(ours.score - theirs.numpy()).max()),
    }


def medians(results: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each measurement over queries; the ratio is taken query by query."""
    return {name: float(np.median([result[name] for result in results])) for name in results[0]}


def main() -> None:
    """Measure every shape and write build/bench/matching.json."""
    torch.set_num_threads(1)
    warm_up()
    rng = np.random.default_rng(0)
    shapes = {"4x4x128": shortlists(sample_batch())}
    for name, cells, dim in (("7x7x128", 49, 128), ("8x4x512", 32, 512)):
        batch = random_batch(rng, CANDIDATES + 1, cells, dim)
        shapes[name] = [(batch[0], batch.take(slice(1, None)))]
    with threadpool_limits(1):
        results = {
            f"{name} tolerance {tolerance:g}": medians([measure(*pair, tolerance) for pair in pairs])
            for name, pairs in shapes.items()
            for tolerance in TOLERANCES
        }
    default = results["4x4x128 tolerance 0.0001"]
    write_report(
        "matching",
        figures={
            "speedup_vs_torch_same_tolerance": default["speedup"],
            "ms_4x4x128": results["4x4x128 tolerance 0.001"]["ms"],
            "ms_4x4x128_default_tolerance": default["ms"],
            "largest_score_difference": max(result["largest_score_difference"] for result in results.values()),
        },
        details={"candidates": CANDIDATES, "queries": QUERIES, "threads": 1, "shapes": results},
        command="make bench-matching",
    )


if __name__ == "__main__":
    main()

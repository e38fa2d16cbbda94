"""The yardstick of `make bench-matching`: the algorithm of the authors' released code, written anew in torch.

It is what docs/adr/0002 corrects, with its faults: all candidates of a query go through one Sinkhorn iteration that
stops for all of them, when the mean over the whole batch of |r - r_before| falls below 0.1, or after 100 iterations. So
a pair's score depends on the other candidates. Masses are divided by their sum plus a little, and no positive attention
makes them all zero. float32 throughout; the caller dequantises beforehand, which costs the yardstick no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from matchflow_matching import FeatureBatch, dequantise

if TYPE_CHECKING:
    from matchflow_matching import Features

EPSILON = 0.05
MOST_ITERATIONS = 100
MEAN_CHANGE = 0.1
LITTLE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedScores:
    """Final scores float32 [N] of one batch, the iterations that all its pairs ran, and the plans [N, Rx, Rq]."""

    scores: torch.Tensor
    iterations: int
    plans: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """One query and N candidates as torch would hold them, all float32.

    query_cells [Rq, D], query_embedding [D], image_cells [N, Rx, D], image_embeddings [N, D].
    """

    query_cells: torch.Tensor
    query_embedding: torch.Tensor
    image_cells: torch.Tensor
    image_embeddings: torch.Tensor

    @classmethod
    def of(cls, query: Features, candidates: FeatureBatch) -> Released:
        """Dequantise and copy everything, so that scoring only computes."""
        return cls(
            query_cells=torch.from_numpy(dequantise(FeatureBatch.stack([query]))[0]),
            query_embedding=torch.from_numpy(query.embedding.copy()),
            image_cells=torch.from_numpy(dequantise(candidates)),
            image_embeddings=torch.from_numpy(candidates.embeddings.copy()),
        )

    @torch.inference_mode()
    def score(self, *, early_stop: bool, most_iterations: int = MOST_ITERATIONS) -> ReleasedScores:
        """Score all candidates; without `early_stop` every batch runs the most iterations."""
        similarities = torch.einsum("nid,jd->nij", self.image_cells, self.query_cells)
        image_masses = _masses(torch.einsum("nid,d->ni", self.image_cells, self.query_embedding))
        query_masses = _masses(torch.einsum("jd,nd->nj", self.query_cells, self.image_embeddings))
        kernel = torch.exp((similarities - 1) / EPSILON)
        rows, columns = torch.ones_like(image_masses), torch.ones_like(query_masses)
        iterations = 0
        while iterations < most_iterations:
            before = rows
            rows = image_masses / torch.einsum("nij,nj->ni", kernel, columns)
            columns = query_masses / torch.einsum("nij,ni->nj", kernel, rows)
            iterations += 1
            # Looked at in every iteration, as a loop with that stop has to; NaN never stops it.
            change = float((rows - before).abs().mean())
            if early_stop and change < MEAN_CHANGE:
                break
        plans = rows[:, :, None] * kernel * columns[:, None, :]
        structural = (plans * similarities).sum(dim=(1, 2))
        return ReleasedScores(
            scores=structural + self.image_embeddings @ self.query_embedding, iterations=iterations, plans=plans
        )


def _masses(attention: torch.Tensor) -> torch.Tensor:
    positive = torch.relu(attention)
    return positive / (positive.sum(dim=1, keepdim=True) + LITTLE)

"""What goes in and out of matching on torch devices: features, the task, and the matches."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch

from matchflow_matching.errors import FeaturesInvalidError
from matchflow_matching.features import INT8_MAX
from matchflow_matching.matchers import FLOAT32_EPSILONS
from matchflow_matching.product_kernels import BASE, LARGEST_PEAK
from matchflow_matching.products import self_attention

if TYPE_CHECKING:
    from typing import Any, Self

    from numpy.typing import NDArray

    from matchflow_matching.features import FeatureBatch
    from matchflow_matching.settings import MatchSettings

# What a product of bytes on tensor cores takes at a time.
PADDED_TO = 32
DIGITS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBatch:
    """N images on a torch device.

    embeddings float32 [N, D], cells int8 [N, R, E], scales float32 [N, R], digits int8 [N, 3, E] (three_digits) with
    E the next multiple of 32 from D on and zeros behind D. peaks float32 [N]: the largest component of the embedding,
    without its sign. attention float32 [N, R]: products.self_attention. readable bool [N]: false where a number is not
    finite; such an image's floats and digits are zero. all_readable: all of them.
    """

    embeddings: torch.Tensor
    cells: torch.Tensor
    scales: torch.Tensor
    digits: torch.Tensor
    peaks: torch.Tensor
    attention: torch.Tensor
    readable: torch.Tensor
    all_readable: bool

    def __len__(self) -> int:
        """Return N."""
        return len(self.embeddings)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.embeddings.device

    @property
    def cells_per_image(self) -> int:
        """R."""
        return self.cells.shape[1]

    @property
    def dim(self) -> int:
        """D."""
        return self.embeddings.shape[1]

    @property
    def padded_dim(self) -> int:
        """E."""
        return self.cells.shape[2]

    @classmethod
    def upload(cls, batch: FeatureBatch, device: str | torch.device = "cpu") -> DeviceBatch:
        """Copy a batch to the device; FeaturesInvalidError when its shapes disagree."""
        n, dim = batch.embeddings.shape
        if batch.cells.shape != (*batch.scales.shape, dim) or len(batch.scales) != n or not batch.scales.shape[1]:
            raise FeaturesInvalidError(
                f"expected embeddings [N, D], cells [N, R, D] and scales [N, R]; got {batch.embeddings.shape}, "
                f"{batch.cells.shape} and {batch.scales.shape}"
            )
        sound = np.abs(batch.embeddings).max(axis=1, initial=0.0) <= LARGEST_PEAK
        readable = sound & np.isfinite(batch.scales).all(axis=1)
        unreadable = np.asarray(~readable)[:, None]
        embeddings = np.where(unreadable, np.float32(0), batch.embeddings)
        scales = np.where(unreadable, np.float16(0), batch.scales)
        peaks = np.abs(embeddings).max(axis=1, initial=0.0)
        legible = type(batch)(embeddings=embeddings, cells=batch.cells, scales=scales)
        padding = ((0, 0), (0, 0), (0, -dim % PADDED_TO))

        def on_device(array: NDArray[Any]) -> torch.Tensor:
            return torch.tensor(array, device=device)

        return cls(
            embeddings=on_device(embeddings),
            cells=on_device(np.pad(batch.cells, padding)),
            scales=on_device(scales.astype(np.float32)),
            digits=on_device(np.pad(three_digits(embeddings), padding)),
            peaks=on_device(peaks),
            attention=on_device(self_attention(legible)),
            readable=on_device(np.asarray(readable)),
            all_readable=bool(readable.all()),
        )


def three_digits(embeddings: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return finite vectors [N, D] in three digits of base 254, the highest first, int8 [N, 3, D].

    d0 + d1 / 254 + d2 / 254^2 is the vector scaled to a largest component of +-127, within 8e-6: a digit less than in
    products.py, so that the digits of a vector and an empty one fill the lanes of a tensor core.
    """
    peaks = np.abs(embeddings).max(axis=1, keepdims=True, initial=0.0).astype(np.float64)
    rest = embeddings * np.divide(INT8_MAX, peaks, where=peaks > 0, out=np.zeros_like(peaks))
    split = np.empty((len(embeddings), DIGITS, embeddings.shape[1]), np.int8)
    for digit in range(DIGITS):
        whole = np.rint(rest)
        split[:, digit] = whole
        rest = (rest - whole) * BASE
    return split


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What an engine works on, checked; masks bool [Q, Rq] and [N, Rx] or None.

    penalties: w * d2, float32 [Rx, Rq]; places: float32 [Rx, 2] and [Rq, 2], whose squared distances are the penalties
    times exponent_factor. Both None where there are no penalties. flows: how many to return of each pair.
    """

    queries: DeviceBatch
    candidates: DeviceBatch
    settings: MatchSettings
    penalties: torch.Tensor | None
    places: tuple[torch.Tensor, torch.Tensor] | None
    query_masks: torch.Tensor | None
    image_masks: torch.Tensor | None
    flows: int

    @property
    def exponent_factor(self) -> float:
        """What values of pairs are times this are exponents of 2 in their kernel."""
        return math.log2(math.e) / self.settings.epsilon

    @property
    def in_logarithms(self) -> bool:
        """Whether the costs are too far apart for float32 scaling vectors."""
        return (2 + self.settings.spatial_weight) / self.settings.epsilon > FLOAT32_EPSILONS


@dataclass(frozen=True, slots=True, kw_only=True)
class TopFlows:
    """The F entries of each plan with the largest contributions, largest first, all [Q, N, F]; see matching.Flow.

    image_cells, query_cells: int32, -1 where fewer entries have mass. masses, similarities: float32, 0 there.
    Equal contributions come in order of image cell, then query cell.
    """

    image_cells: torch.Tensor
    query_cells: torch.Tensor
    masses: torch.Tensor
    similarities: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ManyMatches:
    """Q x N scored pairs, on the device: every tensor is [Q, N] and means what the field of this name does in Matches.

    flows: the top flows of each pair, None when none were asked for.
    """

    cosine: torch.Tensor
    structural: torch.Tensor
    score: torch.Tensor
    iterations: torch.Tensor
    marginal_error: torch.Tensor
    converged: torch.Tensor
    query_uniform: torch.Tensor
    image_uniform: torch.Tensor
    flows: TopFlows | None = None

    @classmethod
    def put_together(cls, parts: list[Self], axis: int) -> Self:
        """Return matches of several queries (0) or candidates (1) as one; `parts` has at least one."""
        first = parts[0]
        if len(parts) == 1:
            return first
        names = [field.name for field in fields(cls) if field.name != "flows"]
        flows = [part.flows for part in parts if part.flows is not None]
        return cls(
            **{name: torch.cat([getattr(part, name) for part in parts], axis) for name in names},
            flows=TopFlows(
                **{
                    field.name: torch.cat([getattr(part, field.name) for part in flows], axis)
                    for field in fields(TopFlows)
                }
            )
            if flows
            else None,
        )

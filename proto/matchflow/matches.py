"""Answers: scored pairs with the parts that matched, and what a search returns."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from matchflow.labels import Labels
    from matchflow.matching import RerankSettings
    from matchflow.values import Box, CellGrid, Image

# Sums of a few hundred float32 values that each were rounded on the wire.
ADDITIVITY_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One entry of the matching flow: so much mass joins these two cells.

    contribution = mass * (similarity - penalty); penalty: what the distance of the two cells costs.
    """

    query_cell: int
    image_cell: int
    query_box: Box
    image_box: Box
    mass: float
    similarity: float
    contribution: float
    penalty: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """How far the solver got for a pair; a uniform marginal means that side attended nowhere to the other.

    duality_gap: of exact solvers, how much cheaper another plan could still be at most; 0 proves that none is.
    """

    iterations: int
    marginal_error: float
    converged: bool
    query_marginal_is_uniform: bool
    image_marginal_is_uniform: bool
    duality_gap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchScore:
    """How well two images match, and why.

    coarse_score: cosine of the global vectors. structural_score: None when the pair was not re-ranked.
    score = structural_score + global_weight * coarse_score. flows: first those that parallel
    neighbouring flows support best. residual: structural_score less the contributions of `flows`. certificate: None
    without transport.
    """

    coarse_score: float
    structural_score: float | None
    score: float
    certificate: Certificate | None
    flows: tuple[Flow, ...] = field(repr=False)
    residual: float

    @property
    def additivity_gap(self) -> float:
        """What contributions + residual miss of the structural score; 0 for a pair that was not re-ranked."""
        if self.structural_score is None:
            return 0.0
        return abs(sum(flow.contribution for flow in self.flows) + self.residual - self.structural_score)

    def verify(self, tolerance: float = ADDITIVITY_TOLERANCE) -> bool:
        """Say whether the explanation adds up.

        Every contribution is mass * (similarity - penalty), and contributions + residual = structural_score, within
        `tolerance`, in every mode.
        """
        products_agree = all(abs(f.mass * (f.similarity - f.penalty) - f.contribution) <= tolerance for f in self.flows)
        return products_agree and self.additivity_gap <= tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(MatchScore):
    """A pair with its full plan; the weights of each side's cells sum to 1, and are empty without marginals.

    query_cell_shares, image_cell_shares: what each cell contributes when it shares with close cells of agreeing
    features; either sums to structural_score. Empty when nothing was re-ranked, or from a server that does not say.
    rerank_settings: how it was scored; None from a server that does not say.
    """

    grid: CellGrid
    query_weights: tuple[float, ...] = field(repr=False)
    image_weights: tuple[float, ...] = field(repr=False)
    bundle_digest: str
    rerank_settings: RerankSettings | None = None
    query_cell_shares: tuple[float, ...] = field(default=(), repr=False)
    image_cell_shares: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation(Comparison):
    """What a search said of a stored image, again, with as many flows as wanted.

    generation: the one that the image was taken from; 0 from a server that does not say.
    """

    image: Image
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredImage(MatchScore):
    """An image found by a search; coarse_rank 0 is the best of the coarse order."""

    image: Image
    coarse_rank: int

    @property
    def image_id(self) -> str:
        """The id within its gallery."""
        return self.image.id

    @property
    def labels(self) -> Labels:
        """The image's labels."""
        return self.image.labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit(ScoredImage):
    """An image found by `Client.search`."""

    _render: Callable[[], bytes] = field(repr=False, compare=False)

    def save_overlay(self, path: str | Path) -> Path:
        """Write query and hit side by side, matched parts joined, as a PNG; raises as `Client.render_match`."""
        destination = Path(path)
        destination.write_bytes(self._render())
        return destination


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncHit(ScoredImage):
    """An image found by `AsyncClient.search`."""

    _render: Callable[[], Awaitable[bytes]] = field(repr=False, compare=False)

    async def save_overlay(self, path: str | Path) -> Path:
        """Write query and hit side by side, matched parts joined, as a PNG; raises as `AsyncClient.render_match`."""
        png = await self._render()
        destination = Path(path)
        await asyncio.to_thread(destination.write_bytes, png)
        return destination


class RerankState(enum.StrEnum):
    """How much of the shortlist was matched."""

    COMPLETE = "complete"
    """All of it."""
    PARTIAL = "partial"
    """The deadline came after `depth_done` candidates; the others follow in coarse order."""
    SKIPPED_DEADLINE = "skipped_deadline"
    """The deadline came before the first: coarse order."""
    NOT_REQUESTED = "not_requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimings:
    """Milliseconds on the server, per stage; transport is in none of them."""

    decode_ms: float
    encode_ms: float
    coarse_ms: float
    gather_ms: float
    match_ms: float
    explain_ms: float
    total_ms: float


HitT = TypeVar("HitT", bound=ScoredImage)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult(Generic[HitT]):
    """An answer, best hit first; iterating it gives the hits.

    sequence: the last change of the gallery that it reflects. query_id is also in the server's log.
    exact: it is proved that matching every image that passes the filter gives these hits, in this order.
    proved_below: images that were not matched because a bound already puts them below the last hit.
    rerank_settings: how it was scored; None from a server that does not say.
    generation: the one that answered; given to `explain`, it tells the same evidence again, also after a switch.
    store_unreachable: the store could not be reached, so the hits are what the server knew last, at `sequence`.
    """

    hits: tuple[HitT, ...]
    rerank: RerankState
    depth_done: int
    timings: StageTimings
    bundle_digest: str
    sequence: int
    query_id: str
    exact: bool = False
    proved_below: int = 0
    rerank_settings: RerankSettings | None = None
    generation: int = 0
    store_unreachable: bool = False

    def __iter__(self) -> Iterator[HitT]:
        """Give the hits, best first."""
        return iter(self.hits)

    def __len__(self) -> int:
        """Return the number of hits."""
        return len(self.hits)

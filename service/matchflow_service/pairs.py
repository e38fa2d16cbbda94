"""Two images against each other: Compare, Explain and RenderMatch. All but `find_pair` block."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from matchflow.v1 import search_pb2
from matchflow_service import names
from matchflow_service.conversions import grid_message, image_message
from matchflow_service.overlay import PartMatch, render_match
from matchflow_service.reranking import parse_rerank, rerank_in, rerank_message
from matchflow_service.scores import score_message, score_pair, shares, weights
from matchflow_service.sides import Basis
from matchflow_service.workers import on

if TYPE_CHECKING:
    from matchflow.v1 import matching_pb2, types_pb2
    from matchflow_matching import MatchSettings
    from matchflow_service.scores import PairScore
    from matchflow_service.sides import Side, Sides

SENT = "the query"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two images and how they are scored."""

    query: Side
    image: Side
    settings: MatchSettings


async def find_pair(
    sides: Sides,
    query: search_pb2.Query,
    image: search_pb2.Query,
    rerank: matching_pb2.Rerank,
    *,
    generation: int = 0,
    model: str = "",
    with_rgb: bool = False,
) -> Pair:
    """Return both sides, computed by one and the same bundle, and how they are scored.

    A stored side decides which bundle, and what `rerank` without a mode means: the image, or else the query, as
    `generation` of its gallery has it (0: the active one). Without any, `model` does ("models/{model}", empty: the
    default), and for features on both sides their own.
    """
    names.check_generation(generation, "generation")
    terms = partial(_terms, sides, query, image, rerank, generation=generation, model=model)
    basis, settings = await on(sides.workers.search, terms)
    first, second = await asyncio.gather(
        sides.of(query, "query", basis, with_rgb=with_rgb), sides.of(image, "image", basis)
    )
    return Pair(query=first, image=second, settings=settings)


def _terms(
    sides: Sides,
    query: search_pb2.Query,
    image: search_pb2.Query,
    rerank: matching_pb2.Rerank,
    *,
    generation: int,
    model: str,
) -> tuple[Basis, MatchSettings]:
    # The image first: it is the hit, and its gallery's default is how a search scored it.
    for side, field in ((image, "image.image"), (query, "query.image")):
        if side.WhichOneof("source") == "image":
            gallery = sides.store.gallery(names.parse_image(side.image, field).gallery_id, generation)
            return Basis.within(gallery), rerank_in(gallery, rerank).settings
    settings = parse_rerank(rerank).settings
    if model:
        return Basis.of(sides.models.named(names.parse_model(model, "model"))), settings
    if query.WhichOneof("source") == image.WhichOneof("source") == "features":
        return Basis.of(sides.models.of_bundle(query.features.bundle_digest)), settings
    return Basis.of(sides.models.named("")), settings


def compared(pair: Pair, max_flows: int | None) -> search_pb2.CompareResponse:
    """Return the score of a pair with its weights."""
    scored = score_pair(pair.query, pair.image, pair.settings, max_flows)
    query_weights, image_weights = weights(scored, pair.settings)
    query_cell_shares, image_cell_shares = shares(scored, pair.query, pair.image)
    return search_pb2.CompareResponse(
        match=_message(scored, pair),
        grid=grid_message(pair.query.geometry.grid),
        query_weights=query_weights,
        image_weights=image_weights,
        query_cell_shares=query_cell_shares,
        image_cell_shares=image_cell_shares,
        bundle_digest=pair.query.bundle_digest,
        rerank=rerank_message(pair.settings),
    )


def explained(pair: Pair, max_flows: int | None) -> search_pb2.ExplainResponse:
    """Return what `compared` does, of a stored image."""
    assert pair.image.stored is not None
    assert pair.image.gallery is not None
    assert pair.image.record is not None
    scored = score_pair(pair.query, pair.image, pair.settings, max_flows)
    query_weights, image_weights = weights(scored, pair.settings)
    query_cell_shares, image_cell_shares = shares(scored, pair.query, pair.image)
    return search_pb2.ExplainResponse(
        image=image_message(pair.image.stored.gallery_id, pair.image.record),
        match=_message(scored, pair),
        grid=grid_message(pair.query.geometry.grid),
        bundle_digest=pair.query.bundle_digest,
        query_weights=query_weights,
        image_weights=image_weights,
        query_cell_shares=query_cell_shares,
        image_cell_shares=image_cell_shares,
        rerank=rerank_message(pair.settings),
        generation=pair.image.gallery.spec.generation,
    )


def rendered(sides: Sides, pair: Pair, *, max_flows: int, height_px: int) -> search_pb2.RenderMatchResponse:
    """Return the overlay of a pair; raises ThumbnailMissingError."""
    query_rgb, image_rgb = sides.pixels(pair.query), sides.pixels(pair.image)
    scored = score_pair(pair.query, pair.image, pair.settings, max_flows)
    png = render_match(
        query_rgb,
        image_rgb,
        _parts(scored, pair),
        query_title=_title(pair.query),
        image_title=_title(pair.image),
        score_text=_score_text(scored),
        height_px=height_px,
    )
    return search_pb2.RenderMatchResponse(png=png, match=_message(scored, pair))


def _message(scored: PairScore, pair: Pair) -> types_pb2.MatchScore:
    return score_message(scored, pair.query.geometry.boxes(), pair.image.geometry.boxes())


def _parts(scored: PairScore, pair: Pair) -> list[PartMatch]:
    """Return the parts to draw: those whose place is known."""
    parts = []
    for flow in scored.flows:
        query_box, image_box = pair.query.geometry.box(flow.query_cell), pair.image.geometry.box(flow.image_cell)
        if query_box is not None and image_box is not None:
            # Of a score that is not positive nothing is a share.
            share = flow.contribution / scored.structural if scored.structural and scored.structural > 0 else 0.0
            parts.append(PartMatch(query_box=query_box, image_box=image_box, share=share))
    return parts


def _title(side: Side) -> str:
    return side.stored.image_id if side.stored else SENT


def _score_text(scored: PairScore) -> str:
    if scored.structural is None:
        return f"score {scored.score:.3f}"
    rest = scored.score - scored.structural
    return f"score {scored.score:.3f} = structural {scored.structural:.3f} + weighted cosine {rest:.3f}"

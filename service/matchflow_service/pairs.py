"""Two images against each other: Compare, Explain and RenderMatch. All but `both_sides` block."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from matchflow.v1 import search_pb2
from matchflow_service import names
from matchflow_service.conversions import grid_message, image_message
from matchflow_service.overlay import PartMatch, render_match
from matchflow_service.scores import score_message, score_pair, weights
from matchflow_service.sides import Basis
from matchflow_service.workers import on

if TYPE_CHECKING:
    from matchflow.v1 import types_pb2
    from matchflow_matching import MatchSettings
    from matchflow_service.scores import PairScore
    from matchflow_service.sides import Side, Sides

SENT = "the query"


async def both_sides(
    sides: Sides, query: search_pb2.Query, image: search_pb2.Query, *, model: str = "", with_rgb: bool = False
) -> tuple[Side, Side]:
    """Return both sides, computed by one and the same bundle.

    A stored side decides which one; without any, `model` does ("models/{model}", empty: the default), and for features
    on both sides their own.
    """
    basis = await on(sides.workers.search, partial(_basis, sides, query, image, model))
    first, second = await asyncio.gather(
        sides.of(query, "query", basis, with_rgb=with_rgb), sides.of(image, "image", basis)
    )
    return first, second


def _basis(sides: Sides, query: search_pb2.Query, image: search_pb2.Query, model: str) -> Basis:
    for side, field in ((query, "query.image"), (image, "image.image")):
        if side.WhichOneof("source") == "image":
            return Basis.of(sides.store.gallery(names.parse_image(side.image, field).gallery_id).spec)
    if model:
        return Basis.of(sides.models.named(names.parse_model(model, "model")))
    if query.WhichOneof("source") == image.WhichOneof("source") == "features":
        return Basis.of(sides.models.of_bundle(query.features.bundle_digest))
    return Basis.of(sides.models.named(""))


def compared(query: Side, image: Side, settings: MatchSettings, max_flows: int | None) -> search_pb2.CompareResponse:
    """Return the score of a pair with its weights."""
    pair = score_pair(query, image, settings, max_flows)
    return search_pb2.CompareResponse(
        match=_message(pair, query, image),
        grid=grid_message(query.geometry.grid),
        bundle_digest=query.bundle_digest,
        **weights(pair, settings),
    )


def explained(query: Side, image: Side, settings: MatchSettings, max_flows: int | None) -> search_pb2.ExplainResponse:
    """Return what `compared` does, of a stored image."""
    assert image.stored is not None
    assert image.record is not None
    pair = score_pair(query, image, settings, max_flows)
    return search_pb2.ExplainResponse(
        image=image_message(image.stored.gallery_id, image.record),
        match=_message(pair, query, image),
        grid=grid_message(query.geometry.grid),
        bundle_digest=query.bundle_digest,
        **weights(pair, settings),
    )


def rendered(
    sides: Sides, query: Side, image: Side, settings: MatchSettings, *, max_flows: int, height_px: int
) -> search_pb2.RenderMatchResponse:
    """Return the overlay of a pair; raises ThumbnailMissingError."""
    query_rgb, image_rgb = sides.pixels(query), sides.pixels(image)
    pair = score_pair(query, image, settings, max_flows)
    png = render_match(
        query_rgb,
        image_rgb,
        _parts(pair, query, image),
        query_title=_title(query),
        image_title=_title(image),
        score_text=_score_text(pair),
        height_px=height_px,
    )
    return search_pb2.RenderMatchResponse(png=png, match=_message(pair, query, image))


def _message(pair: PairScore, query: Side, image: Side) -> types_pb2.MatchScore:
    return score_message(pair, query.geometry.boxes(), image.geometry.boxes())


def _parts(pair: PairScore, query: Side, image: Side) -> list[PartMatch]:
    """Return the parts to draw: those whose place is known."""
    parts = []
    for flow in pair.flows:
        query_box, image_box = query.geometry.box(flow.query_cell), image.geometry.box(flow.image_cell)
        if query_box is not None and image_box is not None:
            share = flow.contribution / pair.structural if pair.structural else 0.0
            parts.append(PartMatch(query_box=query_box, image_box=image_box, share=share))
    return parts


def _title(side: Side) -> str:
    return side.stored.image_id if side.stored else SENT


def _score_text(pair: PairScore) -> str:
    if pair.structural is None:
        return f"score {pair.score:.3f}"
    rest = pair.score - pair.structural
    return f"score {pair.score:.3f} = structural {pair.structural:.3f} + weighted cosine {rest:.3f}"

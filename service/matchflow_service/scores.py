"""Scores of pairs as messages; Compare, Explain and RenderMatch go the same way as a hit of Search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from matchflow.v1 import search_pb2, types_pb2
from matchflow_index.answers import certificate
from matchflow_matching import FeatureBatch, MatchMode, cell_shares, explain, match, top_flows
from matchflow_service.conversions import image_message

if TYPE_CHECKING:
    from matchflow_index import Certificate, Hit
    from matchflow_matching import Flow, MatchingFlow, MatchSettings
    from matchflow_service.geometry import Box
    from matchflow_service.sides import Basis, Side, Sides

# Those in which cells weigh differently; elsewhere every cell counts the same, or every row.
WEIGHTED = frozenset(MatchMode) - {MatchMode.COSINE, MatchMode.SAME_CELL, MatchMode.STRIPES}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScore:
    """A scored pair: what a hit of Search holds, and the plan. `structural` None: no second stage was asked for."""

    cosine: float
    structural: float | None
    score: float
    certificate: Certificate | None
    flows: list[Flow]
    residual: float
    plan: MatchingFlow | None


def score_pair(query: Side, image: Side, settings: MatchSettings, max_flows: int | None) -> PairScore:
    """Score two images, with the `max_flows` best supported flows (None: all of positive mass)."""
    grid, image_grid = query.geometry.grid, image.geometry.grid
    batch = FeatureBatch.stack([image.features])
    matches = match(query.features, batch, settings, grid=grid, image_grid=image_grid)
    cosine = float(matches.cosine[0])
    if settings.mode is MatchMode.COSINE:
        return PairScore(
            cosine=cosine, structural=None, score=cosine, certificate=None, flows=[], residual=0.0, plan=None
        )
    plan = explain(query.features, image.features, settings, grid=grid, image_grid=image_grid)
    flows = top_flows(plan, plan.plan.size if max_flows is None else max_flows)
    structural = float(matches.structural[0])
    return PairScore(
        cosine=cosine,
        structural=structural,
        score=float(matches.score[0]),
        certificate=certificate(matches, 0, settings.mode),
        flows=flows,
        residual=structural - sum(flow.contribution for flow in flows),
        plan=plan,
    )


def weights(pair: PairScore, settings: MatchSettings) -> tuple[list[float], list[float]]:
    """Return the weights of the query's and of the image's cells; empty where the mode has none to show."""
    if pair.plan is None or settings.mode not in WEIGHTED:
        return [], []
    return pair.plan.query_weights.tolist(), pair.plan.image_weights.tolist()


def shares(pair: PairScore, query: Side, image: Side) -> tuple[list[float], list[float]]:
    """Return what the query's and the image's cells contribute; empty when no second stage was asked for."""
    if pair.plan is None:
        return [], []
    of_query, of_image = cell_shares(pair.plan, query.features, image.features)
    return of_query.tolist(), of_image.tolist()


def score_message(
    pair: PairScore | Hit, query_boxes: list[Box | None], image_boxes: list[Box | None]
) -> types_pb2.MatchScore:
    """Return a score with its flows; boxes are one per cell, None where nobody knows."""
    return types_pb2.MatchScore(
        coarse_score=pair.cosine,
        structural_score=pair.structural,
        score=pair.score,
        certificate=certificate_message(pair.certificate),
        flows=[flow_message(flow, query_boxes, image_boxes) for flow in pair.flows],
        residual=pair.residual,
    )


def certificate_message(value: Certificate | None) -> types_pb2.Certificate | None:
    """Return a certificate as a message; only transport has one."""
    if value is None:
        return None
    # Rounding may leave it a hair below zero, and a plan can't be better than the best.
    gap = None if value.duality_gap is None else max(0.0, value.duality_gap)
    return types_pb2.Certificate(
        iterations=value.iterations,
        marginal_error=value.marginal_error,
        converged=value.converged,
        query_marginal_is_uniform=value.query_uniform,
        image_marginal_is_uniform=value.image_uniform,
        duality_gap=gap,
    )


def flow_message(flow: Flow, query_boxes: list[Box | None], image_boxes: list[Box | None]) -> types_pb2.Flow:
    """Return one matched part."""
    return types_pb2.Flow(
        query_cell=flow.query_cell,
        image_cell=flow.image_cell,
        query_box=box_message(query_boxes[flow.query_cell]),
        image_box=box_message(image_boxes[flow.image_cell]),
        mass=flow.mass,
        similarity=flow.similarity,
        contribution=flow.contribution,
        penalty=flow.penalty,
    )


def box_message(box: Box | None) -> types_pb2.Box | None:
    """Return a rectangle as a message."""
    if box is None:
        return None
    left, top, right, bottom = box
    return types_pb2.Box(left=left, top=top, right=right, bottom=bottom)


def hit_messages(hits: list[Hit], query: Side, gallery_id: str, sides: Sides, basis: Basis) -> list[search_pb2.Hit]:
    """Return the hits of a search in `gallery_id`."""
    query_boxes = query.geometry.boxes()
    boxes_by_size: dict[tuple[int, int], list[Box | None]] = {}
    messages = []
    for hit in hits:
        size = (hit.record.width_px, hit.record.height_px)
        if size not in boxes_by_size:
            boxes_by_size[size] = sides.geometry(basis, *size).boxes()
        messages.append(
            search_pb2.Hit(
                image=image_message(gallery_id, hit.record),
                match=score_message(hit, query_boxes, boxes_by_size[size]),
                coarse_rank=hit.coarse_rank,
            )
        )
    return messages

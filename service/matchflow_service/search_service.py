"""The servicer that finds images, compares pairs and shows why they match."""
# ruff: noqa: N802 - the methods and their arguments are those of the contract

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from matchflow.v1 import search_pb2, search_pb2_grpc
from matchflow_index import GenerationDroppedError
from matchflow_service import fields, names
from matchflow_service.calls import request_id
from matchflow_service.deadlines import Deadline
from matchflow_service.pairs import compared, explained, find_pair, rendered
from matchflow_service.searching import MAX_FLOWS, answer, answer_unsent, parse_search
from matchflow_service.workers import on

if TYPE_CHECKING:
    from matchflow_service.sides import Sides

log = logging.getLogger(__name__)

MAX_PARTS = 64
DEFAULT_PARTS = 8
DEFAULT_HEIGHT_PX = 384


class SearchServicer(search_pb2_grpc.SearchServiceServicer):
    """Embeds images that were sent, and does everything else on a search thread."""

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._pool = sides.workers.search

    async def Search(self, request: search_pb2.SearchRequest, context: Any) -> search_pb2.SearchResponse:
        """See the contract."""
        start_s = time.perf_counter()
        deadline = Deadline.of(context)
        try:
            reply = await self._search(request, deadline)
        except GenerationDroppedError:
            if request.generation:
                raise
            # It was active when this began, and has been switched from and dropped; the gallery is there.
            gallery_id = names.parse_gallery(request.gallery, "gallery")
            await on(self._pool, partial(self._sides.store.generations, gallery_id))
            reply = await self._search(request, deadline)
        reply.query_id = request_id.get()
        reply.timings.total_ms = (time.perf_counter() - start_s) * 1000
        log.info(
            "searched %s: %d hits in %.1f ms",
            request.gallery,
            len(reply.hits),
            reply.timings.total_ms,
            extra={"query_id": reply.query_id},
        )
        return reply

    async def _search(self, request: search_pb2.SearchRequest, deadline: Deadline) -> search_pb2.SearchResponse:
        if request.query.WhichOneof("source") == "image_bytes":
            search = await on(self._pool, partial(parse_search, request, self._sides))
            side = await deadline.bound(self._sides.of(search.query, "query", search.basis))
            return await on(self._pool, partial(answer, search, side, self._sides, deadline))
        return await on(self._pool, partial(answer_unsent, request, self._sides, deadline))

    async def Compare(self, request: search_pb2.CompareRequest, context: Any) -> search_pb2.CompareResponse:
        """See the contract."""
        max_flows = _max_flows(request)
        finding = find_pair(
            self._sides,
            request.query,
            request.image,
            request.rerank,
            generation=request.generation,
            model=request.model,
        )
        pair = await Deadline.of(context).bound(finding)
        return await on(self._pool, partial(compared, pair, max_flows))

    async def Explain(self, request: search_pb2.ExplainRequest, context: Any) -> search_pb2.ExplainResponse:
        """See the contract."""
        max_flows = _max_flows(request)
        image = _stored(request.image)
        finding = find_pair(self._sides, request.query, image, request.rerank, generation=request.generation)
        pair = await Deadline.of(context).bound(finding)
        return await on(self._pool, partial(explained, pair, max_flows))

    async def RenderMatch(self, request: search_pb2.RenderMatchRequest, context: Any) -> search_pb2.RenderMatchResponse:
        """See the contract."""
        parts, height_px = DEFAULT_PARTS, DEFAULT_HEIGHT_PX
        if request.HasField("max_flows"):
            parts = fields.whole(request.max_flows, "max_flows", low=1, high=MAX_PARTS)
        if request.HasField("height_px"):
            height_px = fields.whole(request.height_px, "height_px", low=128, high=1024)
        finding = find_pair(
            self._sides,
            request.query,
            _stored(request.image),
            request.rerank,
            generation=request.generation,
            with_rgb=True,
        )
        pair = await Deadline.of(context).bound(finding)
        return await on(self._pool, partial(rendered, self._sides, pair, max_flows=parts, height_px=height_px))


def _stored(name: str) -> search_pb2.Query:
    """Return the other side of Explain and RenderMatch, once its name is well-formed."""
    return search_pb2.Query(image=str(names.parse_image(name, "image")))


def _max_flows(request: search_pb2.CompareRequest | search_pb2.ExplainRequest) -> int | None:
    """Return how many flows are wanted, None for all."""
    if not request.HasField("max_flows"):
        return None
    return fields.whole(request.max_flows, "max_flows", low=0, high=MAX_FLOWS)

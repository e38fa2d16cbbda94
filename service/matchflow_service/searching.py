"""One search: the request checked and parsed, the two stages run, the answer written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from matchflow.v1 import search_pb2
from matchflow_index import RerankState, SearchQuery
from matchflow_service import fields, names
from matchflow_service.errors import FieldInvalidError
from matchflow_service.filters import differing, parse_exclude_same, parse_filter
from matchflow_service.reranking import rerank_in, rerank_message
from matchflow_service.scores import hit_messages
from matchflow_service.sides import Basis

if TYPE_CHECKING:
    from matchflow_index import Gallery, ImageFilter, MatchDefaults, SearchAnswer
    from matchflow_service.deadlines import Deadline
    from matchflow_service.sides import Side, Sides

MAX_TOP_K = 1000
MAX_FLOWS = 10_000
# What keeps a reply within a message, and a search thread from explaining for seconds.
MAX_FLOWS_OF_ALL_HITS = 100_000
DEFAULT_TOP_K = 10
# How long a search may wait for a change that this server has not seen yet.
MAX_WAIT_S = 1.0
DEFAULT_FLOWS = 8
STATES = {
    RerankState.COMPLETE: search_pb2.RerankStatus.STATE_COMPLETE,
    RerankState.PARTIAL: search_pb2.RerankStatus.STATE_PARTIAL,
    RerankState.SKIPPED_DEADLINE: search_pb2.RerankStatus.STATE_SKIPPED_DEADLINE,
    RerankState.NOT_REQUESTED: search_pb2.RerankStatus.STATE_NOT_REQUESTED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search that has been checked; nothing is left that the client could have got wrong but the query itself."""

    gallery: Gallery
    basis: Basis
    query: search_pb2.Query
    filter: ImageFilter
    exclude_same: tuple[str, ...]
    group_by: str | None
    group_limit: int
    top_k: int
    scoring: MatchDefaults
    max_flows: int
    min_score: float | None
    exhaustive: bool


def parse_search(request: search_pb2.SearchRequest, sides: Sides) -> Search:
    """Check a request, and pin the generation that answers it. Blocks on the store.

    Raises FieldInvalidError, GalleryNotFoundError, GenerationNotFoundError, SequenceNotReachedError.
    """
    gallery_id = names.parse_gallery(request.gallery, "gallery")
    has = request.HasField
    top_k = fields.whole(request.top_k, "top_k", low=1, high=MAX_TOP_K) if has("top_k") else DEFAULT_TOP_K
    flows = fields.whole(request.max_flows, "max_flows", low=0, high=MAX_FLOWS) if has("max_flows") else DEFAULT_FLOWS
    fields.whole(top_k * flows, "max_flows", low=0, high=MAX_FLOWS_OF_ALL_HITS, unit="flows of all hits together")
    min_score = fields.finite(request.min_score, "min_score") if has("min_score") else None
    excluded = None
    if request.query.WhichOneof("source") == "image" and not request.include_query_image:
        name = names.parse_image(request.query.image, "query.image")
        excluded = name.image_id if name.gallery_id == gallery_id else None
    if request.at_least_sequence < 0:
        raise FieldInvalidError("at_least_sequence", f"expected 0 or more; got {request.at_least_sequence}")
    group_by, group_limit = _groups(request)
    exclude_same = parse_exclude_same(request)
    image_filter = parse_filter(request.filter, gallery_id, also_excluded=excluded)
    generation = names.check_generation(request.generation, "generation")
    if request.at_least_sequence:
        gallery = sides.store.generations_of(gallery_id).seen(generation, request.at_least_sequence, MAX_WAIT_S)
    else:
        gallery = sides.store.gallery(gallery_id, generation)
    return Search(
        gallery=gallery,
        basis=Basis.within(gallery),
        query=request.query,
        filter=image_filter,
        exclude_same=exclude_same,
        group_by=group_by,
        group_limit=group_limit,
        top_k=top_k,
        scoring=rerank_in(gallery, request.rerank),
        max_flows=flows,
        min_score=min_score,
        exhaustive=request.exhaustive,
    )


def _groups(request: search_pb2.SearchRequest) -> tuple[str | None, int]:
    """Return the label whose values make groups, and how many hits of each are returned."""
    if not request.group_by:
        if request.HasField("group_limit"):
            raise FieldInvalidError("group_limit", f"expected group_by with it; got {request.group_limit} alone")
        return None, 1
    group_by = fields.label_name(request.group_by, "group_by")
    if not request.HasField("group_limit"):
        return group_by, 1
    return group_by, fields.whole(request.group_limit, "group_limit", low=1, high=MAX_TOP_K)


def answer(search: Search, side: Side, sides: Sides, deadline: Deadline) -> search_pb2.SearchResponse:
    """Run the two stages for a query's features. Blocks."""
    image_filter = search.filter
    if side.record is not None:
        image_filter = differing(image_filter, side.record.labels, search.exclude_same)
    found = search.gallery.search(
        SearchQuery(
            features=side.features,
            top_k=search.top_k,
            depth=search.scoring.depth,
            settings=search.scoring.settings,
            max_flows=search.max_flows,
            filter=image_filter,
            group_by=search.group_by,
            group_limit=search.group_limit,
            min_score=search.min_score,
            deadline=deadline.at_s,
            exhaustive=search.exhaustive,
        )
    )
    gallery_id = search.gallery.spec.gallery_id
    return search_pb2.SearchResponse(
        hits=hit_messages(found.hits, side, gallery_id, sides, search.basis),
        rerank_status=search_pb2.RerankStatus(state=STATES[found.rerank_state], depth_done=found.depth_done),
        bundle_digest=search.basis.bundle_digest,
        sequence=found.sequence,
        timings=_timings(found, side),
        exact=found.exact,
        proved_below=found.proved_below,
        generation=search.gallery.spec.generation,
        rerank=rerank_message(search.scoring.settings, search.scoring.depth),
        store_unreachable=found.store_unreachable or side.store_unreachable,
    )


def answer_unsent(request: search_pb2.SearchRequest, sides: Sides, deadline: Deadline) -> search_pb2.SearchResponse:
    """Do all of a search that needs no model, in one visit to a thread. Blocks."""
    search = parse_search(request, sides)
    return answer(search, sides.unsent(search.query, "query", search.basis, without_store=True), sides, deadline)


def _timings(found: SearchAnswer, side: Side) -> search_pb2.StageTimings:
    return search_pb2.StageTimings(
        decode_ms=side.decode_s * 1000,
        encode_ms=side.encode_s * 1000,
        coarse_ms=found.timings.coarse_s * 1000,
        gather_ms=found.timings.gather_s * 1000,
        match_ms=found.timings.match_s * 1000,
        explain_ms=found.timings.explain_s * 1000,
    )

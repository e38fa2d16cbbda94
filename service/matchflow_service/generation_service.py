"""The servicer of generations: a gallery under another model, beside the one that answers."""
# ruff: noqa: N802, ARG002 - the methods and their arguments are those of the contract

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from google.protobuf import empty_pb2

from matchflow.v1 import generation_pb2, generation_pb2_grpc
from matchflow_index.comparing import ComparisonQuery
from matchflow_index.generation_progress import GenerationState
from matchflow_service import fields, names
from matchflow_service.conversions import default_rerank, grid_message, timestamp
from matchflow_service.deadlines import Deadline
from matchflow_service.errors import FieldInvalidError
from matchflow_service.pages import page_token, parse_page_token
from matchflow_service.reranking import parse_rerank
from matchflow_service.workers import on

if TYPE_CHECKING:
    from matchflow_index import GalleryStore
    from matchflow_index.comparing import Comparison
    from matchflow_index.generation_progress import GenerationStatus
    from matchflow_index.generations import GalleryGenerations
    from matchflow_service.models import Models
    from matchflow_service.workers import Workers

STATES = {
    GenerationState.ACTIVE: generation_pb2.Generation.STATE_ACTIVE,
    GenerationState.FILLING: generation_pb2.Generation.STATE_FILLING,
    GenerationState.READY: generation_pb2.Generation.STATE_READY,
    GenerationState.INCOMPLETE: generation_pb2.Generation.STATE_INCOMPLETE,
    GenerationState.WAITING_FOR_MODEL: generation_pb2.Generation.STATE_WAITING_FOR_MODEL,
}
DEFAULT_QUERIES, MAX_QUERIES = 200, 1_000
DEFAULT_TOP_K, MAX_TOP_K = 10, 100
# How long a switch may wait for the changes that the generation has yet to follow.
MAX_WAIT_S = 20.0


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Answers on a store thread, or a patient one: every method is one blocking function."""

    def __init__(self, *, store: GalleryStore, models: Models, workers: Workers) -> None:
        self._store = store
        self._models = models
        self._workers = workers

    async def CreateGeneration(
        self, request: generation_pb2.CreateGenerationRequest, context: Any
    ) -> generation_pb2.Generation:
        """See the contract."""
        return await on(self._workers.store, partial(self._create, request))

    async def GetGeneration(
        self, request: generation_pb2.GetGenerationRequest, context: Any
    ) -> generation_pb2.Generation:
        """See the contract."""
        return await on(self._workers.store, partial(self._get, request))

    async def ListGenerations(
        self, request: generation_pb2.ListGenerationsRequest, context: Any
    ) -> generation_pb2.ListGenerationsResponse:
        """See the contract."""
        return await on(self._workers.store, partial(self._list, request))

    async def ListMissingImages(
        self, request: generation_pb2.ListMissingImagesRequest, context: Any
    ) -> generation_pb2.ListMissingImagesResponse:
        """See the contract."""
        return await on(self._workers.store, partial(self._missing, request))

    async def CompareGenerations(
        self, request: generation_pb2.CompareGenerationsRequest, context: Any
    ) -> generation_pb2.CompareGenerationsResponse:
        """See the contract."""
        return await on(self._workers.patient, partial(self._compare, request, Deadline.of(context)))

    async def ActivateGeneration(
        self, request: generation_pb2.ActivateGenerationRequest, context: Any
    ) -> generation_pb2.Generation:
        """See the contract."""
        return await on(self._workers.patient, partial(self._activate, request, Deadline.of(context)))

    async def DeleteGeneration(self, request: generation_pb2.DeleteGenerationRequest, context: Any) -> empty_pb2.Empty:
        """See the contract."""
        return await on(self._workers.store, partial(self._delete, request))

    def _named(self, name: str, field: str) -> tuple[GalleryGenerations, int]:
        gallery_id, generation = names.parse_generation(name, field)
        return self._store.generations_of(gallery_id), generation

    def _create(self, request: generation_pb2.CreateGenerationRequest) -> generation_pb2.Generation:
        gallery_id = names.parse_gallery(request.parent, "parent")
        wanted = request.generation.model
        model = self._models.named(names.parse_model(wanted, "generation.model") if wanted else "")
        default = parse_rerank(request.generation.default_rerank, field="generation.default_rerank")
        spec = self._store.gallery(gallery_id).spec
        if model.bundle_digest == spec.bundle_digest:
            raise FieldInvalidError(
                "generation.model", f"expected another model than that of the gallery, {spec.model}; got {model.name}"
            )
        generations = self._store.generations_of(gallery_id)
        added = generations.add(
            replace(
                spec,
                model=model.name,
                bundle_digest=model.bundle_digest,
                grid=model.grid,
                embedding_dim=model.embedding_dim,
                create_time_s=time.time(),
                gallery_create_time_s=spec.gallery_create_time_s or spec.create_time_s,
            )
        )
        if request.generation.HasField("default_rerank"):
            added.gallery.set_match_defaults(default)
        return generation_message(added)

    def _get(self, request: generation_pb2.GetGenerationRequest) -> generation_pb2.Generation:
        generations, generation = self._named(request.name, "name")
        return generation_message(generations.status(generation))

    def _list(self, request: generation_pb2.ListGenerationsRequest) -> generation_pb2.ListGenerationsResponse:
        generations = self._store.generations_of(names.parse_gallery(request.parent, "parent"))
        return generation_pb2.ListGenerationsResponse(
            generations=[generation_message(status) for status in generations.all()]
        )

    def _missing(self, request: generation_pb2.ListMissingImagesRequest) -> generation_pb2.ListMissingImagesResponse:
        gallery_id, generation = names.parse_generation(request.parent, "parent")
        limit = fields.page_size(request.page_size)
        after = parse_page_token(request.page_token, "ListMissingImages", request.parent)
        found, last = self._store.generations_of(gallery_id).missing(generation, after, limit)
        return generation_pb2.ListMissingImagesResponse(
            names=[str(names.ImageName(gallery_id=gallery_id, image_id=image_id)) for image_id in found],
            next_page_token="" if last is None else page_token("ListMissingImages", request.parent, last),
        )

    def _compare(
        self, request: generation_pb2.CompareGenerationsRequest, deadline: Deadline
    ) -> generation_pb2.CompareGenerationsResponse:
        queries, top_k = DEFAULT_QUERIES, DEFAULT_TOP_K
        if request.HasField("query_count"):
            queries = fields.whole(request.query_count, "query_count", low=1, high=MAX_QUERIES)
        if request.HasField("top_k"):
            top_k = fields.whole(request.top_k, "top_k", low=1, high=MAX_TOP_K)
        label = fields.label_name(request.label, "label") if request.label else None
        generations, generation = self._named(request.name, "name")
        query = ComparisonQuery(queries=queries, top_k=top_k, label=label, seed=request.seed, deadline=deadline.at_s)
        gallery_id, _ = names.parse_generation(request.name, "name")
        return comparison_message(generations.compare(generation, query), gallery_id)

    def _activate(
        self, request: generation_pb2.ActivateGenerationRequest, deadline: Deadline
    ) -> generation_pb2.Generation:
        generations, generation = self._named(request.name, "name")
        left_s = MAX_WAIT_S if deadline.at_s is None else min(MAX_WAIT_S, deadline.at_s - time.monotonic())
        generations.activate(generation, allow_missing=request.allow_missing, timeout_s=left_s)
        return generation_message(generations.status(generation))

    def _delete(self, request: generation_pb2.DeleteGenerationRequest) -> empty_pb2.Empty:
        generations, generation = self._named(request.name, "name")
        generations.drop(generation)
        return empty_pb2.Empty()


def generation_message(status: GenerationStatus) -> generation_pb2.Generation:
    """Return a generation and how far it is."""
    spec, gallery = status.spec, status.gallery
    return generation_pb2.Generation(
        name=names.generation_name(spec.gallery_id, spec.generation),
        model=names.model_name(spec.model),
        bundle_digest=spec.bundle_digest,
        grid=grid_message(spec.grid),
        embedding_dim=spec.embedding_dim,
        state=STATES[status.state],
        image_count=gallery.count,
        missing_count=status.missing,
        pending_changes=status.pending,
        sequence=gallery.sequence,
        create_time=timestamp(spec.create_time_s),
        default_rerank=default_rerank(gallery),
    )


def comparison_message(found: Comparison, gallery_id: str) -> generation_pb2.CompareGenerationsResponse:
    """Return what a comparison came to."""
    shift = found.score_shift
    response = generation_pb2.CompareGenerationsResponse
    return response(
        query_count=found.queries,
        top_k=found.top_k,
        overlap=found.overlap,
        same_first=found.same_first,
        score_shift=response.ScoreShift(
            pairs=shift.pairs, mean=shift.mean, p5=shift.p5, median=shift.median, p95=shift.p95
        ),
        labelled_queries=found.labelled,
        active_precision_at_1=found.active_precision,
        precision_at_1=found.precision,
        disagreements=[
            response.Disagreement(image=str(names.ImageName(gallery_id=gallery_id, image_id=image_id)), overlap=overlap)
            for image_id, overlap in found.disagreements
        ],
        active_generation=found.active_generation,
        generation=found.generation,
    )

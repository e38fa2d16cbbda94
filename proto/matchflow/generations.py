"""Generations of a gallery: their values, and the calls about them, described once for both clients."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf import empty_pb2

from matchflow import ranking, replies, values
from matchflow.call import Call, Page
from matchflow.calls import PAGE_SIZE, gallery_name, model_name
from matchflow.v1 import generation_pb2

if TYPE_CHECKING:
    from datetime import datetime

    from matchflow.matching import RerankSettings

GENERATION_SERVICE = "/matchflow.v1.GenerationService/"
GENERATIONS = "/generations/"


class GenerationState(enum.StrEnum):
    """What a generation is doing."""

    ACTIVE = "active"
    """It is searched and written to."""
    FILLING = "filling"
    """Images are computed for it, or changes of the gallery have yet to be followed."""
    READY = "ready"
    """It has every image of the active one."""
    INCOMPLETE = "incomplete"
    """It has every image that could be computed; the missing ones have to be sent again."""
    WAITING_FOR_MODEL = "waiting_for_model"
    """Images could be computed, but not by this server: it has not loaded the model."""
    UNKNOWN = "unknown"
    """A newer server's, which this client does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A gallery under one model: the active one, or another that follows it.

    number: from 1, never given twice in a gallery. missing_count: images of the active generation that this one lacks.
    pending_changes: changes of the active one that it does not reflect yet. sequence: its own last change.
    default_rerank: as in Gallery.
    """

    gallery: str
    number: int
    model: str
    bundle_digest: str
    grid: values.CellGrid
    embedding_dim: int
    state: GenerationState
    image_count: int
    missing_count: int
    pending_changes: int
    sequence: int
    create_time: datetime
    default_rerank: RerankSettings | None = None

    @property
    def name(self) -> str:
        """The resource name, galleries/{gallery}/generations/{generation}."""
        return generation_name(self.gallery, self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreShift:
    """The score of the generation less that of the active one, over all `pairs` of question and hit that both have."""

    pairs: int
    mean: float
    p5: float
    median: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """An image that was asked with, and which share of the hits the two generations then have in common."""

    image: values.ImageRef
    overlap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationComparison:
    """How a generation answers beside the active one.

    query_count: questions asked; fewer than wanted where the two have fewer images in common. overlap: mean share of
    the one's hits that are among the other's. same_first: share of the questions with the same first hit.
    labelled_queries: questions whose image shares its value of the label with another; the precisions are the shares of
    those whose first hit is right, None without a label. disagreements: where the two agree least, the worst first.
    """

    query_count: int
    top_k: int
    overlap: float
    same_first: float
    score_shift: ScoreShift
    labelled_queries: int
    active_precision_at_1: float | None
    precision_at_1: float | None
    disagreements: tuple[Disagreement, ...]
    active_generation: int
    generation: int


STATES = {
    generation_pb2.Generation.State.Value(f"STATE_{state.name}"): state
    for state in GenerationState
    if state is not GenerationState.UNKNOWN
}


def generation_name(gallery: str, generation: int) -> str:
    """Return the resource name of a generation."""
    return f"{gallery_name(gallery)}{GENERATIONS}{generation}"


def create(gallery: str, *, model: str, rerank: RerankSettings | None) -> Call[Generation]:
    """Describe GenerationService.CreateGeneration."""
    content = generation_pb2.Generation(model=model_name(model))
    if rerank is not None:
        content.default_rerank.CopyFrom(ranking.rerank(rerank.mode, rerank.tuning, depth=rerank.depth))
    request = generation_pb2.CreateGenerationRequest(parent=gallery_name(gallery), generation=content)
    return Call(
        path=f"{GENERATION_SERVICE}CreateGeneration",
        request=request,
        reply_type=generation_pb2.Generation,
        convert=_generation,
    )


def get(gallery: str, generation: int) -> Call[Generation]:
    """Describe GenerationService.GetGeneration."""
    return Call(
        path=f"{GENERATION_SERVICE}GetGeneration",
        request=generation_pb2.GetGenerationRequest(name=generation_name(gallery, generation)),
        reply_type=generation_pb2.Generation,
        convert=_generation,
    )


def list_all(gallery: str) -> Call[list[Generation]]:
    """Describe GenerationService.ListGenerations."""
    return Call(
        path=f"{GENERATION_SERVICE}ListGenerations",
        request=generation_pb2.ListGenerationsRequest(parent=gallery_name(gallery)),
        reply_type=generation_pb2.ListGenerationsResponse,
        convert=lambda reply: [_generation(each) for each in reply.generations],
    )


def list_missing(gallery: str, generation: int, token: str) -> Call[Page[str]]:
    """Describe one page of GenerationService.ListMissingImages, as image ids."""
    request = generation_pb2.ListMissingImagesRequest(
        parent=generation_name(gallery, generation), page_size=PAGE_SIZE, page_token=token
    )
    return Call(
        path=f"{GENERATION_SERVICE}ListMissingImages",
        request=request,
        reply_type=generation_pb2.ListMissingImagesResponse,
        convert=lambda reply: Page(
            values=tuple(values.ImageRef.parse(name).image_id for name in reply.names),
            next_token=reply.next_page_token,
        ),
    )


def compare(
    gallery: str, generation: int, *, query_count: int, top_k: int, label: str, seed: int
) -> Call[GenerationComparison]:
    """Describe GenerationService.CompareGenerations."""
    request = generation_pb2.CompareGenerationsRequest(
        name=generation_name(gallery, generation), query_count=query_count, top_k=top_k, label=label, seed=seed
    )
    return Call(
        path=f"{GENERATION_SERVICE}CompareGenerations",
        request=request,
        reply_type=generation_pb2.CompareGenerationsResponse,
        convert=_comparison,
    )


def activate(gallery: str, generation: int, *, allow_missing: bool) -> Call[Generation]:
    """Describe GenerationService.ActivateGeneration."""
    request = generation_pb2.ActivateGenerationRequest(
        name=generation_name(gallery, generation), allow_missing=allow_missing
    )
    return Call(
        path=f"{GENERATION_SERVICE}ActivateGeneration",
        request=request,
        reply_type=generation_pb2.Generation,
        convert=_generation,
    )


def delete(gallery: str, generation: int) -> Call[None]:
    """Describe GenerationService.DeleteGeneration."""
    return Call(
        path=f"{GENERATION_SERVICE}DeleteGeneration",
        request=generation_pb2.DeleteGenerationRequest(name=generation_name(gallery, generation)),
        reply_type=empty_pb2.Empty,
        convert=lambda _: None,
    )


def _generation(message: generation_pb2.Generation) -> Generation:
    gallery, number = _parts(message.name)
    return Generation(
        gallery=gallery,
        number=number,
        model=message.model.removeprefix(values.MODELS),
        bundle_digest=message.bundle_digest,
        grid=replies.grid(message.grid),
        embedding_dim=message.embedding_dim,
        state=STATES.get(message.state, GenerationState.UNKNOWN),
        image_count=message.image_count,
        missing_count=message.missing_count,
        pending_changes=message.pending_changes,
        sequence=message.sequence,
        create_time=replies.time(message.create_time),
        default_rerank=ranking.rerank_settings(message.default_rerank),
    )


def _parts(name: str) -> tuple[str, int]:
    gallery, _, number = name.removeprefix(values.GALLERIES).partition(GENERATIONS)
    if not (name.startswith(values.GALLERIES) and gallery and number.isascii() and number.isdecimal()):
        raise ValueError(f"expected galleries/GALLERY/generations/NUMBER; got {name!r}")
    return gallery, int(number)


def _comparison(message: generation_pb2.CompareGenerationsResponse) -> GenerationComparison:
    shift = message.score_shift
    return GenerationComparison(
        query_count=message.query_count,
        top_k=message.top_k,
        overlap=message.overlap,
        same_first=message.same_first,
        score_shift=ScoreShift(pairs=shift.pairs, mean=shift.mean, p5=shift.p5, median=shift.median, p95=shift.p95),
        labelled_queries=message.labelled_queries,
        active_precision_at_1=message.active_precision_at_1 if message.HasField("active_precision_at_1") else None,
        precision_at_1=message.precision_at_1 if message.HasField("precision_at_1") else None,
        disagreements=tuple(
            Disagreement(image=values.ImageRef.parse(each.image), overlap=each.overlap)
            for each in message.disagreements
        ),
        active_generation=message.active_generation,
        generation=message.generation,
    )

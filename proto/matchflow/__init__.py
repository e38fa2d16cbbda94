"""The Matchflow client: search images, and see why they match.

>>> import matchflow
>>> with matchflow.Client("localhost:50051") as client:  # doctest: +SKIP
...     for hit in client.search("photo.jpg", gallery="demo"):
...         print(hit.image_id, hit.score, hit.verify())
...         hit.save_overlay(f"{hit.image_id}.png")

`AsyncClient` has the same methods for asyncio. `matchflow.errors` draws the tree of exceptions; `matchflow.v1` has the
messages.
"""

from __future__ import annotations

from matchflow import errors
from matchflow.async_client import AsyncClient
from matchflow.client import Client
from matchflow.errors import (
    BundleMismatchError,
    ContentDiffersError,
    DeadlineExceededError,
    EtagMismatchError,
    FeaturesInvalidError,
    FileUnreadableError,
    GalleryExistsError,
    GalleryNotFoundError,
    GenerationActiveError,
    GenerationExistsError,
    GenerationNotFoundError,
    GenerationNotReadyError,
    ImageNotFoundError,
    ImageTooLargeError,
    ImageUnreadableError,
    InternalServerError,
    InvalidFieldError,
    MatchflowError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
    SequenceNotReachedError,
    ServerUnreachableError,
    ShuttingDownError,
    StoreUnavailableError,
    ThumbnailMissingError,
    UnexpectedStatusError,
)
from matchflow.filtering import AllOf, Between, Condition, LabelConditions, Not, Present
from matchflow.generations import Disagreement, Generation, GenerationComparison, GenerationState, ScoreShift
from matchflow.ingest import Durability, IngestFailure, IngestItem, IngestOutcome, IngestResult, IngestSummary
from matchflow.labels import Labels, LabelValue
from matchflow.matches import (
    AsyncHit,
    Certificate,
    Comparison,
    Explanation,
    Flow,
    Hit,
    MatchScore,
    RerankState,
    SearchResult,
    StageTimings,
)
from matchflow.matching import Marginals, RerankMode, RerankSettings, Tuning
from matchflow.values import (
    Box,
    CellGrid,
    DeletedImages,
    Features,
    Gallery,
    Health,
    Image,
    ImageRef,
    Model,
)

__all__ = [
    "AllOf",
    "AsyncClient",
    "AsyncHit",
    "Between",
    "Box",
    "BundleMismatchError",
    "CellGrid",
    "Certificate",
    "Client",
    "Comparison",
    "Condition",
    "ContentDiffersError",
    "DeadlineExceededError",
    "DeletedImages",
    "Disagreement",
    "Durability",
    "EtagMismatchError",
    "Explanation",
    "Features",
    "FeaturesInvalidError",
    "FileUnreadableError",
    "Flow",
    "Gallery",
    "GalleryExistsError",
    "GalleryNotFoundError",
    "Generation",
    "GenerationActiveError",
    "GenerationComparison",
    "GenerationExistsError",
    "GenerationNotFoundError",
    "GenerationNotReadyError",
    "GenerationState",
    "Health",
    "Hit",
    "Image",
    "ImageNotFoundError",
    "ImageRef",
    "ImageTooLargeError",
    "ImageUnreadableError",
    "IngestFailure",
    "IngestItem",
    "IngestOutcome",
    "IngestResult",
    "IngestSummary",
    "InternalServerError",
    "InvalidFieldError",
    "LabelConditions",
    "LabelValue",
    "Labels",
    "Marginals",
    "MatchScore",
    "MatchflowError",
    "Model",
    "ModelNotFoundError",
    "Not",
    "NotFoundError",
    "OverloadedError",
    "Present",
    "RerankMode",
    "RerankSettings",
    "RerankState",
    "ScoreShift",
    "SearchResult",
    "SequenceNotReachedError",
    "ServerUnreachableError",
    "ShuttingDownError",
    "StageTimings",
    "StoreUnavailableError",
    "ThumbnailMissingError",
    "Tuning",
    "UnexpectedStatusError",
    "errors",
]

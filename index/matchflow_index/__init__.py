"""Galleries: durable truth, coarse vectors and cell maps, two-stage search, evaluation. Knows no wire."""

from matchflow_index.answers import Certificate, Hit, SearchAnswer, SearchTimings
from matchflow_index.conditions import LabelCondition, LabelRange
from matchflow_index.errors import (
    BackupDamagedError,
    BundleMismatchError,
    ContentDiffersError,
    EtagMismatchError,
    FeaturesRejectedError,
    FillingPausedError,
    GalleryExistsError,
    GalleryIndexError,
    GalleryNotFoundError,
    GenerationActiveError,
    GenerationDroppedError,
    GenerationExistsError,
    GenerationMovedError,
    GenerationNotFoundError,
    GenerationNotReadyError,
    ImageNotFoundError,
    ImageRejectedError,
    InvalidQueryError,
    SequenceNotReachedError,
    StoreUnavailableError,
)
from matchflow_index.evaluation import METHODS, EvaluationReport, LabelledImages, Method, Metrics, evaluate
from matchflow_index.filters import ImageFilter
from matchflow_index.gallery import Gallery
from matchflow_index.labels import Labels, LabelValue
from matchflow_index.match_defaults import MatchDefaults
from matchflow_index.queries import SearchQuery
from matchflow_index.rankings import RerankState
from matchflow_index.records import GallerySpec, ImageRecord, KnownImage, NewImage, PutOutcome, PutResult, Unchanged
from matchflow_index.store import GalleryStore

__all__ = [
    "METHODS",
    "BackupDamagedError",
    "BundleMismatchError",
    "Certificate",
    "ContentDiffersError",
    "EtagMismatchError",
    "EvaluationReport",
    "FeaturesRejectedError",
    "FillingPausedError",
    "Gallery",
    "GalleryExistsError",
    "GalleryIndexError",
    "GalleryNotFoundError",
    "GallerySpec",
    "GalleryStore",
    "GenerationActiveError",
    "GenerationDroppedError",
    "GenerationExistsError",
    "GenerationMovedError",
    "GenerationNotFoundError",
    "GenerationNotReadyError",
    "Hit",
    "ImageFilter",
    "ImageNotFoundError",
    "ImageRecord",
    "ImageRejectedError",
    "InvalidQueryError",
    "KnownImage",
    "LabelCondition",
    "LabelRange",
    "LabelValue",
    "LabelledImages",
    "Labels",
    "MatchDefaults",
    "Method",
    "Metrics",
    "NewImage",
    "PutOutcome",
    "PutResult",
    "RerankState",
    "SearchAnswer",
    "SearchQuery",
    "SearchTimings",
    "SequenceNotReachedError",
    "StoreUnavailableError",
    "Unchanged",
    "evaluate",
]

"""The Matchflow client: search images, and see why they match.

>>> import matchflow
>>> with matchflow.Client("localhost:50051") as client:  # doctest: +SKIP
...     for hit in client.search("photo.jpg", gallery="demo"):
...         print(hit.image_id, hit.score, hit.verify())
...         hit.save_overlay(f"{hit.image_id}.png")

`AsyncClient` has the same methods for asyncio; `matchflow.errors` has the exceptions; `matchflow.v1` the messages.
"""

from __future__ import annotations

from matchflow import errors
from matchflow.async_client import AsyncClient
from matchflow.client import Client
from matchflow.errors import MatchflowError
from matchflow.ingest import IngestFailure, IngestItem, IngestOutcome, IngestResult, IngestSummary
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
from matchflow.values import (
    Box,
    CellGrid,
    DeletedImages,
    Features,
    Gallery,
    Health,
    Image,
    ImageRef,
    Marginals,
    Model,
    RerankMode,
    Tuning,
)

__all__ = [
    "AsyncClient",
    "AsyncHit",
    "Box",
    "CellGrid",
    "Certificate",
    "Client",
    "Comparison",
    "DeletedImages",
    "Explanation",
    "Features",
    "Flow",
    "Gallery",
    "Health",
    "Hit",
    "Image",
    "ImageRef",
    "IngestFailure",
    "IngestItem",
    "IngestOutcome",
    "IngestResult",
    "IngestSummary",
    "Marginals",
    "MatchScore",
    "MatchflowError",
    "Model",
    "RerankMode",
    "RerankState",
    "SearchResult",
    "StageTimings",
    "Tuning",
    "errors",
]

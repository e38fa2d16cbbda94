"""Small galleries, and the two-stage search written the slow way."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index import GallerySpec, NewImage
from matchflow_matching import CellGrid, FeatureBatch, match
from matching_strategies import random_batch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matchflow_index import SearchQuery
    from matchflow_matching import Features

GRID = CellGrid(rows=2, columns=2)
DIM = 8


def gallery_spec(gallery_id: str = "demo", *, keep_thumbnails: bool = True) -> GallerySpec:
    """Return the specification of a gallery of 2 x 2 cells and D = 8."""
    return GallerySpec(
        gallery_id=gallery_id,
        model="tiny",
        bundle_digest="sha256:tiny",
        grid=GRID,
        embedding_dim=DIM,
        keep_thumbnails=keep_thumbnails,
        create_time_s=1234.5,
    )


def sample_features(count: int, seed: int = 0) -> FeatureBatch:
    """Return features of so many different images."""
    return random_batch(np.random.default_rng(seed), count, GRID.size, DIM)


def new_image(image_id: str, features: Features, labels: Mapping[str, str] | None = None) -> NewImage:
    """Return an image whose content hash is that of its features."""
    content = features.embedding.tobytes() + features.cells.tobytes() + features.scales.tobytes()
    return NewImage(
        image_id=image_id,
        content_hash=hashlib.sha256(content).hexdigest(),
        labels=dict(labels or {}),
        width_px=640,
        height_px=480,
        features=features,
        thumbnail=f"picture of {image_id}".encode(errors="replace"),
    )


def new_images(count: int, seed: int = 0, prefix: str = "image") -> list[NewImage]:
    """Return images prefix-000 and so on, with label parity even or odd and label number."""
    batch = sample_features(count, seed)
    return [
        new_image(f"{prefix}-{k:03}", batch[k], {"parity": "odd" if k % 2 else "even", "number": str(k)})
        for k in range(count)
    ]


def naive_search(images: Sequence[NewImage], query: SearchQuery) -> list[tuple[str, float]]:
    """Return (image id, score) of the answer, by sorting everything."""
    kept = [
        image
        for image in images
        if image.image_id not in query.filter.exclude and all(c.accepts(image.labels) for c in query.filter.labels)
    ]
    assert query.settings is not None
    scored = []
    for image in kept:
        matches = match(query.features, FeatureBatch.stack([image.features]), query.settings)
        scored.append((image.image_id, float(matches.cosine[0]), float(matches.score[0])))
    coarse = sorted(scored, key=lambda entry: (-entry[1], entry[0]))[: max(query.depth, query.top_k)]
    head = sorted(coarse[: query.depth], key=lambda entry: (-entry[2], entry[0]))
    ranking = [(name, score) for name, _, score in head] + [(name, cosine) for name, cosine, _ in coarse[query.depth :]]
    return [(name, score) for name, score in ranking if query.min_score is None or score >= query.min_score][
        : query.top_k
    ]

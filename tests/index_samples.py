"""Small galleries, and the two-stage search written the slow way."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from matchflow_index import GallerySpec, ImageRecord, NewImage
from matchflow_index.coarse import CoarseIndex
from matchflow_index.records import RowLayout
from matchflow_index.shelf import Shelf
from matchflow_index.slab import CellSlab
from matchflow_index.truth import Change, ChangeKind
from matchflow_matching import CellGrid, FeatureBatch, MatchMode, MatchSettings, match
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


@dataclass(frozen=True)
class Shelved:
    """A shelf in memory with what it holds, by image id; use it in a `with` statement."""

    shelf: Shelf
    images: dict[str, Features]

    @classmethod
    def of(cls, images: Mapping[str, Features], *, deleted: Sequence[str] = ()) -> Shelved:
        """Put images of one size without any check, then delete some."""
        layout = RowLayout(cells=GRID.size, dim=DIM)
        slab = CellSlab.private(layout)
        shelf = Shelf(slab=slab, coarse=CoarseIndex(DIM), row_ids=np.empty(0, np.int64), records=[], sequence=0)
        slab.write([layout.pack(features) for features in images.values()])
        records = [
            ImageRecord(image_id=name, row_id=k, content_hash="", labels={}, width_px=0, height_px=0, update_time_s=0.0)
            for k, name in enumerate(images)
        ]
        puts = [
            (Change(sequence=k + 1, kind=ChangeKind.PUT, image_id=record.image_id, row_id=record.row_id), record)
            for k, record in enumerate(records)
        ]
        start = len(puts) + 1
        removals = [
            (Change(sequence=start + k, kind=ChangeKind.REMOVE, image_id=name, row_id=0), None)
            for k, name in enumerate(deleted)
        ]
        shelf.apply([*puts, *removals])
        return cls(shelf=shelf, images={name: images[name] for name in images if name not in deleted})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shelf.slab.close()


def naive_search(
    images: Sequence[NewImage], query: SearchQuery, *, grid: CellGrid = GRID, exhaustive: bool = False
) -> list[tuple[str, float]]:
    """Return (image id, score) of the answer, by sorting everything; exhaustive: all are matched, not only `depth`."""
    kept = [
        image
        for image in images
        if image.image_id not in query.filter.exclude and all(c.accepts(image.labels) for c in query.filter.labels)
    ]
    if not kept:
        return []
    settings = query.settings or MatchSettings(mode=MatchMode.COSINE, global_weight=1)
    matches = match(query.features, FeatureBatch.stack([image.features for image in kept]), settings, grid=grid)
    scores = matches.cosine if settings.mode is MatchMode.COSINE else matches.score
    names = [image.image_id for image in kept]
    scored = list(zip(names, matches.cosine.tolist(), scores.tolist(), strict=True))
    depth = len(scored) if exhaustive else query.depth
    coarse = sorted(scored, key=lambda entry: (-entry[1], entry[0]))[: max(depth, query.top_k)]
    head = sorted(coarse[:depth], key=lambda entry: (-entry[2], entry[0]))
    ranking = [(name, score) for name, _, score in head] + [(name, cosine) for name, cosine, _ in coarse[depth:]]
    return [(name, score) for name, score in ranking if query.min_score is None or score >= query.min_score][
        : query.top_k
    ]

"""Small galleries, and the two-stage search written the slow way."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from matchflow_index import GallerySpec, ImageRecord, NewImage
from matchflow_index.flat_index import FlatIndex
from matchflow_index.labels import kind_of
from matchflow_index.records import RowLayout
from matchflow_index.shelf import Shelf, Update
from matchflow_index.sight import Records, Sight
from matchflow_index.slab import CellSlab
from matchflow_index.slots import Slots
from matchflow_index.truth import Change, ChangeKind
from matchflow_matching import CellGrid, FeatureBatch, MatchMode, MatchSettings, match
from matching_strategies import random_batch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matchflow_index import SearchQuery
    from matchflow_index.labels import Labels
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


def new_image(image_id: str, features: Features, labels: Labels | None = None) -> NewImage:
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


def empty_shelf() -> Shelf:
    """Return a shelf without images in a private slab; close it."""
    layout = RowLayout(cells=GRID.size, dim=DIM)
    return Shelf(slab=CellSlab.private(layout), coarse=FlatIndex(DIM), slots=Slots(), sequence=0)


def sight_of(shelf: Shelf) -> Sight:
    """Return what a search sees of a shelf that goes with no truth."""
    return Sight(lambda: shelf, lambda image_ids: Records(found=[None for _ in image_ids]))


def put_update(
    name: str, sequence: int, features: Features, labels: Labels | None = None, *, expire_time_s: float | None = None
) -> Update:
    """Return the put of an image by change `sequence`, with row id 100 + sequence."""
    record = ImageRecord(
        image_id=name,
        row_id=100 + sequence,
        content_hash="",
        labels=dict(labels or {}),
        width_px=0,
        height_px=0,
        update_time_s=0.0,
        sequence=sequence,
        expire_time_s=expire_time_s,
    )
    change = Change(sequence=sequence, kind=ChangeKind.PUT, image_id=name, row_id=record.row_id, time_s=0.0)
    return Update(change=change, record=record, row=RowLayout(cells=GRID.size, dim=DIM).pack(features))


def removal(name: str, sequence: int) -> Update:
    """Return the removal of an image by change `sequence`."""
    return Update(change=Change(sequence=sequence, kind=ChangeKind.REMOVE, image_id=name, row_id=0, time_s=0.0))


@dataclass(frozen=True)
class Shelved:
    """A shelf in memory with what it holds, by image id; use it in a `with` statement."""

    shelf: Shelf
    images: dict[str, Features]

    @classmethod
    def of(cls, images: Mapping[str, Features], *, deleted: Sequence[str] = ()) -> Shelved:
        """Put images of one size without any check, then delete some."""
        shelf = empty_shelf()
        puts = [put_update(name, k + 1, features) for k, (name, features) in enumerate(images.items())]
        removals = [removal(name, len(puts) + 1 + k) for k, name in enumerate(deleted)]
        shelf.apply([*puts, *removals], len(puts) + len(removals))
        return cls(shelf=shelf, images={name: images[name] for name in images if name not in deleted})

    @property
    def sight(self) -> Sight:
        """What a search sees of it."""
        return sight_of(self.shelf)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shelf.close()


def naive_search(
    images: Sequence[NewImage], query: SearchQuery, *, grid: CellGrid = GRID, exhaustive: bool = False
) -> list[tuple[str, float]]:
    """Return (image id, score) of the answer, by sorting everything; exhaustive: all are matched, not only `depth`."""
    kept = [
        image
        for image in images
        if image.image_id not in query.filter.exclude
        and (query.filter.any_ids is None or image.image_id in query.filter.any_ids)
        and all(condition.accepts(image.labels) for condition in query.filter.conditions)
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
    ranking = _within_groups(ranking, {image.image_id: image.labels for image in kept}, query)
    return [(name, score) for name, score in ranking if query.min_score is None or score >= query.min_score][
        : query.top_k
    ]


def _within_groups(
    ranking: list[tuple[str, float]], labels: Mapping[str, Labels], query: SearchQuery
) -> list[tuple[str, float]]:
    """Return the places of a ranking, best first, with no more than the limit of any group."""
    seen: Counter[tuple[object, object]] = Counter()
    kept = []
    for name, score in ranking:
        value = None if query.group_by is None else labels[name].get(query.group_by)
        if value is not None:
            seen[kind_of(value), value] += 1
            if seen[kind_of(value), value] > query.group_limit:
                continue
        kept.append((name, score))
    return kept

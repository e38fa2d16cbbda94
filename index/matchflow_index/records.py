"""The values that go into galleries and come out of them, and how they are written down."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from matchflow_index.labels import decode_label, encode_label
from matchflow_matching.features import CellGrid, FeatureBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matchflow_index.labels import Labels
    from matchflow_matching.features import Features

# json.dumps would make an encoder for every record that is written.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


# How far apart the sequences of two generations begin: none has so many changes.
GENERATION_STRIDE = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class GallerySpec:
    """What a generation of a gallery is pinned to for its whole life; times in seconds since 1970."""

    gallery_id: str
    model: str
    bundle_digest: str
    grid: CellGrid
    embedding_dim: int
    keep_thumbnails: bool
    create_time_s: float
    generation: int = 1
    # The uuid of the gallery's first generation; empty in that one itself.
    lineage: str = ""
    # When the gallery was created, 0 in its first generation, which was created with it.
    gallery_create_time_s: float = 0.0

    @property
    def base_sequence(self) -> int:
        """The sequence before the first change: what a later generation does counts on from beyond all earlier ones."""
        return (self.generation - 1) * GENERATION_STRIDE

    def encode(self) -> bytes:
        """Return the specification as JSON."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "grid"}
        return compact_json({**fields, "grid": [self.grid.rows, self.grid.columns]})

    @classmethod
    def decode(cls, data: bytes) -> GallerySpec:
        """Return the specification that `encode` wrote; from before there were generations it is of the first."""
        fields = json.loads(data)
        rows, columns = fields.pop("grid")
        return cls(grid=CellGrid(rows=rows, columns=columns), **fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewImage:
    """An image to put; `width_px` and `height_px` are 0 for ready-made features.

    It is gone after `expire_time_s`, seconds since 1970 (None: it stays). With `if_sequence` it is put only where the
    stored record was written by that change (0: where there is none).
    """

    image_id: str
    content_hash: str
    labels: Labels
    width_px: int
    height_px: int
    features: Features
    thumbnail: bytes | None = None
    expire_time_s: float | None = None
    if_sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownImage:
    """An image to put whose content the gallery is thought to hold already: all else may be new; see NewImage."""

    image_id: str
    content_hash: str
    labels: Labels
    expire_time_s: float | None = None
    if_sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """What is known of a stored image besides its features; times in seconds since 1970.

    `sequence` is the change that wrote this; from `expire_time_s` on the image counts as gone. `from_thumbnail`: the
    features are of the kept thumbnail, which is less than what was ingested.
    """

    image_id: str
    row_id: int
    content_hash: str
    labels: Labels
    width_px: int
    height_px: int
    update_time_s: float
    sequence: int = 0
    expire_time_s: float | None = None
    from_thumbnail: bool = False

    def encode(self) -> bytes:
        """Return the record as a JSON array, in the order of its fields."""
        labels = {name: encode_label(value) for name, value in self.labels.items()}
        return compact_json([getattr(self, name) if name != "labels" else labels for name in self.__slots__])

    @classmethod
    def decode(cls, data: bytes) -> ImageRecord:
        """Return the record that `encode` wrote; fields that a record from before lacks have their defaults."""
        image_id, row_id, content_hash, labels, *others = json.loads(data)
        for name, value in labels.items():
            if isinstance(value, list):
                labels[name] = decode_label(value)
        return cls(
            image_id=image_id,
            row_id=row_id,
            content_hash=content_hash,
            labels=labels,
            **dict(zip(cls.__slots__[4:], others, strict=False)),
        )

    def is_expired(self, now_s: float) -> bool:
        """Tell whether the image counts as gone at a time."""
        return self.expire_time_s is not None and self.expire_time_s <= now_s


class Unchanged(enum.Enum):
    """Stands for a value that is to stay as it is."""

    UNCHANGED = enum.auto()


class PutOutcome(enum.StrEnum):
    """What a put did."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    MISSING = "missing"
    """The gallery does not hold the content of a KnownImage (any more), and nothing was written for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PutResult:
    """What became of one put image; `sequence` is the last change of the gallery that it needs; row_id 0: MISSING."""

    outcome: PutOutcome
    row_id: int
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLayout:
    """How a row is written: embedding float32 [D], cells int8 [R, D], scales float16 [R], little-endian, no gaps.

    >>> RowLayout(cells=16, dim=128).size_bytes
    2592
    """

    cells: int
    dim: int

    @classmethod
    def of(cls, spec: GallerySpec) -> RowLayout:
        """Return the layout of a gallery's rows."""
        return cls(cells=spec.grid.size, dim=spec.embedding_dim)

    @property
    def size_bytes(self) -> int:
        """The length of one row."""
        return 4 * self.dim + self.cells * self.dim + 2 * self.cells

    def pack(self, features: Features) -> bytes:
        """Return one image's features as a row."""
        return (
            features.embedding.astype("<f4", copy=False).tobytes()
            + features.cells.tobytes()
            + features.scales.astype("<f2", copy=False).tobytes()
        )

    def unpack(self, rows: NDArray[np.uint8]) -> FeatureBatch:
        """Return rows uint8 [N, size_bytes] as a batch of contiguous arrays, copied."""
        n, first, second = len(rows), 4 * self.dim, (4 + self.cells) * self.dim
        return FeatureBatch(
            embeddings=self.embeddings(rows),
            cells=rows[:, first:second].copy().view(np.int8).reshape(n, self.cells, self.dim),
            scales=self.scales(rows),
        )

    def embeddings(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embeddings float32 [N, D] of rows uint8 [N, size_bytes], copied."""
        return rows[:, : 4 * self.dim].copy().view("<f4").astype(np.float32, copy=False)

    def scales(self, rows: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Return the scales float16 [N, R] of rows uint8 [N, size_bytes], copied."""
        return rows[:, (4 + self.cells) * self.dim :].copy().view("<f2").astype(np.float16, copy=False)


def compact_json(value: object) -> bytes:
    """Return a value as JSON without blanks, UTF-8."""
    return _ENCODER.encode(value).encode()

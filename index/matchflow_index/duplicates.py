"""Find images that are there more than once: by the hash of their content, or by a hash of what they look like.

The look is a difference hash of the thumbnail: 9 x 8 grey values, one bit for each pair of neighbours in a row that
says whether the left one is brighter, 64 in all. A few bits differ between a picture and a smaller or more compressed
one.
"""

from __future__ import annotations

import io
import warnings
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
from PIL import Image

from matchflow_index.findings import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from matchflow_index.truth import Snapshot, StoredGallery, Truth

HASH_COLUMNS, HASH_ROWS = 9, 8
HASH_BITS = 64
STEP = 256
# Hashes that are looked for at once.
QUERIES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """An image of a group; `distance` is in how many bits its look differs from that of the group's first image."""

    image_id: str
    distance: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateGroup:
    """Images of the same content ("content"), or that look alike ("look"), in order of id.

    Each looks like at least one other of its group; two of them may differ more than that.
    """

    kind: str
    images: tuple[Duplicate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateReport:
    """The groups; `unseen` images have no thumbnail, or none that can be read: only their content was compared."""

    images: int
    unseen: int
    groups: tuple[DuplicateGroup, ...]


def find_duplicates(
    truth: Truth, gallery: StoredGallery, *, distance: int = 4, progress: Callable[[int], object] = lambda _: None
) -> DuplicateReport:
    """Return the duplicates of a gallery, the looks among them at most `distance` of 64 bits apart."""
    names: list[str] = []
    contents: list[str] = []
    hashed: list[int] = []
    hashes: list[int] = []
    with truth.read(gallery) as snapshot:
        for image_id, content, look in _looked_at(snapshot):
            if look is not None:
                hashed.append(len(names))
                hashes.append(look)
            names.append(image_id)
            contents.append(content)
            if len(names) % STEP == 0:
                progress(len(names))
    groups = [
        DuplicateGroup(kind="content", images=tuple(Duplicate(image_id=names[place], distance=0) for place in places))
        for places in _same(contents)
    ]
    looks = np.array(hashes, np.uint64)
    for group in near_groups(looks, distance):
        # Those of the same content are known already.
        if len({contents[hashed[place]] for place in group}) > 1:
            first = looks[group[0]]
            images = [
                Duplicate(image_id=names[hashed[place]], distance=int(np.bitwise_count(looks[place] ^ first)))
                for place in group
            ]
            groups.append(DuplicateGroup(kind="look", images=tuple(images)))
    return DuplicateReport(images=len(names), unseen=len(names) - len(hashed), groups=tuple(groups))


def _looked_at(snapshot: Snapshot) -> Iterator[tuple[str, str, int | None]]:
    """Yield id, content hash and look of all images."""
    for record in snapshot.records():
        thumbnail = snapshot.thumbnail(record.row_id)
        yield record.image_id, record.content_hash, None if thumbnail is None else picture_hash(thumbnail)


def _same(contents: Iterable[str]) -> list[list[int]]:
    """Return the places of equal texts, where there are several."""
    places = defaultdict[str, list[int]](list)
    for place, content in enumerate(contents):
        places[content].append(place)
    return [found for found in places.values() if len(found) > 1]


def picture_hash(data: bytes) -> int | None:
    """Return the difference hash of a picture; None for what is none."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as picture:
            # A JPEG is decoded no larger than is needed.
            picture.draft("L", (8 * HASH_COLUMNS, 8 * HASH_ROWS))
            # What is transparent shows the page.
            shown = _on_white(picture) if picture.has_transparency_data else picture
            grey = shown.convert("L").resize((HASH_COLUMNS, HASH_ROWS), Image.Resampling.BOX)
    except (OSError, SyntaxError, Image.DecompressionBombError, *UNREADABLE):
        return None
    values = np.asarray(grey)
    return int.from_bytes(np.packbits(values[:, :-1] > values[:, 1:]).tobytes(), "big")


def _on_white(picture: Image.Image) -> Image.Image:
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


def near_groups(hashes: NDArray[np.uint64], distance: int) -> list[list[int]]:
    """Return the places of hashes [n] that are connected by steps of at most `distance` bits, two or more each.

    >>> near_groups(np.array([0, 7, 255, 1], np.uint64), 2)
    [[0, 1, 3]]
    """
    unique, which = np.unique(hashes, return_inverse=True)
    parents = np.arange(len(unique))
    for one, other in _near_pairs(unique, distance):
        first, second = _root(parents, one), _root(parents, other)
        parents[max(first, second)] = min(first, second)
    groups = defaultdict[int, list[int]](list)
    for place, number in enumerate(which.tolist()):
        groups[_root(parents, number)].append(place)
    return sorted(places for places in groups.values() if len(places) > 1)


def _near_pairs(unique: NDArray[np.uint64], distance: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs of different hashes that are at most so far apart."""
    if not len(unique):
        return
    codes = unique.astype(">u8").view(np.uint8).reshape(-1, HASH_BITS // 8)
    # FAISS's own stubs lack it.
    index: Any = faiss.IndexBinaryFlat(HASH_BITS)
    index.add(codes)
    for start in range(0, len(codes), QUERIES):
        # Less than the radius, not at most.
        limits, _, found = index.range_search(codes[start : start + QUERIES], distance + 1)
        asked = np.repeat(np.arange(start, start + len(limits) - 1), np.diff(limits.astype(np.int64)))
        # Each pair once.
        kept = asked < found
        yield from zip(asked[kept].tolist(), found[kept].tolist(), strict=True)


def _root(parents: NDArray[np.intp], place: int) -> int:
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = int(parents[place])
    return place

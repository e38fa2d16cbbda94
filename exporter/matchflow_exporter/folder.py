"""The folder of images that a head is fitted on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from matchflow_bundle.errors import ImageError
from matchflow_bundle.images import decode_image
from matchflow_exporter.errors import HeadImagesError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from matchflow_bundle.preprocessing import Preprocessing

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadImages:
    """Model inputs `pixels` uint8 [n, H, W, 3], the sha256 over the files, and how many files could not be read."""

    pixels: NDArray[np.uint8]
    sha256: str
    skipped: int


def choose_files(folder: Path, count: int) -> list[Path]:
    """Return at most `count` image files below `folder`, evenly spread over them in the order of their names.

    Raises HeadImagesError if there is none.
    """
    files = sorted(
        (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    if not files:
        raise HeadImagesError(f"expected images ({', '.join(sorted(SUFFIXES))}) below {folder}; found none")
    taken = min(count, len(files))
    return [files[index * len(files) // taken] for index in range(taken)]


def read_head_images(
    files: list[Path], preprocessing: Preprocessing, progress: Callable[[str, int, int], None]
) -> HeadImages:
    """Decode and preprocess `files`, leaving out what can't be read; raise HeadImagesError if nothing can."""
    digest = hashlib.sha256()
    pixels: list[NDArray[np.uint8]] = []
    for done, path in enumerate(files):
        progress("read", done, len(files))
        try:
            data = path.read_bytes()
            pixels.append(preprocessing.apply(decode_image(data)))
        except (ImageError, OSError):
            continue
        digest.update(hashlib.sha256(data).digest())
    progress("read", len(files), len(files))
    if not pixels:
        raise HeadImagesError(f"expected at least one readable image among {len(files)} files; found none")
    return HeadImages(pixels=np.stack(pixels), sha256=digest.hexdigest(), skipped=len(files) - len(pixels))

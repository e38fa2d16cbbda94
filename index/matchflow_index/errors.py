"""The exceptions of matchflow_index.

GalleryIndexError
├── GalleryNotFoundError     no gallery of that id, or it was deleted meanwhile
│   └── GenerationDroppedError   the gallery is there, but this generation of it was deleted meanwhile
├── GalleryExistsError       that gallery id is taken
├── GenerationNotFoundError  no generation of that number in the gallery
├── GenerationExistsError    the gallery has two generations already
├── GenerationActiveError    that can't be done with the active generation
├── GenerationNotReadyError  the generation lacks images of the active one
├── GenerationMovedError     the generation was made active, or not active any more, under a write; nothing was done
├── FillingPausedError       features for a generation can't be computed just now
├── ImageNotFoundError       no image of that id in the gallery
├── ContentDiffersError      the gallery holds other content under that id
├── EtagMismatchError        the image was changed since the caller looked at it
├── SequenceNotReachedError  searches do not see a change yet that the caller wants them to
├── ImageRejectedError       an image id or a label that can't be stored
│   └── FeaturesRejectedError    features of a wrong shape, type or value
├── BundleMismatchError      features of another bundle than the gallery is pinned to
├── InvalidQueryError        a search or an evaluation that makes no sense
├── StoreUnavailableError    the store can't be opened, read or written
├── BackupDamagedError       a backup is not whole
└── CacheDamagedError        a cache is missing, stale, damaged or foreign; never leaves the package: it is rebuilt
"""

from __future__ import annotations


class GalleryIndexError(Exception):
    """Root of what this package raises on purpose."""


class GalleryNotFoundError(GalleryIndexError):
    """No gallery of that id, or it was deleted meanwhile."""

    def __init__(self, gallery_id: str) -> None:
        super().__init__(f"there is no gallery {gallery_id!r}")
        self.gallery_id = gallery_id


class GenerationDroppedError(GalleryNotFoundError):
    """The gallery is there, but this generation of it was deleted meanwhile."""

    def __init__(self, gallery_id: str, generation: int) -> None:
        super().__init__(gallery_id)
        self.args = (f"generation {generation} of gallery {gallery_id!r} was deleted",)
        self.generation = generation


class GalleryExistsError(GalleryIndexError):
    """The gallery id is taken."""

    def __init__(self, gallery_id: str) -> None:
        super().__init__(f"there already is a gallery {gallery_id!r}")
        self.gallery_id = gallery_id


class GenerationNotFoundError(GalleryIndexError):
    """No generation of that number in the gallery."""

    def __init__(self, gallery_id: str, generation: int, there: list[int]) -> None:
        names = " and ".join(str(number) for number in there)
        super().__init__(f"there is no generation {generation} of gallery {gallery_id!r}; there is {names}")
        self.gallery_id = gallery_id
        self.generation = generation


class GenerationExistsError(GalleryIndexError):
    """The gallery has two generations already."""

    def __init__(self, gallery_id: str, generation: int) -> None:
        super().__init__(
            f"gallery {gallery_id!r} has two generations; delete generation {generation}, which is not active, first"
        )
        self.gallery_id = gallery_id
        self.generation = generation


class GenerationActiveError(GalleryIndexError):
    """Something that can't be done with the active generation."""

    def __init__(self, gallery_id: str, generation: int) -> None:
        super().__init__(f"generation {generation} of gallery {gallery_id!r} is active; expected one that is not")
        self.gallery_id = gallery_id
        self.generation = generation


class GenerationNotReadyError(GalleryIndexError):
    """A generation lacks images of the active one, or has yet to follow changes of it."""

    def __init__(self, gallery_id: str, generation: int, *, missing: int, pending: int) -> None:
        super().__init__(
            f"generation {generation} of gallery {gallery_id!r} lacks {missing} images of the active one and is "
            f"{pending} changes behind it; expected none of either"
        )
        self.missing = missing
        self.pending = pending


class GenerationMovedError(GalleryIndexError):
    """A generation was made active, or not active any more, under somebody who writes to it; nothing was done."""

    def __init__(self, gallery_id: str, generation: int) -> None:
        super().__init__(f"generation {generation} of gallery {gallery_id!r} has changed its place; nothing was stored")
        self.gallery_id = gallery_id


class FillingPausedError(GalleryIndexError):
    """Features for a generation can't be computed just now; whoever fills it tries again later."""


class ContentDiffersError(GalleryIndexError):
    """The gallery holds other content under that id; `expected` and `actual` are content hashes."""

    def __init__(self, gallery_id: str, image_id: str, *, expected: str, actual: str) -> None:
        super().__init__(
            f"image {image_id!r} in gallery {gallery_id!r}: expected content {expected}, as the gallery holds it; "
            f"got {actual}"
        )
        self.expected = expected
        self.actual = actual


class ImageNotFoundError(GalleryIndexError):
    """No image of that id in the gallery."""

    def __init__(self, gallery_id: str, image_id: str) -> None:
        super().__init__(f"there is no image {image_id!r} in gallery {gallery_id!r}")
        self.gallery_id = gallery_id
        self.image_id = image_id


class EtagMismatchError(GalleryIndexError):
    """The image was changed since the caller looked at it; `expected` and `actual` are changes, 0: no image."""

    def __init__(self, gallery_id: str, image_id: str, *, expected: int, actual: int) -> None:
        super().__init__(
            f"image {image_id!r} in gallery {gallery_id!r}: expected it as change {expected} left it; it is of {actual}"
        )
        self.expected = expected
        self.actual = actual


class SequenceNotReachedError(GalleryIndexError):
    """Searches here do not see a change yet that the caller wants them to."""

    def __init__(self, gallery_id: str, *, wanted: int, reached: int) -> None:
        super().__init__(f"gallery {gallery_id!r} is at change {reached} here; expected at least {wanted}")
        self.wanted = wanted
        self.reached = reached


class ImageRejectedError(GalleryIndexError):
    """An image's id or labels can't be stored."""


class FeaturesRejectedError(ImageRejectedError):
    """Features have another shape, type or value than the gallery takes."""


class BundleMismatchError(GalleryIndexError):
    """Features were computed by another bundle than the gallery is pinned to."""

    def __init__(self, *, expected: str, actual: str) -> None:
        super().__init__(f"the gallery is pinned to bundle {expected}; got features of bundle {actual}")
        self.expected = expected
        self.actual = actual


class InvalidQueryError(GalleryIndexError):
    """A search or an evaluation that makes no sense."""


class StoreUnavailableError(GalleryIndexError):
    """The store can't be opened, read or written: locked, read-only, full, damaged or closed."""


class CacheDamagedError(GalleryIndexError):
    """A cache is missing, stale, damaged or foreign; whoever loads it rebuilds it from the truth."""


class BackupDamagedError(GalleryIndexError):
    """A backup is not whole: truncated, changed since it was written, of another format, or no backup at all."""

"""From what a caller has (a path, bytes, a stored image, features) to what the wire takes."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TypeAlias

from matchflow.errors import FileUnreadableError, ImageTooLargeError
from matchflow.v1 import search_pb2, types_pb2
from matchflow.values import Features, ImageRef

ImageFile: TypeAlias = str | Path | bytes
"""An encoded image: the path of a file, or its bytes."""
QuerySource: TypeAlias = ImageFile | ImageRef | Features
"""What can be searched for: an encoded image, a stored one, or features."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# Room for names and labels beside the image in one message.
MAX_IMAGE_BYTES = MAX_MESSAGE_BYTES - 256 * 1024


def read_image(source: ImageFile) -> bytes:
    """Return the encoded bytes.

    Raises FileUnreadableError for a path that is no readable file, ImageTooLargeError for what no message can carry:
    sent anyway it would break the connection for the images beside it.
    """
    data = source if isinstance(source, bytes) else _read_file(Path(source))
    _check_size(len(data), "the image")
    return data


def query_message(source: QuerySource) -> search_pb2.Query:
    """Return the query; errors as read_image."""
    if isinstance(source, ImageRef):
        return search_pb2.Query(image=source.name)
    if isinstance(source, Features):
        return search_pb2.Query(features=features_message(source))
    return search_pb2.Query(image_bytes=read_image(source))


def features_message(features: Features) -> types_pb2.Features:
    """Return the features as a message."""
    return types_pb2.Features(
        bundle_digest=features.bundle_digest,
        embedding=features.embedding,
        cells=features.cells,
        cell_scales=features.cell_scales,
    )


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
        # Pipes and devices would block, or never end.
        if not stat.S_ISREG(status.st_mode):
            raise FileUnreadableError(path, "expected an image file; this is no regular file")
        _check_size(status.st_size, str(path))
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise FileUnreadableError(path, getattr(error, "strerror", None) or str(error)) from error


def _check_size(size_bytes: int, what: str) -> None:
    if size_bytes > MAX_IMAGE_BYTES:
        raise ImageTooLargeError(f"{what} has {size_bytes:,} bytes; a message carries at most {MAX_IMAGE_BYTES:,}")

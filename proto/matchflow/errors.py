"""The exceptions of the client: one class per ErrorReason, and those of the way there.

MatchflowError                 .reason .message .metadata .code .acknowledged
├── InvalidFieldError          a field is missing, malformed or out of range; .fields names it
├── ImageUnreadableError       the bytes are not an image that can be decoded whole
├── ImageTooLargeError         more bytes or pixels than are accepted
├── FeaturesInvalidError       features of another shape, not finite or not of unit length
├── BundleMismatchError        features or gallery belong to another bundle; metadata holds both digests
├── NotFoundError
│   ├── GalleryNotFoundError
│   ├── ImageNotFoundError
│   ├── ModelNotFoundError
│   └── GenerationNotFoundError
├── GalleryExistsError
├── GenerationExistsError      the gallery has two generations already
├── GenerationNotReadyError    it lacks images; .missing_count and .pending_changes say how many
├── GenerationActiveError      that can't be done with the active generation
├── ContentDiffersError        the gallery holds other content; .expected_hash and .actual_hash
├── ThumbnailMissingError      the gallery keeps no thumbnails to draw an overlay from
├── OverloadedError            .retry_after_s says when to come back
├── ShuttingDownError          the server is stopping
├── StoreUnavailableError      the server can't write its store
├── EtagMismatchError          the image was changed by somebody else meanwhile; metadata holds both etags
├── SequenceNotReachedError    the server has not seen that change yet; asking again may help
├── InternalServerError        a fault of the server, logged there
├── DeadlineExceededError      no answer within the time given
├── ServerUnreachableError     no server answers at the target, or the connection broke
├── FileUnreadableError        a file named by the caller can't be read; .path
└── UnexpectedStatusError      a failure that no Matchflow server declares, from a proxy for example
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from google.rpc.status_pb2 import Status

DOMAIN = "matchflow"
CODES = {code.value[0]: code for code in grpc.StatusCode}


class MatchflowError(Exception):
    """Root of what the client raises on purpose.

    reason: the UPPER_SNAKE reason of ErrorInfo, or of this class. metadata: ErrorInfo's. code: the gRPC status, None
    when the call never left the client. acknowledged: for a failed ingest stream, how many items are on the server's
    disk for certain; None elsewhere.
    """

    reason = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        code: grpc.StatusCode | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.code = code
        self.acknowledged: int | None = None

    def __str__(self) -> str:
        """Return the message, and what an interrupted ingest had achieved."""
        if not self.acknowledged:
            return self.message
        return (
            f"{self.message} ({self.acknowledged:,} items were acknowledged and are stored; "
            "sending all again is safe and skips them)"
        )


class InvalidFieldError(MatchflowError):
    """A field is missing, malformed or out of range; `fields` maps its path to what is wrong."""

    reason = "INVALID_FIELD"
    fields: Mapping[str, str] = {}


class ImageUnreadableError(MatchflowError):
    """The bytes are not an image that can be decoded whole."""

    reason = "IMAGE_UNREADABLE"


class ImageTooLargeError(MatchflowError):
    """The image has more bytes or claims more pixels than are accepted."""

    reason = "IMAGE_TOO_LARGE"


class FeaturesInvalidError(MatchflowError):
    """Features have another shape, are not finite, or not of unit length."""

    reason = "FEATURES_INVALID"


class BundleMismatchError(MatchflowError):
    """Features or gallery belong to another bundle; `metadata` holds both digests."""

    reason = "BUNDLE_MISMATCH"


class NotFoundError(MatchflowError):
    """What was named does not exist."""

    reason = "NOT_FOUND"


class GalleryNotFoundError(NotFoundError):
    """The gallery does not exist."""

    reason = "GALLERY_NOT_FOUND"


class ImageNotFoundError(NotFoundError):
    """The image is not in the gallery."""

    reason = "IMAGE_NOT_FOUND"


class ModelNotFoundError(NotFoundError):
    """The server runs no such model."""

    reason = "MODEL_NOT_FOUND"


class GenerationNotFoundError(NotFoundError):
    """The gallery has no such generation."""

    reason = "GENERATION_NOT_FOUND"


class GalleryExistsError(MatchflowError):
    """There is a gallery of that name already."""

    reason = "GALLERY_EXISTS"


class GenerationExistsError(MatchflowError):
    """The gallery has a second generation already; the one that is not active must be deleted first."""

    reason = "GENERATION_EXISTS"


class GenerationNotReadyError(MatchflowError):
    """The generation lacks images of the active one."""

    reason = "GENERATION_NOT_READY"

    @property
    def missing_count(self) -> int | None:
        """How many images it lacks; None where the server does not say."""
        return _whole_number(self.metadata.get("missing_count", ""))

    @property
    def pending_changes(self) -> int | None:
        """How many changes of the active one it does not reflect yet; None where the server does not say."""
        return _whole_number(self.metadata.get("pending_changes", ""))


class GenerationActiveError(MatchflowError):
    """That can't be done with the active generation."""

    reason = "GENERATION_ACTIVE"


class ContentDiffersError(MatchflowError):
    """The gallery holds other content under that name than was sent for one of its generations."""

    reason = "CONTENT_DIFFERS"

    @property
    def expected_hash(self) -> str:
        """SHA-256 of what the gallery holds, in hexadecimal; empty where the server does not say."""
        return self.metadata.get("expected_hash", "")

    @property
    def actual_hash(self) -> str:
        """SHA-256 of what was sent, in hexadecimal; empty where the server does not say."""
        return self.metadata.get("actual_hash", "")


class ThumbnailMissingError(MatchflowError):
    """The overlay of a stored image needs its thumbnail, and the gallery keeps none."""

    reason = "THUMBNAIL_MISSING"


class OverloadedError(MatchflowError):
    """The queue before the encoder is full; try again after `retry_after_s`, where the server said so."""

    reason = "OVERLOADED"
    retry_after_s: float | None = None


class ShuttingDownError(MatchflowError):
    """The server is stopping."""

    reason = "SHUTTING_DOWN"


class StoreUnavailableError(MatchflowError):
    """The server can't write its store: the disk is full or read-only."""

    reason = "STORE_UNAVAILABLE"


class EtagMismatchError(MatchflowError):
    """The image was changed by somebody else since that etag was read; `metadata` holds both etags."""

    reason = "ETAG_MISMATCH"


class SequenceNotReachedError(MatchflowError):
    """The server has not seen the change yet that an answer should have; asking again may help."""

    reason = "SEQUENCE_NOT_REACHED"


class InternalServerError(MatchflowError):
    """A fault of the server, logged there."""

    reason = "INTERNAL"


class DeadlineExceededError(MatchflowError):
    """The time given passed before there was an answer."""

    reason = "DEADLINE_EXCEEDED"


class ServerUnreachableError(MatchflowError):
    """No server answers at the target, or the connection broke."""

    reason = "SERVER_UNREACHABLE"


class FileUnreadableError(MatchflowError):
    """A file that the caller named can't be read."""

    reason = "FILE_UNREADABLE"

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class UnexpectedStatusError(MatchflowError):
    """A failure that no Matchflow server declares: from a proxy, or another service at this address."""

    reason = "UNEXPECTED_STATUS"


BY_REASON: dict[str, type[MatchflowError]] = {
    error.reason: error
    for error in (
        InvalidFieldError,
        ImageUnreadableError,
        ImageTooLargeError,
        FeaturesInvalidError,
        BundleMismatchError,
        GalleryNotFoundError,
        ImageNotFoundError,
        ModelNotFoundError,
        GalleryExistsError,
        ThumbnailMissingError,
        OverloadedError,
        ShuttingDownError,
        InternalServerError,
        DeadlineExceededError,
        StoreUnavailableError,
        EtagMismatchError,
        SequenceNotReachedError,
        GenerationNotFoundError,
        GenerationExistsError,
        GenerationNotReadyError,
        GenerationActiveError,
        ContentDiffersError,
    )
}
# What a status means that carries no ErrorInfo: gRPC itself made it.
BY_CODE: dict[grpc.StatusCode, type[MatchflowError]] = {
    grpc.StatusCode.UNAVAILABLE: ServerUnreachableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
}


def from_status(status: Status) -> MatchflowError:
    """Return the exception for a failed google.rpc.Status, typed by its ErrorInfo."""
    code = CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info, fields, retry_after_s = _details(status)
    kind = BY_REASON.get(info.reason, UnexpectedStatusError) if info.domain == DOMAIN else _kind_of(code)
    error = kind(status.message or code.name, metadata=info.metadata, code=code)
    if isinstance(error, InvalidFieldError):
        error.fields = fields
    if isinstance(error, OverloadedError):
        error.retry_after_s = retry_after_s
    return error


def from_rpc_error(error: grpc.RpcError, target: str) -> MatchflowError:
    """Return the exception for a failed call to `target`."""
    if not isinstance(error, (grpc.Call, grpc.aio.AioRpcError)):
        return UnexpectedStatusError(f"the call to {target} failed: {error}")
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):  # details that are not ours, or garbled on the way
        status = None
    if status is not None:
        return from_status(status)
    code, details = error.code(), error.details() or "no details"
    kind = _kind_of(code)
    texts = {
        ServerUnreachableError: f"no server can be reached at {target}: {details}",
        DeadlineExceededError: f"no answer from {target} within the time given",
    }
    return kind(texts.get(kind, f"{target} answered {code.name}: {details}"), code=code)


def _whole_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() else None


def _kind_of(code: grpc.StatusCode) -> type[MatchflowError]:
    return BY_CODE.get(code, UnexpectedStatusError)


def _details(status: Status) -> tuple[error_details_pb2.ErrorInfo, dict[str, str], float | None]:
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    retry_after_s: float | None = None
    for detail in status.details:
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
        elif not detail.Unpack(info):
            detail.Unpack(bad_request)
    return info, {v.field: v.description for v in bad_request.field_violations}, retry_after_s

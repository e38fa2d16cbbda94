"""Which google.rpc.Status each exception becomes: one table, looked up along the exception's class hierarchy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from matchflow.v1 import types_pb2
from matchflow_bundle import ImageTooLargeError, ImageUnreadableError
from matchflow_index import (
    BundleMismatchError,
    ContentDiffersError,
    EtagMismatchError,
    FeaturesRejectedError,
    FillingPausedError,
    GalleryExistsError,
    GalleryNotFoundError,
    GenerationActiveError,
    GenerationDroppedError,
    GenerationExistsError,
    GenerationMovedError,
    GenerationNotFoundError,
    GenerationNotReadyError,
    ImageNotFoundError,
    ImageRejectedError,
    InvalidQueryError,
    SequenceNotReachedError,
    StoreUnavailableError,
)
from matchflow_matching import FeaturesInvalidError, SettingsInvalidError
from matchflow_service import errors
from matchflow_service.image_fields import etag

if TYPE_CHECKING:
    from google.protobuf.message import Message

log = logging.getLogger(__name__)

DOMAIN = "matchflow"
OK = status_pb2.Status()
INTERNAL_TEXT = "internal error; the server's log has the details under the request_id in this status"
# A message and its details may quote what the client sent, and clients refuse headers of more than 8 KB. Text that is
# not ASCII takes three bytes for one there.
MAX_MESSAGE_BYTES = 800
MAX_METADATA_BYTES = 300
REASON_PREFIX = "ERROR_REASON_"

Metadata = Callable[[Any], dict[str, str]]
Details = Callable[[Any], list["Message"]]


def _nothing(_: Any) -> dict[str, str]:
    return {}


def _no_details(_: Any) -> list[Message]:
    return []


def _both_digests(error: Any) -> dict[str, str]:
    return {"expected_digest": error.expected, "actual_digest": error.actual}


def _both_etags(error: EtagMismatchError) -> dict[str, str]:
    return {"expected_etag": etag(error.expected), "actual_etag": etag(error.actual)}


def _both_sequences(error: SequenceNotReachedError) -> dict[str, str]:
    return {"wanted_sequence": str(error.wanted), "reached_sequence": str(error.reached)}


def _both_hashes(error: ContentDiffersError) -> dict[str, str]:
    return {"expected_hash": error.expected, "actual_hash": error.actual}


def _what_is_missing(error: GenerationNotReadyError) -> dict[str, str]:
    return {"missing_count": str(error.missing), "pending_changes": str(error.pending)}


def _violation(error: errors.FieldInvalidError) -> list[Message]:
    violation = error_details_pb2.BadRequest.FieldViolation(
        field=_cut(error.field, MAX_METADATA_BYTES), description=_cut(error.description, MAX_MESSAGE_BYTES)
    )
    return [error_details_pb2.BadRequest(field_violations=[violation])]


def _retry(error: errors.OverloadedError) -> list[Message]:
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(int(error.retry_after_s * 1000))
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


@dataclass(frozen=True, slots=True)
class Rule:
    """What an exception class becomes."""

    code: int
    reason: int
    metadata: Metadata = _nothing
    details: Details = _no_details


RULES: dict[type[BaseException], Rule] = {
    errors.FieldInvalidError: Rule(
        code_pb2.INVALID_ARGUMENT, types_pb2.ERROR_REASON_INVALID_FIELD, lambda e: {"field": e.field}, _violation
    ),
    SettingsInvalidError: Rule(code_pb2.INVALID_ARGUMENT, types_pb2.ERROR_REASON_INVALID_FIELD),
    InvalidQueryError: Rule(code_pb2.INVALID_ARGUMENT, types_pb2.ERROR_REASON_INVALID_FIELD),
    ImageUnreadableError: Rule(code_pb2.INVALID_ARGUMENT, types_pb2.ERROR_REASON_IMAGE_UNREADABLE),
    ImageTooLargeError: Rule(code_pb2.INVALID_ARGUMENT, types_pb2.ERROR_REASON_IMAGE_TOO_LARGE),
    FeaturesInvalidError: Rule(code_pb2.INVALID_ARGUMENT, types_pb2.ERROR_REASON_FEATURES_INVALID),
    ImageRejectedError: Rule(code_pb2.INVALID_ARGUMENT, types_pb2.ERROR_REASON_INVALID_FIELD),
    FeaturesRejectedError: Rule(code_pb2.INVALID_ARGUMENT, types_pb2.ERROR_REASON_FEATURES_INVALID),
    errors.BundleNotLoadedError: Rule(
        code_pb2.FAILED_PRECONDITION, types_pb2.ERROR_REASON_BUNDLE_MISMATCH, _both_digests
    ),
    errors.DigestsDifferError: Rule(
        code_pb2.FAILED_PRECONDITION, types_pb2.ERROR_REASON_BUNDLE_MISMATCH, _both_digests
    ),
    BundleMismatchError: Rule(code_pb2.FAILED_PRECONDITION, types_pb2.ERROR_REASON_BUNDLE_MISMATCH, _both_digests),
    GalleryNotFoundError: Rule(code_pb2.NOT_FOUND, types_pb2.ERROR_REASON_GALLERY_NOT_FOUND),
    ImageNotFoundError: Rule(code_pb2.NOT_FOUND, types_pb2.ERROR_REASON_IMAGE_NOT_FOUND),
    errors.ModelNotFoundError: Rule(
        code_pb2.NOT_FOUND, types_pb2.ERROR_REASON_MODEL_NOT_FOUND, lambda e: {"model": e.model}
    ),
    GalleryExistsError: Rule(code_pb2.ALREADY_EXISTS, types_pb2.ERROR_REASON_GALLERY_EXISTS),
    GenerationDroppedError: Rule(code_pb2.NOT_FOUND, types_pb2.ERROR_REASON_GENERATION_NOT_FOUND),
    FillingPausedError: Rule(code_pb2.UNAVAILABLE, types_pb2.ERROR_REASON_SHUTTING_DOWN),
    GenerationNotFoundError: Rule(code_pb2.NOT_FOUND, types_pb2.ERROR_REASON_GENERATION_NOT_FOUND),
    GenerationExistsError: Rule(code_pb2.ALREADY_EXISTS, types_pb2.ERROR_REASON_GENERATION_EXISTS),
    GenerationActiveError: Rule(code_pb2.FAILED_PRECONDITION, types_pb2.ERROR_REASON_GENERATION_ACTIVE),
    # Only who gives features to a generation hears of it: everybody else writes to the next one.
    GenerationMovedError: Rule(code_pb2.FAILED_PRECONDITION, types_pb2.ERROR_REASON_GENERATION_ACTIVE),
    GenerationNotReadyError: Rule(
        code_pb2.FAILED_PRECONDITION, types_pb2.ERROR_REASON_GENERATION_NOT_READY, _what_is_missing
    ),
    ContentDiffersError: Rule(code_pb2.FAILED_PRECONDITION, types_pb2.ERROR_REASON_CONTENT_DIFFERS, _both_hashes),
    errors.ThumbnailMissingError: Rule(
        code_pb2.FAILED_PRECONDITION, types_pb2.ERROR_REASON_THUMBNAIL_MISSING, lambda e: {"image": e.name}
    ),
    errors.OverloadedError: Rule(code_pb2.RESOURCE_EXHAUSTED, types_pb2.ERROR_REASON_OVERLOADED, details=_retry),
    errors.ShuttingDownError: Rule(code_pb2.UNAVAILABLE, types_pb2.ERROR_REASON_SHUTTING_DOWN),
    errors.DeadlinePassedError: Rule(code_pb2.DEADLINE_EXCEEDED, types_pb2.ERROR_REASON_DEADLINE_EXCEEDED),
    StoreUnavailableError: Rule(code_pb2.UNAVAILABLE, types_pb2.ERROR_REASON_STORE_UNAVAILABLE),
    EtagMismatchError: Rule(code_pb2.ABORTED, types_pb2.ERROR_REASON_ETAG_MISMATCH, _both_etags),
    SequenceNotReachedError: Rule(code_pb2.UNAVAILABLE, types_pb2.ERROR_REASON_SEQUENCE_NOT_REACHED, _both_sequences),
}


def rule_of(error: BaseException) -> Rule | None:
    """Return the rule of the nearest class in the exception's hierarchy, None for an unknown one."""
    return next((RULES[kind] for kind in type(error).__mro__ if kind in RULES), None)


def status_of(error: BaseException, request_id: str) -> status_pb2.Status:
    """Return the status of a failed call or item.

    Unknown exceptions become INTERNAL with a fixed text; what they said is logged with the request's id, and so is
    whatever else is the server's own fault.
    """
    rule = rule_of(error)
    if rule is None:
        log.error("internal error", exc_info=error, extra={"request_id": request_id})
        return _status(
            code_pb2.INTERNAL, INTERNAL_TEXT, types_pb2.ERROR_REASON_INTERNAL, {"request_id": request_id}, []
        )
    if isinstance(error, StoreUnavailableError):
        log.error("store unavailable: %s", error)
    return _status(rule.code, str(error), rule.reason, rule.metadata(error), rule.details(error))


def _status(
    code: int, message: str, reason: int, metadata: dict[str, str], details: list[Message]
) -> status_pb2.Status:
    name = types_pb2.ErrorReason.Name(reason).removeprefix(REASON_PREFIX)  # type: ignore[arg-type]
    status = status_pb2.Status(code=code, message=_cut(message, MAX_MESSAGE_BYTES))
    short = {key: _cut(value, MAX_METADATA_BYTES) for key, value in metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=name, domain=DOMAIN, metadata=short)
    for detail in (info, *details):
        status.details.add().Pack(detail)
    return status


def _cut(text: str, limit: int) -> str:
    """Return as much of `text` as takes `limit` bytes; what no UTF-8 can hold becomes '?'."""
    return text.encode(errors="replace")[:limit].decode(errors="ignore")

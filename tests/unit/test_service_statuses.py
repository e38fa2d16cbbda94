"""Exceptions become google.rpc.Status by one table."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from service_harness import Refusal, read_status

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
from matchflow_service.statuses import INTERNAL_TEXT, MAX_MESSAGE_BYTES, RULES, status_of

if TYPE_CHECKING:
    from collections.abc import Callable

CASES: list[tuple[Exception, str, str]] = [
    (errors.FieldInvalidError("top_k", "expected 1; got 0"), "INVALID_ARGUMENT", "INVALID_FIELD"),
    (SettingsInvalidError("x"), "INVALID_ARGUMENT", "INVALID_FIELD"),
    (InvalidQueryError("x"), "INVALID_ARGUMENT", "INVALID_FIELD"),
    (ImageRejectedError("x"), "INVALID_ARGUMENT", "INVALID_FIELD"),
    (ImageUnreadableError("x"), "INVALID_ARGUMENT", "IMAGE_UNREADABLE"),
    (ImageTooLargeError("x"), "INVALID_ARGUMENT", "IMAGE_TOO_LARGE"),
    (FeaturesInvalidError("x"), "INVALID_ARGUMENT", "FEATURES_INVALID"),
    (FeaturesRejectedError("x"), "INVALID_ARGUMENT", "FEATURES_INVALID"),
    (errors.BundleNotLoadedError("a", ["b"]), "FAILED_PRECONDITION", "BUNDLE_MISMATCH"),
    (errors.DigestsDifferError("a", "b"), "FAILED_PRECONDITION", "BUNDLE_MISMATCH"),
    (BundleMismatchError(expected="a", actual="b"), "FAILED_PRECONDITION", "BUNDLE_MISMATCH"),
    (GalleryNotFoundError("g"), "NOT_FOUND", "GALLERY_NOT_FOUND"),
    (ImageNotFoundError("g", "i"), "NOT_FOUND", "IMAGE_NOT_FOUND"),
    (errors.ModelNotFoundError("m", ["n"]), "NOT_FOUND", "MODEL_NOT_FOUND"),
    (GalleryExistsError("g"), "ALREADY_EXISTS", "GALLERY_EXISTS"),
    (errors.ThumbnailMissingError("n"), "FAILED_PRECONDITION", "THUMBNAIL_MISSING"),
    (errors.OverloadedError(9, 10, 1.5), "RESOURCE_EXHAUSTED", "OVERLOADED"),
    (errors.ShuttingDownError(), "UNAVAILABLE", "SHUTTING_DOWN"),
    (errors.DeadlinePassedError(), "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
    (StoreUnavailableError("disk full"), "UNAVAILABLE", "STORE_UNAVAILABLE"),
    (EtagMismatchError("g", "i", expected=7, actual=9), "ABORTED", "ETAG_MISMATCH"),
    (SequenceNotReachedError("g", wanted=9, reached=7), "UNAVAILABLE", "SEQUENCE_NOT_REACHED"),
    (GenerationNotFoundError("g", 3, [1, 2]), "NOT_FOUND", "GENERATION_NOT_FOUND"),
    (GenerationDroppedError("g", 1), "NOT_FOUND", "GENERATION_NOT_FOUND"),
    (GenerationExistsError("g", 2), "ALREADY_EXISTS", "GENERATION_EXISTS"),
    (GenerationActiveError("g", 1), "FAILED_PRECONDITION", "GENERATION_ACTIVE"),
    (GenerationMovedError("g", 2), "FAILED_PRECONDITION", "GENERATION_ACTIVE"),
    (GenerationNotReadyError("g", 2, missing=3, pending=4), "FAILED_PRECONDITION", "GENERATION_NOT_READY"),
    (FillingPausedError("the server is stopping"), "UNAVAILABLE", "SHUTTING_DOWN"),
    (ContentDiffersError("g", "i", expected="a", actual="b"), "FAILED_PRECONDITION", "CONTENT_DIFFERS"),
]


def status(error: Exception) -> Refusal:
    return read_status(status_of(error, "request-1"))


@pytest.mark.parametrize(("error", "code", "reason"), CASES, ids=lambda value: type(value).__name__)
def test_every_exception_has_its_code_and_reason(error: Exception, code: str, reason: str) -> None:
    refusal = status(error)
    assert (refusal.code, refusal.reason, refusal.message) == (code, reason, str(error))


def test_the_cases_cover_the_table_and_the_contract() -> None:
    assert {type(error) for error, _, _ in CASES} == set(RULES)
    documented = {name.removeprefix("ERROR_REASON_") for name in types_pb2.ErrorReason.keys()}  # noqa: SIM118
    assert documented == {reason for _, _, reason in CASES} | {"UNSPECIFIED", "INTERNAL"}


def test_a_subclass_becomes_what_its_nearest_ancestor_becomes() -> None:
    class TornImageError(ImageUnreadableError):
        """More special than the table knows."""

    assert status(TornImageError("torn")).reason == "IMAGE_UNREADABLE"


def test_a_field_violation_names_the_field() -> None:
    refusal = status(errors.FieldInvalidError("rerank.depth", "expected 1 to 10,000; got 0"))
    assert (refusal.violations, refusal.metadata) == (["rerank.depth"], {"field": "rerank.depth"})


def test_a_mismatch_holds_both_digests() -> None:
    for error in (errors.DigestsDifferError("a", "b"), BundleMismatchError(expected="a", actual="b")):
        assert status(error).metadata == {"expected_digest": "a", "actual_digest": "b"}


def test_an_overload_says_when_to_come_back() -> None:
    assert status(errors.OverloadedError(9, 10, 1.5)).retry_after_s == 1.5


def test_an_unknown_exception_is_internal_and_its_text_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        refusal = status(KeyError("password"))
    assert (refusal.code, refusal.reason, refusal.message) == ("INTERNAL", "INTERNAL", INTERNAL_TEXT)
    assert refusal.metadata == {"request_id": "request-1"}
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "password" in str(record.exc_info[1])
    assert record.request_id == "request-1"  # type: ignore[attr-defined]


def test_a_store_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        status(StoreUnavailableError("disk full"))
    assert "disk full" in caplog.text


@pytest.mark.parametrize("letter", ["x", "😀", "\x1b", "\ud800"])
@pytest.mark.parametrize(
    "make",
    [
        ImageUnreadableError,
        lambda text: errors.FieldInvalidError(text, text),
        lambda text: errors.DigestsDifferError(text, text),
        lambda text: errors.BundleNotLoadedError(text, [text]),
        lambda text: errors.ModelNotFoundError(text, [text]),
        lambda text: BundleMismatchError(expected=text, actual=text),
        errors.ThumbnailMissingError,
    ],
)
def test_a_status_fits_the_headers_whatever_it_quotes(make: Callable[[str], Exception], letter: str) -> None:
    sent = status_of(make(letter * 100_000), "request-1")
    # grpc-message is percent-encoded, grpc-status-details-bin is base64; gRPC takes 8 KB of headers.
    header_bytes = 3 * len(sent.message.encode()) + len(sent.SerializeToString()) * 4 / 3
    assert header_bytes < 7_000


def test_a_message_that_fits_is_whole() -> None:
    assert status(ImageUnreadableError("x" * MAX_MESSAGE_BYTES)).message == "x" * MAX_MESSAGE_BYTES


def test_a_quoted_digest_can_not_steer_a_terminal() -> None:
    assert status(errors.DigestsDifferError("a", "\x1b[31m\nb")).message.isprintable()


def test_a_status_survives_the_wire() -> None:
    sent = status_of(errors.FieldInvalidError("a", "b"), "request-1")
    received = status_pb2.Status.FromString(sent.SerializeToString())
    assert received.code == code_pb2.INVALID_ARGUMENT
    packed = any_pb2.Any()
    packed.CopyFrom(received.details[0])
    info = error_details_pb2.ErrorInfo()
    assert packed.Unpack(info)
    assert info.domain == "matchflow"


def test_a_mismatch_says_both_etags_and_none_for_an_image_that_is_gone() -> None:
    changed = status(EtagMismatchError("g", "i", expected=7, actual=9))
    assert changed.metadata == {"expected_etag": '"7"', "actual_etag": '"9"'}
    assert status(EtagMismatchError("g", "i", expected=7, actual=0)).metadata["actual_etag"] == ""


def test_a_server_that_lags_says_how_far_it_got() -> None:
    behind = status(SequenceNotReachedError("g", wanted=9, reached=7))
    assert behind.metadata == {"wanted_sequence": "9", "reached_sequence": "7"}


def test_what_a_generation_lacks_and_whose_content_differs_is_in_the_metadata() -> None:
    found = status(GenerationNotReadyError("g", 2, missing=3, pending=4))
    assert found.metadata == {"missing_count": "3", "pending_changes": "4"}
    found = status(ContentDiffersError("g", "i", expected="a", actual="b"))
    assert found.metadata == {"expected_hash": "a", "actual_hash": "b"}

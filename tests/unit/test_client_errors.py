from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest
from client_counterpart import CLIENTS, Counterpart, Refusal, failure, running
from google.protobuf import duration_pb2, empty_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from matchflow import errors
from matchflow.v1 import types_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

REASONS = {name.removeprefix("ERROR_REASON_") for name in types_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118


def test_every_reason_of_the_contract_has_an_exception() -> None:
    assert set(errors.BY_REASON) == REASONS


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_a_status_becomes_the_exception_of_its_reason(reason: str) -> None:
    error = errors.from_status(failure(reason, code_pb2.ABORTED, "what happened", image="cat"))
    assert type(error) is errors.BY_REASON[reason]
    assert error.reason == reason
    assert error.message == str(error) == "what happened"
    assert error.metadata == {"image": "cat"}
    assert error.code is grpc.StatusCode.ABORTED


def test_everything_missing_is_a_not_found_error() -> None:
    missing = {error for reason, error in errors.BY_REASON.items() if reason.endswith("_NOT_FOUND")}
    assert len(missing) == 4
    for error in missing:
        assert issubclass(error, errors.NotFoundError)


def test_a_generation_that_is_not_ready_says_what_it_lacks() -> None:
    lacking = {"missing_count": "12", "pending_changes": "0"}
    error = errors.from_status(failure("GENERATION_NOT_READY", code_pb2.FAILED_PRECONDITION, "lacks images", **lacking))
    assert isinstance(error, errors.GenerationNotReadyError)
    assert (error.missing_count, error.pending_changes) == (12, 0)


@pytest.mark.parametrize("odd", [{}, {"missing_count": "", "pending_changes": "many"}, {"missing_count": "-1"}])
def test_what_a_generation_lacks_need_not_be_said(odd: dict[str, str]) -> None:
    error = errors.from_status(failure("GENERATION_NOT_READY", code_pb2.FAILED_PRECONDITION, "lacks images", **odd))
    assert isinstance(error, errors.GenerationNotReadyError)
    assert error.missing_count is None
    assert error.pending_changes is None


def test_other_content_is_named_by_both_hashes() -> None:
    hashes = {"expected_hash": "ab" * 32, "actual_hash": "cd" * 32}
    error = errors.from_status(failure("CONTENT_DIFFERS", code_pb2.FAILED_PRECONDITION, "other content", **hashes))
    assert isinstance(error, errors.ContentDiffersError)
    assert (error.expected_hash, error.actual_hash) == ("ab" * 32, "cd" * 32)
    bare = errors.ContentDiffersError("other content")
    assert (bare.expected_hash, bare.actual_hash) == ("", "")


def test_an_invalid_field_is_named() -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="top_k", description="1 to 1,000")
    details = error_details_pb2.BadRequest(field_violations=[violation])
    error = errors.from_status(failure("INVALID_FIELD", code_pb2.INVALID_ARGUMENT, "no", details))
    assert isinstance(error, errors.InvalidFieldError)
    assert error.fields == {"top_k": "1 to 1,000"}


def test_an_overloaded_server_says_when_to_come_back() -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
    error = errors.from_status(failure("OVERLOADED", code_pb2.RESOURCE_EXHAUSTED, "full", retry))
    assert isinstance(error, errors.OverloadedError)
    assert error.retry_after_s == 1.5


def test_an_overloaded_server_need_not_say_when() -> None:
    error = errors.from_status(failure("OVERLOADED", code_pb2.RESOURCE_EXHAUSTED, "full"))
    assert isinstance(error, errors.OverloadedError)
    assert error.retry_after_s is None


def test_an_unknown_reason_stays_a_matchflow_error_with_its_message() -> None:
    error = errors.from_status(failure("QUOTA_EXHAUSTED", code_pb2.RESOURCE_EXHAUSTED, "no more"))
    assert type(error) is errors.UnexpectedStatusError
    assert error.message == "no more"


def test_the_same_reason_of_another_domain_is_not_ours() -> None:
    status = status_pb2.Status(code=code_pb2.NOT_FOUND, message="elsewhere")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="IMAGE_NOT_FOUND", domain="photos.example"))
    assert type(errors.from_status(status)) is errors.UnexpectedStatusError


def test_a_code_that_grpc_does_not_know_is_unknown() -> None:
    error = errors.from_status(status_pb2.Status(code=99))
    assert error.code is grpc.StatusCode.UNKNOWN
    assert error.message == "UNKNOWN"


def test_an_error_tells_what_was_acknowledged() -> None:
    error = errors.ServerUnreachableError("gone")
    error.acknowledged = 1234
    assert str(error) == (
        "gone (1,234 items were acknowledged and are stored; sending all again is safe and skips them)"
    )


def test_an_error_before_anything_was_acknowledged_says_nothing_of_it() -> None:
    error = errors.GalleryNotFoundError("no such gallery")
    error.acknowledged = 0
    assert str(error) == "no such gallery"


def test_an_rpc_error_without_a_status_is_told_apart() -> None:
    error = errors.from_rpc_error(grpc.RpcError("odd"), "host:1")
    assert type(error) is errors.UnexpectedStatusError
    assert "host:1" in error.message
    assert "odd" in error.message


def refuse(status: status_pb2.Status) -> Message:
    raise Refusal(status)


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_refused_call_raises_the_typed_error(kind: str) -> None:
    status = failure("GALLERY_NOT_FOUND", code_pb2.NOT_FOUND, "no gallery galleries/démo", gallery="démo")
    counterpart = Counterpart(answers={"GetGallery": lambda _: refuse(status)})
    with running(counterpart), CLIENTS[kind](counterpart.target) as client:
        with pytest.raises(errors.GalleryNotFoundError, match="no gallery galleries/démo") as caught:
            client.get_gallery("démo")
        assert caught.value.metadata == {"gallery": "démo"}
        assert caught.value.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_method_that_the_server_lacks_is_told_by_its_code(kind: str) -> None:
    with (
        running(Counterpart()) as counterpart,
        CLIENTS[kind](counterpart.target) as client,
        pytest.raises(errors.UnexpectedStatusError, match="UNIMPLEMENTED") as caught,
    ):
        client.get_gallery("demo")
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("kind", CLIENTS)
def test_nobody_at_the_target_is_unreachable_and_names_the_target(kind: str) -> None:
    with (
        CLIENTS[kind]("127.0.0.1:1") as client,
        pytest.raises(errors.ServerUnreachableError, match=r"no server can be reached at 127\.0\.0\.1:1") as caught,
    ):
        client.health()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.acknowledged is None


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_silent_server_exceeds_the_deadline(kind: str) -> None:
    counterpart = Counterpart()

    def say_nothing(_: Message) -> Message:
        counterpart.over.wait()
        return empty_pb2.Empty()

    counterpart.answers["DeleteGallery"] = say_nothing
    with (
        running(counterpart),
        CLIENTS[kind](counterpart.target, timeout_s=0.2) as client,
        pytest.raises(errors.DeadlineExceededError, match="within the time given"),
    ):
        client.delete_gallery("demo")


class GarbledDetails(grpc.GenericRpcHandler):
    """Fails every call with details that are no status."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        def fail(_: bytes, context: grpc.ServicerContext) -> bytes:
            context.set_trailing_metadata((("grpc-status-details-bin", handler_call_details.method.encode()),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "proxy")
            raise AssertionError

        return grpc.unary_unary_rpc_method_handler(fail)


@pytest.mark.parametrize("kind", CLIENTS)
def test_garbled_details_leave_the_code_to_judge_by(kind: str) -> None:
    with (
        running(Counterpart(), GarbledDetails()) as counterpart,
        CLIENTS[kind](counterpart.target) as client,
        pytest.raises(errors.ServerUnreachableError, match="proxy"),
    ):
        client.get_gallery("demo")

"""The ingest stream of both clients, against a real server that answers as each test says."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from client_counterpart import CLIENTS, AsyncClientInDisguise, Counterpart, failure, running
from google.rpc import code_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

import matchflow
from matchflow import IngestItem, IngestOutcome, errors
from matchflow.channel import open_channel
from matchflow.ingest import IngestLedger, ingest_request
from matchflow.ingest_stream import IngestStream
from matchflow.v1.ingest_pb2 import (
    INGEST_OUTCOME_CREATED,
    INGEST_OUTCOME_UNCHANGED,
    INGEST_OUTCOME_UPDATED,
    IngestImagesRequest,
    IngestImagesResponse,
)

if TYPE_CHECKING:
    import grpc

UNREADABLE = failure("IMAGE_UNREADABLE", code_pb2.INVALID_ARGUMENT, "not an image")
Requests = Iterator[IngestImagesRequest]
Responses = Iterator[IngestImagesResponse]


def item(image_id: str, image: Any = b"pixels", **labels: str) -> IngestItem:
    return IngestItem(id=image_id, image=image, labels=labels)


def stored(request: IngestImagesRequest, outcome: Any = INGEST_OUTCOME_CREATED) -> IngestImagesResponse:
    return IngestImagesResponse(
        item_id=request.item_id, name=request.name, outcome=outcome, row_id=request.item_id + 100, sequence=5
    )


class Shelf:
    """Stores what is sent; the same bytes again are unchanged, b"bad" is refused."""

    def __init__(self) -> None:
        self.images: dict[str, bytes] = {}
        self.requests: list[IngestImagesRequest] = []

    def __call__(self, requests: Requests, _: grpc.ServicerContext) -> Responses:
        for request in requests:
            self.requests.append(request)
            if request.image_bytes == b"bad":
                yield IngestImagesResponse(item_id=request.item_id, name=request.name, status=UNREADABLE)
                continue
            before = self.images.get(request.name)
            self.images[request.name] = request.image_bytes
            same = before == request.image_bytes
            again = INGEST_OUTCOME_UNCHANGED if same else INGEST_OUTCOME_UPDATED
            yield stored(request, INGEST_OUTCOME_CREATED if before is None else again)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def counterpart(shelf: Shelf) -> Iterator[Counterpart]:
    with running(Counterpart(ingest=shelf)) as running_counterpart:
        yield running_counterpart


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, counterpart: Counterpart) -> Iterator[Any]:
    with CLIENTS[request.param](counterpart.target) as connected:
        yield connected


def test_items_arrive_with_their_names_and_labels(client: Any, shelf: Shelf) -> None:
    features = matchflow.Features(bundle_digest="d", embedding=(1.0,), cells=b"\x7f", cell_scales=(0.5,))
    summary = client.ingest("demo", [item("cat", b"one", designer="noto"), item("dog", features)])
    assert (summary.created, summary.updated, summary.unchanged, summary.failures) == (2, 0, 0, ())
    cat, dog = shelf.requests
    assert cat.name == "galleries/demo/images/cat"
    assert cat.image_bytes == b"one"
    assert dict(cat.labels.values) == {"designer": "noto"}
    assert dog.features.bundle_digest == "d"
    assert not dog.image_bytes


def test_a_second_run_finds_everything_unchanged(client: Any) -> None:
    items = [item(f"image-{i}", f"{i}".encode()) for i in range(300)]
    assert client.ingest("demo", items).created == 300
    items[7] = item("image-7", b"other")
    again = client.ingest("demo", items)
    assert (again.created, again.updated, again.unchanged) == (0, 1, 299)
    assert again.stored == again.total == 300


def test_a_bad_item_is_a_failure_and_stops_nothing(client: Any, tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    good.write_bytes(b"pixels")
    items = [
        item("bad", b"bad"),
        item("gone", tmp_path / "gone.png"),
        item("folder", tmp_path),
        item("truth", b"pixels", size=True),  # type: ignore[arg-type]
        item("lone \udc80 surrogate"),
        item("good", good),
    ]
    summary = client.ingest("demo", items)
    assert summary.created == 1
    assert summary.total == 6
    assert {failed.image_id: type(failed.error) for failed in summary.failures} == {
        "bad": errors.ImageUnreadableError,
        "gone": errors.FileUnreadableError,
        "folder": errors.FileUnreadableError,
        "truth": errors.InvalidFieldError,
        "lone \udc80 surrogate": errors.InvalidFieldError,
    }


def test_an_item_says_when_it_goes_and_on_what_condition_it_is_put() -> None:
    when = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
    request = ingest_request("demo", 1, IngestItem(id="cat", image=b"x", expire_time=when, etag='"3"'))
    assert request.expire_time.ToDatetime(tzinfo=dt.UTC) == when
    assert (request.etag, request.must_be_new) == ('"3"', False)
    other = ingest_request(
        "demo", 2, IngestItem(id="cat", image=b"x", expire_time=dt.timedelta(hours=1), must_be_new=True)
    )
    assert other.ttl.seconds == 3600
    assert other.must_be_new
    assert ingest_request("demo", 3, IngestItem(id="cat", image=b"x")).WhichOneof("expiration") is None


@pytest.mark.parametrize("kind", CLIENTS)
def test_every_item_of_a_stream_names_its_generation_and_every_result_that_which_took_it(kind: str) -> None:
    sent: list[int] = []

    def answer(requests: Requests, _: grpc.ServicerContext) -> Responses:
        for request in requests:
            sent.append(request.generation)
            reply = stored(request)
            reply.generation = request.generation or 1
            yield reply

    taken: list[int] = []
    with running(Counterpart(ingest=answer)) as counterpart, CLIENTS[kind](counterpart.target) as client:
        for generation in (0, 2):
            client.ingest(
                "demo", [item("a"), item("b")], generation=generation, on_result=lambda r: taken.append(r.generation)
            )
    assert sent == [0, 0, 2, 2]
    assert taken == [1, 1, 2, 2]


@pytest.mark.parametrize("kind", CLIENTS)
def test_other_content_for_a_generation_is_a_failure_and_stops_nothing(kind: str) -> None:
    differs = failure("CONTENT_DIFFERS", code_pb2.FAILED_PRECONDITION, "other content", expected_hash="ab")

    def answer(requests: Requests, _: grpc.ServicerContext) -> Responses:
        for request in requests:
            other = request.image_bytes == b"other"
            yield IngestImagesResponse(item_id=request.item_id, status=differs) if other else stored(request)

    with running(Counterpart(ingest=answer)) as counterpart, CLIENTS[kind](counterpart.target) as client:
        summary = client.ingest("demo", [item("a", b"other"), item("b")], generation=2)
    (failed,) = summary.failures
    assert isinstance(failed.error, errors.ContentDiffersError)
    assert (failed.image_id, failed.error.expected_hash, summary.created) == ("a", "ab", 1)


def test_an_end_without_a_zone_is_refused_by_name() -> None:
    when = dt.datetime(2027, 1, 1)  # noqa: DTZ001 - the point
    with pytest.raises(errors.InvalidFieldError, match="expire_time: expected a time with its zone") as refused:
        ingest_request("demo", 1, IngestItem(id="cat", image=b"x", expire_time=when))
    assert list(refused.value.fields) == ["expire_time"]


def test_every_result_is_reported_on_the_callers_thread(client: Any, tmp_path: Path) -> None:
    reported: list[tuple[str, IngestOutcome, int]] = []
    threads = set()

    def on_result(result: matchflow.IngestResult) -> None:
        threads.add(threading.get_ident())
        reported.append((result.image_id, result.outcome, result.row_id))
        assert (result.error is None) == (result.outcome is not IngestOutcome.FAILED)

    items = [item("gone", tmp_path / "gone.png"), item("cat"), item("cat"), item("bad", b"bad")]
    client.ingest("demo", items, on_result=on_result)
    assert sorted(reported) == [
        ("bad", IngestOutcome.FAILED, 0),
        ("cat", IngestOutcome.CREATED, 102),
        ("cat", IngestOutcome.UNCHANGED, 103),
        ("gone", IngestOutcome.FAILED, 0),
    ]
    assert threads == {threading.get_ident()}


def test_nothing_to_put_in_is_an_empty_summary(client: Any) -> None:
    assert client.ingest("demo", []).total == 0


def test_only_unreadable_files_still_end_with_a_summary(client: Any, tmp_path: Path) -> None:
    reported: list[matchflow.IngestResult] = []
    summary = client.ingest("demo", [item(f"{i}", tmp_path / "x") for i in range(500)], on_result=reported.append)
    assert len(summary.failures) == len(reported) == 500


def test_never_more_items_are_under_way_than_allowed(tmp_path: Path) -> None:
    """Nothing is answered before the stream has shown how much it sends unanswered."""
    held: list[IngestImagesRequest] = []
    full = threading.Semaphore(0)
    pulled = 0

    def answer_when_full(requests: Requests, _: grpc.ServicerContext) -> Responses:
        for request in requests:
            held.append(request)
            assert len(held) <= 4
            if len(held) == 4 or request.item_id == 100:
                full.release()
                yield from [stored(r) for r in held]
                held.clear()

    def items() -> Iterator[IngestItem]:
        nonlocal pulled
        for i in range(100):
            path = tmp_path / f"{i}"
            path.write_bytes(b"x")  # exists only now: had anyone read ahead, it would have failed
            pulled += 1
            yield item(f"{i}", path)

    for kind in CLIENTS:
        pulled = 0
        with running(Counterpart(ingest=answer_when_full)) as counterpart, CLIENTS[kind](counterpart.target) as client:
            summary = client.ingest("demo", items(), max_in_flight=4)
        assert summary.created == pulled == 100


def test_files_are_read_only_as_the_server_takes_them() -> None:
    """A server that answers nothing gets no more than the items in flight, and the iterable is not run dry."""
    arrived = threading.Semaphore(0)
    go_on = threading.Event()
    pulled = 0

    def silent(requests: Requests, _: grpc.ServicerContext) -> Responses:
        first = [next(requests) for _ in range(3)]
        arrived.release()
        go_on.wait()
        yield from map(stored, first)
        yield from map(stored, requests)

    def items() -> Iterator[IngestItem]:
        nonlocal pulled
        for pulled in range(1, 10_001):
            yield item(f"{pulled}")

    def look() -> None:
        arrived.acquire()
        seen.append(pulled)
        go_on.set()

    seen: list[int] = []
    watcher = threading.Thread(target=look)
    watcher.start()
    with running(Counterpart(ingest=silent)) as counterpart, matchflow.Client(counterpart.target) as client:
        assert client.ingest("demo", items(), max_in_flight=3).created == 10_000
    watcher.join()
    assert seen[0] <= 4  # three under way, and the one that waits for room


def fails_after(count: int, status: Any) -> Callable[[Requests, grpc.ServicerContext], Responses]:
    def answer(requests: Requests, context: grpc.ServicerContext) -> Responses:
        for _ in range(count):
            yield stored(next(requests))
        context.abort_with_status(rpc_status.to_status(status))

    return answer


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(
    ("reason", "code", "expected"),
    [
        ("GALLERY_NOT_FOUND", code_pb2.NOT_FOUND, errors.GalleryNotFoundError),
        ("SHUTTING_DOWN", code_pb2.UNAVAILABLE, errors.ShuttingDownError),
        ("GENERATION_NOT_FOUND", code_pb2.NOT_FOUND, errors.GenerationNotFoundError),
    ],
)
def test_a_stream_that_the_server_ends_says_why_and_how_far_it_came(
    kind: str, reason: str, code: int, expected: type[errors.MatchflowError]
) -> None:
    answer = fails_after(3, failure(reason, code, "the reason"))
    endless = (item(f"{i}") for i in range(10**9))
    with (
        running(Counterpart(ingest=answer)) as counterpart,
        CLIENTS[kind](counterpart.target) as client,
        pytest.raises(expected, match=r"the reason \(3 items were acknowledged") as caught,
    ):
        client.ingest("demo", endless)
    assert caught.value.acknowledged == 3


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_stream_that_ends_early_without_an_error_is_an_error(kind: str) -> None:
    def gives_up(requests: Requests, _: grpc.ServicerContext) -> Responses:
        yield stored(next(requests))
        next(requests)

    with (
        running(Counterpart(ingest=gives_up)) as counterpart,
        CLIENTS[kind](counterpart.target) as client,
        pytest.raises(errors.ServerUnreachableError, match="items unanswered") as caught,
    ):
        client.ingest("demo", [item("a"), item("b"), item("c")], max_in_flight=2)
    assert caught.value.acknowledged == 1


MORTAL_SERVER = """
import os, signal, sys
from client_counterpart import Counterpart, running
from matchflow.v1 import ingest_pb2

def answer(requests, context):
    for number, request in enumerate(requests):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield ingest_pb2.IngestImagesResponse(item_id=request.item_id, outcome=1)

counterpart = Counterpart(ingest=answer)
with running(counterpart):
    print(counterpart.target, flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_server_that_dies_in_the_middle_is_unreachable_and_the_acknowledged_are_counted(kind: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MORTAL_SERVER],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parent.parent)},
    ) as server:
        assert server.stdout is not None
        target = server.stdout.readline().strip()
        reported: list[matchflow.IngestResult] = []
        with CLIENTS[kind](target) as client, pytest.raises(errors.ServerUnreachableError) as caught:
            client.ingest("demo", (item(f"{i}") for i in range(10**9)), on_result=reported.append)
        assert server.wait() == -9
    assert caught.value.acknowledged == len(reported)
    assert caught.value.acknowledged in range(6)  # an answer may die in the server's buffers
    assert "acknowledged" in str(caught.value)


@pytest.mark.parametrize("kind", CLIENTS)
def test_an_unreachable_server_has_acknowledged_nothing(kind: str) -> None:
    with CLIENTS[kind]("127.0.0.1:1") as client, pytest.raises(errors.ServerUnreachableError) as caught:
        client.ingest("demo", (item(f"{i}") for i in range(10**9)))
    assert caught.value.acknowledged == 0


def test_what_the_items_raise_reaches_the_caller_once_the_sent_ones_are_stored(client: Any, shelf: Shelf) -> None:
    def items() -> Iterator[IngestItem]:
        yield item("cat")
        raise LookupError("the catalogue is torn")

    with pytest.raises(LookupError, match="the catalogue is torn"):
        client.ingest("demo", items())
    assert list(shelf.images) == ["galleries/demo/images/cat"]


def test_what_the_callback_raises_ends_the_stream(client: Any) -> None:
    def on_result(_: matchflow.IngestResult) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.ingest("demo", (item(f"{i}") for i in range(10**9)), on_result=on_result)
    assert client.ingest("demo", [item("after")]).created == 1


def test_an_answer_of_a_kind_from_the_future_is_no_success(client: Any, counterpart: Counterpart) -> None:
    counterpart.ingest = lambda requests, _: (stored(r, 9) for r in requests)
    (failed,) = client.ingest("demo", [item("cat")]).failures
    assert isinstance(failed.error, errors.UnexpectedStatusError)


def test_the_asyncio_client_takes_items_that_arrive_asynchronously(counterpart: Counterpart) -> None:
    async def items() -> AsyncIterator[IngestItem]:
        for i in range(200):
            await asyncio.sleep(0)
            yield item(f"{i}")

    with AsyncClientInDisguise(counterpart.target) as client:
        assert client.ingest("demo", items(), max_in_flight=2).created == 200


def test_what_asynchronous_items_raise_reaches_the_caller(counterpart: Counterpart, shelf: Shelf) -> None:
    async def items() -> AsyncIterator[IngestItem]:
        yield item("cat")
        raise LookupError("the catalogue is torn")

    with AsyncClientInDisguise(counterpart.target) as client, pytest.raises(LookupError, match="torn"):
        client.ingest("demo", items())
    assert list(shelf.images) == ["galleries/demo/images/cat"]


def test_an_ingest_cancelled_while_it_waits_for_items_ends_at_once(counterpart: Counterpart) -> None:
    async def cancel_while_waiting() -> None:
        waiting = asyncio.Event()

        async def items() -> AsyncIterator[IngestItem]:
            yield item("cat")
            waiting.set()
            await asyncio.Event().wait()

        async with matchflow.AsyncClient(counterpart.target) as client:
            task = asyncio.create_task(client.ingest("demo", items()))
            await waiting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancel_while_waiting())


def test_an_ingest_cancelled_before_it_began_sends_nothing(counterpart: Counterpart, shelf: Shelf) -> None:
    stream = IngestStream(IngestLedger("demo"), [item("cat")])
    stream.cancel()
    with open_channel(counterpart.target, None) as channel, pytest.raises(errors.UnexpectedStatusError):
        stream.run(channel, counterpart.target, None)
    assert not shelf.images


@pytest.mark.parametrize("kind", CLIENTS)
def test_the_servers_reason_survives_however_busily_the_client_sends(kind: str) -> None:
    answer = fails_after(0, failure("GALLERY_NOT_FOUND", code_pb2.NOT_FOUND, "the reason"))
    with running(Counterpart(ingest=answer)) as counterpart, CLIENTS[kind](counterpart.target) as client:
        for _ in range(40):
            with pytest.raises(errors.GalleryNotFoundError):
                client.ingest("demo", [item(f"{i}", bytes(10_000)) for i in range(200)])


def test_a_cancelled_ingest_lets_go_of_the_stream(counterpart: Counterpart) -> None:
    async def cancel_in_the_middle() -> int:
        async with matchflow.AsyncClient(counterpart.target) as client:
            begun = asyncio.Event()
            endless = (item(f"{i}") for i in range(10**9))
            task = asyncio.create_task(client.ingest("demo", endless, on_result=lambda _: begun.set()))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return (await client.ingest("demo", [item("after")])).stored

    assert asyncio.run(cancel_in_the_middle()) == 1


def test_a_ledger_without_room_for_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        IngestLedger("demo", max_items=0)


def test_an_item_larger_than_the_whole_window_goes_alone() -> None:
    ledger = IngestLedger("demo", max_bytes=100)
    large, small = item("large", bytes(1000)), item("small")
    first, second = ingest_request("demo", 1, large), ingest_request("demo", 2, small)
    assert ledger.has_room(first)
    ledger.sent(large, first)
    assert not ledger.has_room(second)
    ledger.answered(stored(first))
    assert ledger.has_room(second)


def test_a_full_window_takes_items_again_once_several_are_answered() -> None:
    ledger = IngestLedger("demo", max_items=16)
    requests = [ingest_request("demo", number, item(f"{number}")) for number in range(1, 20)]
    for request in requests[:16]:
        assert ledger.has_room(request)
        ledger.sent(item(request.name), request)
    assert not ledger.has_room(requests[16])
    ledger.answered(stored(requests[0]))
    assert not ledger.has_room(requests[16])
    ledger.answered(stored(requests[1]))
    for request in requests[16:18]:
        assert ledger.has_room(request)
        ledger.sent(item(request.name), request)
    assert not ledger.has_room(requests[18])


def test_an_answer_to_no_item_is_ignored() -> None:
    ledger = IngestLedger("demo")
    ledger.answered(IngestImagesResponse(item_id=77, outcome=INGEST_OUTCOME_CREATED))
    assert ledger.summary().total == 0
    assert not ledger.unreported()


@given(sizes=st.lists(st.integers(0, 50), max_size=60), answers=st.lists(st.booleans(), max_size=60))
def test_the_window_is_never_exceeded_and_every_item_is_counted_once(sizes: list[int], answers: list[bool]) -> None:
    ledger = IngestLedger("demo", max_items=5, max_bytes=200)
    under_way: list[IngestImagesRequest] = []
    flags = iter(answers)
    for number, size in enumerate(sizes):
        one = item(f"{number}", bytes(size))
        request = ingest_request("demo", ledger.next_id(), one)
        while not ledger.has_room(request):
            ledger.answered(stored(under_way.pop(0 if next(flags, True) else -1)))
        ledger.sent(one, request)
        under_way.append(request)
        assert len(under_way) <= 5
        assert len(under_way) == 1 or sum(r.ByteSize() for r in under_way) <= 200
    for request in under_way:
        ledger.answered(stored(request))
    assert ledger.finished("here").created == len(sizes) == len(ledger.unreported())

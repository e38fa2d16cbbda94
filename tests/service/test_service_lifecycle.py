"""Starting, draining, stopping; several bundles; the process as a whole."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from service_harness import (
    LIMIT_S,
    Api,
    RunningServer,
    by_bytes,
    by_name,
    eventually,
    feature_item,
    gated,
    image_name,
    item,
    png,
    random_features,
    refusal_of,
    settings_for,
)

from matchflow.v1 import gallery_pb2, ingest_pb2, model_pb2, search_pb2
from matchflow_bundle import load_bundle
from matchflow_service.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_bundle import Bundle

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def renamed(bundle: Bundle, path: Path, **changes: Any) -> Bundle:
    """Return a copy of a bundle that says something else of itself."""
    shutil.copytree(bundle.path, path)
    manifest = bundle.manifest.model_copy(update=changes).sealed()
    (path / "bundle.json").write_text(manifest.model_dump_json(indent=2))
    return load_bundle(path)


def test_a_second_server_on_the_same_store_is_refused(start_server: Any, sample_bundle: Bundle, tmp_path: Path) -> None:
    start_server()
    second = RunningServer(settings_for(sample_bundle, tmp_path / "store"))
    with pytest.raises(StartError, match="store"):
        second.start()


def test_a_taken_port_is_said_to_be_taken_and_the_store_is_let_go(
    start_server: Any, sample_bundle: Bundle, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"can't listen on 127.0.0.1:{port}"):
            RunningServer(settings_for(sample_bundle, tmp_path / "store", port=port)).start()
    _, api = start_server()
    assert api.create("works")


def test_what_is_no_bundle_is_refused_with_its_path(sample_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    settings = settings_for(sample_bundle, tmp_path / "store", bundles=[tmp_path / "empty"])
    with pytest.raises(StartError, match="empty"):
        RunningServer(settings).start()


def test_another_provider_than_is_there_is_refused(sample_bundle: Bundle, tmp_path: Path) -> None:
    settings = settings_for(sample_bundle, tmp_path / "store", provider="CUDAExecutionProvider")
    with pytest.raises(StartError, match="CUDAExecutionProvider"):
        RunningServer(settings).start()


def test_two_bundles_of_one_name_are_refused(sample_bundle: Bundle, tmp_path: Path) -> None:
    other = renamed(sample_bundle, tmp_path / "other", version="2")
    settings = settings_for(sample_bundle, tmp_path / "store", bundles=[sample_bundle.path, other.path])
    with pytest.raises(StartError, match="two bundles are named"):
        RunningServer(settings).start()


def test_two_models_serve_side_by_side_and_do_not_mix(start_server: Any, sample_bundle: Bundle, tmp_path: Path) -> None:
    other = renamed(sample_bundle, tmp_path / "other", name="zweites")
    _, api = start_server(bundles=[sample_bundle.path, other.path])
    first = api.models.ListModels(model_pb2.ListModelsRequest(page_size=1))
    second = api.models.ListModels(model_pb2.ListModelsRequest(page_size=1, page_token=first.next_page_token))
    assert [m.name for m in (*first.models, *second.models)] == ["models/lite0", "models/zweites"]
    assert not second.next_page_token
    api.create("one")
    api.create("two", model="models/zweites")
    for gallery in ("one", "two"):
        api.put_images(gallery, {"x": png(1)})
        assert api.find(gallery, by_bytes(png(1))).hits
    # What is searched, or the image of a pair, says which bundle the query has to be of.
    for call in (
        lambda: api.find("one", by_name("two", "x")),
        lambda: api.search.Compare(search_pb2.CompareRequest(query=by_name("two", "x"), image=by_name("one", "x"))),
    ):
        refusal = refusal_of(call)
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "BUNDLE_MISMATCH")
        assert refusal.metadata == {"expected_digest": sample_bundle.digest, "actual_digest": other.digest}


def test_a_gallery_whose_bundle_is_not_loaded_can_still_be_searched_by_stored_image(
    start_server: Any, sample_bundle: Bundle, tmp_path: Path
) -> None:
    other = renamed(sample_bundle, tmp_path / "other", name="zweites")
    first, api = start_server()
    api.create("pinned")
    api.put_images("pinned", {f"{i}": png(i) for i in range(4)})
    first.stop()
    _, api = start_server(bundles=[other.path])
    reply = api.find("pinned", by_name("pinned", "1"), max_flows=3)
    assert len(reply.hits) == 3
    assert not any(flow.HasField("image_box") for hit in reply.hits for flow in hit.match.flows)
    overlay = api.search.RenderMatch(
        search_pb2.RenderMatchRequest(query=by_name("pinned", "1"), image=image_name("pinned", "2"))
    )
    assert overlay.png
    batch = random_features(1)
    for call in (
        lambda: api.find("pinned", by_bytes(png(1))),
        lambda: api.put([item("pinned", "new", png(9))]),
        lambda: api.put([feature_item("pinned", "new", batch, 0, sample_bundle.digest)]),
    ):
        refusal = refusal_of(call)
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "BUNDLE_MISMATCH")
        assert refusal.metadata == {"expected_digest": sample_bundle.digest, "actual_digest": other.digest}


def test_draining_refuses_new_calls_and_finishes_those_in_flight(start_server: Any) -> None:
    server, api = start_server()
    api.create("one")
    states: queue.Queue[int] = queue.Queue()

    def watch() -> None:
        try:
            for reply in api.health.Watch(health_pb2.HealthCheckRequest(service="matchflow.v1.SearchService")):
                states.put(reply.status)
        except grpc.RpcError:
            states.put(-1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert states.get(timeout=LIMIT_S) == SERVING
    with gated(server) as gate, ThreadPoolExecutor(1) as pool:
        in_flight = pool.submit(api.find, "one", by_bytes(png(1)))
        assert gate.entered.wait(LIMIT_S)
        server.begin_stop()
        assert states.get(timeout=LIMIT_S) == NOT_SERVING
        eventually(server.server.calls.draining.is_set)
        refusal = refusal_of(lambda: api.find("one", by_bytes(png(2))))
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        gate.gate.set()
        assert in_flight.result(LIMIT_S).query_id
    server.stop()
    assert states.get(timeout=LIMIT_S) == -1
    watcher.join()


def test_draining_answers_what_an_ingest_stream_has_sent_and_then_ends_it(start_server: Any) -> None:
    server, api = start_server()
    api.create("one")
    hold = threading.Event()

    def items() -> Iterator[ingest_pb2.IngestImagesRequest]:
        for i in range(20):
            yield item("one", f"{i}", png(i), item_id=i)
        hold.wait(LIMIT_S)

    answers = []
    with gated(server) as gate:
        stream = api.ingest.IngestImages(items(), timeout=LIMIT_S)
        assert gate.entered.wait(LIMIT_S)
        server.begin_stop()
        eventually(server.server.calls.draining.is_set)
        gate.gate.set()

        def collect() -> None:
            for answer in stream:
                answers.append(answer)  # noqa: PERF402 - what came before the end of the stream must be kept

        refusal = refusal_of(collect)
    hold.set()
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    assert answers
    assert all(answer.status.code == 0 for answer in answers)
    server.stop()
    _, again = start_server()
    stored = again.galleries.ListImages(gallery_pb2.ListImagesRequest(parent="galleries/one"))
    assert {answer.name for answer in answers} == {image.name for image in stored.images}


def test_an_idle_ingest_stream_does_not_hold_up_the_drain(start_server: Any) -> None:
    server, api = start_server()
    hold = threading.Event()

    def nothing() -> Iterator[ingest_pb2.IngestImagesRequest]:
        hold.wait(LIMIT_S)
        yield from ()

    stream = api.ingest.IngestImages(nothing(), timeout=LIMIT_S)
    eventually(lambda: server.server.calls.count == 1)
    server.begin_stop()
    refusal = refusal_of(lambda: list(stream))
    hold.set()
    assert refusal.reason == "SHUTTING_DOWN"


def test_calls_that_outlast_the_drain_are_cut_off(start_server: Any) -> None:
    server, api = start_server(drain_s=0.05)
    api.create("one")
    with gated(server) as gate, ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(api.find, "one", by_bytes(png(1)))
        assert gate.entered.wait(LIMIT_S)
        server.begin_stop()
        with pytest.raises(grpc.RpcError) as raised:
            stuck.result(LIMIT_S)
    assert raised.value.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


def environment(bundle: Bundle, store: Path, **changes: str) -> dict[str, str]:
    port = {"MATCHFLOW_PORT": "0", "MATCHFLOW_STORE": str(store), "MATCHFLOW_BUNDLES": str(bundle.path)}
    return {**os.environ, **port, **changes}


def read_until_listening(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stderr is not None
    for line in process.stderr:
        record: dict[str, Any] = json.loads(line)
        if record["event"] == "listening":
            return record
    raise AssertionError(f"the server ended with {process.wait()}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_logs_json_and_ends_well_on_a_signal(sample_bundle: Bundle, tmp_path: Path, number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "matchflow_service"],
        env=environment(sample_bundle, tmp_path / "store"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        listening = read_until_listening(process)
        assert (listening["host"], listening["level"], listening["models"]) == ("127.0.0.1", "info", ["lite0"])
        api = Api(f"127.0.0.1:{listening['port']}")
        api.create("one")
        reply = api.find("one", by_bytes(png(1)))
        api.close()
        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT_S)
    records = [json.loads(line) for line in err.splitlines()]
    assert process.returncode == 0
    assert out == ""
    searched = [record for record in records if record.get("query_id") == reply.query_id]
    assert searched[0]["request_id"] == reply.query_id
    assert [record["event"] for record in records][-2:] == ["draining", "stopped"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"MATCHFLOW_PORT": "70000"}, "port"), ({"MATCHFLOW_BUNDLES": "/nowhere"}, "can't load the bundle /nowhere")],
)
def test_the_process_says_why_it_can_not_start(
    sample_bundle: Bundle, tmp_path: Path, changes: dict[str, str], text: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "matchflow_service"],
        env=environment(sample_bundle, tmp_path / "store", MATCHFLOW_LOG_FORMAT="console", **changes),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1
    assert text in done.stderr
    assert "Traceback" not in done.stderr

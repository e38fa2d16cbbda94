"""The server killed in the middle: what it acknowledged is there when it comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest
from service_harness import LIMIT_S, Api, by_name, image_name, item, png

from matchflow.v1 import gallery_pb2, ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_bundle import Bundle

DISTINCT = 16


@contextmanager
def server_process(bundle: Bundle, store: Path) -> Iterator[tuple[subprocess.Popen[str], Api]]:
    """Start a server of its own process and wait until it listens; kill it in the end if it still runs."""
    environment = {
        **os.environ,
        "MATCHFLOW_PORT": "0",
        "MATCHFLOW_STORE": str(store),
        "MATCHFLOW_BUNDLES": str(bundle.path),
        "MATCHFLOW_LOG_LEVEL": "info",
    }
    command = [sys.executable, "-m", "matchflow_service"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = next(record["port"] for record in map(json.loads, process.stderr) if record["event"] == "listening")
        api = Api(f"127.0.0.1:{port}")
        # A full pipe would stop the server.
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        try:
            yield process, api
        finally:
            api.close()
            process.kill()
            process.wait(LIMIT_S)
            drain.join(LIMIT_S)


@pytest.mark.parametrize("acknowledged", [1, 60, 150])
def test_a_kill_in_the_middle_of_ingest_loses_no_acknowledged_image(
    sample_bundle: Bundle, tmp_path: Path, acknowledged: int
) -> None:
    images = [png(i) for i in range(DISTINCT)]
    seen: dict[str, ingest_pb2.IngestImagesResponse] = {}

    def items() -> Iterator[ingest_pb2.IngestImagesRequest]:
        for i in range(100_000):
            yield item("g", f"image-{i}", images[i % DISTINCT], item_id=i, number=str(i))

    with server_process(sample_bundle, tmp_path / "store") as (process, api):
        api.create("g")
        with pytest.raises(grpc.RpcError) as raised:  # noqa: PT012 - the answers end in the error
            for answer in api.ingest.IngestImages(items(), timeout=LIMIT_S):
                assert answer.status.code == 0
                seen[answer.name] = answer
                if len(seen) == acknowledged:
                    process.send_signal(signal.SIGKILL)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(seen) >= acknowledged

    with server_process(sample_bundle, tmp_path / "store") as (_, api):
        for name, answer in seen.items():
            image = api.galleries.GetImage(gallery_pb2.GetImageRequest(name=name))
            assert (image.row_id, image.labels.values["number"]) == (answer.row_id, str(answer.item_id))
        gallery = api.galleries.GetGallery(gallery_pb2.GetGalleryRequest(name="galleries/g"))
        assert gallery.image_count >= len(seen)
        assert gallery.sequence >= max(answer.sequence for answer in seen.values())
        first = next(iter(seen)).rpartition("/")[2]
        assert api.find("g", by_name("g", first), include_query_image=True).hits[0].match.coarse_score > 0.999
        resent = api.put(
            item("g", f"image-{i}", images[i % DISTINCT], item_id=i, number=str(i)) for i in range(acknowledged)
        )
        for answer in resent:
            known = image_name("g", f"image-{answer.item_id}") in seen
            assert answer.outcome == ingest_pb2.INGEST_OUTCOME_UNCHANGED or not known

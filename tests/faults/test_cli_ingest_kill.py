"""`matchflow ingest` killed in the middle: the next run sends what is missing, and nothing is embedded twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from import_samples import age, tar_bytes
from service_harness import RunningServer, eventually, gated, png, settings_for

import matchflow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_bundle import Bundle

COUNT = 400
# Every image is another, so that nothing is spared for any reason but the import's own.
PROGRAM = """
from matchflow_cli import bulk_journal
bulk_journal.COMMIT_AFTER_S = 0.02
from matchflow_cli.main import main
main()
"""


@pytest.fixture(scope="module")
def server(sample_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(settings_for(sample_bundle, tmp_path_factory.mktemp("server") / "store"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images in a folder and in a tar file."""
    root = tmp_path_factory.mktemp("sources")
    images = [(f"{i:04}.png", png(i)) for i in range(COUNT)]
    folder, shard = root / "folder", root / "shard.tar"
    folder.mkdir()
    for name, data in images:
        (folder / name).write_bytes(data)
    shard.write_bytes(tar_bytes(images))
    age(shard, *folder.iterdir())
    return {"folder": folder, "tar": shard}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", PROGRAM, "ingest", *map(str, arguments)]


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_import_goes_on_and_nothing_that_is_stored_is_embedded_or_sent_again(
    server: RunningServer, sources: dict[str, Path], tmp_path: Path, kind: str, seed: int
) -> None:
    gallery, journal = f"{kind}-{seed}", tmp_path / "journal"
    kills = random.Random(seed)
    arguments = (sources[kind], "-g", gallery, "--server", server.target, "--journal", journal)
    with matchflow.Client(server.target) as client, gated(server) as encoder:
        encoder.gate.set()
        client.create_gallery(gallery)

        def stored() -> int:
            return client.get_gallery(gallery).image_count

        for _ in range(3):
            enough = stored() + kills.randrange(20, 90)
            with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                eventually(lambda enough=enough: stored() >= enough)  # type: ignore[misc]
                os.kill(process.pid, signal.SIGKILL)
            assert process.returncode == -signal.SIGKILL
        _settle(server, stored)
        before, embedded = stored(), sum(encoder.batch_sizes)
        assert 0 < before < COUNT
        finished = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        # Exactly what was not stored.
        assert sum(encoder.batch_sizes) - embedded == COUNT - before
        assert f"{COUNT - before} created" in finished.stdout
        assert stored() == COUNT
        sent_again = finished.stdout.partition(" images not sent again")[0].rpartition("\n")[2]
        # What the journal does not know had been committed by the server, but not reported or written down yet.
        assert before - 3 * 256 <= int(sent_again) <= before
        assert int(sent_again) > 0
        client.delete_gallery(gallery)


def _settle(server: RunningServer, stored: object) -> None:
    """Wait until the server has dropped the stream of the dead client."""
    assert callable(stored)
    seen = -1
    while seen != stored():
        seen = stored()
        threading.Event().wait(0.5)
    assert server.target

"""Run `matchflow serve` on a free loopback port for as long as a block lasts."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import matchflow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

START_LIMIT_S = 120.0
STOP_LIMIT_S = 60.0


@contextmanager
def local_server(
    *, bundle: Path, store: Path, log: Path, options: Sequence[str] = (), prefix: Sequence[str] = ()
) -> Iterator[str]:
    """Start the server, wait until it is healthy, give its host:port, and stop it in the end.

    `options` are further flags of `matchflow serve`; `prefix` a command to run it under, for example taskset. What it
    prints goes to `log`. Raises RuntimeError with the log when it does not come up.
    """
    target = f"127.0.0.1:{free_port()}"
    command = [*prefix, str(Path(sys.executable).with_name("matchflow")), "serve", "--port", target.split(":")[1]]
    command += ["--store", str(store), "--bundle", str(bundle), *options]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            wait_until_healthy(process, target, log)
            yield target
        finally:
            process.terminate()
            try:
                process.wait(timeout=STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_healthy(process: subprocess.Popen[bytes], target: str, log: Path) -> None:
    """Return once the server serves; raise RuntimeError with its log when it ends or takes too long."""
    deadline = time.monotonic() + START_LIMIT_S
    with matchflow.Client(target, timeout_s=5) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if client.health() is matchflow.Health.SERVING:
                    return
            except matchflow.MatchflowError:
                pass
            time.sleep(0.1)
    raise RuntimeError(f"the server did not come up; its log ({log}) says:\n{log.read_text()}")

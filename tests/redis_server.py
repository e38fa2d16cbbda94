"""Real Redis servers for tests: on loopback, on a free port, with their data in a folder of their own."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMIT_S = 60.0


class RedisServer:
    """A redis-server process; it can be killed and started again on the same data."""

    def __init__(self, folder: Path, *, appendfsync: str = "everysec", **options: object) -> None:
        """Start it with its append-only file on; `options` are of its configuration, with _ for -."""
        self.program = shutil.which("redis-server")
        if self.program is None:
            # A test that needs the server must not seem to have passed.
            raise FileNotFoundError("redis-server is not installed: `make test` or `apt-get install redis-server` does")
        self.folder = folder
        self.port = free_port()
        self.options = {
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "yes",
            "appendfsync": appendfsync,
            # A fork for each rewrite would only cost time; tests that want one ask for it.
            "auto_aof_rewrite_percentage": 0,
            **options,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it on whatever its folder holds; return once it answers and has loaded everything."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [str(self.program), "--port", str(self.port), "--dir", str(self.folder)]
        for name, value in self.options.items():
            command += [f"--{name.replace('_', '-')}", *(str(value).split() or [""])]
        with (self.folder / "redis.log").open("ab") as log:
            # Python ignores SIGXFSZ and would give it back: with it ignored, a limit on files is a full disk.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, restore_signals=False)
        deadline_s = time.monotonic() + LIMIT_S
        while not self._answers():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline_s, f"redis-server does not answer\n{self.log()}"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process is not None
        return self._process.pid

    def client(self) -> Any:
        """Return a bare client; use it in a `with` statement."""
        return redis.Redis(host="127.0.0.1", port=self.port, protocol=2, retry=Retry(NoBackoff(), 0))

    def log(self) -> str:
        """Return what it has printed."""
        return (self.folder / "redis.log").read_text(errors="replace")

    def kill(self) -> None:
        """End it as the kernel would: at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(LIMIT_S)

    def stop(self) -> None:
        """Let it end by itself, with all data written."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(LIMIT_S)

    def pause(self) -> None:
        """Let it hang: it takes connections, and answers nobody."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def limit_files(self, size_bytes: int) -> None:
        """Let it write no file beyond a length, as if the disk were full."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@contextmanager
def running_redis(folder: Path, **options: Any) -> Iterator[RedisServer]:
    """Run a server until the block ends."""
    with RedisServer(folder, **options) as server:
        yield server


@contextmanager
def running_cluster_node(folder: Path, **options: Any) -> Iterator[RedisServer]:
    """Run a Redis Cluster of one node that has all slots: it refuses what reaches over several of them."""
    with (
        RedisServer(folder, cluster_enabled="yes", cluster_port=free_port(), **options) as server,
        server.client() as client,
    ):
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        deadline_s = time.monotonic() + LIMIT_S
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            assert time.monotonic() < deadline_s, server.log()
            time.sleep(0.01)
        yield server


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""A `matchflow serve` process, and the redis-server it may need, that are killed and started again and again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import grpc
from grpc_health.v1 import health_pb2
from local_server import free_port
from redis_server import RedisServer
from service_harness import LIMIT_S, START_LIMIT_S, Api

if TYPE_CHECKING:
    from random import Random

PLANTED = Path(__file__).with_name("planted_server.py")
STORES = ("lmdb", "redis")


class CrashServer:
    """The server on one store; `api` speaks with the process of now."""

    api: Api

    def __init__(self, store: str, folder: Path, bundle: Path, *, plant: str = "") -> None:
        """Start Redis if that is the store; `start` starts the server. `plant` names a bug, see planted_server.py."""
        assert store in STORES
        folder.mkdir(parents=True, exist_ok=True)
        self.redis = RedisServer(folder / "redis") if store == "redis" else None
        self._folder, self._bundle, self._plant = folder, bundle, plant
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = self.redis_kills = 0

    def start(self, *, busy: bool = False) -> None:
        """Start it, `busy` with saving its caches, and return once it answers."""
        port = free_port()
        program = [str(Path(sys.executable).with_name("matchflow"))]
        if busy or self._plant:
            program = [sys.executable, str(PLANTED)]
        command = [*program, "serve", "--port", str(port), "--bundle", str(self._bundle), *self._store_flags()]
        environment = {**os.environ, "CRASH_BUSY": "1" if busy else "", "CRASH_PLANT": self._plant}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline_s = time.monotonic() + START_LIMIT_S
        while not self._answers(port):
            assert self._process.poll() is None, f"the server ended:\n{self.log.read_text()[-4000:]}"
            assert time.monotonic() < deadline_s, "the server does not answer"
            time.sleep(0.02)

    def _store_flags(self) -> list[str]:
        if self.redis is None:
            return ["--store", str(self._folder / "store")]
        return ["--store", self.redis.url, "--cache", str(self._folder / "cache")]

    def _answers(self, port: int) -> bool:
        # A channel that was refused waits a second before it tries again; a new one does not.
        api = Api(f"127.0.0.1:{port}")
        try:
            api.health.Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            api.close()
            return False
        self.api = api
        return True

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self._folder / "server.log"

    def kill(self) -> None:
        """End the server with kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(LIMIT_S)
        self.api.close()
        self.kills += 1

    def kill_all(self, rng: Random) -> None:
        """End the server and Redis with kill -9, in any order, and start Redis on what it had."""
        if self.redis is None:
            self.kill()
            return
        first, second = rng.sample([self.kill, self.redis.kill], 2)
        first()
        time.sleep(rng.uniform(0, 0.05))
        second()
        self.redis_kills += 1
        self.redis.start()

    def begin_stop(self) -> None:
        """Tell the server to stop, and come back at once."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Let the server end by itself, its caches saved."""
        assert self._process is not None
        self.begin_stop()
        self._process.wait(LIMIT_S)
        self.api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(LIMIT_S)
            self.api.close()
        if self.redis is not None:
            self.redis.kill()

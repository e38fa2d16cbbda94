"""A server that the tests of a module share, and one that a test can set up for itself."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from service_harness import Api, RunningServer, settings_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_bundle import Bundle


class StartServer(Protocol):
    """Starts servers that stop when the test ends."""

    def __call__(self, **changes: Any) -> tuple[RunningServer, Api]:
        """Start one with other settings."""
        ...


@pytest.fixture
def start_server(sample_bundle: Bundle, tmp_path: Path) -> Iterator[StartServer]:
    with ExitStack() as stack:

        def start(**changes: Any) -> tuple[RunningServer, Api]:
            running = RunningServer(settings_for(sample_bundle, changes.pop("store", tmp_path / "store"), **changes))
            running.start()
            stack.callback(running.stop)
            api = Api(running.target)
            stack.callback(api.close)
            return running, api

        yield start


@pytest.fixture(scope="module")
def server(sample_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(settings_for(sample_bundle, tmp_path_factory.mktemp("server") / "store"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def api(server: RunningServer) -> Iterator[Api]:
    api = Api(server.target)
    yield api
    api.close()


@pytest.fixture
def gallery(api: Api, request: pytest.FixtureRequest) -> str:
    """The id of a new, empty gallery of the shared server."""
    gallery_id = f"g{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}"
    api.create(gallery_id)
    return gallery_id

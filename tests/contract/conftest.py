"""The truths that every contract test runs over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from index_samples import gallery_spec
from redis_server import running_cluster_node, running_redis
from truth_samples import TRUTHS

from matchflow_index.lmdb_truth import LmdbTruth
from matchflow_index.redis_address import RedisAddress
from matchflow_index.redis_truth import RedisTruth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis_server import RedisServer

    from matchflow_index.truth import StoredGallery, Truth


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def cluster_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_cluster_node(tmp_path_factory.mktemp("cluster"), appendfsync="always") as server:
        yield server


@pytest.fixture(params=TRUTHS)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Truth]:
    """Return a function that opens the truth."""
    if request.param == "lmdb":
        return lambda: LmdbTruth(tmp_path / "truth")
    if request.param == "lmdb that grows":
        # So small that every other test makes it grow.
        return lambda: LmdbTruth(tmp_path / "truth", map_bytes=64 * 1024)
    server: RedisServer = request.getfixturevalue("redis_server" if request.param == "redis" else "cluster_node")
    # Each test has a store of its own on the one server.
    address = RedisAddress(url=server.url, prefix=f"store of {request.node.name.replace('[', ' ')}")
    return lambda: RedisTruth(address)


@pytest.fixture
def reopen(opener: Callable[[], Truth]) -> Iterator[Callable[[], Truth]]:
    """Return a function that opens the truth, again and again; what it opened before is closed."""
    opened: list[Truth] = []

    def reopen() -> Truth:
        if opened:
            opened.pop().close()
        opened.append(opener())
        return opened[-1]

    yield reopen
    for truth in opened:
        truth.close()


@pytest.fixture
def second(truth: Truth, opener: Callable[[], Truth]) -> Iterator[Truth]:
    """The same truth, opened by somebody else."""
    assert truth.shared
    other = opener()
    yield other
    other.close()


@pytest.fixture
def truth(reopen: Callable[[], Truth]) -> Truth:
    return reopen()


@pytest.fixture
def gallery(truth: Truth) -> StoredGallery:
    return truth.create(gallery_spec())

"""Servers whose galleries are on a Redis server: shared by several, and what a reply promises."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from redis_server import running_redis
from service_harness import (
    Api,
    RunningServer,
    by_bytes,
    by_name,
    eventually,
    image_name,
    item,
    png,
    refusal_of,
    settings_for,
)

from matchflow.v1 import gallery_pb2, ingest_pb2
from matchflow_service.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis_server import RedisServer

    from matchflow_bundle import Bundle


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


@contextmanager
def serving(bundle: Bundle, store: Path | str, **settings: Any) -> Iterator[Api]:
    """Run a server and return its API."""
    server = RunningServer(settings_for(bundle, store, **settings))  # type: ignore[arg-type]
    server.start()
    api = Api(server.target)
    try:
        yield api
    finally:
        api.close()
        server.stop()


def test_two_servers_share_galleries_and_each_finds_what_the_other_took(
    sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path
) -> None:
    images = {f"image-{k}": png(k) for k in range(6)}
    with (
        serving(sample_bundle, redis_server.url, cache=tmp_path / "first") as first,
        serving(sample_bundle, redis_server.url, cache=tmp_path / "second") as second,
    ):
        first.create("g")
        first.put_images("g", images)
        eventually(lambda: len(second.find("g", by_bytes(images["image-1"]), top_k=6).hits) == 6)
        hit = second.find("g", by_bytes(images["image-1"]), top_k=6).hits[0]
        assert hit.image.name == image_name("g", "image-1")
        second.put_images("g", {"from the second": png(77)})
        eventually(lambda: len(first.find("g", by_bytes(png(77)), top_k=10).hits) == 7)
        first.galleries.DeleteImages(
            gallery_pb2.DeleteImagesRequest(parent="galleries/g", names=[image_name("g", "image-1")])
        )
        eventually(lambda: len(second.find("g", by_bytes(images["image-1"]), top_k=10).hits) == 6)
        before = first.find("g", by_name("g", "image-2"), top_k=6).hits
    # With its caches, and without any.
    for cache in ("first", "third"):
        with serving(sample_bundle, redis_server.url, cache=tmp_path / cache) as api:
            assert list(api.find("g", by_name("g", "image-2"), top_k=6).hits) == list(before)


@pytest.mark.parametrize(
    ("appendfsync", "expected"), [("everysec", ingest_pb2.DURABILITY_PROCESS), ("always", ingest_pb2.DURABILITY_DISK)]
)
def test_a_reply_says_what_the_server_of_the_store_promises(
    sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path, appendfsync: str, expected: int
) -> None:
    with redis_server.client() as client:
        client.config_set("appendfsync", appendfsync)
    with serving(sample_bundle, redis_server.url, cache=tmp_path / "cache") as api:
        api.create("g")
        for outcome in (ingest_pb2.INGEST_OUTCOME_CREATED, ingest_pb2.INGEST_OUTCOME_UNCHANGED):
            (answer,) = api.put([item("g", "a", png(1))])
            assert (answer.outcome, answer.durability) == (outcome, expected)


@pytest.mark.parametrize(
    ("durability", "expected"),
    [
        (None, ingest_pb2.DURABILITY_DISK),
        ("disk", ingest_pb2.DURABILITY_DISK),
        ("process", ingest_pb2.DURABILITY_PROCESS),
    ],
)
def test_a_reply_says_what_a_folder_promises(
    sample_bundle: Bundle, tmp_path: Path, durability: str | None, expected: int
) -> None:
    with serving(sample_bundle, tmp_path, durability=durability) as api:
        api.create("g")
        good, bad = api.put([item("g", "a", png(1), item_id=1), item("g", "b", b"no picture", item_id=2)])
        assert good.durability == expected
        assert bad.durability == ingest_pb2.DURABILITY_UNSPECIFIED


def test_a_server_goes_on_when_redis_is_back(sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path) -> None:
    with serving(sample_bundle, redis_server.url, cache=tmp_path / "cache") as api:
        api.create("g")
        api.put_images("g", {"a": png(1)})
        redis_server.kill()
        (answer,) = api.put([item("g", "b", png(2))])
        assert answer.status.code == 14
        assert refusal_of(lambda: api.create("h")).reason == "STORE_UNAVAILABLE"
        # What an answer says of its hits is in the store.
        assert refusal_of(lambda: api.find("g", by_bytes(png(1)))).reason == "STORE_UNAVAILABLE"
        redis_server.start()
        api.put_images("g", {"b": png(2)})
        assert len(api.find("g", by_bytes(png(1)), top_k=2).hits) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "can't be used, it doesn't let this user in"),
        ("?replicas=many", "replicas in a Redis address must be of type int"),
    ],
)
def test_a_store_that_cannot_be_opened_keeps_the_server_from_starting_and_no_password_is_shown(
    sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path, options: str, message: str
) -> None:
    url = f"redis://:s3cret@127.0.0.1:{redis_server.port}/0{options}"
    with redis_server.client() as client:
        client.config_set("requirepass", "another")
    server = RunningServer(settings_for(sample_bundle, url, cache=tmp_path / "cache"))  # type: ignore[arg-type]
    with pytest.raises(StartError, match=message) as raised:
        server.start()
    assert "s3cret" not in str(raised.value)


def test_two_servers_cannot_share_a_cache(sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path) -> None:
    with serving(sample_bundle, redis_server.url, cache=tmp_path / "cache"):
        server = RunningServer(settings_for(sample_bundle, redis_server.url, cache=tmp_path / "cache"))  # type: ignore[arg-type]
        with pytest.raises(StartError, match="open for writing"):
            server.start()

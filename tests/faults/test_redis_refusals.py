"""Servers that could lose evidence, or are none of ours, are refused with a message that says why."""

from __future__ import annotations

import logging
import socketserver
import threading
from typing import TYPE_CHECKING

import pytest
from index_samples import gallery_spec
from redis_samples import contents, keys_of, open_truth, put
from redis_server import free_port, running_cluster_node, running_redis

from matchflow_index import GalleryExistsError, StoreUnavailableError
from matchflow_index.truth import Durability

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis_server import RedisServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.mark.parametrize(
    ("setting", "value", "message", "durability"),
    [
        ("appendonly", "no", "expected appendonly yes, got no", Durability.MEMORY),
        ("appendfsync", "no", "expected appendfsync always or everysec, got no", Durability.PROCESS),
        ("maxmemory-policy", "allkeys-lru", "expected maxmemory-policy noeviction, got allkeys-lru", None),
        ("maxmemory-policy", "volatile-ttl", "expected maxmemory-policy noeviction, got volatile-ttl", None),
    ],
)
def test_a_server_that_may_lose_images_is_refused_unless_that_is_allowed(
    server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    *,
    setting: str,
    value: str,
    message: str,
    durability: Durability | None,
) -> None:
    with server.client() as client:
        client.config_set(setting, value)
        with pytest.raises(StoreUnavailableError, match=message):
            open_truth(server)
        assert client.dbsize() == 0
    with caplog.at_level(logging.WARNING), open_truth(server, allow_unsafe=True) as truth:
        assert message in caplog.text
        assert truth.durability == (durability or Durability.PROCESS)
        gallery = truth.create(gallery_spec())
        put(truth, gallery, "a")
        assert contents(truth, gallery) == {"a": 0}


@pytest.mark.parametrize(
    ("appendfsync", "on_rewrite", "durability"),
    [
        ("always", "no", Durability.DISK),
        # During a rewrite nothing would be synchronised.
        ("always", "yes", Durability.PROCESS),
        ("everysec", "no", Durability.PROCESS),
    ],
)
def test_what_an_acknowledgement_means_follows_from_what_the_server_synchronises(
    server: RedisServer, appendfsync: str, on_rewrite: str, durability: Durability
) -> None:
    with server.client() as client:
        client.config_set("appendfsync", appendfsync)
        client.config_set("no-appendfsync-on-rewrite", on_rewrite)
    with open_truth(server) as truth:
        assert truth.durability is durability


def test_a_server_that_does_not_tell_its_configuration_is_refused_unless_that_is_allowed(tmp_path: Path) -> None:
    with running_redis(tmp_path, rename_command="CONFIG hidden") as server:
        with pytest.raises(StoreUnavailableError, match="nobody knows what this server may lose"):
            open_truth(server)
        with open_truth(server, allow_unsafe=True) as truth:
            assert truth.durability is Durability.MEMORY


def test_a_password_is_asked_for_used_and_never_shown(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        with server.client() as client:
            client.config_set("requirepass", "s3cret")
        with pytest.raises(StoreUnavailableError, match="it doesn't let this user in"):
            open_truth(server)
        wrong, right = (f"redis://:{word}@127.0.0.1:{server.port}/0" for word in ("wr0ng", "s3cret"))
        with pytest.raises(StoreUnavailableError, match="it doesn't let this user in") as raised:
            open_truth(server, url=wrong)
        assert "wr0ng" not in str(raised.value)
        with open_truth(server, url=right) as truth:
            truth.create(gallery_spec())


def test_a_user_who_may_only_read_is_told_so(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        with open_truth(server) as truth:
            put(truth, truth.create(gallery_spec()), "a")
        with server.client() as client:
            client.execute_command("ACL SETUSER reader on >p ~* +@read +config|get +info +hmget")
        url = f"redis://reader:p@127.0.0.1:{server.port}/0"
        with pytest.raises(StoreUnavailableError, match="the user may not do that"):
            open_truth(server, url=url)
        with open_truth(server, url=url, read_only=True) as truth:
            assert contents(truth, truth.galleries()[0]) == {"a": 0}


def test_read_only_nothing_can_be_written_and_nothing_is_created(server: RedisServer) -> None:
    with pytest.raises(StoreUnavailableError, match="has format None"):
        open_truth(server, read_only=True)
    with server.client() as client:
        assert client.dbsize() == 0
    with open_truth(server) as truth:
        gallery = truth.create(gallery_spec())
        put(truth, gallery, "a")
    with open_truth(server, read_only=True) as truth:
        assert contents(truth, gallery) == {"a": 0}
        assert truth.wait(gallery, 0, 1) == 1
        for use in (
            lambda: put(truth, gallery, "b"),
            lambda: truth.create(gallery_spec("b")),
            lambda: truth.delete("demo"),
            lambda: truth.trim_log(gallery, 1),
            lambda: truth.set_match_defaults(gallery, b"d"),
        ):
            with pytest.raises(StoreUnavailableError, match="is open read-only"):
                use()


def test_a_store_of_another_format_is_refused(server: RedisServer) -> None:
    open_truth(server).__exit__()
    with server.client() as client:
        client.hset("{matchflow}:store", "format", 7)
    for read_only in (False, True):
        with pytest.raises(StoreUnavailableError, match=r"has format 7 under prefix 'matchflow'; .* format 1"):
            open_truth(server, read_only=read_only)


def test_keys_of_somebody_else_are_refused(server: RedisServer) -> None:
    with server.client() as client:
        client.set("{matchflow}:store", "mine")
        with pytest.raises(StoreUnavailableError, match="WRONGTYPE"):
            open_truth(server)
        assert client.get("{matchflow}:store") == b"mine"


def test_stores_with_different_prefixes_share_a_server_and_nothing_else(server: RedisServer) -> None:
    with open_truth(server, prefix="first") as first, open_truth(server, prefix="second") as second:
        galleries = [truth.create(gallery_spec()) for truth in (first, second)]
        put(first, galleries[0], "a")
        with pytest.raises(GalleryExistsError):
            first.create(gallery_spec())
        second.delete("demo")
        assert contents(first, galleries[0]) == {"a": 0}
        assert second.galleries() == []


def test_a_log_that_does_not_end_where_the_gallery_does_is_damage_and_nothing_is_added_to_it(
    server: RedisServer,
) -> None:
    with open_truth(server) as truth:
        gallery = truth.create(gallery_spec())
        put(truth, gallery, "a", "b")
        with server.client() as client:
            client.xdel(keys_of(gallery).log, "2-0")
            with pytest.raises(StoreUnavailableError, match="expected its log to end at change 2, got 1-0"):
                put(truth, gallery, "c")
            client.set(keys_of(gallery).head, b"nonsense")
        with pytest.raises(StoreUnavailableError, match="expected a head of 16 bytes, got b'nonsense'"):
            put(truth, gallery, "c")


def test_one_server_of_a_larger_cluster_is_refused(tmp_path: Path) -> None:
    with running_cluster_node(tmp_path) as server, server.client() as client:
        open_truth(server).__exit__()
        client.execute_command("CLUSTER DELSLOTSRANGE", 0, 16383)
        with pytest.raises(StoreUnavailableError, match="expected one server, got one of a cluster of 0"):
            open_truth(server)


def test_a_server_without_a_replica_that_should_have_one_stores_but_says_that_it_is_not_safe(
    server: RedisServer,
) -> None:
    with open_truth(server) as truth:
        gallery = truth.create(gallery_spec())
    with open_truth(server, replicas=1, replica_timeout_s=0.1) as truth:
        with pytest.raises(StoreUnavailableError, match=r"expected 1 replicas .* within 0\.1 s, got 0; it was carried"):
            put(truth, gallery, "a")
        assert contents(truth, gallery) == {"a": 0}


def test_a_replica_has_what_was_acknowledged_and_takes_no_writes(tmp_path: Path) -> None:
    with (
        running_redis(tmp_path / "first", repl_diskless_sync_delay=0) as first,
        running_redis(tmp_path / "second", replicaof=f"127.0.0.1 {first.port}") as second,
    ):
        with open_truth(first, replicas=1, replica_timeout_s=30.0) as truth:
            gallery = truth.create(gallery_spec())
            put(truth, gallery, "a", "b")
            with open_truth(second, read_only=True) as copy:
                assert contents(copy, gallery) == {"a": 0, "b": 0}
        with pytest.raises(StoreUnavailableError, match="it is a read-only replica"):
            open_truth(second)


class Stranger(socketserver.BaseRequestHandler):
    """A server that is no Redis."""

    def handle(self) -> None:
        """Answer as a web server does."""
        self.request.recv(1000)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_what_is_no_redis_is_said_to_be_none(server: RedisServer) -> None:
    with pytest.raises(StoreUnavailableError, match="can't be reached"):
        open_truth(server, url=f"redis://127.0.0.1:{free_port()}/0")
    with socketserver.TCPServer(("127.0.0.1", 0), Stranger) as stranger:
        thread = threading.Thread(target=stranger.serve_forever)
        thread.start()
        try:
            with pytest.raises(StoreUnavailableError, match="can't be used"):
                open_truth(server, url=f"redis://127.0.0.1:{stranger.server_address[1]}/0")
        finally:
            stranger.shutdown()
            thread.join()

"""Redis away, hanging, full, emptied: errors that say so, nothing half stored, and all goes on when it is back."""

from __future__ import annotations

import resource
import shutil
import threading
import time
from typing import TYPE_CHECKING

import pytest
import redis
from index_samples import gallery_spec
from redis_samples import contents, keys_of, open_truth, put, put_in, stray_keys
from redis_server import running_redis

from matchflow_index import StoreUnavailableError
from matchflow_index.redis_link import RedisSession
from matchflow_index.redis_sweeping import sweep_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis_server import RedisServer

    from matchflow_index.redis_truth import RedisTruth
    from matchflow_index.truth import StoredGallery, Transaction


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def truth(server: RedisServer) -> Iterator[RedisTruth]:
    with open_truth(server, timeout_s=1.0, connect_timeout_s=1.0) as truth:
        yield truth


@pytest.fixture
def gallery(truth: RedisTruth) -> StoredGallery:
    return truth.create(gallery_spec())


def uses(truth: RedisTruth, gallery: StoredGallery) -> list[Callable[[], object]]:
    """Return all that one can do with a gallery."""

    def read() -> object:
        with truth.read(gallery) as snapshot:
            return list(snapshot.records())

    return [
        truth.galleries,
        read,
        lambda: put(truth, gallery, "b"),
        lambda: truth.wait(gallery, 5, 1.0),
        lambda: truth.trim_log(gallery, 1),
        lambda: truth.match_defaults(gallery),
        lambda: truth.set_match_defaults(gallery, b"d"),
        lambda: truth.create(gallery_spec("other")),
        lambda: truth.delete("demo"),
    ]


def put_until_it_fails(truth: RedisTruth, gallery: StoredGallery) -> tuple[list[str], str]:
    """Return the names of all images that were acknowledged, and the error that came then."""
    names: list[str] = []
    for k in range(1000):
        step = [f"{k}-{part}" for part in "abc"]
        try:
            put(truth, gallery, *step, size=10_000)
        except StoreUnavailableError as error:
            return names, str(error)
        names += step
    raise AssertionError("it never failed")


def test_a_stopped_server_is_said_to_be_away_and_used_again_once_it_is_back(
    server: RedisServer, truth: RedisTruth, gallery: StoredGallery
) -> None:
    put(truth, gallery, "a")
    server.stop()
    for use in uses(truth, gallery):
        with pytest.raises(
            StoreUnavailableError, match=f"redis://127.0.0.1:{server.port}/0 can't be used, it can't be"
        ):
            use()
    server.start()
    put(truth, gallery, "c")
    assert contents(truth, gallery).keys() == {"a", "c"}
    assert not stray_keys(server, {gallery: 2})


def test_a_server_that_hangs_is_given_up_in_time_and_used_again_once_it_answers(
    server: RedisServer, truth: RedisTruth, gallery: StoredGallery
) -> None:
    put(truth, gallery, "a")
    server.pause()
    try:
        for use in uses(truth, gallery)[:4]:
            begin_s = time.monotonic()
            with pytest.raises(StoreUnavailableError, match="didn't answer in time"):
                use()
            assert time.monotonic() - begin_s < 10
    finally:
        server.resume()
    put(truth, gallery, "c")
    # What hung may have been carried out later.
    assert contents(truth, gallery).keys() - {"b"} == {"a", "c"}


def test_who_waits_is_told_when_the_server_goes(server: RedisServer, truth: RedisTruth, gallery: StoredGallery) -> None:
    killer = threading.Timer(0.2, server.kill)
    killer.start()
    with pytest.raises(StoreUnavailableError):
        truth.wait(gallery, 0, 60)
    killer.join()


def test_who_waits_is_told_when_the_truth_is_closed(truth: RedisTruth, gallery: StoredGallery) -> None:
    closer = threading.Timer(0.2, truth.close)
    closer.start()
    with pytest.raises(StoreUnavailableError):
        truth.wait(gallery, 0, 60)
    closer.join()


def test_a_server_that_came_back_empty_has_lost_the_store_and_no_gallery_was_deleted(
    server: RedisServer, truth: RedisTruth, gallery: StoredGallery
) -> None:
    put(truth, gallery, "a")
    server.stop()
    shutil.rmtree(server.folder / "appendonlydir")
    server.start()
    for use in uses(truth, gallery):
        with pytest.raises(StoreUnavailableError, match="has lost the store that was opened"):
            use()


def test_a_full_memory_refuses_writes_and_goes_on_reading(
    server: RedisServer, truth: RedisTruth, gallery: StoredGallery
) -> None:
    with server.client() as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 3_000_000)
        names, error = put_until_it_fails(truth, gallery)
        assert "it is out of memory (maxmemory)" in error
        assert names
        assert contents(truth, gallery).keys() == set(names)
        for use in (
            lambda: put(truth, gallery, "large", size=1_000_000),
            lambda: truth.create(gallery_spec("other")),
            lambda: truth.set_match_defaults(gallery, b"d" * 1_000_000),
        ):
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 1000)
            with pytest.raises(StoreUnavailableError, match="out of memory"):
                use()
        assert contents(truth, gallery).keys() == set(names)
        assert [stored.spec.gallery_id for stored in truth.galleries()] == ["demo"]
        client.config_set("maxmemory", 0)
        put(truth, gallery, "after")
        assert contents(truth, gallery).keys() == {*names, "after"}
        sweep_rows(truth._link, keys_of(gallery), age_s=-1)
        assert contents(truth, gallery).keys() == {*names, "after"}
        assert not stray_keys(server, {gallery: len(names) + 1}) - {b"{matchflow}:doomed"}


def test_a_full_disk_refuses_writes_and_loses_nothing_that_was_acknowledged(
    server: RedisServer, truth: RedisTruth, gallery: StoredGallery
) -> None:
    put(truth, gallery, "a")
    server.limit_files(300_000)
    names, error = put_until_it_fails(truth, gallery)
    names.append("a")
    assert "can't write to its disk" in error
    assert len(names) > 1
    with pytest.raises(StoreUnavailableError, match="can't write to its disk"):
        put(truth, gallery, "refused")
    # What was refused last may have been carried out, and be lost by a restart.
    assert contents(truth, gallery).keys() >= set(names)
    server.kill()
    server.start()
    assert contents(truth, gallery).keys() >= set(names)
    put(truth, gallery, "after")
    assert contents(truth, gallery).keys() >= {*names, "after"}


def test_the_disk_is_full_for_the_server_alone() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("carried_out", [True, False])
def test_a_commit_whose_answer_never_comes_is_reported_and_is_there_whole_or_not_at_all(
    server: RedisServer,
    truth: RedisTruth,
    gallery: StoredGallery,
    monkeypatch: pytest.MonkeyPatch,
    *,
    carried_out: bool,
) -> None:
    put(truth, gallery, "a", "b")
    execute = RedisSession.execute

    def cut_off(session: RedisSession, commands: list[tuple[bytes]]) -> None:
        if carried_out:
            execute(session, commands)

        def lost(*_: object) -> None:
            raise redis.ConnectionError("planted")

        with monkeypatch.context() as patch:
            patch.setattr(session._connection, "read_response", lost)
            if not carried_out:
                patch.setattr(session._connection, "send_packed_command", lambda _: None)
            execute(session, commands)

    def work(transaction: Transaction) -> None:
        put_in(transaction, "a", seed=1)
        put_in(transaction, "c", seed=1)

    with monkeypatch.context() as patch:
        patch.setattr(RedisSession, "execute", cut_off)
        with pytest.raises(StoreUnavailableError, match="may have been carried out, or not"):
            truth.write(gallery, work)
    expected = {"a": 1, "b": 0, "c": 1} if carried_out else {"a": 0, "b": 0}
    assert contents(truth, gallery) == expected
    # The next write sweeps what is doomed; what is pending has to be old.
    put(truth, gallery, "d")
    sweep_rows(truth._link, keys_of(gallery), age_s=-1)
    assert contents(truth, gallery) == {**expected, "d": 0}
    assert not stray_keys(server, {gallery: len(expected) + 1})

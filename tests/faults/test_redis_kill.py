"""redis-server and writers killed at any moment: what was acknowledged is there, and nothing is half there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from index_samples import gallery_spec
from redis_samples import contents, keys_of, open_truth, put, put_in, stray_keys
from redis_server import running_redis

from matchflow_index import GalleryNotFoundError, StoreUnavailableError
from matchflow_index import redis_commit as redis_commit_module
from matchflow_index.redis_sweeping import sweep_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from matchflow_index.redis_truth import RedisTruth
    from matchflow_index.truth import StoredGallery, Transaction

TESTS = Path(__file__).parents[1]
ROUNDS = 8
NAMES = [f"image-{k}" for k in range(12)]

State = dict[str, int]


def random_step(rng: random.Random, state: State, seed: int) -> tuple[State, Callable[[Transaction], None]]:
    """Return what a random transaction makes of a state, and the transaction."""
    after = dict(state)
    steps: list[tuple[str, str]] = []
    for name in rng.sample(NAMES, rng.randint(1, 6)):
        kind = rng.choice(["put", "put", "remove"])
        steps.append((kind, name))
        if kind == "put":
            after[name] = seed
        else:
            after.pop(name, None)

    def work(transaction: Transaction) -> None:
        for kind, name in steps:
            if kind == "put":
                put_in(transaction, name, seed)
            else:
                transaction.remove(name, 1.0)

    return after, work


def write_until_it_fails(truth: RedisTruth, gallery: StoredGallery, rng: random.Random, state: State) -> list[State]:
    """Write without end; return the state that was acknowledged last, and the one that was under way."""
    while True:
        after, work = random_step(rng, state, rng.randrange(10**9))
        try:
            truth.write(gallery, work)
        except StoreUnavailableError:
            return [state, after]
        state = after


@pytest.mark.parametrize("appendfsync", ["everysec", "always"])
def test_a_killed_server_has_every_acknowledged_write_when_it_is_back(tmp_path: Path, appendfsync: str) -> None:
    rng = random.Random(appendfsync)
    state: State = {}
    with running_redis(tmp_path, appendfsync=appendfsync) as server, open_truth(server) as truth:
        gallery = truth.create(gallery_spec())
        for _ in range(ROUNDS):
            killer = threading.Timer(rng.uniform(0.01, 0.15), server.kill)
            killer.start()
            possible = write_until_it_fails(truth, gallery, rng, state)
            killer.join()
            server.start()
            state = contents(truth, gallery)
            assert state in possible
        sweep_rows(truth._link, keys_of(gallery), age_s=-1)
        assert contents(truth, gallery) == state
        assert not stray_keys(server, {gallery: len(state)})


def test_a_server_that_writes_late_is_waited_for(tmp_path: Path) -> None:
    """While a synchronisation hangs, Redis answers before it has written: a kill then must cost nothing."""
    with running_redis(tmp_path) as server, open_truth(server) as truth:
        gallery = truth.create(gallery_spec())
        put(truth, gallery, "a")
        with server.client() as client:
            # As if the disk were slow: what is written stays in the server.
            replies = iter([b"5", b"5", b"0"])
            asked: list[bytes] = []
            call = truth._link.call

            def slow(*command: bytes | str | float) -> object:
                if command[:2] != ("INFO", "persistence"):
                    return call(*command)
                asked.append(next(replies))
                return b"aof_last_write_status:ok\r\naof_buffer_length:%b\r\n" % asked[-1]

            truth._link.call = slow  # type: ignore[method-assign]
            put(truth, gallery, "b")
            assert asked == [b"5", b"5", b"0"]
            assert client.ping()


WRITER = """
    import sys
    sys.path.insert(0, sys.argv[1])
    from redis_samples import put
    from index_samples import gallery_spec
    from matchflow_index.redis_address import RedisAddress
    from matchflow_index.redis_truth import RedisTruth
    truth = RedisTruth(RedisAddress(url=sys.argv[2]))
    gallery = truth.create(gallery_spec(sys.argv[3]))
    for number in range(1_000_000):
        put(truth, gallery, *[f"image-{k}" for k in range(20)], f"put-{number}", seed=number)
        print(number, flush=True)
"""


def test_killed_writers_leave_nothing_half_and_nothing_that_is_not_swept(tmp_path: Path) -> None:
    rng = random.Random(5)
    with running_redis(tmp_path) as server:
        for round_ in range(4):
            command = [sys.executable, "-c", textwrap.dedent(WRITER), str(TESTS), server.url, f"gallery-{round_}"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
                assert writer.stdout is not None
                last = -1
                for _ in range(rng.randint(1, 40)):
                    last = int(writer.stdout.readline())
                writer.send_signal(signal.SIGKILL)
                last = max([last, *map(int, writer.stdout.read().split())])
            with open_truth(server) as truth:
                gallery = truth.galleries()[round_]
                state = contents(truth, gallery)
                done = state["image-0"]
                assert done in {last, last + 1}
                assert state == {**{f"image-{k}": done for k in range(20)}, **{f"put-{k}": k for k in range(done + 1)}}
        with open_truth(server) as truth:
            galleries = {gallery: len(contents(truth, gallery)) for gallery in truth.galleries()}
            for gallery in galleries:
                sweep_rows(truth._link, keys_of(gallery), age_s=-1)
                put(truth, gallery, "one more")
            assert not stray_keys(server, {gallery: count + 1 for gallery, count in galleries.items()})


def test_a_writer_whose_pending_rows_were_swept_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the rows of a writer that stalls taken for those of a dead one, its commit would refer to nothing."""
    with running_redis(tmp_path) as server, open_truth(server) as truth:
        gallery = truth.create(gallery_spec())
        put(truth, gallery, "a")
        changes = redis_commit_module._changes
        swept: list[bytes] = []

        def stall(*arguments: object, **options: object) -> object:
            if not swept:
                with server.client() as client:
                    swept.extend(client.zrange(keys_of(gallery).pending, 0, -1))
                sweep_rows(truth._link, keys_of(gallery), age_s=-1)
            return changes(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(redis_commit_module, "_changes", stall)
        put(truth, gallery, "a", "b", seed=1)
        assert len(swept) == 1
        assert contents(truth, gallery) == {"a": 1, "b": 1}
        assert not stray_keys(server, {gallery: 2})


@pytest.mark.parametrize("where", ["_write_rows", "_changes"])
def test_a_writer_that_dies_before_its_commit_leaves_only_pending_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def die(*_: object, **__: object) -> None:
        raise SystemExit

    with running_redis(tmp_path) as server, open_truth(server) as truth:
        gallery = truth.create(gallery_spec())
        put(truth, gallery, "a")
        with monkeypatch.context() as patch:
            patch.setattr(redis_commit_module, where, die)
            with pytest.raises(SystemExit):
                put(truth, gallery, "a", "b", seed=1)
        assert contents(truth, gallery) == {"a": 0}
        keys = keys_of(gallery)
        # It is too young to be taken for dead.
        sweep_rows(truth._link, keys)
        assert keys.pending in stray_keys(server, {gallery: 1})
        sweep_rows(truth._link, keys, age_s=-1)
        assert contents(truth, gallery) == {"a": 0}
        assert not stray_keys(server, {gallery: 1})


def test_a_gallery_that_is_deleted_under_its_writer_is_gone_with_all_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_redis(tmp_path) as server, open_truth(server) as truth, open_truth(server) as other:
        gallery = truth.create(gallery_spec())
        put(truth, gallery, "a")
        changes = redis_commit_module._changes

        def delete_first(*arguments: object, **options: object) -> object:
            other.delete("demo")
            return changes(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(redis_commit_module, "_changes", delete_first)
        with pytest.raises(GalleryNotFoundError):
            put(truth, gallery, "a", "b", seed=1)
        assert truth.galleries() == []
        # Its writer was alive: somebody has to look again later whether it has left something.
        assert stray_keys(server, {}) == {b"{matchflow}:doomed"}
        with server.client() as client:
            client.zadd(b"{matchflow}:doomed", {str(gallery.number): 1})
        with open_truth(server):
            assert not stray_keys(server, {})

"""A process that is killed while it writes to a gallery, fills its other generation and switches between the two."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from generation_writer import OTHER_DIM, OTHER_GRID, embed_of, features_of, opened, picture
from index_samples import gallery_spec
from redis_samples import keys_of, stray_keys
from redis_server import running_redis
from truth_samples import put, put_in

from matchflow_index import GalleryStore, GenerationMovedError, GenerationNotFoundError, StoreUnavailableError
from matchflow_index import redis_generations as redis_generations_module
from matchflow_index.generation_progress import GenerationState
from matchflow_index.redis_address import RedisAddress
from matchflow_index.redis_sweeping import sweep_rows
from matchflow_index.redis_truth import RedisTruth
from matchflow_index.truth import Generations
from matchflow_index.verifying import verify_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis_server import RedisServer

    from matchflow_index import Gallery
    from matchflow_index.truth import StoredGallery

TESTS = Path(__file__).parents[1]
ROUNDS = 6
OTHER = replace(gallery_spec(), model="other", bundle_digest="sha256:other", grid=OTHER_GRID, embedding_dim=OTHER_DIM)

State = dict[str, int]


@contextmanager
def writing(folder: Path, address: str, seed: str) -> Iterator[subprocess.Popen[str]]:
    """Run a writer until the block ends, which kills it."""
    command = [sys.executable, str(TESTS / "faults" / "generation_writer.py"), str(folder), address, seed]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait(60)


def follow(lines: list[str], state: State) -> tuple[State, int]:
    """Return the acknowledged state after some lines, and how many switches they tell of."""
    state, switches = dict(state), 0
    for line in lines:
        match line.split():
            case ["put", name, seed]:
                state[name] = int(seed)
            case ["delete", name]:
                state.pop(name, None)
            case ["switch", _]:
                switches += 1
    return state, switches


def seeds(gallery: Gallery) -> State:
    """Return the seeds of all images, having seen that each has the content and the features that go with it."""
    found = {}
    for name in gallery.image_ids():
        record = gallery.get(name)
        seed = int(str(record.labels["seed"]))
        assert record.content_hash == picture(name, seed).hex()
        expected = features_of(picture(name, seed), gallery.spec.generation)
        np.testing.assert_array_equal(gallery.features(name).cells, expected.cells)
        found[name] = seed
    return found


def check(store: GalleryStore, acknowledged: State) -> State:
    """Check both generations after a kill, and return what there is."""
    store._embed_of = embed_of
    active = store.gallery("demo")
    found = seeds(active)
    # One write may have been under way: stored, but not acknowledged.
    different = {name for name in {*found, *acknowledged} if found.get(name) != acknowledged.get(name)}
    assert len(different) <= 1, (found, acknowledged)
    desk = store.generations_of("demo")
    while desk.fill(lambda: False):
        pass
    other = 3 - active.spec.generation
    assert desk.status(other).state is GenerationState.READY
    assert seeds(store.gallery("demo", other)) == found
    problems = [finding for report in verify_all(store._truth, "demo", None) for finding in report.findings]
    assert [each for each in problems if each.part != "thumbnails"] == []
    return found


@pytest.mark.parametrize("kind", ["lmdb", "redis"])
def test_kills_amid_writes_and_switches_lose_nothing_in_either_generation(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    with running_redis(tmp_path / "redis") as server:
        address = server.url if kind == "redis" else ""
        folder = tmp_path / "store"
        with opened(folder, address) as store:
            store.create(gallery_spec())
            store.generations_of("demo").add(OTHER)
        state: State = {}
        all_switches = 0
        for number in range(ROUNDS):
            with writing(folder, address, f"{kind} {number}") as process:
                assert process.stdout is not None
                with closing(process.stdout) as said:
                    assert said.readline() == "ready\n"
                    time.sleep(rng.uniform(0.1, 0.8))
                    process.kill()
                    lines = said.read().splitlines(keepends=True)
            state, switches = follow([line for line in lines if line.endswith("\n")], state)
            all_switches += switches
            if kind == "redis":
                with closing(RedisTruth(RedisAddress(url=address))) as truth:
                    # Nobody has to wait until a dead process is known to be dead.
                    for each in truth.generations("demo"):
                        truth._link.call("DEL", keys_of(each).filler)
            with opened(folder, address) as store:
                state = check(store, state)
        assert state
        assert all_switches > ROUNDS


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def truth(server: RedisServer) -> Iterator[RedisTruth]:
    with closing(RedisTruth(RedisAddress(url=server.url))) as truth:
        yield truth


@pytest.fixture
def pair(truth: RedisTruth) -> Generations:
    active = truth.create(gallery_spec())
    put(truth, active, "a")
    return Generations(active=active, other=truth.add_generation(OTHER))


def fill(truth: RedisTruth, gallery: StoredGallery) -> None:
    truth.write(gallery, lambda transaction: put_in(transaction, "x", b"row" * 100), active=False)


class KilledError(Exception):
    """Stands for the end of the process."""


def killed(*_: object) -> None:
    raise KilledError


def half_switched(truth: RedisTruth, pair: Generations, monkeypatch: pytest.MonkeyPatch, step: str) -> StoredGallery:
    """Let a switch end after its first step, or its second; return the generation that it was to."""
    assert pair.other is not None
    with monkeypatch.context() as patch:
        if step == "decided":
            finished = redis_generations_module.RedisGenerations.finish_switch
            calls: Iterator[Callable[..., None]] = iter([finished, killed])

            def finish(*arguments: Any) -> None:
                next(calls)(*arguments)

            patch.setattr(redis_generations_module.RedisGenerations, "finish_switch", finish)
        else:
            patch.setattr(redis_generations_module.RedisGenerations, "_swap", killed)
        with pytest.raises(KilledError):
            truth.switch(pair.active, 1)
    assert truth.generations("demo") == pair
    return pair.other


@pytest.mark.parametrize("step", ["decided", "half done"])
def test_a_switch_that_was_cut_off_is_finished_by_the_next_writer(
    truth: RedisTruth, pair: Generations, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    other = half_switched(truth, pair, monkeypatch, step)
    with pytest.raises(GenerationMovedError):
        put(truth, pair.active, "b")
    assert truth.generations("demo") == Generations(active=other, other=pair.active)
    put(truth, other, "c")
    assert truth.switch(other, other.spec.base_sequence + 1)
    put(truth, pair.active, "d")


@pytest.mark.parametrize("step", ["decided", "half done"])
def test_what_a_cut_off_switch_was_to_cannot_be_dropped_any_more(
    truth: RedisTruth, pair: Generations, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    other = half_switched(truth, pair, monkeypatch, step)
    truth.drop_generation(pair.active)
    assert truth.generations("demo") == Generations(active=other)
    put(truth, other, "c")


def test_a_switch_to_what_was_dropped_meanwhile_leaves_the_gallery_as_it_was(
    truth: RedisTruth, pair: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = half_switched(truth, pair, monkeypatch, "decided")
    # As by somebody who looked before the switch was decided, and goes on after it.
    truth._link.call("DEL", keys_of(other).gallery)
    with pytest.raises(GenerationMovedError):
        put(truth, pair.active, "b")
    assert put(truth, pair.active, "b")
    assert truth.generations("demo").active == pair.active
    assert truth.generations("demo") == Generations(active=pair.active)
    with pytest.raises(GenerationNotFoundError):
        truth.drop_generation(other)


def test_a_drop_that_was_cut_off_is_finished_by_whoever_looks(
    server: RedisServer, truth: RedisTruth, pair: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pair.other is not None
    fill(truth, pair.other)
    with monkeypatch.context() as patch:
        patch.setattr(redis_generations_module.RedisGenerations, "_take_off", killed)
        with pytest.raises(KilledError):
            truth.drop_generation(pair.other)
    with closing(RedisTruth(RedisAddress(url=server.url), read_only=True)) as reader:
        assert reader.generations("demo") == Generations(active=pair.active)
    assert truth.generations("demo") == Generations(active=pair.active)
    assert truth.others() == []
    assert truth.add_generation(OTHER).spec.generation == 3
    truth.drop_generation(truth.others()[0])
    assert not stray_keys(server, {pair.active: 1})


def test_galleries_from_before_there_were_generations_get_one(truth: RedisTruth, pair: Generations) -> None:
    """Their specifications say nothing of generations."""
    assert pair.other is not None
    truth.drop_generation(pair.other)
    store = truth._galleries.keys
    number, spec = pair.active.number.to_bytes(4, "big"), json.loads(pair.active.spec.encode())
    del spec["generation"], spec["lineage"], spec["gallery_create_time_s"]
    value = number + bytes.fromhex(pair.active.uuid) + json.dumps(spec).encode()
    truth._link.call("HSET", store.galleries, "demo", value)
    assert truth.galleries() == [pair.active]
    other = truth.add_generation(OTHER)
    assert truth.switch(pair.active, 1)
    assert truth.generations("demo") == Generations(active=other, other=pair.active)
    put(truth, other, "b")
    assert truth.switch(other, other.spec.base_sequence + 1)
    put(truth, pair.active, "c")
    truth.drop_generation(other)


def test_rows_of_a_generation_that_was_dropped_are_swept(truth: RedisTruth, pair: Generations) -> None:
    assert pair.other is not None
    fill(truth, pair.other)
    number = pair.other.number
    truth.drop_generation(pair.other)
    sweep_rows(truth._link, keys_of(pair.active), age_s=-1)
    left = [key for key in truth._link.call("KEYS", "*") if b":%d" % number in key.split(b"}")[0]]
    assert left == []


def test_a_deleted_gallery_cannot_come_back_by_a_switch(
    truth: RedisTruth, pair: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_switched(truth, pair, monkeypatch, "decided")
    truth.delete("demo")
    assert truth.galleries() == truth.others() == []
    again = truth.create(gallery_spec())
    put(truth, again, "a")
    assert truth.generations("demo") == Generations(active=again)


def test_a_dead_server_is_said_to_be_one(server: RedisServer, truth: RedisTruth, pair: Generations) -> None:
    server.kill()
    for use in (
        lambda: truth.generations("demo"),
        lambda: truth.switch(pair.active, 1),
        lambda: truth.add_generation(OTHER),
        lambda: truth.claim(pair.active, 1),
    ):
        with pytest.raises(StoreUnavailableError):
            use()
    server.start()
    assert truth.switch(pair.active, 1)

"""A few rounds of the crash harness on either store; `make test-faults` does hundreds. And what it must find."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from crash_model import Findings, Model, State
from crash_server import STORES
from crashing import crash
from planted_server import PLANTS

if TYPE_CHECKING:
    from pathlib import Path

    from matchflow_bundle import Bundle

NAME = "image-000"


@pytest.mark.crash
@pytest.mark.parametrize("store", STORES)
def test_a_killed_server_has_what_it_acknowledged_and_answers_as_before(
    sample_bundle: Bundle, tmp_path: Path, store: str
) -> None:
    outcome = crash(store, tmp_path, sample_bundle, kills=2, seed="test")
    assert not outcome.findings.texts, outcome.findings.texts[:3]
    assert outcome.acknowledged > 100
    assert outcome.compared_answers > 50
    assert (outcome.kills, outcome.quiet_kills, outcome.redis_kills) == (2, 2, 1 if store == "redis" else 0)


@pytest.mark.crash
@pytest.mark.parametrize(
    ("plant", "store", "found"),
    [
        ("ack_before_commit", "lmdb", "lost"),
        ("trust_caches", "redis", "half"),
        ("forget_removal", "lmdb", "half"),
    ],
)
def test_a_planted_bug_is_found(sample_bundle: Bundle, tmp_path: Path, plant: str, store: str, found: str) -> None:
    assert plant in PLANTS
    outcome = crash(store, tmp_path, sample_bundle, kills=3, seed="test", plant=plant, until_found=found)
    assert outcome.findings.counts[found], outcome.findings.counts


def state(write: str) -> State:
    return State(content=1, write=write, camera="c1", age=1.0)


def judged(model: Model, label: str | None) -> dict[str, int]:
    findings = Findings()
    model.judge(NAME, label, findings, "here")
    return dict(findings.counts)


def test_an_acknowledged_write_must_be_there() -> None:
    model = Model(1)
    model.acknowledge(model.send(NAME, state("a")), sequence=1)
    assert judged(model, "a") == {}
    assert judged(model, None) == {"lost": 1}
    assert judged(model, "b") == {"half": 1}


def test_a_write_under_way_may_be_there_or_not() -> None:
    model = Model(1)
    model.acknowledge(model.send(NAME, state("a")), sequence=1)
    model.send(NAME, state("b"))
    assert judged(model, "a") == judged(model, "b") == {}
    assert judged(model, None) == {"lost": 1}


def test_an_older_write_than_the_last_acknowledged_one_is_a_loss() -> None:
    model = Model(1)
    for sequence, label in enumerate("ab", 1):
        model.acknowledge(model.send(NAME, state(label)), sequence=sequence)
    assert judged(model, "a") == {"lost": 1}
    assert judged(model, "b") == {}


def test_of_writes_that_overlap_the_one_with_the_higher_sequence_counts() -> None:
    model = Model(1)
    first, second = model.send(NAME, state("a")), model.send(NAME, state("b"))
    model.acknowledge(second, sequence=1)
    model.acknowledge(first, sequence=2)
    assert judged(model, "a") == {}
    assert judged(model, "b") == {"lost": 1}


def test_a_deletion_that_overlaps_a_write_may_have_come_before_or_after_it() -> None:
    model = Model(1)
    put, deletion = model.send(NAME, state("a")), model.send(NAME, None)
    model.acknowledge(put, sequence=1)
    model.acknowledge(deletion)
    assert judged(model, "a") == judged(model, None) == {}


def test_what_was_deleted_stays_deleted() -> None:
    model = Model(1)
    model.acknowledge(model.send(NAME, state("a")), sequence=1)
    model.acknowledge(model.send(NAME, None))
    assert judged(model, None) == {}
    assert judged(model, "a") == {"resurrected": 1}


def test_what_was_seen_is_where_the_next_round_begins() -> None:
    model = Model(2)
    model.send(NAME, state("a"))
    model.send(NAME, state("b"))
    assert model.touched() == [NAME]
    model.see(NAME, state("a"), sequence=5)
    assert model.touched() == []
    assert list(model.present()) == [(NAME, state("a"))]
    assert judged(model, "a") == {}
    assert judged(model, "b") == {"half": 1}
    assert judged(model, None) == {"lost": 1}

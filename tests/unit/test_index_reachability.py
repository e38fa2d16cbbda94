"""A truth that does not answer: who asks it, what others get meanwhile, and when that ends."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from matchflow_index.errors import GalleryNotFoundError, StoreUnavailableError
from matchflow_index.reachability import LOOK_S, Reachability

WITHOUT_S = 60.0


@dataclass
class World:
    """A truth that answers or not, asked at a time of ours."""

    without_s: float = WITHOUT_S
    now_s: float = 100.0
    trouble: Exception | None = None
    asked: int = 0
    reachability: Reachability = field(init=False)

    def __post_init__(self) -> None:
        self.reachability = Reachability("demo", self.without_s, lambda: self.now_s)

    def question(self) -> str:
        self.asked += 1
        if self.trouble is not None:
            raise self.trouble
        return "answer"

    def ask(self) -> str:
        return self.reachability.ask(self.question, lambda: "otherwise")

    def look(self) -> None:
        with self.reachability.looking():
            self.question()

    def lose(self) -> None:
        self.trouble = StoreUnavailableError("redis is away")


@pytest.fixture
def world() -> World:
    return World()


def test_a_truth_that_answers_is_asked_every_time(world: World) -> None:
    assert [world.ask() for _ in range(5)] == ["answer"] * 5
    assert world.asked == 5
    assert not world.reachability.is_lost


def test_one_that_does_not_is_done_without_and_asked_only_every_so_often(world: World) -> None:
    world.lose()
    assert [world.ask() for _ in range(10)] == ["otherwise"] * 10
    assert world.asked == 1
    assert world.reachability.is_lost
    world.now_s += LOOK_S - 0.01
    assert world.ask() == "otherwise"
    assert world.asked == 1
    world.now_s += 0.02
    assert [world.ask() for _ in range(10)] == ["otherwise"] * 10
    assert world.asked == 2


def test_the_pause_between_two_looks_begins_when_the_first_is_over(world: World) -> None:
    """A server that hangs takes its time to be given up."""

    def hang() -> str:
        world.now_s += 5
        raise StoreUnavailableError("it didn't answer in time")

    world.lose()
    world.ask()
    world.now_s += LOOK_S
    assert world.reachability.ask(hang, lambda: "otherwise") == "otherwise"
    assert world.ask() == "otherwise"
    assert world.asked == 1


def test_it_is_asked_every_time_again_from_its_first_answer_on(world: World) -> None:
    world.lose()
    world.ask()
    world.trouble = None
    assert world.ask() == "otherwise"
    world.now_s += LOOK_S
    assert [world.ask() for _ in range(3)] == ["answer"] * 3
    assert not world.reachability.is_lost


@pytest.mark.parametrize("how", ["answered", "look"])
def test_an_answer_that_anybody_gets_counts(world: World, how: str) -> None:
    world.lose()
    world.ask()
    world.trouble = None
    getattr(world.reachability if how == "answered" else world, how)()
    assert world.ask() == "answer"


def test_nobody_waits_while_another_one_looks(world: World) -> None:
    world.lose()
    world.ask()
    looking, done = threading.Event(), threading.Event()

    def look() -> None:
        with suppress(StoreUnavailableError), world.reachability.looking():
            looking.set()
            assert done.wait(60)
            raise StoreUnavailableError("still away")

    looker = threading.Thread(target=look)
    looker.start()
    assert looking.wait(60)
    world.now_s += 10 * LOOK_S
    assert world.ask() == "otherwise"
    assert world.asked == 1
    done.set()
    looker.join()
    assert world.ask() == "otherwise"
    world.now_s += LOOK_S
    assert world.ask() == "otherwise"
    assert world.asked == 2


def test_of_many_that_come_at_once_one_looks(world: World) -> None:
    world.lose()
    world.ask()
    world.now_s += LOOK_S
    inside, together, others = threading.Event(), threading.Barrier(8), threading.Event()

    def question() -> str:
        assert not inside.is_set()
        inside.set()
        assert others.wait(60)
        raise StoreUnavailableError("still away")

    answers: list[str] = []

    def come() -> None:
        together.wait(60)
        answers.append(world.reachability.ask(question, lambda: "otherwise"))
        if len(answers) == 7:
            others.set()

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == ["otherwise"] * 8


def test_a_look_that_fails_is_no_reason_to_do_without(world: World) -> None:
    world.lose()
    with pytest.raises(StoreUnavailableError):
        world.look()
    assert not world.reachability.is_lost
    world.trouble = None
    assert world.ask() == "answer"


@pytest.mark.parametrize("probed", [True, False])
def test_what_may_be_done_without_ends_with_a_time_since_the_last_answer(world: World, *, probed: bool) -> None:
    world.ask()
    world.lose()
    world.now_s += WITHOUT_S - 0.5
    assert world.ask() == "otherwise"
    world.now_s += 0.5
    assert world.ask() == "otherwise"
    world.now_s += 15 if probed else 0.4
    message = (
        rf"the store of gallery 'demo' can't be reached for {75 if probed else 60} s; searches go on without it for "
        r"60 s at most: redis is away"
    )
    with pytest.raises(StoreUnavailableError, match=message):
        world.ask()
    assert world.asked == (3 if probed else 2)
    world.trouble = None
    world.now_s += LOOK_S
    assert world.ask() == "answer"


@pytest.mark.parametrize("how", ["ask", "look", "answered"])
def test_every_answer_lets_that_time_begin_anew(world: World, how: str) -> None:
    world.now_s += 10 * WITHOUT_S
    getattr(world.reachability if how == "answered" else world, how)()
    world.lose()
    world.now_s += WITHOUT_S
    assert world.ask() == "otherwise"
    world.now_s += LOOK_S
    with pytest.raises(StoreUnavailableError, match="can't be reached for 61 s"):
        world.ask()


def test_with_no_time_at_all_every_question_goes_to_the_truth_and_fails_as_it_does() -> None:
    world = World(without_s=0.0)
    world.lose()
    for _ in range(3):
        with pytest.raises(StoreUnavailableError, match=r"^redis is away$"):
            world.ask()
    assert world.asked == 3
    world.trouble = None
    assert world.ask() == "answer"


def test_that_a_gallery_is_gone_is_an_answer(world: World) -> None:
    world.lose()
    world.ask()
    world.trouble = GalleryNotFoundError("demo")
    world.now_s += LOOK_S
    for _ in range(3):
        with pytest.raises(GalleryNotFoundError):
            world.ask()
    assert world.asked == 4


def test_any_other_error_is_passed_on_and_leaves_nobody_counted(world: World) -> None:
    world.lose()
    world.ask()
    world.trouble = ValueError("a bug")
    world.now_s += LOOK_S
    with pytest.raises(ValueError, match="a bug"):
        world.ask()
    assert world.reachability.is_lost
    world.trouble = None
    world.now_s += LOOK_S
    assert world.ask() == "answer"


def test_an_outage_is_said_once_and_so_is_its_end(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "matchflow_index.reachability")
    for _ in range(2):
        world.lose()
        for _ in range(5):
            world.ask()
            world.now_s += LOOK_S
        world.trouble = None
        world.ask()
        world.ask()
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == 2 * [
        ("WARNING", "gallery demo: redis is away; searches go on without the store, for 60 s at most"),
        ("INFO", "gallery demo: its store answers again, after 5.0 s"),
    ]

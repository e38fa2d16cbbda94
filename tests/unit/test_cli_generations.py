"""`matchflow generation`, and `search` and `explain` of one: what is asked of the server, and what is said of it."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from client_counterpart import Counterpart, Refusal, failure, match_score, running, stored_generation, stored_image
from google.protobuf import empty_pb2
from google.rpc import code_pb2

from matchflow.v1 import gallery_pb2, generation_pb2, search_pb2
from matchflow_cli import generation_commands
from matchflow_cli.application import run
from matchflow_cli.output import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from google.protobuf.message import Message

State = generation_pb2.Generation
Cli = Any


@pytest.fixture
def counterpart() -> Iterator[Counterpart]:
    with running(Counterpart()) as running_counterpart:
        yield running_counterpart


@pytest.fixture
def cli(
    counterpart: Counterpart, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run a command against the counterpart; gives its exit status and what it printed."""
    monkeypatch.setenv("MATCHFLOW_SERVER", counterpart.target)
    monkeypatch.setattr(generation_commands, "POLL_S", 0.001)

    def command(*arguments: object) -> tuple[int, str, str]:
        status = run([*map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def refusing(reason: str, code: int, message: str, **metadata: str) -> Callable[[Message], Message]:
    def refuse(_: Message) -> Message:
        raise Refusal(failure(reason, code, message, **metadata))

    return refuse


def both(_: Message) -> generation_pb2.ListGenerationsResponse:
    waiting = stored_generation(2, State.STATE_WAITING_FOR_MODEL, missing_count=1_200, pending_changes=7)
    return generation_pb2.ListGenerationsResponse(generations=[stored_generation(1, State.STATE_ACTIVE), waiting])


def test_generations_are_listed_with_what_they_do_and_lack(cli: Cli, counterpart: Counterpart) -> None:
    counterpart.answers["ListGenerations"] = both
    status, out, err = cli("generation", "list", "demo")
    assert (status, err) == (0, "")
    _, _, first, second = out.splitlines()
    assert first.split()[:4] == ["1", "active", "lite0", "d1d1d1d1d1d1"]
    for part in ("waiting for model", "other", "4 x 2", "128", "1,200", " 7 ", "2023-11-14"):
        assert part in second


@pytest.mark.parametrize("command", [["list", "demo"], ["show", "demo", "2"], ["compare", "demo", "2"]])
def test_json_has_what_the_client_returns(cli: Cli, counterpart: Counterpart, command: list[str]) -> None:
    counterpart.answers |= {
        "ListGenerations": both,
        "GetGeneration": lambda _: stored_generation(2),
        "CompareGenerations": lambda _: generation_pb2.CompareGenerationsResponse(generation=2, overlap=0.5),
    }
    status, out, _ = cli("generation", *command, "--json")
    assert status == 0
    plain = json.loads(out)
    match command[0]:
        case "list":
            assert [each["state"] for each in plain] == ["active", "waiting_for_model"]
        case "show":
            assert (plain["number"], plain["grid"]) == (2, {"rows": 4, "columns": 2})
        case _:
            assert (plain["generation"], plain["overlap"], plain["precision_at_1"]) == (2, 0.5, None)


NEXT = {
    State.STATE_ACTIVE: "it answers every search that names no other",
    State.STATE_FILLING: "it is being filled",
    State.STATE_READY: "matchflow generation activate demo 2",
    State.STATE_INCOMPLETE: (
        "4 images to be sent again: matchflow generation missing demo 2, then matchflow ingest SOURCE --gallery demo "
        "--generation 2"
    ),
    State.STATE_WAITING_FOR_MODEL: "this server has not loaded model other: name its bundle to `matchflow serve`",
    State.STATE_UNSPECIFIED: "a state that this version does not know",
}


@pytest.mark.parametrize("state", NEXT)
def test_a_generation_is_shown_with_what_can_be_done_next(cli: Cli, counterpart: Counterpart, state: Any) -> None:
    counterpart.answers["GetGeneration"] = lambda _: stored_generation(2, state, missing_count=4, pending_changes=1)
    status, out, _ = cli("generation", "show", "demo", 2)
    assert status == 0
    for line in ("generation  2 of demo", "model       other", "missing     4", "pending     1 change"):
        assert f"{line}\n" in out
    assert NEXT[state] in out.splitlines()[-1]


def test_missing_images_are_one_to_a_line_and_steer_no_terminal(cli: Cli, counterpart: Counterpart) -> None:
    def answer(request: generation_pb2.ListMissingImagesRequest) -> generation_pb2.ListMissingImagesResponse:
        names = ["galleries/demo/images/b"] if request.page_token else ["galleries/demo/images/a\x1b"]
        return generation_pb2.ListMissingImagesResponse(names=names, next_page_token="" if request.page_token else "t")

    counterpart.answers["ListMissingImages"] = answer
    assert cli("generation", "missing", "demo", 2) == (0, "a\\x1b\nb\n", "")
    status, out, _ = cli("generation", "missing", "demo", 2, "--json")
    assert (status, json.loads(out)) == (0, ["a\x1b", "b"])


def test_a_generation_that_lacks_nothing_lists_nothing(cli: Cli, counterpart: Counterpart) -> None:
    counterpart.answers["ListMissingImages"] = lambda _: generation_pb2.ListMissingImagesResponse()
    assert cli("generation", "missing", "demo", 2) == (0, "", "")


def test_one_is_begun_and_left_to_the_server(cli: Cli, counterpart: Counterpart) -> None:
    counterpart.answers["CreateGeneration"] = lambda _: stored_generation(2, State.STATE_FILLING)
    status, out, err = cli("generation", "create", "demo", "--model", "other")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "began generation 2 of demo for model other (bundle d2d2d2d2d2d2)",
        "it is filled in the background: matchflow generation show demo 2",
    ]
    (request,) = counterpart.requests
    assert (request.parent, request.generation.model) == ("galleries/demo", "models/other")


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (State.STATE_READY, 0),
        (State.STATE_ACTIVE, 0),
        (State.STATE_INCOMPLETE, 1),
        (State.STATE_WAITING_FOR_MODEL, 1),
        (State.STATE_UNSPECIFIED, 1),
    ],
)
def test_waiting_ends_when_nothing_more_is_computed(
    cli: Cli, counterpart: Counterpart, state: Any, status: int
) -> None:
    states = iter([State.STATE_FILLING, State.STATE_FILLING, state])
    counterpart.answers["CreateGeneration"] = lambda _: stored_generation(2, State.STATE_FILLING, missing_count=4)
    counterpart.answers["GetGeneration"] = lambda _: stored_generation(2, next(states), missing_count=4)
    done, out, _ = cli("generation", "create", "demo", "--wait")
    assert done == status
    assert NEXT[state] in out.splitlines()[-1]
    assert [request.name for request in counterpart.requests[1:]] == ["galleries/demo/generations/2"] * 3


def test_one_that_is_filled_at_once_is_not_waited_for(cli: Cli, counterpart: Counterpart) -> None:
    counterpart.answers["CreateGeneration"] = lambda _: stored_generation(2)
    assert cli("generation", "create", "demo", "--wait")[0] == 0
    assert len(counterpart.requests) == 1


def test_whoever_stops_waiting_leaves_the_server_at_it(cli: Cli, counterpart: Counterpart) -> None:
    def interrupted(_: Message) -> generation_pb2.Generation:
        os.kill(os.getpid(), signal.SIGINT)
        return stored_generation(2, State.STATE_FILLING)

    counterpart.answers["CreateGeneration"] = lambda _: stored_generation(2, State.STATE_FILLING)
    counterpart.answers["GetGeneration"] = interrupted
    status, _, err = cli("generation", "create", "demo", "--wait")
    assert status == 130
    assert "the server goes on filling it: matchflow generation show demo 2" in err
    assert "Traceback" not in err


def test_one_that_is_deleted_while_somebody_waits_ends_the_wait(cli: Cli, counterpart: Counterpart) -> None:
    counterpart.answers["CreateGeneration"] = lambda _: stored_generation(2, State.STATE_FILLING)
    counterpart.answers["GetGeneration"] = refusing("GENERATION_NOT_FOUND", code_pb2.NOT_FOUND, "no generation 2")
    status, _, err = cli("generation", "create", "demo", "--wait")
    assert status == 1
    assert "matchflow: no generation 2; `matchflow generation list GALLERY` shows what there is" in err


def comparison(**labelled: Any) -> generation_pb2.CompareGenerationsResponse:
    response = generation_pb2.CompareGenerationsResponse
    return response(
        query_count=150,
        top_k=10,
        overlap=0.75,
        same_first=0.875,
        score_shift=response.ScoreShift(pairs=1_125, mean=-0.125, p5=-0.5, median=-0.0625, p95=0.25),
        disagreements=[response.Disagreement(image="galleries/demo/images/[b]cat", overlap=0.2)],
        active_generation=1,
        generation=2,
        **labelled,
    )


def test_a_comparison_says_how_alike_they_answer_and_which_is_right(cli: Cli, counterpart: Counterpart) -> None:
    counterpart.answers["CompareGenerations"] = lambda _: comparison(
        labelled_queries=120, active_precision_at_1=0.5, precision_at_1=0.625
    )
    arguments = ("--queries", 150, "--top-k", 10, "--label", "class", "--seed", 7)
    status, out, _ = cli("generation", "compare", "demo", 2, *arguments)
    assert status == 0
    for line in (
        "generation 2 beside 1, which is active: 150 images asked with, 10 hits each",
        "same first  87.5% of the first hits",
        "overlap     75.0% of all hits",
        "score       -0.1250 in the mean, median -0.0625, 90 % from -0.5000 to +0.2500, over 1,125 hits that both have",
        "right first 62.5%; active 50.0%, of 120 labelled images",
    ):
        assert f"{line}\n" in out
    assert out.splitlines()[5] == "they agree least on"
    assert out.splitlines()[-1].split() == ["[b]cat", "20.0%"]
    (request,) = counterpart.requests
    assert (request.query_count, request.top_k, request.label, request.seed) == (150, 10, "class", 7)


def test_a_comparison_without_labels_says_nothing_of_what_is_right(cli: Cli, counterpart: Counterpart) -> None:
    counterpart.answers["CompareGenerations"] = lambda _: comparison()
    _, out, _ = cli("generation", "compare", "demo", 2)
    assert "right" not in out
    (request,) = counterpart.requests
    assert (request.query_count, request.top_k, request.label, request.seed) == (200, 10, "", 0)


def test_two_that_have_nothing_in_common_are_not_compared(cli: Cli, counterpart: Counterpart) -> None:
    counterpart.answers["CompareGenerations"] = lambda _: generation_pb2.CompareGenerationsResponse(
        active_generation=1, generation=2, top_k=10
    )
    status, out, _ = cli("generation", "compare", "demo", 2)
    assert status == 0
    assert out.splitlines()[1:] == ["nothing to compare: the two have no images in common"]


def gallery(active: int) -> Callable[[Message], gallery_pb2.Gallery]:
    return lambda _: gallery_pb2.Gallery(name="galleries/demo", model="models/lite0", generation=active, image_count=3)


def test_a_switch_says_how_to_go_back(cli: Cli, counterpart: Counterpart) -> None:
    counterpart.answers["GetGallery"] = gallery(1)
    counterpart.answers["ActivateGeneration"] = lambda _: stored_generation(2, State.STATE_ACTIVE)
    status, out, _ = cli("generation", "activate", "demo", 2)
    assert status == 0
    assert out.splitlines() == [
        "generation 2 of demo is active: model other",
        "to go back: matchflow generation activate demo 1",
    ]
    assert not counterpart.requests[-1].allow_missing


@pytest.mark.parametrize("count", [1, 3])
def test_a_switch_says_what_is_missing_then(cli: Cli, counterpart: Counterpart, count: int) -> None:
    counterpart.answers["GetGallery"] = gallery(1)
    counterpart.answers["ActivateGeneration"] = lambda _: stored_generation(2, State.STATE_ACTIVE, missing_count=count)
    status, out, _ = cli("generation", "activate", "demo", 2, "--allow-missing")
    assert status == 0
    assert f"model other; {counted(count, 'image')} missing" in out
    assert counterpart.requests[-1].allow_missing


def test_what_is_active_already_stays_so(cli: Cli, counterpart: Counterpart) -> None:
    counterpart.answers["GetGallery"] = gallery(2)
    counterpart.answers["ActivateGeneration"] = lambda _: stored_generation(2, State.STATE_ACTIVE)
    assert cli("generation", "activate", "demo", 2) == (0, "generation 2 of demo was active already\n", "")


def test_a_switch_to_what_is_not_ready_says_what_to_do(cli: Cli, counterpart: Counterpart) -> None:
    counterpart.answers["GetGallery"] = gallery(1)
    counterpart.answers["ActivateGeneration"] = refusing(
        "GENERATION_NOT_READY", code_pb2.FAILED_PRECONDITION, "generation 2 lacks 3 images", missing_count="3"
    )
    status, out, err = cli("generation", "activate", "demo", 2)
    assert (status, out) == (1, "")
    assert err == (
        "matchflow: generation 2 lacks 3 images; `matchflow generation missing` names images, --allow-missing switches "
        "without them\n"
    )


def test_a_generation_is_deleted_unless_it_is_active(cli: Cli, counterpart: Counterpart) -> None:
    counterpart.answers["GetGeneration"] = lambda _: stored_generation()
    counterpart.answers["DeleteGeneration"] = lambda _: empty_pb2.Empty()
    assert cli("generation", "delete", "demo", 1, "--yes") == (0, "deleted generation 1 of demo\n", "")
    counterpart.answers["DeleteGeneration"] = refusing(
        "GENERATION_ACTIVE", code_pb2.FAILED_PRECONDITION, "generation 1 is active"
    )
    status, _, err = cli("generation", "delete", "demo", 1, "-y")
    assert status == 1
    assert err.startswith("matchflow: generation 1 is active; name the other one")


@pytest.mark.parametrize(("answer", "deleted"), [(True, True), (False, False)])
def test_somebody_is_asked_before_a_generation_is_deleted(
    cli: Cli, counterpart: Counterpart, monkeypatch: pytest.MonkeyPatch, *, answer: bool, deleted: bool
) -> None:
    asked: list[str] = []
    calls: list[object] = []

    def confirm(question: str) -> bool:
        asked.append(question)
        return answer

    def delete(request: object) -> empty_pb2.Empty:
        calls.append(request)
        return empty_pb2.Empty()

    monkeypatch.setattr("typer.confirm", confirm)
    counterpart.answers["GetGeneration"] = lambda _: stored_generation()
    counterpart.answers["DeleteGeneration"] = delete
    status, _, err = cli("generation", "delete", "demo", 2)
    assert "Delete generation 2 of demo" in asked[0]
    assert (status, bool(calls)) == (0 if deleted else 1, deleted)
    assert ("was not deleted" in err) is not deleted


@pytest.mark.parametrize(
    "arguments",
    [
        ["generation", "show", "demo", "0"],
        ["generation", "show", "demo", "second"],
        ["generation", "compare", "demo", "2", "--queries", "1001"],
        ["search", "-g", "demo", "--image-id", "cat", "--generation", "0"],
    ],
)
def test_a_number_that_can_not_be_is_refused_before_anybody_is_asked(
    cli: Cli, counterpart: Counterpart, arguments: list[str]
) -> None:
    assert cli(*arguments)[0] == 2
    assert not counterpart.requests


def found(request: search_pb2.SearchRequest) -> search_pb2.SearchResponse:
    return search_pb2.SearchResponse(
        hits=[search_pb2.Hit(image=stored_image("cat"), match=match_score())],
        sequence=1_234,
        generation=request.generation or 1,
    )


@pytest.mark.parametrize(("options", "generation"), [((), 1), (("--generation", 2), 2)])
def test_a_search_asks_a_generation_and_says_which_answered(
    cli: Cli, counterpart: Counterpart, options: tuple[object, ...], generation: int
) -> None:
    counterpart.answers["Search"] = found
    status, out, err = cli("search", "-g", "demo", "--image-id", "dog", *options)
    assert (status, err) == (0, "")
    assert f"; generation {generation}\n" in out


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_answer_without_the_store_is_said_beside_the_hits(
    cli: Cli, counterpart: Counterpart, options: tuple[str, ...]
) -> None:
    def answer(request: search_pb2.SearchRequest) -> search_pb2.SearchResponse:
        reply = found(request)
        reply.hits[0].image.ClearField("update_time")
        reply.store_unreachable = True
        return reply

    counterpart.answers["Search"] = answer
    status, out, err = cli("search", "-g", "demo", "--image-id", "dog", *options)
    assert status == 0
    assert err == (
        "the server can't reach its store: these hits are what it knew last, as of change 1,234; images may have "
        "changed since\n"
    )
    if options:
        plain = json.loads(out)
        assert plain["store_unreachable"]
        assert plain["hits"][0]["image"]["update_time"] is None
    else:
        assert "cat" in out


@pytest.mark.parametrize(("options", "drawn"), [((), 1), (("--generation", 2), 2)])
def test_what_is_explained_is_drawn_from_the_same_generation(
    cli: Cli, counterpart: Counterpart, tmp_path: Path, options: tuple[object, ...], drawn: int
) -> None:
    counterpart.answers["Explain"] = lambda request: search_pb2.ExplainResponse(
        image=stored_image("cat"), match=match_score(), generation=request.generation or 1
    )
    counterpart.answers["RenderMatch"] = lambda _: search_pb2.RenderMatchResponse(png=b"\x89PNG")
    overlay = tmp_path / "why.png"
    arguments = ("explain", "-g", "demo", "--image-id", "dog", "--hit", "cat", "--overlay", overlay, *options)
    status, out, _ = cli(*arguments)
    assert status == 0
    assert f"generation   {drawn}\n" in out
    assert counterpart.requests[-1].generation == drawn
    assert overlay.read_bytes() == b"\x89PNG"


@pytest.mark.parametrize(("active", "said"), [(2, "2"), (0, "the server does not say")])
def test_a_gallery_shows_its_active_generation(cli: Cli, counterpart: Counterpart, active: int, said: str) -> None:
    without_time = stored_image("cat")
    without_time.ClearField("update_time")
    counterpart.answers["GetGallery"] = gallery(active)
    counterpart.answers["ListImages"] = lambda _: gallery_pb2.ListImagesResponse(images=[without_time])
    status, out, _ = cli("gallery", "show", "demo", "--images", 1)
    assert status == 0
    assert f"generation  {said}\n" in out

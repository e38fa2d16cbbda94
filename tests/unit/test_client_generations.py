"""Generations by both clients, against a real server that answers as each test says."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest
from client_counterpart import CLIENTS, Counterpart, Refusal, failure, running, stored_generation
from google.protobuf import empty_pb2
from google.rpc import code_pb2

import matchflow
from matchflow import GenerationState, errors, generations
from matchflow.v1 import generation_pb2, matching_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message

State = generation_pb2.Generation


@pytest.fixture
def counterpart() -> Iterator[Counterpart]:
    with running(Counterpart()) as running_counterpart:
        yield running_counterpart


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, counterpart: Counterpart) -> Iterator[Any]:
    with CLIENTS[request.param](counterpart.target, timeout_s=20) as connected:
        yield connected


def test_a_generation_is_begun_as_asked(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["CreateGeneration"] = lambda _: stored_generation(
        2, State.STATE_FILLING, image_count=0, missing_count=3, pending_changes=1
    )
    tuning = matchflow.Tuning(global_weight=0.5, spatial_weight=2.0)
    how = matchflow.RerankSettings(mode=matchflow.RerankMode.MAX_SIM, depth=50, tuning=tuning)
    made = client.create_generation("demo", model="other", rerank=how)
    (request,) = counterpart.requests
    assert request.parent == "galleries/demo"
    assert request.generation == generation_pb2.Generation(
        model="models/other",
        default_rerank=matching_pb2.Rerank(
            mode=matching_pb2.RERANK_MODE_MAX_SIM, depth=50, global_weight=0.5, spatial_weight=2.0
        ),
    )
    assert made == matchflow.Generation(
        gallery="demo",
        number=2,
        model="other",
        bundle_digest="d2" * 32,
        grid=matchflow.CellGrid(rows=4, columns=2),
        embedding_dim=128,
        state=GenerationState.FILLING,
        image_count=0,
        missing_count=3,
        pending_changes=1,
        sequence=10**12 + 9,
        create_time=dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC),
    )
    assert made.name == "galleries/demo/generations/2"


def test_without_a_model_and_a_default_the_server_chooses(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["CreateGeneration"] = lambda _: stored_generation()
    client.create_generation("demo")
    (request,) = counterpart.requests
    assert request.generation == generation_pb2.Generation()
    assert not request.generation.HasField("default_rerank")


def test_a_generation_is_found_by_its_number_and_says_how_it_is_scored(client: Any, counterpart: Counterpart) -> None:
    default = matching_pb2.Rerank(mode=matching_pb2.RERANK_MODE_STRIPES, depth=100, global_weight=1)
    counterpart.answers["GetGeneration"] = lambda _: stored_generation(7, default_rerank=default)
    found = client.get_generation("demo", 7)
    assert counterpart.requests[0].name == "galleries/demo/generations/7"
    assert found.number == 7
    assert found.default_rerank == matchflow.RerankSettings(
        mode=matchflow.RerankMode.STRIPES, depth=100, tuning=matchflow.Tuning(global_weight=1.0)
    )


@pytest.mark.parametrize("state", [state for state in GenerationState if state is not GenerationState.UNKNOWN])
def test_every_state_has_its_name(client: Any, counterpart: Counterpart, state: GenerationState) -> None:
    number = State.State.Value(f"STATE_{state.name}")
    counterpart.answers["GetGeneration"] = lambda _: stored_generation(2, number)
    assert client.get_generation("demo", 2).state is state


@pytest.mark.parametrize("number", [0, 99])
def test_a_state_of_another_time_is_unknown(client: Any, counterpart: Counterpart, number: Any) -> None:
    counterpart.answers["GetGeneration"] = lambda _: stored_generation(2, number)
    assert client.get_generation("demo", 2).state is GenerationState.UNKNOWN


def test_the_states_are_those_of_the_contract() -> None:
    assert {*generations.STATES, State.STATE_UNSPECIFIED} == set(State.State.values())


@pytest.mark.parametrize("name", ["", "galleries/demo", "demo/generations/2", "galleries//generations/2"])
def test_another_text_is_no_name_of_a_generation(client: Any, counterpart: Counterpart, name: str) -> None:
    counterpart.answers["GetGeneration"] = lambda _: generation_pb2.Generation(name=name)
    with pytest.raises(ValueError, match="expected galleries/GALLERY/generations/NUMBER"):
        client.get_generation("demo", 2)


def test_generations_are_listed_in_the_order_of_the_server(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["ListGenerations"] = lambda _: generation_pb2.ListGenerationsResponse(
        generations=[stored_generation(2, State.STATE_ACTIVE), stored_generation(1)]
    )
    assert [(each.number, each.state.value) for each in client.list_generations("demo")] == [
        (2, "active"),
        (1, "ready"),
    ]
    assert counterpart.requests[0].parent == "galleries/demo"


def test_missing_images_are_listed_over_every_page_as_ids(client: Any, counterpart: Counterpart) -> None:
    def answer(request: generation_pb2.ListMissingImagesRequest) -> generation_pb2.ListMissingImagesResponse:
        pages = {"": (["a", "b"], "t1"), "t1": ([], "t2"), "t2": (["c:d"], "")}
        ids, token = pages[request.page_token]
        return generation_pb2.ListMissingImagesResponse(
            names=[f"galleries/demo/images/{each}" for each in ids], next_page_token=token
        )

    counterpart.answers["ListMissingImages"] = answer
    assert list(client.missing_images("demo", 2)) == ["a", "b", "c:d"]
    assert {request.parent for request in counterpart.requests} == {"galleries/demo/generations/2"}
    assert [request.page_size for request in counterpart.requests] == [1000] * 3


def compared(**labelled: Any) -> generation_pb2.CompareGenerationsResponse:
    response = generation_pb2.CompareGenerationsResponse
    return response(
        query_count=150,
        top_k=5,
        overlap=0.75,
        same_first=0.875,
        score_shift=response.ScoreShift(pairs=600, mean=-0.125, p5=-0.5, median=-0.0625, p95=0.25),
        disagreements=[response.Disagreement(image="galleries/demo/images/cat", overlap=0.2)],
        active_generation=1,
        generation=2,
        **labelled,
    )


def test_a_comparison_asks_as_told_and_has_every_figure(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["CompareGenerations"] = lambda _: compared(
        labelled_queries=120, active_precision_at_1=0.5, precision_at_1=0.625
    )
    found = client.compare_generations("demo", 2, query_count=300, top_k=5, label="class", seed=7, timeout_s=500)
    assert counterpart.requests == [
        generation_pb2.CompareGenerationsRequest(
            name="galleries/demo/generations/2", query_count=300, top_k=5, label="class", seed=7
        )
    ]
    assert counterpart.deadlines_s[0] > 400
    assert found == matchflow.GenerationComparison(
        query_count=150,
        top_k=5,
        overlap=0.75,
        same_first=0.875,
        score_shift=matchflow.ScoreShift(pairs=600, mean=-0.125, p5=-0.5, median=-0.0625, p95=0.25),
        labelled_queries=120,
        active_precision_at_1=0.5,
        precision_at_1=0.625,
        disagreements=(matchflow.Disagreement(image=matchflow.ImageRef("demo", "cat"), overlap=0.2),),
        active_generation=1,
        generation=2,
    )


def test_without_a_label_nothing_is_said_of_what_is_right(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["CompareGenerations"] = lambda _: compared()
    found = client.compare_generations("demo", 2)
    assert (found.active_precision_at_1, found.precision_at_1, found.labelled_queries) == (None, None, 0)
    (request,) = counterpart.requests
    assert (request.query_count, request.top_k, request.label, request.seed) == (200, 10, "", 0)


def test_a_precision_of_zero_is_not_none(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["CompareGenerations"] = lambda _: compared(active_precision_at_1=0.0, precision_at_1=0.0)
    found = client.compare_generations("demo", 2, label="class")
    assert (found.active_precision_at_1, found.precision_at_1) == (0.0, 0.0)


def test_a_switch_says_whether_images_may_be_missing(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["ActivateGeneration"] = lambda _: stored_generation(2, State.STATE_ACTIVE)
    assert client.activate_generation("demo", 2).state is GenerationState.ACTIVE
    client.activate_generation("demo", 2, allow_missing=True)
    assert [(request.name, request.allow_missing) for request in counterpart.requests] == [
        ("galleries/demo/generations/2", False),
        ("galleries/demo/generations/2", True),
    ]


def test_deleting_a_generation_returns_nothing(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["DeleteGeneration"] = lambda _: empty_pb2.Empty()
    assert client.delete_generation("demo", 1) is None
    assert counterpart.requests[0].name == "galleries/demo/generations/1"


CALLS: dict[str, Callable[[Any], Any]] = {
    "CreateGeneration": lambda client: client.create_generation("demo"),
    "GetGeneration": lambda client: client.get_generation("demo", 2),
    "ListGenerations": lambda client: client.list_generations("demo"),
    "ListMissingImages": lambda client: list(client.missing_images("demo", 2)),
    "CompareGenerations": lambda client: client.compare_generations("demo", 2),
    "ActivateGeneration": lambda client: client.activate_generation("demo", 2),
    "DeleteGeneration": lambda client: client.delete_generation("demo", 2),
}


def test_every_method_of_the_service_has_a_call() -> None:
    (service,) = generation_pb2.DESCRIPTOR.services_by_name.values()
    assert set(CALLS) == {method.name for method in service.methods}


@pytest.mark.parametrize(
    ("method", "reason", "code"),
    [
        ("CreateGeneration", "GENERATION_EXISTS", code_pb2.ALREADY_EXISTS),
        ("CreateGeneration", "MODEL_NOT_FOUND", code_pb2.NOT_FOUND),
        ("GetGeneration", "GENERATION_NOT_FOUND", code_pb2.NOT_FOUND),
        ("ListGenerations", "GALLERY_NOT_FOUND", code_pb2.NOT_FOUND),
        ("ListMissingImages", "GENERATION_NOT_FOUND", code_pb2.NOT_FOUND),
        ("CompareGenerations", "GENERATION_ACTIVE", code_pb2.FAILED_PRECONDITION),
        ("ActivateGeneration", "GENERATION_NOT_READY", code_pb2.FAILED_PRECONDITION),
        ("DeleteGeneration", "GENERATION_ACTIVE", code_pb2.FAILED_PRECONDITION),
    ],
)
def test_a_refused_call_raises_the_typed_error(
    client: Any, counterpart: Counterpart, method: str, reason: str, code: int
) -> None:
    def refuse(_: Message) -> Message:
        raise Refusal(failure(reason, code, "no", missing_count="3"))

    counterpart.answers[method] = refuse
    with pytest.raises(errors.BY_REASON[reason], match="no") as caught:
        CALLS[method](client)
    assert caught.value.metadata == {"missing_count": "3"}


@pytest.mark.parametrize("method", CALLS)
def test_a_server_without_generations_is_told_by_its_code(client: Any, method: str) -> None:
    with pytest.raises(errors.UnexpectedStatusError, match="UNIMPLEMENTED"):
        CALLS[method](client)

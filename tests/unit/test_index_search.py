from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_samples import gallery_spec, naive_search, new_image, new_images, sample_features

from matchflow_index import (
    FeaturesRejectedError,
    Gallery,
    GalleryStore,
    ImageFilter,
    InvalidQueryError,
    LabelCondition,
    RerankState,
    SearchQuery,
    answers,
    queries,
)
from matchflow_index.labels import LabelKind
from matchflow_matching import FeatureBatch, MatchMode, MatchSettings, explain, match, top_flows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_matching import Features

ODD = ImageFilter(conditions=(LabelCondition(field="parity", any_of=frozenset({"odd"})),))


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    """150 images; every third was put with other features first, so that there are dead slots."""
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(new_images(150, seed=1)[::3])
        gallery.put(new_images(150))
        yield gallery


@pytest.fixture
def query() -> Features:
    return sample_features(1, seed=7)[0]


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_an_answer_is_what_sorting_everything_gives(data: st.DataObject, gallery: Gallery) -> None:
    mode = data.draw(st.sampled_from([mode for mode in MatchMode if mode is not MatchMode.COSINE]))
    conditions = st.builds(
        LabelCondition,
        field=st.sampled_from(["parity", "number", "unknown"]),
        any_of=st.frozensets(st.sampled_from(["odd", "even", "3", "4"])),
        negated=st.booleans(),
    )
    names = st.sampled_from([f"image-{k:03}" for k in range(160)])
    query = SearchQuery(
        features=sample_features(1, seed=data.draw(st.integers(0, 50)))[0],
        top_k=data.draw(st.integers(1, 200)),
        depth=data.draw(st.integers(1, 200)),
        settings=MatchSettings.of(mode, global_weight=data.draw(st.sampled_from([0.0, 1.0]))),
        max_flows=0,
        filter=ImageFilter(
            conditions=tuple(data.draw(st.lists(conditions, max_size=2))),
            exclude=data.draw(st.frozensets(names, max_size=150)),
        ),
        min_score=data.draw(st.none() | st.floats(-1, 2)),
    )
    answer = gallery.search(query)
    assert [(hit.record.image_id, hit.score) for hit in answer.hits] == naive_search(new_images(150), query)


@pytest.mark.parametrize("depth", [1, 2, 31, 32, 33, 100, 149, 150, 1000])
def test_every_depth_gives_a_permutation_of_the_coarse_list(gallery: Gallery, query: Features, depth: int) -> None:
    coarse = gallery.search(SearchQuery(features=query, top_k=150, settings=None))
    answer = gallery.search(SearchQuery(features=query, top_k=150, depth=depth, max_flows=0))
    names = [hit.record.image_id for hit in coarse.hits]
    assert [hit.coarse_rank for hit in coarse.hits] == list(range(150))
    assert sorted(hit.coarse_rank for hit in answer.hits) == list(range(150))
    assert all(names[hit.coarse_rank] == hit.record.image_id for hit in answer.hits)
    assert {hit.coarse_rank for hit in answer.hits[:depth]} == set(range(min(depth, 150)))
    assert [hit.coarse_rank for hit in answer.hits[depth:]] == list(range(depth, 150))


@pytest.mark.parametrize("mode", [MatchMode.EARTH_MOVER, MatchMode.PARTIAL])
@pytest.mark.parametrize("deadline", [None, math.inf])
def test_exact_solvers_leave_out_what_cannot_be_among_the_hits(
    gallery: Gallery, mode: MatchMode, deadline: float | None
) -> None:
    solved = 0
    for seed in range(10):
        query = SearchQuery(
            features=sample_features(1, seed=seed)[0],
            top_k=3,
            settings=MatchSettings.of(mode),
            max_flows=0,
            deadline=deadline,
        )
        answer = gallery.search(query)
        assert [(hit.record.image_id, hit.score) for hit in answer.hits] == naive_search(new_images(150), query)
        assert answer.rerank_state is RerankState.COMPLETE
        assert answer.depth_done + answer.proved_below == (150 if answer.exact else 100)
        solved += answer.depth_done
    assert solved < 900


def test_equal_images_come_in_order_of_their_ids_wherever_the_cut_is(tmp_path: Path, query: Features) -> None:
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        copies = [new_image(f"copy-{k:03}", query) for k in range(300)]
        gallery.put(copies[::-1])
        answer = gallery.search(SearchQuery(features=query, top_k=5, depth=3))
    assert [hit.record.image_id for hit in answer.hits] == [f"copy-{k:03}" for k in range(5)]


def test_a_hit_carries_the_numbers_that_match_and_explain_give(gallery: Gallery, query: Features) -> None:
    answer = gallery.search(SearchQuery(features=query, top_k=5, max_flows=3))
    assert answer.rerank_state is RerankState.COMPLETE
    assert answer.depth_done == 100
    assert answer.sequence == gallery.sequence
    for hit in answer.hits:
        features = gallery.features(hit.record.image_id)
        matches = match(query, FeatureBatch.stack([features]), MatchSettings())
        assert (hit.cosine, hit.structural, hit.score) == (matches.cosine[0], matches.structural[0], matches.score[0])
        assert hit.flows == top_flows(explain(query, features, MatchSettings(), grid=gallery.spec.grid), 3)
        assert hit.certificate is not None
        assert hit.certificate.iterations == matches.iterations[0]
        assert hit.certificate.marginal_error == matches.marginal_error[0]
        assert hit.certificate.converged
        assert not hit.certificate.query_uniform
        assert not hit.certificate.image_uniform
        assert hit.structural is not None
        assert math.isclose(sum(flow.contribution for flow in hit.flows) + hit.residual, hit.structural)


def test_all_flows_leave_next_to_nothing_over(gallery: Gallery, query: Features) -> None:
    for hit in gallery.search(SearchQuery(features=query, max_flows=16)).hits:
        assert abs(hit.residual) < 1e-5


def test_without_flows_all_of_the_score_is_residual(gallery: Gallery, query: Features) -> None:
    for hit in gallery.search(SearchQuery(features=query, max_flows=0)).hits:
        assert hit.flows == []
        assert hit.residual == hit.structural


def test_only_transport_has_a_certificate(gallery: Gallery, query: Features) -> None:
    settings = MatchSettings(mode=MatchMode.MAX_SIM)
    for hit in gallery.search(SearchQuery(features=query, settings=settings)).hits:
        assert hit.certificate is None
        assert hit.flows


@pytest.mark.parametrize("settings", [None, MatchSettings(mode=MatchMode.COSINE)])
def test_without_the_second_stage_the_order_is_by_cosine(
    gallery: Gallery, query: Features, settings: MatchSettings | None
) -> None:
    answer = gallery.search(SearchQuery(features=query, top_k=150, settings=settings))
    assert answer.rerank_state is RerankState.NOT_REQUESTED
    assert answer.depth_done == 0
    assert [hit.coarse_rank for hit in answer.hits] == list(range(150))
    assert [hit.cosine for hit in answer.hits] == sorted((hit.cosine for hit in answer.hits), reverse=True)
    assert all(hit.score == hit.cosine and hit.structural is None and not hit.flows for hit in answer.hits)


def test_ranks_and_scores_of_the_coarse_stage_do_not_depend_on_the_second(gallery: Gallery, query: Features) -> None:
    coarse = gallery.search(SearchQuery(features=query, top_k=150, settings=None))
    places = {hit.record.image_id: (hit.coarse_rank, hit.cosine) for hit in coarse.hits}
    for depth in (1, 20, 149, 500):
        answer = gallery.search(SearchQuery(features=query, top_k=150, depth=depth, max_flows=0))
        assert {hit.record.image_id: (hit.coarse_rank, hit.cosine) for hit in answer.hits} == places
        assert all((hit.structural is not None) == (hit.coarse_rank < depth) for hit in answer.hits)


def test_a_deadline_that_has_passed_gives_the_coarse_order(gallery: Gallery, query: Features) -> None:
    late = gallery.search(SearchQuery(features=query, deadline=0.0))
    coarse = gallery.search(SearchQuery(features=query, settings=None))
    assert late.rerank_state is RerankState.SKIPPED_DEADLINE
    assert late.depth_done == 0
    assert late.hits == coarse.hits


class ScriptedClock:
    """Time passes by one second with every look at the monotonic clock."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        self.now_s += 1.0
        return self.now_s


def test_a_deadline_in_the_middle_keeps_what_was_matched(
    gallery: Gallery, query: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "time", ScriptedClock())
    monkeypatch.setattr(queries, "SLICE_S", 0.0)
    answer = gallery.search(SearchQuery(features=query, top_k=150, depth=100, deadline=2.5, max_flows=0))
    assert answer.rerank_state is RerankState.PARTIAL
    assert answer.depth_done == 2 * queries.SMALLEST_CHUNK
    matched = answer.hits[: answer.depth_done]
    assert sorted(hit.coarse_rank for hit in matched) == list(range(answer.depth_done))
    assert [hit.score for hit in matched] == sorted((hit.score for hit in matched), reverse=True)
    assert [hit.coarse_rank for hit in answer.hits[answer.depth_done :]] == list(range(answer.depth_done, 150))


@pytest.mark.parametrize(("deadline", "explained"), [(1.5, 0), (2.5, 20), (3.5, queries.SMALLEST_CHUNK)])
def test_a_deadline_after_matching_leaves_out_flows_and_says_that_nothing_is_explained(
    gallery: Gallery, query: Features, monkeypatch: pytest.MonkeyPatch, deadline: float, explained: int
) -> None:
    monkeypatch.setattr(answers, "EXPLAIN_STEP", 20)
    whole = gallery.search(SearchQuery(features=query, top_k=150, depth=queries.SMALLEST_CHUNK))
    monkeypatch.setattr(queries, "time", ScriptedClock())
    # One look at the clock before the only chunk, one before every so many hits afterwards.
    answer = gallery.search(SearchQuery(features=query, top_k=150, depth=queries.SMALLEST_CHUNK, deadline=deadline))
    assert answer.rerank_state is RerankState.COMPLETE
    assert [hit.score for hit in answer.hits] == [hit.score for hit in whole.hits]
    assert [bool(hit.flows) for hit in answer.hits] == [True] * explained + [False] * (150 - explained)
    assert all(hit.residual == (hit.structural or 0) for hit in answer.hits[explained:])


def test_a_deadline_that_is_kept_changes_nothing(gallery: Gallery, query: Features) -> None:
    relaxed = gallery.search(SearchQuery(features=query, deadline=math.inf))
    assert relaxed.hits == gallery.search(SearchQuery(features=query)).hits


def test_timings_are_those_of_the_stages(gallery: Gallery, query: Features) -> None:
    timings = gallery.search(SearchQuery(features=query)).timings
    assert min(timings.coarse_s, timings.gather_s, timings.match_s, timings.explain_s) > 0


def test_an_empty_gallery_gives_an_empty_complete_answer(tmp_path: Path, query: Features) -> None:
    with GalleryStore.open(tmp_path) as store:
        answer = store.create(gallery_spec()).search(SearchQuery(features=query))
    assert answer.hits == []
    assert answer.rerank_state is RerankState.COMPLETE


def test_a_filter_that_nothing_passes_gives_an_empty_answer(gallery: Gallery, query: Features) -> None:
    nothing = ImageFilter(conditions=(LabelCondition(field="unknown", any_of=frozenset({"x"})),))
    assert gallery.search(SearchQuery(features=query, filter=nothing)).hits == []


def test_what_the_index_proposes_against_the_filter_is_held_back(
    gallery: Gallery, query: Features, caplog: pytest.LogCaptureFixture
) -> None:
    # A fault is planted: the column says odd of every image.
    column = gallery._shelf.slots.labels._columns["parity", LabelKind.TEXT]
    column.entries.values[:] = column.texts["odd"]
    answer = gallery.search(SearchQuery(features=query, top_k=50, filter=ODD, max_flows=0))
    assert answer.hits
    assert all(hit.record.labels["parity"] == "odd" for hit in answer.hits)
    assert answer.held_back == 50 - len(answer.hits)
    assert not answer.exact
    assert "held back" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1; got 0"),
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"max_flows": -1}, "max_flows must be at least 0; got -1"),
        ({"min_score": math.nan}, "min_score"),
    ],
)
def test_search_refuses_what_makes_no_sense(
    gallery: Gallery, query: Features, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidQueryError, match=message):
        gallery.search(SearchQuery(features=query, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"embedding": np.ones(8, np.float32)},
        {"embedding": np.full(8, np.nan, np.float32)},
        {"embedding": np.full(4, 0.5, np.float32)},
        {"embedding": np.full(8, 1 / math.sqrt(8), np.float64)},
        {"cells": np.zeros((5, 8), np.int8)},
        {"scales": np.full(4, np.inf, np.float16)},
        {"scales": np.full(4, -1, np.float16)},
    ],
)
def test_search_refuses_features_that_do_not_fit_the_gallery(
    gallery: Gallery, query: Features, change: dict[str, Any]
) -> None:
    with pytest.raises(FeaturesRejectedError, match="the query"):
        gallery.search(SearchQuery(features=replace(query, **change)))

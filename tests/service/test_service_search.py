"""Search through a real channel."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from service_harness import (
    LIMIT_S,
    Api,
    RunningServer,
    by_bytes,
    by_name,
    encoded,
    eventually,
    feature_item,
    gated,
    image_name,
    item,
    picture,
    png,
    random_features,
    refusal_of,
)

from matchflow.v1 import search_pb2, types_pb2
from matchflow_index import SearchQuery, queries
from matchflow_service.deadlines import Deadline
from matchflow_service.searching import answer_unsent

if TYPE_CHECKING:
    from pathlib import Path

    from matchflow_bundle import Bundle

State = search_pb2.RerankStatus
COUNT = 40


@pytest.fixture(scope="module")
def emoji(api: Api, sample_images: dict[str, list[Path]]) -> dict[str, bytes]:
    """The gallery `emoji` with 40 images of two designers; gives their bytes by image id."""
    api.create("emoji")
    images: dict[str, bytes] = {}
    for designer in list(sample_images)[:2]:
        mine = {f"{designer}-{path.stem}": path.read_bytes() for path in sample_images[designer][: COUNT // 2]}
        api.put_images("emoji", mine, designer=designer)
        images |= mine
    return images


def ids(reply: search_pb2.SearchResponse) -> list[str]:
    return [hit.image.name.rpartition("/")[2] for hit in reply.hits]


def test_an_image_finds_itself_first_by_bytes_and_by_name(api: Api, emoji: dict[str, bytes]) -> None:
    first = next(iter(emoji))
    for reply in (
        api.find("emoji", by_bytes(emoji[first])),
        api.find("emoji", by_name("emoji", first), include_query_image=True),
    ):
        assert ids(reply)[0] == first
        assert reply.hits[0].match.coarse_score == pytest.approx(1, abs=1e-5)
        assert len(reply.hits) == 10


def test_a_stored_query_image_is_left_out_of_its_own_answer(api: Api, emoji: dict[str, bytes]) -> None:
    first = next(iter(emoji))
    assert first not in ids(api.find("emoji", by_name("emoji", first), top_k=100))


def test_the_reply_says_what_it_reflects_and_where_the_time_went(
    api: Api, emoji: dict[str, bytes], sample_bundle: Bundle
) -> None:
    reply = api.find("emoji", by_bytes(emoji[next(iter(emoji))]))
    assert reply.bundle_digest == sample_bundle.digest
    assert reply.sequence == COUNT
    assert len(reply.query_id) == 32
    timings = reply.timings
    stages = (timings.decode_ms, timings.encode_ms, timings.coarse_ms, timings.match_ms, timings.explain_ms)
    assert all(stage > 0 for stage in stages)
    assert sum(stages) + timings.gather_ms <= timings.total_ms
    stored = api.find("emoji", by_name("emoji", next(iter(emoji)))).timings
    assert (stored.decode_ms, stored.encode_ms) == (0, 0)


def test_the_query_id_is_in_the_log(
    api: Api, emoji: dict[str, bytes], server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert server
    with caplog.at_level("INFO", logger="matchflow_service.search_service"):
        reply = api.find("emoji", by_name("emoji", next(iter(emoji))))
    assert [record for record in caplog.records if getattr(record, "query_id", "") == reply.query_id]


def test_contributions_and_residual_sum_to_the_structural_score(api: Api, emoji: dict[str, bytes]) -> None:
    for flows in (0, 3, 10_000):
        reply = api.find("emoji", by_bytes(png(5)), max_flows=flows)
        for hit in reply.hits:
            match = hit.match
            assert len(match.flows) <= flows
            total = sum(flow.contribution for flow in match.flows) + match.residual
            assert total == pytest.approx(match.structural_score, abs=1e-5)
            assert match.score == pytest.approx(match.structural_score + match.coarse_score, abs=1e-5)
            assert match.certificate.converged
            assert match.certificate.iterations > 0
            for flow in match.flows:
                assert flow.contribution == pytest.approx(flow.mass * flow.similarity, abs=1e-6)
                assert 0 <= flow.query_box.left < flow.query_box.right <= 1
                assert 0 <= flow.image_box.top < flow.image_box.bottom <= 1
    assert emoji


def test_depth_says_how_many_are_matched_and_the_rest_keeps_coarse_order(api: Api, emoji: dict[str, bytes]) -> None:
    reply = api.find("emoji", by_bytes(png(5)), top_k=COUNT, rerank=search_pb2.Rerank(depth=7))
    assert (reply.rerank_status.state, reply.rerank_status.depth_done) == (State.STATE_COMPLETE, 7)
    assert len(set(ids(reply))) == COUNT == len(emoji)
    ranked, rest = reply.hits[:7], reply.hits[7:]
    assert sorted(hit.coarse_rank for hit in ranked) == list(range(7))
    assert [hit.coarse_rank for hit in rest] == list(range(7, COUNT))
    assert [hit.match.score for hit in ranked] == sorted((hit.match.score for hit in ranked), reverse=True)
    assert not any(hit.match.HasField("structural_score") for hit in rest)
    assert all(hit.match.HasField("structural_score") for hit in ranked)


@pytest.mark.parametrize(
    ("mode", "certified"),
    [
        (search_pb2.RERANK_MODE_UNSPECIFIED, True),
        (search_pb2.RERANK_MODE_STRUCTURAL, True),
        (search_pb2.RERANK_MODE_MAX_SIM, False),
        (search_pb2.RERANK_MODE_SAME_CELL, False),
    ],
)
def test_every_mode_scores_and_only_transport_has_a_certificate(
    api: Api, emoji: dict[str, bytes], mode: Any, certified: bool
) -> None:
    first = next(iter(emoji))
    reply = api.find("emoji", by_bytes(emoji[first]), rerank=search_pb2.Rerank(mode=mode, global_weight=0))
    assert ids(reply)[0] == first
    for hit in reply.hits:
        assert hit.match.HasField("certificate") == certified
        assert hit.match.score == pytest.approx(hit.match.structural_score, abs=1e-6)


def test_without_re_ranking_the_coarse_order_stands(api: Api, emoji: dict[str, bytes]) -> None:
    reply = api.find("emoji", by_bytes(png(5)), rerank=search_pb2.Rerank(mode=search_pb2.RERANK_MODE_NONE))
    assert (reply.rerank_status.state, reply.rerank_status.depth_done) == (State.STATE_NOT_REQUESTED, 0)
    assert [hit.coarse_rank for hit in reply.hits] == list(range(10))
    assert all(hit.match.score == hit.match.coarse_score and not hit.match.flows for hit in reply.hits)
    assert emoji


def test_uniform_marginals_and_solver_settings_reach_the_kernel(api: Api, emoji: dict[str, bytes]) -> None:
    query = by_bytes(png(5))
    usual = api.find("emoji", query)
    uniform = api.find("emoji", query, rerank=search_pb2.Rerank(marginals=search_pb2.MARGINALS_UNIFORM))
    one_step = api.find("emoji", query, rerank=search_pb2.Rerank(max_iterations=1, tolerance=1e-6))
    assert [hit.match.score for hit in usual.hits] != [hit.match.score for hit in uniform.hits]
    assert all(hit.match.certificate.iterations == 1 and not hit.match.certificate.converged for hit in one_step.hits)
    explicit = search_pb2.Rerank(
        mode=search_pb2.RERANK_MODE_STRUCTURAL,
        depth=100,
        global_weight=1,
        marginals=search_pb2.MARGINALS_CROSS_CORRELATION,
        epsilon=0.05,
        tolerance=1e-4,
        max_iterations=200,
    )
    assert api.find("emoji", query, rerank=explicit).hits == usual.hits
    assert emoji


def test_a_filter_lets_through_only_what_it_says(api: Api, emoji: dict[str, bytes]) -> None:
    designers = sorted({image_id.rpartition("-")[0] for image_id in emoji})
    condition = search_pb2.LabelCondition(field="designer", any_of=[designers[0]])
    kept = ids(api.find("emoji", by_bytes(png(5)), top_k=100, filter=search_pb2.Filter(labels=[condition])))
    assert len(kept) == COUNT // 2
    assert all(image_id.startswith(designers[0]) for image_id in kept)
    condition.negated = True
    rest = ids(api.find("emoji", by_bytes(png(5)), top_k=100, filter=search_pb2.Filter(labels=[condition])))
    assert sorted(kept + rest) == sorted(emoji)
    excluded = search_pb2.Filter(exclude_images=[image_name("emoji", image_id) for image_id in kept])
    assert ids(api.find("emoji", by_bytes(png(5)), top_k=100, filter=excluded)) == rest


def test_hits_below_min_score_are_left_out(api: Api, emoji: dict[str, bytes]) -> None:
    everything = api.find("emoji", by_bytes(png(5)), top_k=100)
    middle = everything.hits[COUNT // 2].match.score
    kept = api.find("emoji", by_bytes(png(5)), top_k=100, min_score=middle)
    assert ids(kept) == ids(everything)[: len(kept.hits)]
    assert kept.hits[-1].match.score >= middle
    assert len(emoji) > len(kept.hits)


def test_an_empty_gallery_gives_an_empty_answer(api: Api, gallery: str) -> None:
    reply = api.find(gallery, by_bytes(png(1)))
    assert (len(reply.hits), reply.rerank_status.state, reply.sequence) == (0, State.STATE_COMPLETE, 0)


def test_boxes_are_fractions_of_the_original_whatever_its_shape(api: Api, gallery: str) -> None:
    api.put_images(gallery, {"wide": encoded(picture(1, width=300, height=60))})
    reply = api.find(gallery, by_bytes(encoded(picture(1, width=60, height=300))), max_flows=10_000)
    for flow in reply.hits[0].match.flows:
        assert (flow.query_box.left, flow.query_box.top) == ((flow.query_cell % 4) / 4, (flow.query_cell // 4) / 4)
        assert (flow.image_box.left, flow.image_box.top) == ((flow.image_cell % 4) / 4, (flow.image_cell // 4) / 4)


BAD_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("top_k", {"top_k": 0}),
    ("top_k", {"top_k": 1001}),
    ("max_flows", {"max_flows": -1}),
    ("max_flows", {"max_flows": 10_001}),
    ("max_flows", {"max_flows": 101, "top_k": 1000}),
    ("max_flows", {"max_flows": 10_000, "top_k": 11}),
    ("min_score", {"min_score": math.nan}),
    ("min_score", {"min_score": math.inf}),
    ("rerank.depth", {"rerank": search_pb2.Rerank(depth=0)}),
    ("rerank.depth", {"rerank": search_pb2.Rerank(depth=10_001)}),
    ("rerank.global_weight", {"rerank": search_pb2.Rerank(global_weight=-0.1)}),
    ("rerank.global_weight", {"rerank": search_pb2.Rerank(global_weight=10.1)}),
    ("rerank.epsilon", {"rerank": search_pb2.Rerank(epsilon=0.0049)}),
    ("rerank.epsilon", {"rerank": search_pb2.Rerank(epsilon=math.nan)}),
    ("rerank.tolerance", {"rerank": search_pb2.Rerank(tolerance=0)}),
    ("rerank.tolerance", {"rerank": search_pb2.Rerank(tolerance=1.5)}),
    ("rerank.max_iterations", {"rerank": search_pb2.Rerank(max_iterations=0)}),
    ("rerank.max_iterations", {"rerank": search_pb2.Rerank(max_iterations=10_001)}),
    ("rerank.spatial_weight", {"rerank": search_pb2.Rerank(mode=search_pb2.RERANK_MODE_PARTIAL, spatial_weight=100.5)}),
    ("rerank.spatial_weight", {"rerank": search_pb2.Rerank(spatial_weight=1)}),
    ("rerank.spatial_weight", {"rerank": search_pb2.Rerank(mode=search_pb2.RERANK_MODE_SAME_CELL, spatial_weight=1)}),
    ("rerank.matched_mass", {"rerank": search_pb2.Rerank(mode=search_pb2.RERANK_MODE_PARTIAL, matched_mass=0)}),
    ("rerank.matched_mass", {"rerank": search_pb2.Rerank(matched_mass=0.5)}),
    ("rerank.mode", {"rerank": search_pb2.Rerank(mode=99)}),  # type: ignore[arg-type]
    ("rerank.marginals", {"rerank": search_pb2.Rerank(marginals=99)}),  # type: ignore[arg-type]
    ("filter.labels[0].field", {"filter": search_pb2.Filter(labels=[search_pb2.LabelCondition(any_of=["x"])])}),
    ("filter.labels[0].any_of", {"filter": search_pb2.Filter(labels=[search_pb2.LabelCondition(field="x")])}),
    ("filter.images[0]", {"filter": search_pb2.Filter(images=["galleries/other/images/x"])}),
    ("filter.images", {"filter": search_pb2.Filter(images=["x"] * 10_001)}),
    ("group_by", {"group_by": "NO"}),
    ("group_limit", {"group_by": "designer", "group_limit": 0}),
    ("group_limit", {"group_by": "designer", "group_limit": 1001}),
    ("group_limit", {"group_limit": 1}),
    ("at_least_sequence", {"at_least_sequence": -1}),
    ("filter.exclude_images[0]", {"filter": search_pb2.Filter(exclude_images=["galleries/other/images/x"])}),
    ("filter.exclude_images", {"filter": search_pb2.Filter(exclude_images=["x"] * 10_001)}),
]


@pytest.mark.parametrize(("field", "fields"), BAD_FIELDS)
@pytest.mark.parametrize("query", [by_bytes(png(1)), search_pb2.Query(image="galleries/emoji/images/x")])
def test_a_field_out_of_range_is_named(
    api: Api, emoji: dict[str, bytes], field: str, fields: dict[str, Any], query: search_pb2.Query
) -> None:
    assert emoji
    refusal = refusal_of(lambda: api.find("emoji", query, **fields))
    assert (refusal.code, refusal.reason, refusal.violations) == ("INVALID_ARGUMENT", "INVALID_FIELD", [field])
    assert refusal.metadata == {"field": field}
    assert "expected" in refusal.message
    assert "got" in refusal.message


def test_a_search_says_what_is_missing(api: Api, gallery: str) -> None:
    cases = [
        (lambda: api.find("absent", by_bytes(png(1))), "NOT_FOUND", "GALLERY_NOT_FOUND"),
        (lambda: api.find("absent", by_name(gallery, "x")), "NOT_FOUND", "GALLERY_NOT_FOUND"),
        (lambda: api.find(gallery, by_name(gallery, "x")), "NOT_FOUND", "IMAGE_NOT_FOUND"),
        (lambda: api.find(gallery, search_pb2.Query()), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (lambda: api.find(gallery, search_pb2.Query(image="x")), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (lambda: api.find("Bad", by_bytes(png(1))), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (lambda: api.find(gallery, by_bytes(b"no image")), "INVALID_ARGUMENT", "IMAGE_UNREADABLE"),
    ]
    for call, code, reason in cases:
        refusal = refusal_of(call)
        assert (refusal.code, refusal.reason) == (code, reason)


def test_flows_of_all_hits_together_are_taken_to_their_limit(api: Api, emoji: dict[str, bytes]) -> None:
    assert api.find("emoji", by_name("emoji", next(iter(emoji))), max_flows=100, top_k=1000).hits
    refusal = refusal_of(lambda: api.find("emoji", by_name("emoji", next(iter(emoji))), max_flows=101, top_k=1000))
    assert "0 to 100,000 flows of all hits together; got 101,000" in refusal.message


def test_a_stored_image_of_another_gallery_can_be_searched_for(api: Api, emoji: dict[str, bytes], gallery: str) -> None:
    first = next(iter(emoji))
    api.put_images(gallery, {first: emoji[first]})
    reply = api.find(gallery, by_name("emoji", first))
    assert ids(reply) == [first]


def test_concurrent_queries_share_runs_of_the_model(start_server: Any) -> None:
    server, api = start_server(encoder_wait_ms=1000, encoder_batch_size=8)
    api.create("one")
    before = server.queue.batches_run
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: api.find("one", by_bytes(png(i))), range(8)))
    assert server.queue.batches_run - before == 1


def test_a_query_has_the_same_scores_in_whatever_company_it_is_embedded(api: Api, emoji: dict[str, bytes]) -> None:
    assert emoji
    query = by_bytes(png(5))
    alone = api.find("emoji", query)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda i: (i, api.find("emoji", query if i % 2 else by_bytes(png(i)))), range(16)))
    for i, reply in replies:
        if i % 2:
            assert ids(reply) == ids(alone)
            np.testing.assert_allclose(
                [hit.match.score for hit in reply.hits], [hit.match.score for hit in alone.hits], atol=5e-3
            )


def test_a_full_queue_says_when_to_come_back(start_server: Any) -> None:
    server, api = start_server(encoder_queue_size=64, encoder_threads=1, encoder_wait_ms=1000)
    api.create("one")
    with gated(server) as gate, ThreadPoolExecutor(80) as pool:
        calls = [pool.submit(api.find, "one", by_bytes(png(i))) for i in range(72)]
        assert gate.entered.wait(LIMIT_S)
        eventually(lambda: server.queue.queued == 64)
        refusal = refusal_of(lambda: api.find("one", by_bytes(png(99))))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert refusal.retry_after_s is not None
        assert refusal.retry_after_s > 0
        gate.gate.set()
        assert all(len(call.result(LIMIT_S).hits) == 0 for call in calls)
    assert api.find("one", by_bytes(png(1))).query_id


def test_a_cancelled_query_leaves_the_queue_and_is_not_embedded(start_server: Any) -> None:
    server, api = start_server(encoder_threads=1, encoder_batch_size=1)
    api.create("one")
    request = search_pb2.SearchRequest(gallery="galleries/one", query=by_bytes(png(1)))
    with gated(server) as gate:
        first = api.search.Search.future(request)
        assert gate.entered.wait(LIMIT_S)
        second = api.search.Search.future(request)
        eventually(lambda: server.queue.queued == 1)
        second.cancel()
        eventually(lambda: server.queue.queued == 0)
        gate.gate.set()
        assert first.result(LIMIT_S).query_id
        assert gate.batch_sizes == [1]


def test_a_deadline_that_comes_while_the_encoder_is_busy_ends_the_call(start_server: Any) -> None:
    server, api = start_server(encoder_threads=1)
    api.create("one")
    request = search_pb2.SearchRequest(gallery="galleries/one", query=by_bytes(png(1)))
    with gated(server) as gate:
        with pytest.raises(grpc.RpcError) as raised:
            api.search.Search(request, timeout=0.5)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: server.server.calls.count == 0)
        assert gate.batch_sizes == []


class SteppedClock:
    """Stands still for three looks of the search at its deadline, then is past every deadline."""

    def __init__(self) -> None:
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return 0.0 if self.looks <= 3 else math.inf

    perf_counter = staticmethod(time.perf_counter)


@pytest.fixture(scope="module")
def crowd(api: Api, sample_bundle: Bundle) -> str:
    """The gallery `crowd`: 300 variants of one image."""
    api.create("crowd")
    batch = random_features(300, spread=1.0)
    answers = api.put(feature_item("crowd", f"{i:04}", batch, i, sample_bundle.digest) for i in range(300))
    assert len(answers) == 300
    return "crowd"


def test_a_deadline_in_the_middle_gives_what_is_done_and_says_so(
    api: Api, crowd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = search_pb2.SearchRequest(
        gallery=f"galleries/{crowd}",
        query=by_name(crowd, "0001"),
        rerank=search_pb2.Rerank(depth=299),
        top_k=299,
        max_flows=0,
    )
    monkeypatch.setattr(queries, "time", SteppedClock())
    monkeypatch.setattr(queries, "SLICE_S", 0.0)
    reply = api.search.Search(request, timeout=600)
    done = 3 * queries.SMALLEST_CHUNK
    assert (reply.rerank_status.state, reply.rerank_status.depth_done) == (State.STATE_PARTIAL, done)
    matched = [hit.match.HasField("structural_score") for hit in reply.hits]
    assert matched == [True] * done + [False] * (299 - done)
    assert sorted(hit.coarse_rank for hit in reply.hits[:done]) == list(range(done))
    assert [hit.coarse_rank for hit in reply.hits[done:]] == list(range(done, 299))


def test_a_call_without_a_deadline_never_looks_at_the_clock(
    api: Api, crowd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SteppedClock()
    monkeypatch.setattr(queries, "time", clock)
    request = search_pb2.SearchRequest(gallery=f"galleries/{crowd}", query=by_name(crowd, "0001"))
    reply = api.search.Search(request)
    assert reply.rerank_status.state == State.STATE_COMPLETE
    assert clock.looks == 0


def test_a_deadline_that_has_passed_skips_the_second_stage(api: Api, crowd: str, server: RunningServer) -> None:
    assert api
    sides = server.server.sides
    request = search_pb2.SearchRequest(gallery=f"galleries/{crowd}", query=by_name(crowd, "0001"))
    reply = answer_unsent(request, sides, Deadline(at_s=0.0))
    assert (reply.rerank_status.state, reply.rerank_status.depth_done) == (State.STATE_SKIPPED_DEADLINE, 0)
    assert [hit.coarse_rank for hit in reply.hits] == list(range(10))


def test_an_exhaustive_search_that_runs_out_of_time_is_not_called_exact(
    api: Api, crowd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"rerank": search_pb2.Rerank(depth=1), "top_k": 5, "exhaustive": True}
    whole = api.find(crowd, by_name(crowd, "0001"), **fields)
    assert whole.exact
    assert whole.rerank_status.state == State.STATE_COMPLETE
    assert whole.rerank_status.depth_done + whole.proved_below == 299
    request = search_pb2.SearchRequest(gallery=f"galleries/{crowd}", query=by_name(crowd, "0001"), **fields)
    monkeypatch.setattr(queries, "time", SteppedClock())
    late = api.search.Search(request, timeout=600)
    assert not late.exact
    assert late.rerank_status.state == State.STATE_PARTIAL
    assert len(late.hits) == 5


def test_a_search_that_matched_everything_is_exact_and_one_that_did_not_says_no_more_than_it_knows(
    api: Api, crowd: str
) -> None:
    query = by_name(crowd, "0001")
    everything = api.find(crowd, query, rerank=search_pb2.Rerank(depth=299), top_k=5)
    assert (everything.exact, everything.proved_below) == (True, 0)
    some = api.find(crowd, query, rerank=search_pb2.Rerank(depth=20), top_k=5)
    assert not some.exact or ids(some) == ids(everything)
    assert api.find(crowd, query, rerank=search_pb2.Rerank(mode=search_pb2.RERANK_MODE_NONE)).exact


def test_an_exhaustive_search_stays_inside_its_filter(api: Api, emoji: dict[str, bytes]) -> None:
    designer = min(image_id.rpartition("-")[0] for image_id in emoji)
    kept = search_pb2.Filter(labels=[search_pb2.LabelCondition(field="designer", any_of=[designer])])
    fields: dict[str, Any] = {"filter": kept, "top_k": 4, "include_query_image": True}
    query = by_name("emoji", next(iter(emoji)))
    reply = api.find("emoji", query, rerank=search_pb2.Rerank(depth=1), exhaustive=True, **fields)
    whole = api.find("emoji", query, rerank=search_pb2.Rerank(depth=COUNT), **fields)
    assert reply.exact
    assert reply.hits == whole.hits
    assert reply.rerank_status.depth_done + reply.proved_below == COUNT // 2
    assert all(image_id.startswith(designer) for image_id in ids(reply))


def test_searches_go_on_while_images_come_in(api: Api, gallery: str) -> None:
    api.put_images(gallery, {f"start-{i}": png(i) for i in range(5)})
    failures: list[BaseException] = []

    def search() -> None:
        try:
            for _ in range(30):
                reply = api.find(gallery, by_name(gallery, "start-1"), top_k=100)
                assert len(set(ids(reply))) == len(reply.hits) >= 4
        except BaseException as error:  # noqa: BLE001 - seen below, in the test's own thread
            failures.append(error)

    thread = threading.Thread(target=search)
    thread.start()
    api.put(item(gallery, f"more-{i}", png(i), item_id=i) for i in range(100))
    thread.join()
    assert not failures


def test_a_query_by_features_needs_a_bundle_digest(api: Api, emoji: dict[str, bytes]) -> None:
    assert emoji
    refusal = refusal_of(lambda: api.find("emoji", search_pb2.Query(features=types_pb2.Features())))
    assert refusal.reason == "BUNDLE_MISMATCH"


def test_top_flows_of_search_are_those_of_the_index(api: Api, server: RunningServer, emoji: dict[str, bytes]) -> None:
    first = next(iter(emoji))
    reply = api.find("emoji", by_name("emoji", first), include_query_image=True, top_k=3, max_flows=2)
    gallery = server.server.sides.store.gallery("emoji")
    found = gallery.search(SearchQuery(features=gallery.features(first), top_k=3, max_flows=2))
    assert [hit.match.score for hit in reply.hits] == [np.float32(hit.score) for hit in found.hits]
    assert [[flow.image_cell for flow in hit.match.flows] for hit in reply.hits] == [
        [flow.image_cell for flow in hit.flows] for hit in found.hits
    ]

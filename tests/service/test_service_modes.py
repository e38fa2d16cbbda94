"""Every mode of re-ranking through a real channel: the same numbers by every path, and all of them add up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from service_harness import Api, by_bytes, by_name, feature_item, png, random_features

from matchflow.v1 import matching_pb2, search_pb2
from matchflow_matching import MatchMode, MatchSettings
from matchflow_matching.settings import SPATIAL_MODES
from matchflow_service.reranking import MODES, rerank_message

if TYPE_CHECKING:
    from matchflow_bundle import Bundle

Mode = matching_pb2.RerankMode
Rerank = matching_pb2.Rerank
EVERY_MODE = sorted(MODES)
RERANKING = [number for number in EVERY_MODE if number != Mode.RERANK_MODE_NONE]
SOLVING = {
    *(Mode.RERANK_MODE_STRUCTURAL, Mode.RERANK_MODE_POSITION_AWARE),
    *(Mode.RERANK_MODE_EARTH_MOVER, Mode.RERANK_MODE_PARTIAL),
}
PROVING = {Mode.RERANK_MODE_EARTH_MOVER, Mode.RERANK_MODE_PARTIAL}
WITHOUT_WEIGHTS = {Mode.RERANK_MODE_NONE, Mode.RERANK_MODE_SAME_CELL, Mode.RERANK_MODE_STRIPES}
# What float32 loses in a sum of 256 numbers of at most 1.
SUMS = 1e-5
pytestmark = pytest.mark.parametrize("mode", EVERY_MODE, ids=Mode.Name)


@pytest.fixture(scope="module")
def mixed(api: Api, sample_bundle: Bundle) -> str:
    """A gallery of images, and of features that no image has: of one that all look like, and of one all unlike."""
    api.create("mixed")
    api.put_images("mixed", {f"image-{i}": png(i) for i in range(8)})
    for name, spread in (("alike", 0.3), ("unlike", None)):
        batch = random_features(4, seed=3, spread=spread)
        api.put(feature_item("mixed", f"{name}-{i}", batch, i, sample_bundle.digest) for i in range(4))
    return "mixed"


@pytest.fixture(scope="module")
def queries(mixed: str, sample_bundle: Bundle) -> dict[str, search_pb2.Query]:
    features = feature_item("g", "i", random_features(1, seed=3, spread=0.3), 0, sample_bundle.digest).features
    return {
        "bytes": by_bytes(png(3)),
        "name": by_name(mixed, "image-5"),
        "features": search_pb2.Query(features=features),
    }


def tuned(mode: Any) -> matching_pb2.Rerank:
    """Return the mode with none of its settings as recommended."""
    rerank = Rerank(mode=mode, global_weight=0.7, marginals=matching_pb2.MARGINALS_CROSS_CORRELATION, epsilon=0.06)
    if MODES[mode] in SPATIAL_MODES:
        rerank.spatial_weight = 0.3
    if MODES[mode] is MatchMode.PARTIAL:
        rerank.matched_mass = 0.6
    return rerank


def compare(api: Api, query: search_pb2.Query, image: str, **fields: Any) -> search_pb2.CompareResponse:
    return api.search.Compare(search_pb2.CompareRequest(query=query, image=search_pb2.Query(image=image), **fields))


def explain(api: Api, query: search_pb2.Query, image: str, **fields: Any) -> search_pb2.ExplainResponse:
    return api.search.Explain(search_pb2.ExplainRequest(query=query, image=image, **fields))


@pytest.mark.parametrize("kind", ["bytes", "name", "features"])
def test_search_compare_and_explain_agree_to_the_last_bit(
    api: Api, mixed: str, queries: dict[str, search_pb2.Query], mode: Any, kind: str
) -> None:
    query = queries[kind]
    for rerank in (Rerank(mode=mode), tuned(mode)):
        reply = api.find(mixed, query, rerank=rerank, max_flows=5, top_k=16, include_query_image=True)
        assert len(reply.hits) == 16
        for hit in reply.hits:
            explained = explain(api, query, hit.image.name, rerank=rerank, max_flows=5)
            compared = compare(api, query, hit.image.name, rerank=rerank, max_flows=5)
            assert explained.match == compared.match == hit.match
            assert explained.image == hit.image
            assert explained.rerank == compared.rerank


@pytest.mark.parametrize("max_flows", [0, 3, 10_000])
def test_every_sum_that_the_contract_promises_holds(
    api: Api, mixed: str, queries: dict[str, search_pb2.Query], mode: Any, max_flows: int
) -> None:
    for rerank in (Rerank(mode=mode), tuned(mode)):
        reply = api.find(mixed, queries["name"], rerank=rerank, max_flows=max_flows, top_k=10)
        for match in (hit.match for hit in reply.hits):
            if mode == Mode.RERANK_MODE_NONE:
                assert not match.HasField("structural_score")
                assert match.score == match.coarse_score
                continue
            contributions = [flow.contribution for flow in match.flows]
            assert sum(contributions) + match.residual == pytest.approx(match.structural_score, abs=SUMS)
            total = match.structural_score + reply.rerank.global_weight * match.coarse_score
            assert match.score == pytest.approx(total, abs=SUMS)
            assert len(contributions) <= max_flows
            assert all(
                f.contribution == pytest.approx(f.mass * (f.similarity - f.penalty), abs=1e-6) for f in match.flows
            )


def test_a_full_plan_has_a_mass_of_one_and_the_weights_it_states(
    api: Api, mixed: str, queries: dict[str, search_pb2.Query], mode: Any
) -> None:
    for rerank in (Rerank(mode=mode), tuned(mode)):
        for image in ("image-2", "alike-1", "unlike-1"):
            reply = explain(api, queries["features"], f"galleries/{mixed}/images/{image}", rerank=rerank)
            flows = reply.match.flows
            if mode == Mode.RERANK_MODE_NONE:
                assert not flows
                continue
            assert sum(flow.mass for flow in flows) == pytest.approx(1, abs=1e-3)
            assert reply.match.residual == pytest.approx(0, abs=SUMS)
            taken, given = np.zeros(16), np.zeros(16)
            for flow in flows:
                taken[flow.image_cell] += flow.mass
                given[flow.query_cell] += flow.mass
            if mode in WITHOUT_WEIGHTS:
                assert not reply.query_weights
                assert not reply.image_weights
                continue
            np.testing.assert_allclose(taken, reply.image_weights, atol=1e-5)
            np.testing.assert_allclose(given, reply.query_weights, atol=1e-5)


def test_a_certificate_is_there_for_what_is_solved_and_a_gap_for_what_is_proved(
    api: Api, mixed: str, queries: dict[str, search_pb2.Query], mode: Any
) -> None:
    reply = api.find(mixed, queries["bytes"], rerank=Rerank(mode=mode), top_k=16)
    for hit in reply.hits:
        explained = explain(api, queries["bytes"], hit.image.name, rerank=Rerank(mode=mode))
        for match in (hit.match, explained.match):
            assert match.HasField("certificate") == (mode in SOLVING)
            certificate = match.certificate
            assert certificate.HasField("duality_gap") == (mode in PROVING)
            if mode in SOLVING:
                assert certificate.converged
                assert certificate.marginal_error <= 1e-4
            if mode in PROVING:
                assert 0 <= certificate.duality_gap < 1e-6


def test_a_reply_states_what_a_mode_alone_means(
    api: Api, mixed: str, queries: dict[str, search_pb2.Query], mode: Any
) -> None:
    stated = api.find(mixed, queries["name"], rerank=Rerank(mode=mode)).rerank
    assert stated == rerank_message(MatchSettings.of(MODES[mode]), 100)
    assert explain(api, queries["name"], f"galleries/{mixed}/images/alike-0", rerank=Rerank(mode=mode)).rerank == (
        rerank_message(MatchSettings.of(MODES[mode]))
    )


def test_what_a_reply_states_gives_the_same_hits_again(
    api: Api, mixed: str, queries: dict[str, search_pb2.Query], mode: Any
) -> None:
    first = api.find(mixed, queries["features"], rerank=tuned(mode), top_k=16)
    again = api.find(mixed, queries["features"], rerank=first.rerank, top_k=16)
    assert again.hits == first.hits
    assert again.rerank == first.rerank


def test_every_mode_draws_its_strongest_parts(
    api: Api, mixed: str, queries: dict[str, search_pb2.Query], mode: Any
) -> None:
    image = f"galleries/{mixed}/images/image-2"
    drawn = api.search.RenderMatch(
        search_pb2.RenderMatchRequest(query=queries["bytes"], image=image, rerank=Rerank(mode=mode))
    )
    assert drawn.png.startswith(b"\x89PNG")
    assert drawn.match == explain(api, queries["bytes"], image, rerank=Rerank(mode=mode), max_flows=8).match


def test_an_exhaustive_search_is_exact_and_gives_what_matching_everything_gives(
    api: Api, mixed: str, queries: dict[str, search_pb2.Query], mode: Any
) -> None:
    whole = api.find(mixed, queries["features"], rerank=Rerank(mode=mode, depth=16), top_k=3)
    reply = api.find(mixed, queries["features"], rerank=Rerank(mode=mode, depth=1), top_k=3, exhaustive=True)
    assert whole.exact
    assert reply.exact
    assert reply.hits == whole.hits
    if mode != Mode.RERANK_MODE_NONE:
        assert reply.rerank_status.depth_done + reply.proved_below == 16

"""Compare, Explain and RenderMatch through a real channel."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from service_harness import (
    Api,
    by_bytes,
    by_name,
    encoded,
    feature_item,
    image_name,
    picture,
    png,
    random_features,
    refusal_of,
)

from matchflow.v1 import model_pb2, search_pb2
from matchflow_matching import CellGrid
from matchflow_matching.support import supported

if TYPE_CHECKING:
    from collections.abc import Callable

    from matchflow_bundle import Bundle

MODES = [
    search_pb2.RERANK_MODE_NONE,
    search_pb2.RERANK_MODE_MAX_SIM,
    search_pb2.RERANK_MODE_SAME_CELL,
    search_pb2.RERANK_MODE_STRUCTURAL,
]


@pytest.fixture(scope="module")
def pairs(api: Api) -> str:
    api.create("pairs")
    api.put_images("pairs", {f"p{i}": png(i) for i in range(12)}, kind="p")
    return "pairs"


def compare(api: Api, query: search_pb2.Query, image: search_pb2.Query, **fields: Any) -> search_pb2.CompareResponse:
    return api.search.Compare(search_pb2.CompareRequest(query=query, image=image, **fields))


def explain(api: Api, query: search_pb2.Query, image: str, **fields: Any) -> search_pb2.ExplainResponse:
    return api.search.Explain(search_pb2.ExplainRequest(query=query, image=image, **fields))


def render(api: Api, query: search_pb2.Query, image: str, **fields: Any) -> search_pb2.RenderMatchResponse:
    return api.search.RenderMatch(search_pb2.RenderMatchRequest(query=query, image=image, **fields))


@pytest.mark.parametrize("mode", MODES)
def test_a_pair_has_the_same_scores_in_search_compare_and_explain(api: Api, pairs: str, mode: Any) -> None:
    rerank = search_pb2.Rerank(mode=mode, global_weight=0.7, depth=100)
    query = by_name(pairs, "p3")
    reply = api.find(pairs, query, rerank=rerank, max_flows=5, include_query_image=True, top_k=12)
    assert len(reply.hits) == 12
    for hit in reply.hits:
        image = hit.image.name
        compared = compare(api, query, search_pb2.Query(image=image), rerank=rerank, max_flows=5)
        explained = explain(api, query, image, rerank=rerank, max_flows=5)
        assert compared.match == hit.match == explained.match
        assert explained.image == hit.image


def test_features_that_went_out_and_came_back_score_as_the_stored_image(api: Api, pairs: str) -> None:
    embedded = api.models.EmbedImages(model_pb2.EmbedImagesRequest(images=[png(3)])).embeddings[0].features
    sent = compare(api, search_pb2.Query(features=embedded), by_name(pairs, "p4"))
    stored = compare(api, by_name(pairs, "p3"), by_name(pairs, "p4"))
    assert sent.match.score == pytest.approx(stored.match.score, abs=5e-3)
    again = compare(api, search_pb2.Query(features=embedded), by_name(pairs, "p4"))
    assert again.match == sent.match


def test_the_full_plan_adds_up(api: Api, pairs: str) -> None:
    reply = compare(api, by_name(pairs, "p1"), by_bytes(png(2)))
    flows = reply.match.flows
    assert sum(flow.mass for flow in flows) == pytest.approx(1, abs=1e-3)
    assert sum(flow.contribution for flow in flows) == pytest.approx(reply.match.structural_score, abs=1e-4)
    contributions = np.zeros((16, 16), np.float32)
    for flow in flows:
        contributions[flow.image_cell, flow.query_cell] = flow.contribution
    support = supported(contributions, CellGrid(rows=4, columns=4))
    order = [support[flow.image_cell, flow.query_cell] for flow in flows]
    np.testing.assert_allclose(order, sorted(order, reverse=True), atol=1e-7)
    assert (reply.grid.rows, reply.grid.columns) == (4, 4)
    assert sum(reply.query_weights) == pytest.approx(1, abs=1e-3)
    assert sum(reply.image_weights) == pytest.approx(1, abs=1e-3)
    received = np.zeros(16)
    for flow in flows:
        received[flow.image_cell] += flow.mass
    np.testing.assert_allclose(received, reply.image_weights, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_there_where_the_mode_has_them(api: Api, pairs: str, mode: Any) -> None:
    rerank = search_pb2.Rerank(mode=mode)
    weighted = mode in {search_pb2.RERANK_MODE_MAX_SIM, search_pb2.RERANK_MODE_STRUCTURAL}
    for reply in (
        compare(api, by_name(pairs, "p1"), by_name(pairs, "p2"), rerank=rerank),
        explain(api, by_name(pairs, "p1"), image_name(pairs, "p2"), rerank=rerank),
    ):
        assert (len(reply.query_weights), len(reply.image_weights)) == ((16, 16) if weighted else (0, 0))
        assert reply.match.HasField("structural_score") == (mode != search_pb2.RERANK_MODE_NONE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("max_flows", [0, 3, 256])
def test_the_shares_of_the_cells_sum_to_the_structural_score(api: Api, pairs: str, mode: Any, max_flows: int) -> None:
    rerank = search_pb2.Rerank(mode=mode)
    for reply in (
        compare(api, by_name(pairs, "p1"), by_name(pairs, "p2"), rerank=rerank, max_flows=max_flows),
        explain(api, by_name(pairs, "p1"), image_name(pairs, "p2"), rerank=rerank, max_flows=max_flows),
    ):
        for shares in (reply.query_cell_shares, reply.image_cell_shares):
            assert len(shares) == (0 if mode == search_pb2.RERANK_MODE_NONE else 16)
            assert sum(shares) == pytest.approx(reply.match.structural_score, abs=1e-5)
        assert mode == search_pb2.RERANK_MODE_NONE or reply.query_cell_shares != reply.image_cell_shares


def test_every_kind_of_side_can_be_compared_with_every_other(api: Api, pairs: str, sample_bundle: Bundle) -> None:
    features = feature_item("g", "i", random_features(1), 0, sample_bundle.digest).features
    kinds = [by_bytes(png(1)), by_name(pairs, "p1"), search_pb2.Query(features=features)]
    for query in kinds:
        for image in kinds:
            reply = compare(api, query, image)
            assert reply.bundle_digest == sample_bundle.digest
            if query is image:
                assert reply.match.coarse_score == pytest.approx(1, abs=1e-3)
    named = compare(api, kinds[0], kinds[0], model=f"models/{sample_bundle.manifest.name}")
    assert named.match.coarse_score == pytest.approx(1, abs=1e-5)


REFUSED: dict[str, tuple[Callable[[Api], Any], str, str]] = {
    "no query": (lambda api: compare(api, search_pb2.Query(), by_bytes(png(1))), "INVALID_FIELD", "query"),
    "no image": (lambda api: compare(api, by_bytes(png(1)), search_pb2.Query()), "INVALID_FIELD", "image"),
    "malformed query name": (
        lambda api: compare(api, search_pb2.Query(image="x"), by_bytes(png(1))),
        "INVALID_FIELD",
        "query.image",
    ),
    "malformed image name": (lambda api: explain(api, by_bytes(png(1)), "x"), "INVALID_FIELD", "image"),
    "negative flows": (
        lambda api: compare(api, by_bytes(png(1)), by_bytes(png(1)), max_flows=-1),
        "INVALID_FIELD",
        "max_flows",
    ),
    "too many flows": (
        lambda api: explain(api, by_bytes(png(1)), image_name("pairs", "p1"), max_flows=10_001),
        "INVALID_FIELD",
        "max_flows",
    ),
    "no parts": (
        lambda api: render(api, by_bytes(png(1)), image_name("pairs", "p1"), max_flows=0),
        "INVALID_FIELD",
        "max_flows",
    ),
    "too low": (
        lambda api: render(api, by_bytes(png(1)), image_name("pairs", "p1"), height_px=127),
        "INVALID_FIELD",
        "height_px",
    ),
    "too high": (
        lambda api: render(api, by_bytes(png(1)), image_name("pairs", "p1"), height_px=1025),
        "INVALID_FIELD",
        "height_px",
    ),
    "malformed model": (
        lambda api: compare(api, by_bytes(png(1)), by_bytes(png(1)), model="lite0"),
        "INVALID_FIELD",
        "model",
    ),
    "unknown model": (
        lambda api: compare(api, by_bytes(png(1)), by_bytes(png(1)), model="models/none"),
        "MODEL_NOT_FOUND",
        "",
    ),
    "absent image": (lambda api: explain(api, by_bytes(png(1)), image_name("pairs", "x")), "IMAGE_NOT_FOUND", ""),
    "absent gallery": (lambda api: explain(api, by_bytes(png(1)), image_name("absent", "x")), "GALLERY_NOT_FOUND", ""),
    "unreadable": (lambda api: compare(api, by_bytes(b"x"), by_bytes(png(1))), "IMAGE_UNREADABLE", ""),
    "bad solver": (
        lambda api: compare(api, by_bytes(png(1)), by_bytes(png(1)), rerank=search_pb2.Rerank(epsilon=0)),
        "INVALID_FIELD",
        "rerank.epsilon",
    ),
    "features have no picture": (
        lambda api: render(
            api,
            search_pb2.Query(
                features=api.models.EmbedImages(model_pb2.EmbedImagesRequest(images=[png(1)])).embeddings[0].features
            ),
            image_name("pairs", "p1"),
        ),
        "INVALID_FIELD",
        "query.features",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_pair_that_makes_no_sense_is_refused_with_the_field(api: Api, pairs: str, case: str) -> None:
    assert pairs
    call, reason, field = REFUSED[case]
    refusal = refusal_of(lambda: call(api))
    assert refusal.reason == reason
    assert refusal.violations == ([field] if field else [])


def test_features_of_an_unknown_bundle_are_refused_on_both_sides(api: Api) -> None:
    stranger = search_pb2.Query(features=feature_item("g", "i", random_features(1), 0, "feed").features)
    refusal = refusal_of(lambda: compare(api, stranger, stranger))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "BUNDLE_MISMATCH")
    assert refusal.metadata["expected_digest"] == "feed"
    mixed = refusal_of(lambda: compare(api, stranger, by_bytes(png(1))))
    assert mixed.metadata["actual_digest"] == "feed"


@pytest.mark.parametrize("height", [128, 384, 1024])
def test_the_overlay_is_a_png_of_the_height_asked_for(api: Api, pairs: str, height: int) -> None:
    for query in (by_bytes(png(1)), by_name(pairs, "p1")):
        reply = render(api, query, image_name(pairs, "p2"), height_px=height, max_flows=64)
        drawn = Image.open(io.BytesIO(reply.png))
        assert (drawn.format, drawn.height) == ("PNG", height)
        assert len(reply.match.flows) <= 64
    default = render(api, by_bytes(png(1)), image_name(pairs, "p2"))
    assert Image.open(io.BytesIO(default.png)).height == 384
    assert len(default.match.flows) == 8


@pytest.mark.parametrize("mode", [search_pb2.RERANK_MODE_POSITION_AWARE, search_pb2.RERANK_MODE_PARTIAL])
def test_a_score_that_distance_drives_below_zero_is_drawn_and_adds_up(
    api: Api, gallery: str, sample_bundle: Bundle, mode: Any
) -> None:
    # All that counts lies in one corner of the query, and in the opposite one of the image.
    query, image = (feature_item("g", "x", random_features(1), 0, sample_bundle.digest).features for _ in range(2))
    query.cell_scales[1:] = [0.0] * 15
    image.cell_scales[:15] = [0.0] * 15
    rerank = search_pb2.Rerank(mode=mode, spatial_weight=100, marginals=search_pb2.MARGINALS_SELF_CORRELATION)
    match = compare(api, search_pb2.Query(features=query), search_pb2.Query(features=image), rerank=rerank).match
    assert match.structural_score < -1
    total = sum(flow.contribution for flow in match.flows) + match.residual
    assert total == pytest.approx(match.structural_score, rel=1e-5)
    api.put_images(gallery, {"turned": encoded(np.ascontiguousarray(picture(3)[::-1, ::-1]))})
    drawn = render(api, by_bytes(png(3)), image_name(gallery, "turned"), rerank=rerank, max_flows=64)
    assert drawn.png.startswith(b"\x89PNG")


def test_the_overlay_of_a_coarse_match_has_no_parts(api: Api, pairs: str) -> None:
    reply = render(
        api,
        by_bytes(png(1)),
        image_name(pairs, "p2"),
        rerank=search_pb2.Rerank(mode=search_pb2.RERANK_MODE_NONE),
    )
    assert not reply.match.flows
    assert reply.png.startswith(b"\x89PNG")


def test_an_overlay_needs_the_pictures_of_both_stored_images(api: Api, pairs: str, sample_bundle: Bundle) -> None:
    api.create("pictureless")
    api.put([feature_item("pictureless", "f", random_features(1), 0, sample_bundle.digest)])
    for query, image in (
        (by_bytes(png(1)), image_name("pictureless", "f")),
        (by_name("pictureless", "f"), image_name(pairs, "p1")),
    ):
        refusal = refusal_of(lambda query=query, image=image: render(api, query, image))  # type: ignore[misc]
        assert (refusal.reason, refusal.metadata) == ("THUMBNAIL_MISSING", {"image": image_name("pictureless", "f")})


def test_boxes_of_an_explained_pair_lie_on_the_upright_original(api: Api, gallery: str) -> None:
    rgb = picture(1, width=200, height=100)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(np.rot90(rgb).copy(), "JPEG", exif=exif, quality=95)
    api.put_images(gallery, {"turned": turned})
    reply = explain(api, by_bytes(encoded(rgb)), image_name(gallery, "turned"))
    assert (reply.image.width_px, reply.image.height_px) == (200, 100)
    assert reply.match.coarse_score > 0.97
    assert len(reply.match.flows) > 16

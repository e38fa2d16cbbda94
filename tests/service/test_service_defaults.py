"""The default of a gallery through a real channel: how pairs are scored when a request names no mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import field_mask_pb2
from service_harness import Api, RunningServer, by_bytes, by_name, image_name, png, refusal_of

from matchflow.v1 import gallery_pb2, matching_pb2, search_pb2
from matchflow_index import MatchDefaults
from matchflow_matching import MatchMode, MatchSettings
from matchflow_service.reranking import MODES, rerank_message

if TYPE_CHECKING:
    from collections.abc import Callable

Mode = matching_pb2.RerankMode
Rerank = matching_pb2.Rerank
PAPER = rerank_message(MatchSettings(), 100)
POSITION_AWARE = Rerank(mode=Mode.RERANK_MODE_POSITION_AWARE, spatial_weight=2, epsilon=0.06, depth=7)


def update(api: Api, gallery: str, default: matching_pb2.Rerank | None, *paths: str) -> gallery_pb2.Gallery:
    changed = gallery_pb2.Gallery(name=f"galleries/{gallery}", default_rerank=default)
    mask = field_mask_pb2.FieldMask(paths=paths) if paths else None
    return api.galleries.UpdateGallery(gallery_pb2.UpdateGalleryRequest(gallery=changed, update_mask=mask))


def get(api: Api, gallery: str) -> gallery_pb2.Gallery:
    return api.galleries.GetGallery(gallery_pb2.GetGalleryRequest(name=f"galleries/{gallery}"))


def compare(api: Api, query: search_pb2.Query, image: search_pb2.Query, **fields: Any) -> search_pb2.CompareResponse:
    return api.search.Compare(search_pb2.CompareRequest(query=query, image=image, **fields))


def explain(api: Api, query: search_pb2.Query, image: str, **fields: Any) -> search_pb2.ExplainResponse:
    return api.search.Explain(search_pb2.ExplainRequest(query=query, image=image, **fields))


@pytest.fixture
def filled(api: Api, gallery: str) -> str:
    """A new gallery with nine images."""
    api.put_images(gallery, {f"p{i}": png(i) for i in range(9)})
    return gallery


def test_a_new_gallery_scores_as_the_paper_does_and_says_so(api: Api, gallery: str) -> None:
    assert get(api, gallery).default_rerank == PAPER
    listed = api.galleries.ListGalleries(gallery_pb2.ListGalleriesRequest()).galleries
    assert {each.name: each.default_rerank for each in listed}[f"galleries/{gallery}"] == PAPER


def test_a_default_is_replaced_as_a_whole_and_shown_with_every_setting(api: Api, gallery: str) -> None:
    changed = update(api, gallery, POSITION_AWARE, "default_rerank")
    expected = rerank_message(
        MatchSettings.of(MatchMode.POSITION_AWARE, spatial_weight=2.0, epsilon=0.06), POSITION_AWARE.depth
    )
    assert changed.default_rerank == expected
    assert get(api, gallery) == changed
    # Nothing of the old one is left: neither its depth nor its mode.
    again = update(api, gallery, Rerank(global_weight=0.5), "default_rerank").default_rerank
    assert again == rerank_message(MatchSettings(global_weight=0.5), 100)


def test_an_absent_mask_means_what_is_there_and_a_mask_alone_means_the_paper(api: Api, gallery: str) -> None:
    assert update(api, gallery, POSITION_AWARE).default_rerank.mode == Mode.RERANK_MODE_POSITION_AWARE
    assert update(api, gallery, None).default_rerank.mode == Mode.RERANK_MODE_POSITION_AWARE
    assert update(api, gallery, None, "default_rerank").default_rerank == PAPER


def test_a_default_changes_neither_images_nor_their_sequence(api: Api, filled: str) -> None:
    before = get(api, filled)
    after = update(api, filled, POSITION_AWARE, "default_rerank")
    before.ClearField("default_rerank")
    after.ClearField("default_rerank")
    assert after == before


@pytest.mark.parametrize("path", ["name", "model", "without_thumbnails", "default_rerank.depth", "*", ""])
def test_nothing_else_of_a_gallery_can_be_updated(api: Api, gallery: str, path: str) -> None:
    refusal = refusal_of(lambda: update(api, gallery, POSITION_AWARE, "default_rerank", path))
    assert (refusal.code, refusal.reason, refusal.violations) == ("INVALID_ARGUMENT", "INVALID_FIELD", ["update_mask"])
    assert f"expected default_rerank, all that can change; got {path!r}" in refusal.message
    assert get(api, gallery).default_rerank == PAPER


BAD_DEFAULTS: list[tuple[str, matching_pb2.Rerank]] = [
    ("mode", Rerank(mode=99)),  # type: ignore[arg-type]
    ("depth", Rerank(depth=0)),
    ("epsilon", Rerank(epsilon=99)),
    ("spatial_weight", Rerank(mode=Mode.RERANK_MODE_STRIPES, spatial_weight=1)),
    ("spatial_weight", Rerank(spatial_weight=1)),
    ("matched_mass", Rerank(mode=Mode.RERANK_MODE_POSITION_AWARE, matched_mass=0.5)),
]


@pytest.mark.parametrize(("name", "default"), BAD_DEFAULTS)
def test_a_default_that_makes_no_sense_is_refused_by_name(
    api: Api, gallery: str, name: str, default: matching_pb2.Rerank
) -> None:
    never = f"{gallery}-never"
    for call in (
        lambda: update(api, gallery, default, "default_rerank"),
        lambda: api.create(never, default_rerank=default),
    ):
        refusal = refusal_of(call)
        assert (refusal.reason, refusal.violations) == ("INVALID_FIELD", [f"gallery.default_rerank.{name}"])
    assert get(api, gallery).default_rerank == PAPER
    assert refusal_of(lambda: get(api, never)).reason == "GALLERY_NOT_FOUND"


def test_a_gallery_can_be_created_with_its_default(api: Api) -> None:
    created = api.create("with-default", default_rerank=POSITION_AWARE)
    assert created.default_rerank.spatial_weight == 2
    assert get(api, "with-default") == created


def test_a_default_outlives_a_restart(start_server: Any) -> None:
    first, api = start_server()
    api.create("kept")
    before = update(api, "kept", POSITION_AWARE, "default_rerank")
    first.stop()
    _, again = start_server()
    assert get(again, "kept") == before


@pytest.mark.parametrize("mode", sorted(MODES), ids=Mode.Name)
def test_a_search_by_default_is_explained_by_default_with_the_same_result(api: Api, filled: str, mode: Any) -> None:
    update(api, filled, Rerank(mode=mode, global_weight=0.3, depth=5), "default_rerank")
    explicit = Rerank(mode=mode, global_weight=0.3, depth=5)
    for query in (by_name(filled, "p1"), by_bytes(png(2))):
        reply = api.find(filled, query, max_flows=4, top_k=5)
        assert reply.hits == api.find(filled, query, max_flows=4, top_k=5, rerank=explicit).hits
        assert reply.rerank == get(api, filled).default_rerank
        assert reply.rerank_status.depth_done == (0 if mode == Mode.RERANK_MODE_NONE else 5)
        for hit in reply.hits:
            explained = explain(api, query, hit.image.name, max_flows=4)
            assert explained.match == hit.match
            assert compare(api, query, search_pb2.Query(image=hit.image.name), max_flows=4).match == hit.match
            stated = reply.rerank
            stated.ClearField("depth")
            assert explained.rerank == stated
            drawn = search_pb2.RenderMatchRequest(query=query, image=hit.image.name, max_flows=4)
            if mode != Mode.RERANK_MODE_NONE:
                assert api.search.RenderMatch(drawn).match == hit.match


def test_what_a_reply_states_repeats_it_after_the_default_has_changed(api: Api, filled: str) -> None:
    update(api, filled, POSITION_AWARE, "default_rerank")
    query = by_name(filled, "p1")
    before = api.find(filled, query)
    hit = before.hits[0]
    explained = explain(api, query, hit.image.name)
    update(api, filled, Rerank(mode=Mode.RERANK_MODE_MAX_SIM), "default_rerank")
    assert api.find(filled, query).hits != before.hits
    assert api.find(filled, query, rerank=before.rerank).hits == before.hits
    assert explain(api, query, hit.image.name, rerank=before.rerank) == explained
    assert explain(api, query, hit.image.name, rerank=explained.rerank) == explained


def test_a_request_changes_of_the_default_only_what_it_says(api: Api, filled: str) -> None:
    update(api, filled, POSITION_AWARE, "default_rerank")
    stated = api.find(filled, by_name(filled, "p1"), rerank=Rerank(spatial_weight=0.5)).rerank
    expected = MatchSettings.of(MatchMode.POSITION_AWARE, spatial_weight=0.5, epsilon=0.06)
    assert stated == rerank_message(expected, 7)
    named = api.find(filled, by_name(filled, "p1"), rerank=Rerank(mode=Mode.RERANK_MODE_STRUCTURAL)).rerank
    assert named == PAPER
    refusal = refusal_of(lambda: api.find(filled, by_name(filled, "p1"), rerank=Rerank(matched_mass=0.5)))
    assert refusal.violations == ["rerank.matched_mass"]
    assert "with position_aware" in refusal.message


def test_the_images_gallery_decides_and_the_querys_where_only_that_is_stored(api: Api, filled: str) -> None:
    other = f"{filled}-other"
    api.create(other, default_rerank=Rerank(mode=Mode.RERANK_MODE_CHAMFER))
    api.put_images(other, {"x": png(20)})
    update(api, filled, POSITION_AWARE, "default_rerank")
    here, there = by_name(filled, "p1"), by_name(other, "x")
    assert compare(api, here, there).rerank.mode == Mode.RERANK_MODE_CHAMFER
    assert compare(api, there, here).rerank.mode == Mode.RERANK_MODE_POSITION_AWARE
    assert compare(api, here, by_bytes(png(3))).rerank.mode == Mode.RERANK_MODE_POSITION_AWARE
    assert compare(api, by_bytes(png(3)), there).rerank.mode == Mode.RERANK_MODE_CHAMFER
    assert compare(api, by_bytes(png(3)), by_bytes(png(4))).rerank == rerank_message(MatchSettings())
    # A search in `filled` with a query from elsewhere is explained as it was found.
    found = api.find(filled, there, max_flows=3).hits[0]
    assert explain(api, there, found.image.name, max_flows=3).match == found.match


def test_a_pair_with_settings_that_do_not_fit_is_refused_by_name(api: Api, filled: str) -> None:
    bad = Rerank(mode=Mode.RERANK_MODE_SAME_CELL, spatial_weight=1)
    query, image = by_bytes(png(1)), image_name(filled, "p1")
    calls: list[Callable[[], Any]] = [
        lambda: compare(api, query, by_bytes(png(2)), rerank=bad),
        lambda: compare(api, query, search_pb2.Query(image=image), rerank=bad),
        lambda: explain(api, query, image, rerank=bad),
        lambda: api.search.RenderMatch(search_pb2.RenderMatchRequest(query=query, image=image, rerank=bad)),
    ]
    for call in calls:
        refusal = refusal_of(call)
        assert (refusal.reason, refusal.violations) == ("INVALID_FIELD", ["rerank.spatial_weight"])
        assert "expected 0 with same_cell; got 1" in refusal.message


def test_a_default_with_more_digits_than_the_wire_has_is_used_as_it_is_stated(
    api: Api, server: RunningServer, filled: str
) -> None:
    """As a program may set it that works on the store itself."""
    settings = MatchSettings.of(MatchMode.POSITION_AWARE, epsilon=0.1 / 3, spatial_weight=2 / 3, global_weight=1 / 7)
    server.server.sides.store.gallery(filled).set_match_defaults(MatchDefaults(settings=settings, depth=9))
    query = by_name(filled, "p1")
    reply = api.find(filled, query)
    assert reply.rerank == get(api, filled).default_rerank
    assert api.find(filled, query, rerank=reply.rerank).hits == reply.hits
    image = reply.hits[0].image.name
    assert explain(api, query, image) == explain(api, query, image, rerank=reply.rerank)


def test_a_damaged_default_hides_no_gallery_and_can_be_set_again(
    api: Api, server: RunningServer, filled: str, caplog: pytest.LogCaptureFixture
) -> None:
    gallery = server.server.sides.store.gallery(filled)
    gallery._truth.set_match_defaults(gallery._stored, b"not JSON")
    gallery._match_defaults = None
    assert not get(api, filled).HasField("default_rerank")
    assert f"gallery {filled} is shown without its default" in caplog.text
    listed = api.galleries.ListGalleries(gallery_pb2.ListGalleriesRequest(page_size=1000)).galleries
    assert f"galleries/{filled}" in {each.name for each in listed}
    refusal = refusal_of(lambda: api.find(filled, by_name(filled, "p1")))
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
    assert "set them again" in refusal.message
    assert api.find(filled, by_name(filled, "p1"), rerank=PAPER).hits
    assert update(api, filled, POSITION_AWARE, "default_rerank").default_rerank.spatial_weight == 2
    assert api.find(filled, by_name(filled, "p1")).rerank.spatial_weight == 2

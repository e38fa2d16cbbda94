"""One suite over both clients, against a real server that answers as each test says."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from client_counterpart import (
    CLIENTS,
    AsyncClientInDisguise,
    Counterpart,
    failure,
    match_score,
    running,
    stored_image,
)
from google.protobuf import empty_pb2
from google.rpc import code_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import matchflow
from matchflow import ImageRef, calls
from matchflow.v1 import gallery_pb2, model_pb2, search_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FEATURES = types_pb2.Features(bundle_digest="d1", embedding=[1, 0], cells=b"\x7f\x81", cell_scales=[0.5])
CAT = ImageRef("demo", "cat")


@pytest.fixture
def counterpart() -> Iterator[Counterpart]:
    with running(Counterpart()) as running_counterpart:
        yield running_counterpart


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, counterpart: Counterpart) -> Iterator[Any]:
    with CLIENTS[request.param](counterpart.target, timeout_s=20) as connected:
        yield connected


def gallery_message(gallery: str = "demo") -> gallery_pb2.Gallery:
    message = gallery_pb2.Gallery(
        name=f"galleries/{gallery}",
        model="models/lite0",
        bundle_digest="d1",
        grid=types_pb2.CellGrid(rows=4, columns=2),
        embedding_dim=128,
        image_count=3,
        sequence=9,
        without_thumbnails=True,
        generation=2,
    )
    message.create_time.FromSeconds(1_700_000_000)
    return message


def test_a_gallery_is_created_as_asked(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["CreateGallery"] = lambda _: gallery_message()
    gallery = client.create_gallery("demo", model="lite0", thumbnails=False)
    (request,) = counterpart.requests
    assert request.gallery_id == "demo"
    assert request.gallery == gallery_pb2.Gallery(model="models/lite0", without_thumbnails=True)
    assert gallery == matchflow.Gallery(
        id="demo",
        model="lite0",
        bundle_digest="d1",
        grid=matchflow.CellGrid(rows=4, columns=2),
        embedding_dim=128,
        image_count=3,
        sequence=9,
        create_time=dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC),
        keeps_thumbnails=False,
        generation=2,
    )


def test_without_a_model_the_server_chooses(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["CreateGallery"] = lambda _: gallery_message()
    client.create_gallery("demo")
    assert counterpart.requests[0].gallery == gallery_pb2.Gallery()


def test_a_gallery_is_found_by_its_id(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["GetGallery"] = lambda _: gallery_message()
    assert client.get_gallery("demo").id == "demo"
    assert counterpart.requests[0].name == "galleries/demo"


def test_deleting_a_gallery_returns_nothing(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["DeleteGallery"] = lambda _: empty_pb2.Empty()
    assert client.delete_gallery("demo") is None
    assert counterpart.requests[0].name == "galleries/demo"


DEFAULT = search_pb2.Rerank(
    mode=search_pb2.RERANK_MODE_POSITION_AWARE,
    depth=200,
    global_weight=0,
    marginals=search_pb2.MARGINALS_UNIFORM,
    epsilon=0.05,
    tolerance=1e-4,
    max_iterations=200,
    spatial_weight=1.5,
    matched_mass=1,
)
SETTINGS = matchflow.RerankSettings(
    mode=matchflow.RerankMode.POSITION_AWARE,
    depth=200,
    tuning=matchflow.Tuning(
        global_weight=0.0,
        marginals=matchflow.Marginals.UNIFORM,
        epsilon=0.05,
        tolerance=1e-4,
        max_iterations=200,
        spatial_weight=1.5,
        matched_mass=1.0,
    ),
)


def test_a_gallery_says_how_its_pairs_are_scored(client: Any, counterpart: Counterpart) -> None:
    message = gallery_message()
    message.default_rerank.CopyFrom(DEFAULT)
    counterpart.answers["GetGallery"] = lambda _: message
    assert client.get_gallery("demo").default_rerank == SETTINGS


def test_a_default_is_set_under_a_mask(client: Any, counterpart: Counterpart) -> None:
    def answer(request: gallery_pb2.UpdateGalleryRequest) -> gallery_pb2.Gallery:
        message = gallery_message()
        message.default_rerank.CopyFrom(request.gallery.default_rerank)
        return message

    counterpart.answers["UpdateGallery"] = answer
    changed = client.set_default_rerank("demo", mode="position_aware", depth=200, tuning=SETTINGS.tuning)
    assert changed.default_rerank == SETTINGS
    client.set_default_rerank("demo")
    first, second = counterpart.requests
    assert first.gallery == gallery_pb2.Gallery(name="galleries/demo", default_rerank=DEFAULT)
    assert list(first.update_mask.paths) == list(second.update_mask.paths) == ["default_rerank"]
    assert second.gallery.default_rerank == search_pb2.Rerank()


def test_galleries_are_listed_over_every_page(client: Any, counterpart: Counterpart) -> None:
    def answer(request: gallery_pb2.ListGalleriesRequest) -> gallery_pb2.ListGalleriesResponse:
        pages = {"": ("a", "t1"), "t1": ("b", "t2"), "t2": ("c", "")}
        name, token = pages[request.page_token]
        return gallery_pb2.ListGalleriesResponse(galleries=[gallery_message(name)], next_page_token=token)

    counterpart.answers["ListGalleries"] = answer
    assert [gallery.id for gallery in client.list_galleries()] == ["a", "b", "c"]
    assert [request.page_size for request in counterpart.requests] == [1000] * 3


def test_images_are_listed_over_every_page(client: Any, counterpart: Counterpart) -> None:
    def answer(request: gallery_pb2.ListImagesRequest) -> gallery_pb2.ListImagesResponse:
        if request.page_token:
            return gallery_pb2.ListImagesResponse()
        return gallery_pb2.ListImagesResponse(images=[stored_image("cat"), stored_image("dog")], next_page_token="t")

    counterpart.answers["ListImages"] = answer
    assert [image.id for image in client.list_images("demo")] == ["cat", "dog"]
    assert counterpart.requests[0].parent == "galleries/demo"


def test_pages_are_fetched_only_when_they_are_wanted(counterpart: Counterpart) -> None:
    counterpart.answers["ListGalleries"] = lambda _: gallery_pb2.ListGalleriesResponse(
        galleries=[gallery_message()], next_page_token="more"
    )
    with matchflow.Client(counterpart.target) as client:
        galleries = client.list_galleries()
        assert not counterpart.requests
        next(galleries)
        assert len(counterpart.requests) == 1


def test_an_image_is_returned_with_its_labels(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["GetImage"] = lambda _: stored_image("cat", designer="noto")
    image = client.get_image(CAT)
    assert counterpart.requests[0].name == "galleries/demo/images/cat"
    assert image == matchflow.Image(
        ref=CAT,
        labels={"designer": "noto"},
        row_id=41,
        content_hash="ab" * 32,
        width_px=640,
        height_px=480,
        update_time=dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC),
    )


def test_an_image_says_when_its_features_are_those_of_its_thumbnail(client: Any, counterpart: Counterpart) -> None:
    message = stored_image("cat")
    message.from_thumbnail = True
    counterpart.answers["GetImage"] = lambda _: message
    assert client.get_image(CAT).from_thumbnail


def test_labels_are_replaced_under_a_mask(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["UpdateImage"] = lambda request: stored_image("cat", **request.image.labels.values)
    assert client.update_labels(CAT, {"class": "1f408"}).labels == {"class": "1f408"}
    assert list(counterpart.requests[0].update_mask.paths) == ["labels"]


def test_labels_of_every_kind_go_there_and_come_back(client: Any, counterpart: Counterpart) -> None:
    labels = {"camera": "c1", "age": 31.5, "count": 3, "taken": dt.datetime(2026, 1, 1, 9, tzinfo=dt.UTC)}

    def echo(request: gallery_pb2.UpdateImageRequest) -> gallery_pb2.Image:
        image = stored_image("cat")
        image.labels.CopyFrom(request.image.labels)
        image.etag = '"8"'
        return image

    counterpart.answers["UpdateImage"] = echo
    changed = client.update_labels(CAT, labels, etag='"7"')
    assert changed.labels == labels
    assert changed.etag == '"8"'
    (request,) = counterpart.requests
    assert request.image.etag == '"7"'
    assert dict(request.image.labels.numbers) == {"age": 31.5, "count": 3.0}


def test_an_image_can_be_told_when_to_go(client: Any, counterpart: Counterpart) -> None:
    def echo(request: gallery_pb2.UpdateImageRequest) -> gallery_pb2.Image:
        image = stored_image("cat")
        if request.image.HasField("expire_time"):
            image.expire_time.CopyFrom(request.image.expire_time)
        return image

    counterpart.answers["UpdateImage"] = echo
    when = dt.datetime(2027, 3, 1, 12, 0, 0, 250_000, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    assert client.set_expire_time(CAT, when, etag='"7"').expire_time == when
    assert client.set_expire_time(CAT, dt.timedelta(days=30)).expire_time is None
    assert client.set_expire_time(CAT, None).expire_time is None
    first, second, third = counterpart.requests
    assert all(list(request.update_mask.paths) == ["expire_time"] for request in counterpart.requests)
    assert first.image.etag == '"7"'
    assert second.image.ttl.ToTimedelta() == dt.timedelta(days=30)
    assert third.image.WhichOneof("expiration") is None


def test_etags_go_with_the_images_that_they_are_of(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["DeleteImages"] = lambda request: gallery_pb2.DeleteImagesResponse(
        deleted_count=len(request.names)
    )
    ids = [f"image-{i}" for i in range(1001)]
    client.delete_images("demo", ids, etags={"image-3": '"9"', "image-1000": '"1"', "nobody": '"2"'})
    assert [dict(request.etags) for request in counterpart.requests] == [
        {"galleries/demo/images/image-3": '"9"'},
        {"galleries/demo/images/image-1000": '"1"'},
    ]


def test_many_deletions_take_several_calls_and_are_counted_together(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["DeleteImages"] = lambda request: gallery_pb2.DeleteImagesResponse(
        deleted_count=len(request.names) - 1, missing_count=1
    )
    deleted = client.delete_images("demo", (f"image-{i}" for i in range(2500)))
    assert deleted == matchflow.DeletedImages(deleted=2497, missing=3)
    assert [len(request.names) for request in counterpart.requests] == [1000, 1000, 500]
    assert counterpart.requests[2].names[-1] == "galleries/demo/images/image-2499"


def test_deleting_no_images_asks_nobody(client: Any, counterpart: Counterpart) -> None:
    assert client.delete_images("demo", []) == matchflow.DeletedImages(deleted=0, missing=0)
    assert not counterpart.requests


def search_reply(request: search_pb2.SearchRequest) -> search_pb2.SearchResponse:
    return search_pb2.SearchResponse(
        hits=[
            search_pb2.Hit(image=stored_image("cat", designer="noto"), match=match_score(), coarse_rank=3),
            search_pb2.Hit(
                image=stored_image("dog"), match=types_pb2.MatchScore(coarse_score=0.5, score=0.5), coarse_rank=0
            ),
        ],
        rerank_status=search_pb2.RerankStatus(state=search_pb2.RerankStatus.STATE_PARTIAL, depth_done=32),
        bundle_digest="d1",
        sequence=17,
        timings=search_pb2.StageTimings(decode_ms=1, encode_ms=2, coarse_ms=3, gather_ms=4, match_ms=5, total_ms=16),
        query_id=f"for {request.gallery}",
    )


def test_a_search_sends_every_option(client: Any, counterpart: Counterpart, tmp_path: Path) -> None:
    counterpart.answers["Search"] = search_reply
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"jpeg")
    client.search(
        str(photo),
        gallery="demo",
        top_k=5,
        mode="structural",
        depth=50,
        tuning=matchflow.Tuning(
            global_weight=0.5,
            marginals=matchflow.Marginals.UNIFORM,
            epsilon=0.0625,
            tolerance=0.25,
            max_iterations=7,
            spatial_weight=2.5,
            matched_mass=0.875,
        ),
        max_flows=3,
        where={"designer": "noto", "class": ["a", "b"]},
        where_not={"broken": {"yes"}},
        images=["cat", "cow"],
        exclude=["dog"],
        exclude_same=["camera"],
        group_by="subject",
        group_limit=2,
        min_score=0.125,
        include_query_image=True,
        exhaustive=True,
        at_least_sequence=17,
        generation=3,
    )
    condition = search_pb2.LabelCondition
    assert counterpart.requests == [
        search_pb2.SearchRequest(
            gallery="galleries/demo",
            query=search_pb2.Query(image_bytes=b"jpeg"),
            filter=search_pb2.Filter(
                labels=[
                    condition(field="designer", any_of=["noto"]),
                    condition(field="class", any_of=["a", "b"]),
                    condition(field="broken", any_of=["yes"], negated=True),
                ],
                exclude_images=["galleries/demo/images/dog"],
                images=["galleries/demo/images/cat", "galleries/demo/images/cow"],
                exclude_same=["camera"],
            ),
            top_k=5,
            rerank=search_pb2.Rerank(
                mode=search_pb2.RERANK_MODE_STRUCTURAL,
                depth=50,
                global_weight=0.5,
                marginals=search_pb2.MARGINALS_UNIFORM,
                epsilon=0.0625,
                tolerance=0.25,
                max_iterations=7,
                spatial_weight=2.5,
                matched_mass=0.875,
            ),
            max_flows=3,
            min_score=0.125,
            include_query_image=True,
            exhaustive=True,
            group_by="subject",
            group_limit=2,
            at_least_sequence=17,
            generation=3,
        )
    ]


def test_a_plain_search_leaves_the_tuning_to_the_server(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["Search"] = search_reply
    client.search(CAT, gallery="demo")
    (request,) = counterpart.requests
    assert request.rerank == search_pb2.Rerank()
    assert not request.HasField("min_score")
    assert not request.HasField("group_limit")
    assert request.filter == search_pb2.Filter()
    assert request.query.image == CAT.name
    assert request.generation == 0


def test_a_search_returns_typed_hits(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["Search"] = search_reply
    result = client.search(b"jpeg", gallery="demo")
    assert [hit.image_id for hit in result] == ["cat", "dog"]
    assert len(result) == 2
    best, other = result.hits
    assert best.labels == {"designer": "noto"}
    assert (best.coarse_score, best.structural_score, best.score, best.coarse_rank) == (0.75, 0.625, 1.375, 3)
    assert best.certificate.iterations == 12
    assert best.certificate.converged
    assert best.flows[0].query_box == matchflow.Box(left=0, top=0, right=0.5, bottom=0.25)
    assert best.flows[0].image_cell == 1
    assert best.verify()
    assert other.structural_score is None
    assert other.verify()
    assert (result.rerank, result.depth_done) == (matchflow.RerankState.PARTIAL, 32)
    assert (result.bundle_digest, result.sequence, result.query_id) == ("d1", 17, "for galleries/demo")
    assert result.timings.total_ms == 16
    assert result.timings.explain_ms == 0


def test_a_search_says_what_is_proved_and_how_it_was_scored(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["Search"] = lambda _: search_pb2.SearchResponse(exact=True, proved_below=17, rerank=DEFAULT)
    result = client.search(CAT, gallery="demo")
    assert (result.exact, result.proved_below, result.rerank_settings) == (True, 17, SETTINGS)
    counterpart.answers["Search"] = lambda _: search_pb2.SearchResponse()
    older = client.search(CAT, gallery="demo")
    assert (older.exact, older.proved_below, older.rerank_settings) == (False, 0, None)


def test_a_search_says_which_generation_answered(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["Search"] = lambda _: search_pb2.SearchResponse(generation=2)
    result = client.search(CAT, gallery="demo")
    assert (result.generation, result.store_unreachable) == (2, False)


def test_an_answer_without_the_store_says_so_and_what_it_does_not_know(client: Any, counterpart: Counterpart) -> None:
    image = gallery_pb2.Image(name=CAT.name, row_id=41)
    counterpart.answers["Search"] = lambda _: search_pb2.SearchResponse(
        hits=[search_pb2.Hit(image=image, match=match_score())], sequence=17, store_unreachable=True
    )
    result = client.search(b"jpeg", gallery="demo")
    assert (result.store_unreachable, result.sequence) == (True, 17)
    (hit,) = result
    assert (hit.image.content_hash, hit.image.update_time) == ("", None)
    assert hit.verify()


def test_an_exact_solver_proves_how_far_off_it_can_be(client: Any, counterpart: Counterpart) -> None:
    score = match_score()
    score.certificate.duality_gap = 0.0
    counterpart.answers["Compare"] = lambda _: search_pb2.CompareResponse(match=score, rerank=DEFAULT)
    pair = client.compare(CAT, CAT)
    assert pair.certificate.duality_gap == 0
    assert pair.rerank_settings == SETTINGS
    counterpart.answers["Compare"] = lambda _: search_pb2.CompareResponse(match=match_score())
    other = client.compare(CAT, CAT)
    assert other.certificate.duality_gap is None
    assert other.rerank_settings is None


@pytest.mark.parametrize(
    ("number", "state"),
    [
        (0, matchflow.RerankState.NOT_REQUESTED),
        (1, matchflow.RerankState.COMPLETE),
        (3, matchflow.RerankState.SKIPPED_DEADLINE),
        (4, matchflow.RerankState.NOT_REQUESTED),
    ],
)
def test_every_rerank_state_has_its_name(
    client: Any, counterpart: Counterpart, number: Any, state: matchflow.RerankState
) -> None:
    status = search_pb2.RerankStatus(state=number)
    counterpart.answers["Search"] = lambda _: search_pb2.SearchResponse(rerank_status=status)
    assert client.search(b"", gallery="demo").rerank is state


def test_a_mode_that_does_not_exist_is_refused_at_once(client: Any) -> None:
    with pytest.raises(ValueError, match="telepathy"):
        client.search(b"", gallery="demo", mode="telepathy")


def test_a_query_file_that_is_not_there_never_leaves_the_client(client: Any, tmp_path: Path) -> None:
    gone = tmp_path / "gone.jpg"
    for ask, *arguments in (
        (partial(client.search, gallery="demo"), gone),
        (client.explain, gone, CAT),
        (client.compare, CAT, gone),
        (client.render_match, gone, CAT),
        (client.embed, [gone]),
    ):
        with pytest.raises(matchflow.errors.FileUnreadableError, match="No such file"):
            ask(*arguments)


def test_a_hit_draws_itself_against_the_query_it_was_found_by(
    client: Any, counterpart: Counterpart, tmp_path: Path
) -> None:
    counterpart.answers["Search"] = search_reply
    counterpart.answers["RenderMatch"] = lambda _: search_pb2.RenderMatchResponse(png=b"\x89PNG drawn")
    hit = client.search(b"jpeg", gallery="demo", mode="max_sim", tuning=matchflow.Tuning(global_weight=0)).hits[0]
    saved = hit.save_overlay(str(tmp_path / "why.png"))
    if isinstance(client, AsyncClientInDisguise):
        saved = client.wait(saved)
    assert saved == tmp_path / "why.png"
    assert saved.read_bytes() == b"\x89PNG drawn"
    request = counterpart.requests[1]
    assert request.query.image_bytes == b"jpeg"
    assert request.image == "galleries/demo/images/cat"
    assert request.rerank == counterpart.requests[0].rerank
    assert "jpeg" not in repr(hit)


def test_a_hit_draws_itself_as_it_was_scored_even_by_a_default_that_changed(
    client: Any, counterpart: Counterpart, tmp_path: Path
) -> None:
    def answer(request: search_pb2.SearchRequest) -> search_pb2.SearchResponse:
        reply = search_reply(request)
        reply.rerank.CopyFrom(DEFAULT)
        return reply

    counterpart.answers["Search"] = answer
    counterpart.answers["RenderMatch"] = lambda _: search_pb2.RenderMatchResponse(png=b"\x89PNG drawn")
    saved = client.search(b"jpeg", gallery="demo").hits[0].save_overlay(tmp_path / "why.png")
    if isinstance(client, AsyncClientInDisguise):
        client.wait(saved)
    assert counterpart.requests[1].rerank == DEFAULT


@pytest.mark.parametrize("case", [(0, 2, 2), (3, 3, 3), (3, 0, 3), (0, 0, 0)], ids=str)
def test_a_hit_draws_itself_from_the_generation_that_it_was_found_in(
    client: Any, counterpart: Counterpart, tmp_path: Path, case: tuple[int, int, int]
) -> None:
    asked, answered, drawn = case

    def answer(request: search_pb2.SearchRequest) -> search_pb2.SearchResponse:
        reply = search_reply(request)
        reply.generation = answered
        return reply

    counterpart.answers["Search"] = answer
    counterpart.answers["RenderMatch"] = lambda _: search_pb2.RenderMatchResponse(png=b"\x89PNG drawn")
    saved = client.search(b"jpeg", gallery="demo", generation=asked).hits[0].save_overlay(tmp_path / "why.png")
    if isinstance(client, AsyncClientInDisguise):
        client.wait(saved)
    assert counterpart.requests[1].generation == drawn


def test_a_comparison_has_the_plan_and_its_weights(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["Compare"] = lambda _: search_pb2.CompareResponse(
        match=match_score(),
        grid=types_pb2.CellGrid(rows=2, columns=1),
        query_weights=[0.25, 0.75],
        image_weights=[0.5, 0.5],
        query_cell_shares=[0.125, 0.25],
        image_cell_shares=[0.375, 0.0],
        bundle_digest="d1",
    )
    pair = client.compare(b"a", CAT, mode=matchflow.RerankMode.SAME_CELL, max_flows=4, model="lite0", generation=2)
    (request,) = counterpart.requests
    assert request.query.image_bytes == b"a"
    assert request.image.image == CAT.name
    assert (request.max_flows, request.model, request.generation) == (4, "models/lite0", 2)
    assert request.rerank.mode == search_pb2.RERANK_MODE_SAME_CELL
    assert pair.grid == matchflow.CellGrid(rows=2, columns=1)
    assert (pair.query_weights, pair.image_weights) == ((0.25, 0.75), (0.5, 0.5))
    assert (pair.query_cell_shares, pair.image_cell_shares) == ((0.125, 0.25), (0.375, 0.0))
    assert "shares" not in repr(pair)
    assert pair.bundle_digest == "d1"
    assert pair.verify()


def test_an_explanation_asks_for_every_flow_unless_told_otherwise(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["Explain"] = lambda _: search_pb2.ExplainResponse(
        image=stored_image("cat"), match=match_score(), grid=types_pb2.CellGrid(rows=2, columns=2)
    )
    explanation = client.explain(b"a", CAT)
    assert explanation.image.ref == CAT
    assert explanation.verify()
    assert not counterpart.requests[0].HasField("max_flows")


def test_an_explanation_is_of_the_generation_that_was_asked_for(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["Explain"] = lambda request: search_pb2.ExplainResponse(
        image=stored_image("cat"), match=match_score(), generation=request.generation or 1
    )
    assert client.explain(b"a", CAT).generation == 1
    assert client.explain(b"a", CAT, generation=2).generation == 2
    assert [request.generation for request in counterpart.requests] == [0, 2]


def test_a_rendered_match_is_a_picture_of_the_size_asked_for(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["RenderMatch"] = lambda _: search_pb2.RenderMatchResponse(png=b"png")
    assert client.render_match(b"a", CAT, max_flows=4, height_px=512, generation=2) == b"png"
    (request,) = counterpart.requests
    assert (request.max_flows, request.height_px, request.generation) == (4, 512, 2)


def embed_reply(request: model_pb2.EmbedImagesRequest) -> model_pb2.EmbedImagesResponse:
    bad = failure("IMAGE_UNREADABLE", code_pb2.INVALID_ARGUMENT, "not an image")
    embedding = model_pb2.EmbedImagesResponse.Embedding
    return model_pb2.EmbedImagesResponse(
        embeddings=[embedding(status=bad) if i == b"bad" else embedding(features=FEATURES) for i in request.images]
    )


def test_embedding_gives_features_or_the_error_of_each_image(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["EmbedImages"] = embed_reply
    good, bad = client.embed([b"good", b"bad"], model="lite0")
    assert good == matchflow.Features(bundle_digest="d1", embedding=(1.0, 0.0), cells=b"\x7f\x81", cell_scales=(0.5,))
    assert isinstance(bad, matchflow.errors.ImageUnreadableError)
    assert counterpart.requests[0].model == "models/lite0"


def test_many_images_are_embedded_in_calls_that_the_server_takes(
    client: Any, counterpart: Counterpart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "BYTES_PER_EMBED_CALL", 10)
    counterpart.answers["EmbedImages"] = embed_reply
    assert len(client.embed([b""] * 100 + [b"123456789", b"1", b"2", b"12345678901"])) == 104
    assert [len(request.images) for request in counterpart.requests] == [64, 38, 1, 1]


def model_message(model: str) -> model_pb2.Model:
    return model_pb2.Model(
        name=f"models/{model}",
        version="1",
        bundle_digest="d1",
        input_height_px=256,
        input_width_px=128,
        grid=types_pb2.CellGrid(rows=8, columns=4),
        embedding_dim=128,
        execution_provider="CPUExecutionProvider",
    )


def test_models_are_listed_and_found(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["GetModel"] = lambda _: model_message("lite0")
    counterpart.answers["ListModels"] = lambda _: model_pb2.ListModelsResponse(models=[model_message("lite0")])
    model = client.get_model("lite0")
    assert model == matchflow.Model(
        id="lite0",
        version="1",
        bundle_digest="d1",
        input_height_px=256,
        input_width_px=128,
        grid=matchflow.CellGrid(rows=8, columns=4),
        embedding_dim=128,
        execution_provider="CPUExecutionProvider",
    )
    assert client.models() == [model]


def test_the_deadline_is_the_clients_unless_a_call_has_its_own(client: Any, counterpart: Counterpart) -> None:
    counterpart.answers["Search"] = search_reply
    client.search(CAT, gallery="demo")
    client.search(CAT, gallery="demo", timeout_s=500)
    of_the_client, of_the_call = counterpart.deadlines_s
    # gRPC rounds deadlines up on the wire.
    assert 0 < of_the_client < 25
    assert 400 < of_the_call < 510


@pytest.mark.parametrize("kind", CLIENTS)
def test_health_speaks_the_standard_protocol(kind: str) -> None:
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    servicer.set("matchflow.v1.SearchService", health_pb2.HealthCheckResponse.NOT_SERVING)
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with CLIENTS[kind](f"127.0.0.1:{port}") as client:
                assert client.health() is matchflow.Health.SERVING
                assert client.health("matchflow.v1.SearchService") is matchflow.Health.NOT_SERVING
                with pytest.raises(matchflow.errors.UnexpectedStatusError) as caught:
                    client.health("nobody")
                assert caught.value.code is grpc.StatusCode.NOT_FOUND
        finally:
            server.stop(None).wait()


@pytest.mark.parametrize("kind", CLIENTS)
def test_credentials_make_the_connection_secure(kind: str, counterpart: Counterpart) -> None:
    counterpart.answers["GetGallery"] = lambda _: gallery_message()
    with (
        CLIENTS[kind](counterpart.target, credentials=grpc.ssl_channel_credentials()) as client,
        pytest.raises(matchflow.errors.ServerUnreachableError),  # the counterpart speaks plain text
    ):
        client.get_gallery("demo")


def test_a_reply_beyond_the_default_four_megabytes_arrives(client: Any, counterpart: Counterpart) -> None:
    large = b"\x00" * (5 * 1024 * 1024)
    counterpart.answers["RenderMatch"] = lambda _: search_pb2.RenderMatchResponse(png=large)
    assert client.render_match(large, CAT) == large

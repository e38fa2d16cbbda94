"""Servers whose galleries are on a Redis server: shared by several, and what a reply promises."""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from redis_server import running_redis
from service_harness import (
    Api,
    RunningServer,
    by_bytes,
    by_name,
    eventually,
    image_name,
    item,
    png,
    refusal_of,
    settings_for,
)

from matchflow.v1 import gallery_pb2, ingest_pb2, matching_pb2, model_pb2, search_pb2
from matchflow_service.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis_server import RedisServer

    from matchflow_bundle import Bundle


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


@contextmanager
def serving(bundle: Bundle, store: Path | str, **settings: Any) -> Iterator[Api]:
    """Run a server and return its API."""
    server = RunningServer(settings_for(bundle, store, **settings))  # type: ignore[arg-type]
    server.start()
    api = Api(server.target)
    try:
        yield api
    finally:
        api.close()
        server.stop()


def test_two_servers_share_galleries_and_each_finds_what_the_other_took(
    sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path
) -> None:
    images = {f"image-{k}": png(k) for k in range(6)}
    with (
        serving(sample_bundle, redis_server.url, cache=tmp_path / "first") as first,
        serving(sample_bundle, redis_server.url, cache=tmp_path / "second") as second,
    ):
        first.create("g")
        first.put_images("g", images)
        eventually(lambda: len(second.find("g", by_bytes(images["image-1"]), top_k=6).hits) == 6)
        hit = second.find("g", by_bytes(images["image-1"]), top_k=6).hits[0]
        assert hit.image.name == image_name("g", "image-1")
        second.put_images("g", {"from the second": png(77)})
        eventually(lambda: len(first.find("g", by_bytes(png(77)), top_k=10).hits) == 7)
        first.galleries.DeleteImages(
            gallery_pb2.DeleteImagesRequest(parent="galleries/g", names=[image_name("g", "image-1")])
        )
        eventually(lambda: len(second.find("g", by_bytes(images["image-1"]), top_k=10).hits) == 6)
        before = first.find("g", by_name("g", "image-2"), top_k=6).hits
    # With its caches, and without any.
    for cache in ("first", "third"):
        with serving(sample_bundle, redis_server.url, cache=tmp_path / cache) as api:
            assert list(api.find("g", by_name("g", "image-2"), top_k=6).hits) == list(before)


@pytest.mark.parametrize(
    ("appendfsync", "expected"), [("everysec", ingest_pb2.DURABILITY_PROCESS), ("always", ingest_pb2.DURABILITY_DISK)]
)
def test_a_reply_says_what_the_server_of_the_store_promises(
    sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path, appendfsync: str, expected: int
) -> None:
    with redis_server.client() as client:
        client.config_set("appendfsync", appendfsync)
    with serving(sample_bundle, redis_server.url, cache=tmp_path / "cache") as api:
        api.create("g")
        for outcome in (ingest_pb2.INGEST_OUTCOME_CREATED, ingest_pb2.INGEST_OUTCOME_UNCHANGED):
            (answer,) = api.put([item("g", "a", png(1))])
            assert (answer.outcome, answer.durability) == (outcome, expected)


@pytest.mark.parametrize(
    ("durability", "expected"),
    [
        (None, ingest_pb2.DURABILITY_DISK),
        ("disk", ingest_pb2.DURABILITY_DISK),
        ("process", ingest_pb2.DURABILITY_PROCESS),
    ],
)
def test_a_reply_says_what_a_folder_promises(
    sample_bundle: Bundle, tmp_path: Path, durability: str | None, expected: int
) -> None:
    with serving(sample_bundle, tmp_path, durability=durability) as api:
        api.create("g")
        good, bad = api.put([item("g", "a", png(1), item_id=1), item("g", "b", b"no picture", item_id=2)])
        assert good.durability == expected
        assert bad.durability == ingest_pb2.DURABILITY_UNSPECIFIED


def test_a_server_goes_on_when_redis_is_back(sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path) -> None:
    with serving(sample_bundle, redis_server.url, cache=tmp_path / "cache") as api:
        api.create("g")
        api.put_images("g", {"a": png(1)})
        redis_server.kill()
        (answer,) = api.put([item("g", "b", png(2))])
        assert answer.status.code == 14
        assert refusal_of(lambda: api.create("h")).reason == "STORE_UNAVAILABLE"
        # Searches go on from what is known, and say so.
        during = api.find("g", by_bytes(png(1)))
        assert (len(during.hits), during.store_unreachable) == (1, True)
        redis_server.start()
        api.put_images("g", {"b": png(2)})
        after = api.find("g", by_bytes(png(1)), top_k=2)
        assert (len(after.hits), after.store_unreachable) == (2, False)


def put_samples(api: Api) -> None:
    """Put images with labels, one of which ends some day."""
    api.create("g")
    for k in range(8):
        sent = item("g", f"image-{k}", png(k), parity="odd" if k % 2 else "even")
        if k == 4:
            sent.ttl.FromSeconds(3600)
        (answer,) = api.put([sent])
        assert answer.status.code == 0


def searches(api: Api) -> list[search_pb2.SearchResponse]:
    """Ask in every way there is."""
    features = api.models.EmbedImages(model_pb2.EmbedImagesRequest(images=[png(3)])).embeddings[0].features
    odd = search_pb2.Filter(labels=[search_pb2.LabelCondition(field="parity", any_of=["odd"])])
    differing = search_pb2.Filter(exclude_same=["parity"])
    ways: list[dict[str, Any]] = [
        {},
        {"include_query_image": True, "max_flows": 20},
        {"filter": odd},
        {"group_by": "parity", "group_limit": 2},
        {"exhaustive": True, "rerank": matching_pb2.Rerank(depth=2)},
        {"rerank": matching_pb2.Rerank(mode=matching_pb2.RERANK_MODE_NONE)},
    ]
    return [
        api.find("g", query, top_k=8, **fields)
        for query in (by_bytes(png(3)), by_name("g", "image-3"), search_pb2.Query(features=features))
        for fields in (*ways, *([{"filter": differing}] if query.WhichOneof("source") == "image" else []))
    ]


def comparable(reply: search_pb2.SearchResponse, *, known: bool = False) -> search_pb2.SearchResponse:
    """Return a reply but for its times and its id; `known`: as it is without the store."""
    reply = search_pb2.SearchResponse.FromString(reply.SerializeToString())
    reply.ClearField("timings")
    reply.ClearField("query_id")
    if known:
        reply.store_unreachable = True
        for hit in reply.hits:
            hit.image.ClearField("content_hash")
            hit.image.ClearField("update_time")
    return reply


def test_searches_without_redis_answer_as_with_it_but_for_what_the_contract_names(
    sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path
) -> None:
    with serving(sample_bundle, redis_server.url, cache=tmp_path / "cache") as api:
        put_samples(api)
        before = searches(api)
        assert not any(reply.store_unreachable for reply in before)
        assert all(hit.image.content_hash and hit.image.HasField("update_time") for hit in before[0].hits)
        assert [hit.image.width_px for hit in before[0].hits] == [96] * 8
        assert all(flow.HasField("image_box") for hit in before[0].hits for flow in hit.match.flows)
        redis_server.stop()
        during = searches(api)
        assert [comparable(reply) for reply in during] == [comparable(reply, known=True) for reply in before]
        redis_server.start()
        eventually(lambda: not api.find("g", by_name("g", "image-3")).store_unreachable)
        assert [comparable(reply) for reply in searches(api)] == [comparable(reply) for reply in before]


def test_all_but_searches_fails_without_redis(sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path) -> None:
    with serving(sample_bundle, redis_server.url, cache=tmp_path / "cache") as api:
        put_samples(api)
        stored, image = by_name("g", "image-3"), image_name("g", "image-4")
        redis_server.stop()
        assert api.find("g", stored).store_unreachable
        galleries, search = api.galleries, api.search
        update = gallery_pb2.UpdateImageRequest(image=gallery_pb2.Image(name=image))
        calls: list[Callable[[], object]] = [
            lambda: api.create("h"),
            lambda: galleries.GetImage(gallery_pb2.GetImageRequest(name=image)),
            lambda: galleries.ListImages(gallery_pb2.ListImagesRequest(parent="galleries/g")),
            lambda: galleries.ListGalleries(gallery_pb2.ListGalleriesRequest()),
            lambda: galleries.UpdateImage(update),
            lambda: galleries.DeleteImages(
                gallery_pb2.DeleteImagesRequest(parent="galleries/g", names=[image_name("g", "image-5")])
            ),
            lambda: search.Explain(search_pb2.ExplainRequest(query=stored, image=image)),
            lambda: search.Explain(search_pb2.ExplainRequest(query=by_bytes(png(1)), image=image)),
            lambda: search.Compare(search_pb2.CompareRequest(query=stored, image=by_name("g", "image-4"))),
            lambda: search.RenderMatch(search_pb2.RenderMatchRequest(query=by_bytes(png(1)), image=image)),
        ]
        for call in calls:
            refusal = refusal_of(call)
            assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        # Nothing of that is in the way of searches.
        assert len(api.find("g", stored).hits) == 7
        assert refusal_of(lambda: api.find("g", by_name("g", "nobody"))).reason == "IMAGE_NOT_FOUND"
        redis_server.start()
        for call in calls[1:]:
            call()


def test_a_change_that_was_seen_can_be_waited_for_without_redis(
    sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path
) -> None:
    with serving(sample_bundle, redis_server.url, cache=tmp_path / "cache") as api:
        put_samples(api)
        redis_server.stop()
        reply = api.find("g", by_name("g", "image-3"), at_least_sequence=8)
        assert (reply.sequence, reply.store_unreachable) == (8, True)
        refusal = refusal_of(lambda: api.find("g", by_name("g", "image-3"), at_least_sequence=9))
        assert refusal.reason == "SEQUENCE_NOT_REACHED"


def test_searches_end_some_time_after_redis(sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path) -> None:
    settings = {"cache": tmp_path / "cache", "reads_without_store_s": 2.0}
    with serving(sample_bundle, redis_server.url, **settings) as api:
        put_samples(api)
        redis_server.stop()
        assert api.find("g", by_name("g", "image-3")).store_unreachable
        time.sleep(2.1)
        for query in (by_name("g", "image-3"), by_bytes(png(1))):
            refusal = refusal_of(partial(api.find, "g", query))
            assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
            assert "can't be reached for " in refusal.message
            assert "searches go on without it for 2 s at most" in refusal.message
        redis_server.start()

        def is_back() -> bool:
            try:
                return not api.find("g", by_name("g", "image-3")).store_unreachable
            except grpc.RpcError:
                return False

        eventually(is_back)


def test_searches_fail_without_redis_where_they_may_not_go_on(
    sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path
) -> None:
    settings = {"cache": tmp_path / "cache", "reads_without_store_s": 0.0}
    with serving(sample_bundle, redis_server.url, **settings) as api:
        put_samples(api)
        redis_server.stop()
        for query in (by_name("g", "image-3"), by_bytes(png(1))):
            refusal = refusal_of(partial(api.find, "g", query))
            assert refusal.reason == "STORE_UNAVAILABLE"
            assert "can't be used, it can't be reached" in refusal.message
        redis_server.start()
        assert not api.find("g", by_name("g", "image-3")).store_unreachable


def test_with_a_redis_that_hangs_later_searches_meet_deadlines_shorter_than_its_time_out(
    sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path
) -> None:
    with serving(sample_bundle, f"{redis_server.url}?timeout_s=3", cache=tmp_path / "cache") as api:
        put_samples(api)
        request = search_pb2.SearchRequest(gallery="galleries/g", query=by_name("g", "image-3"))
        before = api.search.Search(request)
        redis_server.pause()
        try:
            with pytest.raises(grpc.RpcError) as raised:
                api.search.Search(request, timeout=0.5)
            assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert api.search.Search(request, timeout=60).store_unreachable
            for _ in range(20):
                during = api.search.Search(request, timeout=2)
                assert [hit.match for hit in during.hits] == [hit.match for hit in before.hits]
                assert during.store_unreachable
        finally:
            redis_server.resume()
        eventually(lambda: not api.search.Search(request).store_unreachable)


def test_a_server_that_is_stopped_without_redis_ends_well_and_starts_with_everything(
    sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path
) -> None:
    with serving(sample_bundle, redis_server.url, cache=tmp_path / "cache") as api:
        put_samples(api)
        before = comparable(api.find("g", by_name("g", "image-3")))
        redis_server.stop()
    redis_server.start()
    with serving(sample_bundle, redis_server.url, cache=tmp_path / "cache") as api:
        assert comparable(api.find("g", by_name("g", "image-3"))) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "can't be used, it doesn't let this user in"),
        ("?replicas=many", "replicas in a Redis address must be of type int"),
    ],
)
def test_a_store_that_cannot_be_opened_keeps_the_server_from_starting_and_no_password_is_shown(
    sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path, options: str, message: str
) -> None:
    url = f"redis://:s3cret@127.0.0.1:{redis_server.port}/0{options}"
    with redis_server.client() as client:
        client.config_set("requirepass", "another")
    server = RunningServer(settings_for(sample_bundle, url, cache=tmp_path / "cache"))  # type: ignore[arg-type]
    with pytest.raises(StartError, match=message) as raised:
        server.start()
    assert "s3cret" not in str(raised.value)


def test_two_servers_cannot_share_a_cache(sample_bundle: Bundle, redis_server: RedisServer, tmp_path: Path) -> None:
    with serving(sample_bundle, redis_server.url, cache=tmp_path / "cache"):
        server = RunningServer(settings_for(sample_bundle, redis_server.url, cache=tmp_path / "cache"))  # type: ignore[arg-type]
        with pytest.raises(StartError, match="open for writing"):
            server.start()

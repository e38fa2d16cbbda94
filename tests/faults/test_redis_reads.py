"""Searches while Redis is away or hangs: they go on from what is known, say so, and for a limited time only."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from index_samples import gallery_spec, new_images, sample_features
from redis_samples import open_truth
from redis_server import running_redis

from matchflow_index import (
    GalleryNotFoundError,
    GalleryStore,
    ImageFilter,
    ImageNotFoundError,
    LabelCondition,
    LabelRange,
    MatchDefaults,
    SearchQuery,
    StoreUnavailableError,
    exhaustive,
)
from matchflow_index import search as search_module
from matchflow_index.redis_link import RedisLink
from matchflow_matching import MatchMode, MatchSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis_server import RedisServer

    from matchflow_index import Gallery, ImageRecord, SearchAnswer

LIMIT_S = 60.0
FEATURES = sample_features(40)
QUERY = SearchQuery(features=FEATURES[3], top_k=5, depth=10)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
AWAY = "can't be used"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


@contextmanager
def opened(server: RedisServer, folder: Path, *, without_s: float = 60.0, **options: Any) -> Iterator[GalleryStore]:
    """Open a store on a server, with caches in a folder of its own."""
    with ExitStack() as stack:
        truth = stack.enter_context(open_truth(server, **{"timeout_s": 1.0, "connect_timeout_s": 1.0, **options}))
        yield stack.enter_context(GalleryStore.open(folder, truth=truth, reads_without_store_s=without_s))


@pytest.fixture
def store(server: RedisServer, tmp_path: Path) -> Iterator[GalleryStore]:
    with opened(server, tmp_path / "first") as store:
        yield store


@pytest.fixture
def gallery(store: GalleryStore) -> Gallery:
    return filled(store)


def filled(store: GalleryStore) -> Gallery:
    """Return a gallery of 40 images with labels of every kind, some replaced, relabelled and removed."""
    gallery = store.create(gallery_spec())
    images = [
        replace(
            image,
            labels={
                **image.labels,
                "size": k / 8,
                "taken": NOON.replace(hour=k % 24),
                **({"rare": "x"} if k < 3 else {}),
            },
            width_px=100 + k,
            height_px=200 + k,
            expire_time_s=time.time() + 3600 if k % 5 == 4 else None,
        )
        for k, image in enumerate(new_images(40))
    ]
    gallery.put(images)
    gallery.put([replace(images[7], content_hash="other", features=sample_features(1, seed=9)[0], width_px=7)])
    gallery.update("image-005", labels={"parity": "new", "size": -1.0})
    gallery.delete(["image-011"])
    return gallery


def eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.005)


def queries() -> dict[str, SearchQuery]:
    def filtered(*conditions: LabelCondition, **others: Any) -> SearchQuery:
        return replace(QUERY, top_k=40, filter=ImageFilter(conditions=conditions, **others))

    return {
        "plain": QUERY,
        "all": replace(QUERY, top_k=50, depth=50, max_flows=20),
        "coarse": replace(QUERY, settings=None, top_k=40),
        "max_sim": replace(QUERY, settings=MatchSettings.of(MatchMode.MAX_SIM)),
        "exact transport": replace(QUERY, settings=MatchSettings.of(MatchMode.EARTH_MOVER)),
        "exhaustive": replace(QUERY, exhaustive=True, depth=2),
        "min_score": replace(QUERY, top_k=40, min_score=0.2),
        "text": filtered(LabelCondition(field="parity", any_of=frozenset({"odd", "new"}))),
        "number": filtered(LabelCondition(field="size", within=LabelRange(gte=1.0, lt=4.0))),
        "time": filtered(LabelCondition(field="taken", within=LabelRange(lte=NOON))),
        "absent": filtered(LabelCondition(field="rare", negated=True)),
        "ids": filtered(any_ids=frozenset({"image-001", "image-005", "image-011"}), exclude=frozenset({"image-001"})),
        "nothing": filtered(LabelCondition(field="unheard of")),
        "groups": replace(QUERY, top_k=40, group_by="parity", group_limit=2),
    }


def known(record: ImageRecord) -> ImageRecord:
    """Return what is known of a record without the truth."""
    return replace(record, content_hash="", update_time_s=0.0)


def same(first: SearchAnswer, second: SearchAnswer) -> bool:
    """Compare all but timings and the flag; every number bit by bit."""
    ignored = {"timings", "store_unreachable"}
    names = [each.name for each in fields(first) if each.name not in ignored]
    return all(repr(getattr(first, name)) == repr(getattr(second, name)) for name in names)


def without_store(answer: SearchAnswer) -> SearchAnswer:
    """Return an answer as it would be without the store."""
    hits = [replace(hit, record=sorted_labels(known(hit.record))) for hit in answer.hits]
    return replace(answer, hits=hits, store_unreachable=True)


def sorted_labels(record: ImageRecord) -> ImageRecord:
    return replace(record, labels=dict(sorted(record.labels.items())))


def check_same_without(before: SearchAnswer, during: SearchAnswer) -> None:
    assert during.store_unreachable
    ordered = replace(during, hits=[replace(hit, record=sorted_labels(hit.record)) for hit in during.hits])
    assert same(without_store(before), ordered)


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_answers_without_redis_are_those_with_it_but_for_hash_and_time(
    server: RedisServer, gallery: Gallery, way: str
) -> None:
    asked = queries()
    before = {name: gallery.search(query) for name, query in asked.items()}
    assert not any(answer.store_unreachable for answer in before.values())
    assert len(before["all"].hits) == 39
    getattr(server, way)()
    for name, query in asked.items():
        check_same_without(before[name], gallery.search(query))
    with pytest.raises(StoreUnavailableError, match=AWAY):
        gallery.put(new_images(1))
    server.start()
    eventually(lambda: not gallery.search(QUERY).store_unreachable)
    for name, query in asked.items():
        after = gallery.search(query)
        assert not after.store_unreachable
        assert same(before[name], after)


def test_what_is_not_a_search_fails_at_once(server: RedisServer, gallery: Gallery, store: GalleryStore) -> None:
    server.stop()
    assert gallery.search(QUERY).store_unreachable
    uses: list[Callable[[], object]] = [
        lambda: gallery.get("image-000"),
        lambda: gallery.page(None, 10),
        lambda: gallery.thumbnail("image-000"),
        lambda: gallery.holding("image-000", "x"),
        lambda: gallery.put(new_images(1)),
        lambda: gallery.update("image-000", labels={}),
        lambda: gallery.delete(["image-000"]),
        lambda: gallery.set_match_defaults(None),
        gallery.labelled_images,
        lambda: store.create(gallery_spec("other")),
        store.list,
    ]
    for use in uses:
        with pytest.raises(StoreUnavailableError, match=AWAY):
            use()
    assert gallery.search(QUERY).store_unreachable


def test_a_record_for_a_search_is_known_without_redis(server: RedisServer, gallery: Gallery) -> None:
    before = {name: gallery.known(name) for name in ("image-005", "image-007", "image-014")}
    assert all(found == (gallery.get(name), False) for name, found in before.items())
    server.stop()
    for name, (record, _) in before.items():
        assert gallery.known(name) == (known(record), True)
    for name in ("image-011", "nobody"):
        with pytest.raises(ImageNotFoundError):
            gallery.known(name)
    server.start()
    eventually(lambda: gallery.known("image-005") == before["image-005"])


def test_what_expires_meanwhile_is_gone(server: RedisServer, gallery: Gallery) -> None:
    everything = replace(queries()["all"], settings=None)
    names = {hit.record.image_id for hit in gallery.search(everything).hits}
    ending = {name for name in names if gallery.get(name).expire_time_s is not None}
    assert len(ending) == 8
    server.stop()
    later = gallery.search(replace(everything, now_s=time.time() + 3700))
    assert {hit.record.image_id for hit in later.hits} == names - ending
    assert (later.store_unreachable, later.held_back) == (True, 0)


def test_what_was_removed_before_is_in_no_answer_whoever_removed_it(
    server: RedisServer, gallery: Gallery, tmp_path: Path
) -> None:
    everything = replace(queries()["all"], settings=None)
    with opened(server, tmp_path / "second") as other:
        other.gallery("demo").delete(["image-003"])
        other.gallery("demo").update("image-008", labels={"parity": "changed"})
        gallery.delete(["image-009"])
        last = gallery.sequence
        eventually(lambda: other.gallery("demo").sequence == last)
        server.stop()
        for each in (gallery, other.gallery("demo")):
            answer = each.search(everything)
            found = {hit.record.image_id: hit.record.labels for hit in answer.hits}
            assert answer.store_unreachable
            assert found.keys().isdisjoint({"image-003", "image-009", "image-011"})
            assert len(found) == 37
            assert found["image-008"] == {"parity": "changed"}


@contextmanager
def cut_off(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let one of several that share a server lose it alone."""
    link = gallery._truth._link  # type: ignore[attr-defined]
    session = RedisLink.session

    def cut(of: RedisLink) -> Any:
        if of is link:
            raise StoreUnavailableError("planted: the network is down")
        return session(of)

    with monkeypatch.context() as patch:
        patch.setattr(RedisLink, "session", cut)
        yield


def test_who_alone_was_cut_off_finds_what_others_removed_until_it_is_back(
    server: RedisServer, gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest = replace(QUERY, top_k=1)
    with opened(server, tmp_path / "second") as other:
        others = other.gallery("demo")
        with cut_off(gallery, monkeypatch):
            # What it is in the middle of ends first.
            eventually(lambda: gallery.search(QUERY).store_unreachable)
            before = gallery.sequence
            others.delete(["image-003"])
            answer = gallery.search(nearest)
            assert [hit.record.image_id for hit in answer.hits] == ["image-003"]
            assert (answer.store_unreachable, answer.sequence) == (True, before)
            assert "image-003" not in {hit.record.image_id for hit in others.search(QUERY).hits}
        # From its first look on, whether or not it has followed by then.
        gallery.page(None, 1)
        answer = gallery.search(nearest)
        assert not answer.store_unreachable
        assert [hit.record.image_id for hit in answer.hits] != ["image-003"]


def test_who_loses_redis_after_the_look_up_answers_what_that_said(
    server: RedisServer, gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(server, tmp_path / "second") as other:

        def lost(_: float) -> int:
            raise StoreUnavailableError("planted")

        monkeypatch.setattr(gallery._live, "follow", lost)
        # The follower may be at it.
        time.sleep(0.6)
        sequence = gallery.sequence
        other.gallery("demo").delete(["image-003"])
        answer = gallery.search(QUERY)
        assert (answer.held_back, answer.exact, answer.store_unreachable) == (1, False, False)
        assert answer.sequence == sequence
        assert len(answer.hits) == 4
        assert all(hit.record.content_hash for hit in answer.hits)


@pytest.mark.parametrize("late", [True, False])
def test_a_search_in_whose_middle_redis_goes_says_what_its_records_are(
    server: RedisServer, gallery: Gallery, monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    query = queries()["exhaustive"]
    before = gallery.search(query)
    assert before.depth_done > 2

    def gone(*given: Any) -> Any:
        server.stop()
        if late:
            monkeypatch.setattr(exhaustive, "look", lambda *_: None)
        return exhaustive.widen(*given)

    with monkeypatch.context() as patch:
        patch.setattr(search_module, "widen", gone)
        during = gallery.search(query)
    if late:
        # It had looked these up already.
        assert not during.store_unreachable
        assert all(hit.record.content_hash for hit in during.hits)
    else:
        check_same_without(before, during)


@pytest.mark.parametrize("after_s", [10.0, 75.0])
def test_it_ends_with_a_time_and_begins_anew_with_redis(
    server: RedisServer, gallery: Gallery, monkeypatch: pytest.MonkeyPatch, after_s: float
) -> None:
    reachability = gallery._reachability
    server.stop()
    assert gallery.search(QUERY).store_unreachable
    with monkeypatch.context() as patch:
        patch.setattr(reachability, "_clock", lambda: time.monotonic() + after_s)
        if after_s < 60:
            assert gallery.search(QUERY).store_unreachable
        else:
            for use in (lambda: gallery.search(QUERY), lambda: gallery.known("image-000")):
                with pytest.raises(
                    StoreUnavailableError,
                    match=r"the store of gallery 'demo' can't be reached for 7\d s; searches go on without it for 60 s "
                    rf"at most: redis://127.0.0.1:{server.port}/0 can't be used, it can't be reached",
                ):
                    use()
    server.start()
    eventually(lambda: not gallery.search(QUERY).store_unreachable)
    server.stop()
    assert gallery.search(QUERY).store_unreachable


def test_the_time_counts_from_the_last_answer_to_anybody(gallery: Gallery) -> None:
    # Nobody searches, yet the follower hears of the truth all the time.
    begin_s = time.monotonic()
    eventually(lambda: gallery._reachability._answered_s > begin_s + 1)
    assert gallery._reachability._answered_s <= time.monotonic()


def test_with_no_time_at_all_searches_fail_as_all_else_does(server: RedisServer, tmp_path: Path) -> None:
    with opened(server, tmp_path / "first", without_s=0.0) as store:
        gallery = filled(store)
        before = gallery.search(QUERY)
        server.stop()
        for use in (lambda: gallery.search(QUERY), lambda: gallery.known("image-000")):
            with pytest.raises(StoreUnavailableError, match=AWAY):
                use()
        server.start()
        # Every search asks: none has to wait for another to find out.
        assert same(before, gallery.search(QUERY))


def test_a_server_that_hangs_is_waited_for_once(server: RedisServer, tmp_path: Path) -> None:
    with opened(server, tmp_path / "patient", timeout_s=4.0) as store:
        gallery = filled(store)
        before = gallery.search(QUERY)
        server.pause()
        try:
            check_same_without(before, gallery.search(QUERY))
            begin_s, slowest_s = time.monotonic(), 0.0
            while time.monotonic() < begin_s + 5:
                start_s = time.monotonic()
                check_same_without(before, gallery.search(QUERY))
                assert gallery.known("image-005")[1]
                slowest_s = max(slowest_s, time.monotonic() - start_s)
            # Nobody waited for the time-out of 4 s.
            assert slowest_s < 3
        finally:
            server.resume()
        eventually(lambda: not gallery.search(QUERY).store_unreachable)
        assert same(before, gallery.search(QUERY))


def test_who_does_not_follow_looks_at_redis_again_all_the_same(
    server: RedisServer, gallery: Gallery, store: GalleryStore
) -> None:
    store._upkeep.stop()
    server.stop()
    assert gallery.search(QUERY).store_unreachable
    server.start()
    eventually(lambda: not gallery.search(QUERY).store_unreachable)


def test_a_server_that_is_still_loading_is_done_without(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    before = gallery.search(QUERY)

    def loading(*_: object) -> Any:
        raise StoreUnavailableError("planted: it is still loading its data")

    with monkeypatch.context() as patch:
        patch.setattr("matchflow_index.redis_view.RedisView.records_of", loading)
        check_same_without(before, gallery.search(QUERY))
    eventually(lambda: not gallery.search(QUERY).store_unreachable)


def test_a_gallery_that_is_gone_when_redis_is_back_is_not_searched(
    server: RedisServer, gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(server, tmp_path / "second") as other, cut_off(gallery, monkeypatch):
        eventually(lambda: gallery.search(QUERY).store_unreachable)
        other.delete("demo")
        assert gallery.search(QUERY).store_unreachable

    def is_gone() -> bool:
        try:
            assert gallery.search(QUERY).store_unreachable
        except GalleryNotFoundError:
            return True
        return False

    eventually(is_gone)
    for _ in range(3):
        with pytest.raises(GalleryNotFoundError):
            gallery.search(QUERY)


def test_who_only_reads_has_what_was_there_and_asks_nobody(
    server: RedisServer, gallery: Gallery, tmp_path: Path
) -> None:
    before = gallery.search(QUERY)
    with (
        open_truth(server, read_only=True) as truth,
        GalleryStore.open(tmp_path / "reader", truth=truth, read_only=True) as reader,
    ):
        kept = reader.gallery("demo")
        server.stop()
        during = kept.search(QUERY)
        assert not during.store_unreachable
        assert [hit.record for hit in during.hits] == [hit.record for hit in before.hits]


def test_caches_that_were_saved_hold_what_is_known(server: RedisServer, tmp_path: Path) -> None:
    with opened(server, tmp_path / "first") as store:
        before = filled(store).search(QUERY)
    for _ in range(2):
        # The second time they could not be saved.
        with opened(server, tmp_path / "first") as store:
            gallery = store.gallery("demo")
            assert same(before, gallery.search(QUERY))
            gallery.put([replace(new_images(1)[0], labels={"put": str(time.time())})])
            before = gallery.search(QUERY)
            server.stop()
            check_same_without(before, gallery.search(QUERY))
        server.start()


def test_an_outage_is_logged_once_and_so_is_its_end(
    server: RedisServer, gallery: Gallery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "matchflow_index.reachability")
    for _ in range(2):
        server.stop()
        for _ in range(20):
            gallery.search(QUERY)
        server.start()
        eventually(lambda: not gallery.search(QUERY).store_unreachable)
    said = [record for record in caplog.records if record.name == "matchflow_index.reachability"]
    assert [record.levelname for record in said] == ["WARNING", "INFO"] * 2
    assert "searches go on without the store, for 60 s at most" in said[0].getMessage()
    assert "its store answers again, after" in said[1].getMessage()


def test_features_of_a_stored_image_need_no_redis(server: RedisServer, gallery: Gallery) -> None:
    before = gallery.features("image-020")
    server.stop()
    assert np.array_equal(gallery.features("image-020").cells, before.cells)
    server.start()


def test_who_asks_for_generations_meanwhile_is_in_no_way_of_searches(
    server: RedisServer, gallery: Gallery, store: GalleryStore
) -> None:
    before = gallery.search(QUERY)
    server.kill()
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            store.generations("demo")
    assert store.gallery("demo") is gallery
    during = store.gallery("demo").search(QUERY)
    assert during.store_unreachable
    assert [hit.score for hit in during.hits] == [hit.score for hit in before.hits]
    server.start()
    assert store.generations("demo").active == gallery.stored


def test_who_waits_for_a_server_that_hangs_is_in_no_way_of_searches(server: RedisServer, tmp_path: Path) -> None:
    with opened(server, tmp_path / "patient", timeout_s=5.0) as store:
        gallery = filled(store)
        assert gallery.search(QUERY).hits

        def ask() -> None:
            with pytest.raises(StoreUnavailableError):
                store.generations("demo")

        server.pause()
        try:
            thread = threading.Thread(target=ask)
            thread.start()
            while not store._loading.locked():
                assert thread.is_alive()
            assert store.gallery("demo") is gallery
            assert store._loading.locked()
            thread.join(LIMIT_S)
            assert not thread.is_alive()
        finally:
            server.resume()


def test_a_default_is_known_before_anybody_asks_for_it(server: RedisServer, tmp_path: Path) -> None:
    with opened(server, tmp_path / "a") as store:
        filled(store).set_match_defaults(MatchDefaults(depth=7))
    with opened(server, tmp_path / "b") as store:
        gallery = store.gallery("demo")
        server.kill()
        assert gallery.match_defaults.depth == 7

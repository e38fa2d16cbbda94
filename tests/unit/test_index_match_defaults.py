"""What a gallery is searched by when nothing is said: kept in the truth, changed at any time, no part of the spec."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_samples import gallery_spec, new_images

from matchflow_index import (
    GalleryNotFoundError,
    GalleryStore,
    InvalidQueryError,
    MatchDefaults,
    StoreUnavailableError,
)
from matchflow_matching import Marginals, MatchMode, MatchSettings

if TYPE_CHECKING:
    from pathlib import Path

TUNED = MatchDefaults(settings=MatchSettings.of(MatchMode.PARTIAL, spatial_weight=0.3, global_weight=2.0), depth=321)
OTHER = MatchDefaults(settings=MatchSettings(mode=MatchMode.COSINE), depth=1)


def settings_of(mode: MatchMode) -> st.SearchStrategy[MatchSettings]:
    takes_spatial = mode in {MatchMode.MAX_SIM, MatchMode.POSITION_AWARE, MatchMode.EARTH_MOVER, MatchMode.PARTIAL}
    return st.builds(
        MatchSettings,
        mode=st.just(mode),
        global_weight=st.floats(0, 10),
        marginals=st.sampled_from(Marginals),
        epsilon=st.floats(0.03, 10),
        tolerance=st.floats(1e-6, 1),
        max_iterations=st.integers(1, 10_000),
        spatial_weight=st.floats(0, 100) if takes_spatial else st.just(0.0),
        matched_mass=st.floats(0.05, 1) if mode is MatchMode.PARTIAL else st.just(1.0),
    )


@given(settings=st.sampled_from(MatchMode).flatmap(settings_of), depth=st.integers(1, 10**6))
def test_what_was_written_is_read_again(settings: MatchSettings, depth: int) -> None:
    defaults = MatchDefaults(settings=settings, depth=depth)
    assert MatchDefaults.decode(defaults.encode(), "demo") == defaults


def test_a_setting_that_was_not_known_yet_has_its_plain_value() -> None:
    older = json.dumps({"depth": 7, "settings": {"mode": "max_sim", "epsilon": 1}}).encode()
    assert MatchDefaults.decode(older, "demo") == MatchDefaults(
        settings=MatchSettings(mode=MatchMode.MAX_SIM, epsilon=1.0), depth=7
    )


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b'{"depth": 1}',
        b'{"depth": 1, "settings": null}',
        b'{"depth": 1, "settings": {}, "later": 1}',
        b'{"depth": 0, "settings": {}}',
        b'{"depth": true, "settings": {}}',
        b'{"depth": "9", "settings": {}}',
        b'{"depth": 1, "settings": {"mode": "of_a_later_program"}}',
        b'{"depth": 1, "settings": {"setting_of_a_later_program": 1}}',
        b'{"depth": 1, "settings": {"of": 1}}',
        b'{"depth": 1, "settings": {"epsilon": "0.05"}}',
        b'{"depth": 1, "settings": {"epsilon": NaN}}',
        b'{"depth": 1, "settings": {"epsilon": false}}',
        b'{"depth": 1, "settings": {"epsilon": 1e999}}',
        b'{"depth": 1, "settings": {"epsilon": 1' + 400 * b"0" + b"}}",
        b'{"depth": 1, "settings": {"max_iterations": 2.5}}',
        b'{"depth": 1, "settings": {"mode": "same_cell", "spatial_weight": 1}}',
    ],
)
def test_what_is_not_understood_is_said_to_be_so(damaged: bytes) -> None:
    with pytest.raises(StoreUnavailableError, match="match defaults of gallery demo can't be read; set them again"):
        MatchDefaults.decode(damaged, "demo")


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_that_no_search_takes_is_refused(depth: int) -> None:
    with pytest.raises(InvalidQueryError, match=f"at least 1; got {depth}"):
        MatchDefaults(depth=depth)


def test_a_new_gallery_is_searched_as_the_paper_does(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        assert store.create(gallery_spec()).match_defaults == MatchDefaults(settings=MatchSettings(), depth=100)


def test_defaults_survive_a_restart_and_can_be_taken_back(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.set_match_defaults(OTHER)
        gallery.set_match_defaults(TUNED)
        assert gallery.match_defaults == TUNED
    with GalleryStore.open(tmp_path) as store:
        assert store.gallery("demo").match_defaults == TUNED
        store.gallery("demo").set_match_defaults(None)
        assert store.gallery("demo").match_defaults == MatchDefaults()
    with GalleryStore.open(tmp_path) as store:
        assert store.gallery("demo").match_defaults == MatchDefaults()


def test_setting_defaults_is_no_change_of_the_images_nor_of_the_spec(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(new_images(3))
    caches = {path: path.read_bytes() for path in tmp_path.glob("caches/**/*.*")}
    with GalleryStore.open(tmp_path) as store:
        gallery = store.gallery("demo")
        gallery.set_match_defaults(TUNED)
        assert gallery.sequence == 3
        assert gallery.spec == gallery_spec()
        assert store.list() == [gallery_spec()]
    assert {path: path.read_bytes() for path in tmp_path.glob("caches/**/*.*")} == caches


def test_each_gallery_has_its_own_and_one_created_again_has_none(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        first, second = store.create(gallery_spec("first")), store.create(gallery_spec("second"))
        first.set_match_defaults(TUNED)
        second.set_match_defaults(OTHER)
        store.delete("first")
        with pytest.raises(GalleryNotFoundError):
            first.set_match_defaults(OTHER)
        assert store.create(gallery_spec("first")).match_defaults == MatchDefaults()
        assert second.match_defaults == OTHER


def test_a_read_only_store_shows_defaults_and_refuses_others(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        store.create(gallery_spec()).set_match_defaults(TUNED)
    with GalleryStore.open(tmp_path, read_only=True) as store:
        for defaults in (OTHER, None):
            with pytest.raises(StoreUnavailableError, match="read-only"):
                store.gallery("demo").set_match_defaults(defaults)
        assert store.gallery("demo").match_defaults == TUNED


def test_a_closed_store_has_no_defaults_to_set(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
    with pytest.raises(StoreUnavailableError):
        gallery.set_match_defaults(TUNED)
    with pytest.raises(StoreUnavailableError):
        _ = gallery.match_defaults


def open_databases(store: Path, **options: Any) -> Any:
    return lmdb.open(str(store / "truth.lmdb"), max_dbs=16, **options)


def without_defaults(store: Path) -> None:
    """Make a store one that was written before there were match defaults."""
    with open_databases(store) as environment, environment.begin(write=True) as transaction:
        transaction.drop(environment.open_db(b"defaults", transaction))


@pytest.mark.parametrize("read_only", [False, True])
def test_an_older_store_opens_with_the_papers_defaults(tmp_path: Path, *, read_only: bool) -> None:
    with GalleryStore.open(tmp_path) as store:
        store.create(gallery_spec()).put(new_images(2))
    without_defaults(tmp_path)
    with GalleryStore.open(tmp_path, read_only=read_only) as store:
        gallery = store.gallery("demo")
        assert gallery.count == 2
        assert gallery.match_defaults == MatchDefaults()
        if not read_only:
            gallery.set_match_defaults(TUNED)
            assert gallery.match_defaults == TUNED


def test_damaged_defaults_are_named_and_stop_nothing_else(tmp_path: Path) -> None:
    with GalleryStore.open(tmp_path) as store:
        for name in ("demo", "other"):
            store.create(gallery_spec(name)).put(new_images(2))
            store.gallery(name).set_match_defaults(TUNED)
    with open_databases(tmp_path) as environment, environment.begin(write=True) as transaction:
        (first, *_) = transaction.cursor(environment.open_db(b"defaults", transaction)).iternext(values=False)
        transaction.put(first, b'{"depth":', db=environment.open_db(b"defaults", transaction))
    with GalleryStore.open(tmp_path) as store:
        gallery = store.gallery("demo")
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="gallery demo can't be read"):
                _ = gallery.match_defaults
        assert gallery.count == 2
        assert store.gallery("other").match_defaults == TUNED
        gallery.set_match_defaults(OTHER)
        assert gallery.match_defaults == OTHER


def test_many_threads_set_and_read_and_end_on_what_is_on_disk(tmp_path: Path) -> None:
    seen: set[MatchDefaults] = set()
    choices = [MatchDefaults(depth=depth) for depth in range(1, 9)]
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())

        def work(defaults: MatchDefaults) -> None:
            for _ in range(5):
                gallery.set_match_defaults(defaults)
                seen.add(gallery.match_defaults)

        threads = [threading.Thread(target=work, args=(defaults,)) for defaults in choices]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        last = gallery.match_defaults
    assert seen <= set(choices)
    with GalleryStore.open(tmp_path) as store:
        assert store.gallery("demo").match_defaults == last

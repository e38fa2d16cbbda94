"""What is called exact is what sorting everything gives; an exhaustive search proves it, or says that it could not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_samples import DIM, GRID, gallery_spec, naive_search, new_image, new_images, sample_features

from matchflow_bundle import Encoder, decode_image
from matchflow_index import (
    Gallery,
    GalleryStore,
    ImageFilter,
    LabelCondition,
    RerankState,
    SearchQuery,
    answers,
    exhaustive,
    limits,
    queries,
)
from matchflow_index.exhaustive import look
from matchflow_index.labels import LabelKind
from matchflow_matching import FeatureBatch, MatchMode, MatchSettings, explain, match, quantise, top_flows
from matching_strategies import random_batch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_bundle import Bundle
    from matchflow_index import NewImage, SearchAnswer
    from matchflow_index.sight import Sight
    from matchflow_matching import CellGrid, Matches

Plant = Callable[[pytest.MonkeyPatch, float], None]
MODES = [mode for mode in MatchMode if mode is not MatchMode.COSINE]
ODD = ImageFilter(conditions=(LabelCondition(field="parity", any_of=frozenset({"odd"})),))


def shown(answer: SearchAnswer) -> list[tuple[str, float]]:
    return [(hit.record.image_id, hit.score) for hit in answer.hits]


def check_proof(answer: SearchAnswer, images: list[NewImage], query: SearchQuery, grid: CellGrid = GRID) -> None:
    """Hold an answer to what it claims."""
    everything = naive_search(images, query, grid=grid, exhaustive=True)
    inside = sum(query.filter.accepts(record_like(image)) for image in images)
    if answer.exact:
        assert shown(answer) == everything
        assert answer.depth_done + answer.proved_below == inside
    assert answer.depth_done + answer.proved_below <= inside
    if query.exhaustive:
        assert answer.exact == (answer.rerank_state is RerankState.COMPLETE)


def record_like(image: NewImage) -> Any:
    """A filter looks at id and labels only, which images and records name alike."""
    return image


# Real features


@dataclass(frozen=True)
class RealImages:
    gallery: Gallery
    images: list[NewImage]
    grid: CellGrid
    queries: FeatureBatch


@pytest.fixture(scope="module")
def real(
    sample_bundle: Bundle, sample_images: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealImages]:
    """Every fourth drawing of each designer, some of them twice under other names, some replaced and some deleted."""
    paths = [(name, path) for name, files in sample_images.items() for path in files[::4]]
    preprocessing = sample_bundle.manifest.preprocessing
    inputs = np.stack([preprocessing.apply(decode_image(path.read_bytes())) for _, path in paths])
    encoder = Encoder.open(sample_bundle)
    parts = [encoder.encode(inputs[start : start + 32]) for start in range(0, len(inputs), 32)]
    batch = quantise(np.concatenate([g for g, _ in parts]), np.concatenate([z for _, z in parts]))
    grid = sample_bundle.manifest.grid
    images = [
        new_image(f"{designer}-{path.stem}", batch[k], {"designer": designer})
        for k, (designer, path) in enumerate(paths)
    ]
    copies = [replace(image, image_id=f"copy-{image.image_id}") for image in images[::7]]
    with GalleryStore.open(tmp_path_factory.mktemp("real")) as store:
        spec = replace(gallery_spec(), grid=grid, embedding_dim=batch.embeddings.shape[1])
        gallery = store.create(spec)
        gallery.put([replace(image, features=batch[0], content_hash="old") for image in images[::5]])
        gallery.put([*images, *copies])
        gallery.delete([image.image_id for image in images[::11]])
        left = [image for k, image in enumerate(images) if k % 11]
        yield RealImages(gallery=gallery, images=[*left, *copies], grid=grid, queries=batch)


@pytest.mark.parametrize("top_k", [1, 10])
@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("mode", MODES)
def test_of_real_images_the_answer_is_that_of_matching_all(
    real: RealImages, mode: MatchMode, weight: float, top_k: int
) -> None:
    for place in range(3, len(real.queries), 67):
        chosen = MatchSettings.of(mode, global_weight=weight)
        query = SearchQuery(features=real.queries[place], top_k=top_k, depth=20, settings=chosen, max_flows=0)
        check_proof(real.gallery.search(query), real.images, query, real.grid)
        query = replace(query, exhaustive=True)
        answer = real.gallery.search(query)
        assert answer.exact
        check_proof(answer, real.images, query, real.grid)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_of_real_images_any_filter_and_cut_is_answered_exactly(data: st.DataObject, real: RealImages) -> None:
    designers = sorted({image.labels["designer"] for image in real.images})
    conditions = st.builds(
        LabelCondition,
        field=st.just("designer"),
        any_of=st.frozensets(st.sampled_from(designers)),
        negated=st.booleans(),
    )
    names = st.sampled_from([image.image_id for image in real.images])
    query = SearchQuery(
        features=real.queries[data.draw(st.integers(0, len(real.queries) - 1))],
        top_k=data.draw(st.integers(1, 40)),
        depth=data.draw(st.integers(1, 60)),
        settings=MatchSettings.of(data.draw(st.sampled_from(MODES)), global_weight=data.draw(st.sampled_from([0, 1]))),
        max_flows=0,
        filter=ImageFilter(
            conditions=tuple(data.draw(st.lists(conditions, max_size=1))),
            exclude=data.draw(st.frozensets(names, max_size=50)),
        ),
        min_score=data.draw(st.none() | st.floats(0, 2)),
        exhaustive=data.draw(st.booleans()),
    )
    check_proof(real.gallery.search(query), real.images, query, real.grid)


def test_bounds_leave_most_of_the_real_pairs_unsolved(real: RealImages) -> None:
    """The point of it all; the shares are far from the edge."""
    for mode, most in ((MatchMode.STRUCTURAL, 0.7), (MatchMode.EARTH_MOVER, 0.7)):
        chosen = MatchSettings.of(mode, global_weight=1)
        found = [
            real.gallery.search(
                SearchQuery(features=real.queries[k], top_k=1, depth=20, settings=chosen, max_flows=0, exhaustive=True)
            )
            for k in range(3, len(real.queries), 67)
        ]
        assert np.mean([answer.depth_done for answer in found]) < most * len(real.images)


# Any features


@dataclass(frozen=True)
class World:
    gallery: Gallery
    images: list[NewImage]


@pytest.fixture(scope="module", params=["scattered", "alike", "copies", "long"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """300 images that differ much, or little, or are copies of a few, or some of which have cells that are too long."""
    spread = {"scattered": 3.0, "alike": 0.05}.get(request.param, 0.5)
    batch = random_batch(np.random.default_rng(4), 300, GRID.size, DIM, spread)
    sources = np.arange(300) % 7 if request.param == "copies" else np.arange(300)
    batch = batch.take(sources)
    if request.param == "long":
        batch.scales[::40] *= np.float16(1.5)
    names = [f"image-{k:03}" for k in np.random.default_rng(5).permutation(300)]
    images = [new_image(name, batch[k], {"parity": "odd" if k % 2 else "even"}) for k, name in enumerate(names)]
    with GalleryStore.open(tmp_path_factory.mktemp("world")) as store:
        gallery = store.create(gallery_spec())
        gallery.put(new_images(40, seed=9))
        gallery.delete([f"image-{k:03}" for k in range(0, 40, 2)])
        gallery.put(images)
        gallery.delete(names[::13])
        yield World(gallery, [image for k, image in enumerate(images) if k % 13])


@st.composite
def searches(draw: st.DrawFn) -> SearchQuery:
    mode = draw(st.sampled_from(MODES))
    weight = draw(st.sampled_from([0.0, 0.3, 1.0, 10.0]))
    return SearchQuery(
        features=sample_features(1, seed=draw(st.integers(0, 50)))[0],
        top_k=draw(st.integers(1, 20) | st.integers(250, 320)),
        depth=draw(st.integers(1, 20) | st.integers(250, 320)),
        settings=MatchSettings.of(mode, global_weight=weight),
        max_flows=0,
        filter=draw(st.sampled_from([ImageFilter(), ODD, replace(ODD, exclude=frozenset({"image-001"}))])),
        min_score=draw(st.none() | st.floats(-1, 2)),
        exhaustive=draw(st.booleans()),
    )


def elsewhere(sight: Sight, query: SearchQuery) -> exhaustive.Moment | None:
    """Look at a gallery as if it had changed since the two stages were done."""
    moment = look(sight, query)
    return moment and replace(moment, sequence=moment.sequence + 1)


@given(query=searches(), changed=st.booleans())
@settings(deadline=None, max_examples=150)
def test_what_is_called_exact_is_what_sorting_everything_gives(
    world: World, query: SearchQuery, *, changed: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exhaustive, "look", elsewhere if changed else look)
        answer = world.gallery.search(query)
    check_proof(answer, world.images, query)
    if query.exhaustive:
        assert answer.exact


@given(query=searches(), stage=st.sampled_from([None, MatchSettings(mode=MatchMode.COSINE)]))
@settings(deadline=None, max_examples=50)
def test_the_coarse_stage_alone_is_exact(world: World, query: SearchQuery, stage: MatchSettings | None) -> None:
    query = replace(query, settings=stage)
    answer = world.gallery.search(query)
    assert answer.exact
    assert (answer.depth_done, answer.proved_below) == (0, 0)
    assert answer.rerank_state is RerankState.NOT_REQUESTED
    assert shown(answer) == naive_search(world.images, query)


@pytest.mark.parametrize("chunk", [(1, 1), (5, 3), (128, 10_000)])
def test_the_answer_does_not_depend_on_how_much_is_matched_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch, chunk: tuple[int, int]
) -> None:
    query = SearchQuery(features=sample_features(1, seed=3)[0], top_k=5, depth=1, exhaustive=True)
    whole = world.gallery.search(query)
    monkeypatch.setattr(exhaustive, "FIRST_CHUNK", chunk[0])
    monkeypatch.setattr(exhaustive, "CHUNK_BYTES", chunk[1])
    monkeypatch.setattr(exhaustive, "SMALLEST_CHUNK", 1)
    monkeypatch.setattr(exhaustive, "COSINE_STEP", 7)
    assert world.gallery.search(query).hits == whole.hits


def test_hits_of_an_exhaustive_search_carry_what_they_carry_otherwise(world: World) -> None:
    features = sample_features(1, seed=3)[0]
    chosen = MatchSettings.of(MatchMode.EARTH_MOVER)
    query = SearchQuery(features=features, top_k=300, depth=300, settings=chosen, max_flows=3)
    places = {hit.record.image_id: hit for hit in world.gallery.search(query).hits}
    answer = world.gallery.search(replace(query, top_k=12, depth=1, exhaustive=True))
    assert len(answer.hits) == 12
    for hit in answer.hits:
        assert hit == places[hit.record.image_id]
        stored = world.gallery.features(hit.record.image_id)
        assert hit.flows == top_flows(explain(features, stored, chosen, grid=GRID), 3)
        matches = match(features, FeatureBatch.stack([stored]), chosen, grid=GRID)
        assert hit.certificate == answers.certificate(matches, 0, MatchMode.EARTH_MOVER)


@pytest.mark.parametrize("mode", MODES)
def test_exact_solvers_state_their_gap_and_transport_its_certificate(world: World, mode: MatchMode) -> None:
    chosen = MatchSettings.of(mode)
    for hit in world.gallery.search(SearchQuery(features=sample_features(1)[0], settings=chosen)).hits:
        solves = mode in {MatchMode.STRUCTURAL, MatchMode.POSITION_AWARE, MatchMode.EARTH_MOVER, MatchMode.PARTIAL}
        assert (hit.certificate is not None) == solves
        if hit.certificate is not None:
            exact = mode in {MatchMode.EARTH_MOVER, MatchMode.PARTIAL}
            assert (hit.certificate.duality_gap is not None) == exact
            assert abs(hit.certificate.duality_gap or 0) < 1e-4


# The test of the tests


def disagreements(
    gallery: Gallery,
    images: list[NewImage],
    asked: FeatureBatch,
    settings: MatchSettings,
    *,
    grid: CellGrid = GRID,
    top_k: int = 3,
    exhaustively: bool = True,
) -> int:
    """Return how many searches call something exact that is not what sorting everything gives."""
    found = 0
    for k in range(len(asked)):
        query = SearchQuery(
            features=asked[k],
            top_k=top_k,
            depth=top_k,
            settings=settings,
            max_flows=0,
            exhaustive=exhaustively,
        )
        try:
            check_proof(gallery.search(query), images, query, grid)
        except AssertionError:
            found += 1
    return found


def plant_low_limits(patch: pytest.MonkeyPatch, by: float) -> None:
    """Take something off what images are said to score at most."""
    real_limits = limits.score_limits

    def wrong(*given: Any) -> Any:
        return real_limits(*given) - by

    patch.setattr(limits, "score_limits", wrong)
    patch.setattr(exhaustive, "score_limits", wrong)


def plant_low_pair_bounds(patch: pytest.MonkeyPatch, by: float) -> None:
    """Let pairs be left out whose bound is above the floor."""

    def wrong(*given: Any, floor: float | None, **named: Any) -> Matches:
        return match(*given, floor=None if floor is None else floor + by, **named)

    patch.setattr(exhaustive, "match", wrong)


@pytest.mark.parametrize(("plant", "by"), [(plant_low_limits, 0.8), (plant_low_pair_bounds, 0.1)])
@pytest.mark.parametrize("mode", [MatchMode.STRUCTURAL, MatchMode.POSITION_AWARE, MatchMode.EARTH_MOVER])
def test_a_bound_that_is_too_low_would_be_found(
    world: World, monkeypatch: pytest.MonkeyPatch, mode: MatchMode, plant: Plant, by: float
) -> None:
    monkeypatch.setattr(exhaustive, "FIRST_CHUNK", 8)
    asked, chosen = sample_features(40), MatchSettings.of(mode, global_weight=0)
    assert disagreements(world.gallery, world.images, asked, chosen) == 0
    plant(monkeypatch, by)
    assert disagreements(world.gallery, world.images, asked, chosen) > 0


@pytest.mark.parametrize(
    ("weight", "plant", "by"),
    [
        (0.0, plant_low_limits, 0.8),
        (0.0, plant_low_pair_bounds, 0.1),
        (1.0, plant_low_limits, 1.5),
        (1.0, plant_low_pair_bounds, 0.5),
    ],
)
def test_a_bound_that_is_too_low_would_be_found_on_real_images(
    real: RealImages, monkeypatch: pytest.MonkeyPatch, weight: float, plant: Plant, by: float
) -> None:
    monkeypatch.setattr(exhaustive, "FIRST_CHUNK", 4)
    asked = real.queries.take(slice(0, None, 5))
    chosen = MatchSettings.of(MatchMode.EARTH_MOVER, global_weight=weight)
    assert disagreements(real.gallery, real.images, asked, chosen, grid=real.grid, top_k=10) == 0
    plant(monkeypatch, by)
    assert disagreements(real.gallery, real.images, asked, chosen, grid=real.grid, top_k=10) > 0


def test_a_limit_that_is_too_low_would_be_found_in_a_search_that_is_not_exhaustive(
    real: RealImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, chosen = real.queries.take(slice(0, None, 5)), MatchSettings()

    def found() -> int:
        return disagreements(real.gallery, real.images, asked, chosen, grid=real.grid, top_k=10, exhaustively=False)

    assert found() == 0
    plant_low_limits(monkeypatch, 1.0)
    assert found() > 0


# Deadlines


class ScriptedClock:
    """Time passes by one second with every look at the monotonic clock."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        self.now_s += 1.0
        return self.now_s


@pytest.mark.parametrize(("top_k", "min_score"), [(4, None), (4, 0.4), (60, None)])
def test_whenever_the_deadline_comes_the_answer_says_what_was_done(
    world: World, monkeypatch: pytest.MonkeyPatch, top_k: int, min_score: float | None
) -> None:
    monkeypatch.setattr(queries, "SLICE_S", 0.0)
    query = SearchQuery(
        features=sample_features(1, seed=8)[0],
        top_k=top_k,
        depth=40,
        settings=MatchSettings.of(MatchMode.POSITION_AWARE),
        max_flows=0,
        exhaustive=True,
        min_score=min_score,
    )
    everything = replace(query, top_k=1000, min_score=None)
    scores = dict(naive_search(world.images, everything, exhaustive=True))
    states, done = [], []
    for deadline in range(1, 20):
        monkeypatch.setattr(queries, "time", ScriptedClock())
        answer = world.gallery.search(replace(query, deadline=deadline + 0.5))
        check_proof(answer, world.images, query)
        matched = [hit for hit in answer.hits if hit.structural is not None]
        assert all(hit.score == scores[hit.record.image_id] for hit in matched)
        assert [hit.score for hit in matched] == sorted((hit.score for hit in matched), reverse=True)
        assert len(answer.hits) == top_k or min_score is not None
        states.append(answer.rerank_state)
        done.append(answer.depth_done + answer.proved_below)
    assert states[0] is RerankState.PARTIAL
    assert states[-1] is RerankState.COMPLETE
    assert states == sorted(states, key=states.index)
    assert done == sorted(done)
    assert len(set(done)) > 4


def test_a_deadline_that_has_passed_gives_the_coarse_order(world: World) -> None:
    query = SearchQuery(features=sample_features(1)[0], exhaustive=True, deadline=0.0)
    answer = world.gallery.search(query)
    assert (answer.rerank_state, answer.exact, answer.depth_done) == (RerankState.SKIPPED_DEADLINE, False, 0)
    assert answer.hits == world.gallery.search(replace(query, settings=None, deadline=None)).hits


# What is empty or can't be read


@pytest.mark.parametrize("exhaustively", [False, True])
def test_of_an_empty_gallery_everything_is_proved(tmp_path: Path, *, exhaustively: bool) -> None:
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        for change in ({}, {"settings": None}, {"deadline": 0.0}):
            query = replace(SearchQuery(features=sample_features(1)[0], exhaustive=exhaustively), **change)
            answer = gallery.search(query)
            assert (answer.hits, answer.exact, answer.depth_done, answer.proved_below) == ([], True, 0, 0)


def test_what_an_index_shows_against_the_filter_is_no_proof(world: World) -> None:
    # A fault is planted: the column says odd of every image.
    stored = world.gallery._shelf.slots.labels._columns["parity", LabelKind.TEXT]
    column = stored.entries.values
    before = column.copy()
    column[:] = stored.texts["odd"]
    try:
        for exhaustively in (False, True):
            query = SearchQuery(
                features=sample_features(1)[0], top_k=50, filter=ODD, max_flows=0, exhaustive=exhaustively
            )
            answer = world.gallery.search(query)
            assert 0 < len(answer.hits) < 50
            assert not answer.exact
    finally:
        column[:] = before


@pytest.mark.parametrize("where", ["embedding", "scales"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_row_that_is_not_finite_comes_last_and_spoils_no_proof(tmp_path: Path, where: str, weight: float) -> None:
    images = new_images(60)
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(images[1:])
        damaged = replace(images[0].features, **{where: np.full_like(getattr(images[0].features, where), np.nan)})
        # The check of what is put is gone around.
        image = replace(images[0], features=damaged)
        gallery._commit(lambda writing: writing.put(image))
        for top_k in (3, 100):
            query = SearchQuery(
                features=sample_features(1, seed=7)[0],
                top_k=top_k,
                depth=2,
                settings=MatchSettings(global_weight=weight),
                max_flows=0,
                exhaustive=True,
            )
            answer = gallery.search(query)
            assert answer.exact
            assert shown(answer)[:59] == naive_search(images[1:], query, exhaustive=True)
            assert (answer.hits[-1].record.image_id == "image-000") == (top_k == 100)


# While others write


def test_a_search_answers_from_one_moment_whatever_happens_to_the_gallery_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of it the slab grows into another mapping, images go, and in the end the whole gallery does."""
    images = new_images(400)
    query = SearchQuery(
        features=sample_features(1, seed=7)[0],
        top_k=300,
        depth=10,
        settings=MatchSettings.of(MatchMode.POSITION_AWARE),
        max_flows=2,
        exhaustive=True,
    )
    calls = []
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(images)
        before = gallery.search(query)

        def disturbed(*given: Any, **named: Any) -> Matches:
            calls.append(len(given[1]))
            if len(calls) == 1:
                gallery.put(new_images(3000, seed=1, prefix="later"))
                gallery.delete([image.image_id for image in images[::2]])
                gallery.put([new_image(image.image_id, sample_features(1, seed=2)[0]) for image in images[1::2]])
            elif len(calls) == 2:
                store.delete("demo")
            return match(*given, **named)

        monkeypatch.setattr(exhaustive, "match", disturbed)
        monkeypatch.setattr(exhaustive, "CHUNK_BYTES", 1)
        monkeypatch.setattr(exhaustive, "FIRST_CHUNK", 1)
        during = gallery.search(query)
    assert len(calls) > 2
    assert (during.hits, during.sequence, during.exact) == (before.hits, before.sequence, True)


def test_what_was_matched_before_a_change_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = new_images(200)
    query = SearchQuery(features=sample_features(1, seed=7)[0], top_k=5, depth=50, max_flows=0, exhaustive=True)
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put(images)
        gone = {hit.record.image_id for hit in gallery.search(query).hits[:3]}

        def changed(sight: Sight, query: SearchQuery) -> exhaustive.Moment | None:
            gallery.delete(gone)
            return look(sight, query)

        monkeypatch.setattr(exhaustive, "look", changed)
        answer = gallery.search(query)
    assert answer.exact
    assert answer.sequence == 203
    assert shown(answer) == naive_search([i for i in images if i.image_id not in gone], query, exhaustive=True)


def test_searches_see_all_of_a_put_or_nothing_of_it(tmp_path: Path) -> None:
    """A writer gives all images the same new version, again and again; no exhaustive search may see two versions."""
    names = [f"image-{k:03}" for k in range(40)]
    batches = [sample_features(len(names), seed=version) for version in range(20)]
    finished, trouble = threading.Event(), []
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())

        def put(version: int) -> None:
            gallery.put([new_image(name, batches[version][k], {"v": str(version)}) for k, name in enumerate(names)])

        def look() -> None:
            seen = 0
            while not finished.is_set() or not seen:
                query = SearchQuery(features=batches[seen % 20][0], top_k=39, depth=1, max_flows=1, exhaustive=True)
                answer = gallery.search(query)
                shown = {hit.record.labels["v"] for hit in answer.hits}
                if len(answer.hits) != 39 or len(shown) != 1 or not answer.exact:
                    trouble.append((len(answer.hits), shown, answer.exact))
                seen += 1

        put(0)
        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for version in range(1, 20):
            put(version)
        finished.set()
        for thread in threads:
            thread.join(60)
    assert not trouble

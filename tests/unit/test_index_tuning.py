from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchflow_index import InvalidQueryError, LabelledImages, MatchDefaults, evaluate
from matchflow_index.evaluation import Method
from matchflow_index.tuning import best_of, choose, query_times_ms, tune
from matchflow_index.tuning_grid import (
    EXACT_MODES,
    NO_SECOND_STAGE,
    PLAIN_MODES,
    candidates,
    depths_for,
    relative_cost,
    solver_settings,
    terms,
)
from matchflow_index.tuning_halves import Half, TuningTask, exams, half_of
from matchflow_index.tuning_quality import Qualities, assess, measured
from matchflow_matching import CellGrid, FeatureBatch, Marginals, MatchMode, MatchSettings, match, quantise
from matchflow_matching.matchers import FLOAT32_EPSILONS
from matching_strategies import random_batch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from matchflow_index.tuning import TuningReport

GRID = CellGrid(rows=2, columns=3)
DIM = 24
TASK = TuningTask(class_field="class")
CLASSES = [f"class-{k}" for k in range(14)]
POSITIONAL = {MatchMode.SAME_CELL, MatchMode.STRIPES}


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    lengths: NDArray[np.float64] = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / lengths).astype(np.float32)


def images_of(cells: NDArray[np.float64], labels: Sequence[Mapping[str, str]], seed: int) -> LabelledImages:
    """Return images with these cells [N, R, D] and global vectors that tell nothing."""
    rng = np.random.default_rng(seed)
    noise = unit(rng.normal(size=(len(cells), cells.shape[2])))
    return LabelledImages(
        image_ids=tuple(f"image-{k:03}" for k in rng.permutation(len(cells))),
        labels=tuple(labels),
        grid=GRID,
        features=quantise(noise, unit(cells)),
    )


def arranged(*, displaced: bool, copies: int = 4, seed: int = 0, noise: float = 0.15) -> LabelledImages:
    """Return classes that only their cells tell apart.

    Not displaced: all classes have the same parts, each in places of its own. Displaced: each class has parts of its
    own, which lie in other places in every image.
    """
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(GRID.size, DIM))
    orders = list(permutations(range(GRID.size)))
    rng.shuffle(orders)
    cells, labels = [], []
    for k, name in enumerate(CLASSES):
        own = rng.normal(size=(GRID.size, DIM))
        for copy in range(copies):
            parts = own[rng.permutation(GRID.size)] if displaced else shared[list(orders[k])]
            cells.append(parts + noise * rng.normal(size=parts.shape))
            labels.append({"class": name, "designer": f"d{copy}"})
    return images_of(np.array(cells), labels, seed)


def scattered(count: int, seed: int, classes: int = 6) -> LabelledImages:
    """Return images of random classes and designers; every seventh has no class."""
    rng = np.random.default_rng(seed)
    labels = [
        {"designer": f"d{rng.integers(3)}"} | ({"class": f"c{rng.integers(classes)}"} if k % 7 else {})
        for k in range(count)
    ]
    features = random_batch(rng, count, GRID.size, DIM)
    copies = np.arange(count)
    # Some equal images, so that ties matter.
    copies[1::5] = copies[0::5][: len(copies[1::5])]
    return LabelledImages(
        image_ids=tuple(f"image-{k:03}" for k in rng.permutation(count)),
        labels=tuple(labels),
        grid=GRID,
        features=features.take(copies),
    )


def taken(images: LabelledImages, rows: Sequence[int]) -> LabelledImages:
    return LabelledImages(
        image_ids=tuple(images.image_ids[k] for k in rows),
        labels=tuple(images.labels[k] for k in rows),
        grid=images.grid,
        features=images.features.take(np.array(rows, np.intp)),
    )


def without_times(report: TuningReport) -> TuningReport:
    return replace(report, rows=tuple(replace(row, query_ms=0.0) for row in report.rows))


def held_out_rows(images: LabelledImages) -> list[int]:
    return [k for k, labels in enumerate(images.labels) if half_of(labels["class"]) is Half.HELD_OUT]


@given(names=st.lists(st.text(max_size=8), min_size=1, max_size=30))
def test_the_half_of_a_class_follows_from_its_name_alone(names: list[str]) -> None:
    assert [half_of(name) for name in names] == [half_of(name) for name in reversed(names)][::-1]


def test_the_halves_are_halves_whatever_the_accuracy_benchmark_makes_of_the_names() -> None:
    from hashlib import sha256  # noqa: PLC0415

    names = [f"1f{number:03x}" for number in range(2000)]
    scored = [name for name in names if sha256(name.encode()).digest()[-1] & 1]
    for some in (names, scored):
        share = sum(half_of(name) is Half.TUNING for name in some) / len(some)
        assert 0.45 < share < 0.55


@given(seed=st.integers(0, 1000), by_designer=st.booleans(), limit=st.integers(1, 40))
@settings(deadline=None, max_examples=40)
def test_both_halves_ask_about_their_own_classes_in_a_gallery_without_the_others(
    seed: int, limit: int, *, by_designer: bool
) -> None:
    images = scattered(60, seed, classes=12)
    task = TuningTask(class_field="class", query_field="designer" if by_designer else None, queries=limit)
    try:
        found = exams(images, task)
    except InvalidQueryError:
        return
    asked = {half: set(exam.queries) for half, exam in found.items()}
    assert not asked[Half.TUNING] & asked[Half.HELD_OUT]
    for half, exam in found.items():
        assert 1 <= len(exam.queries) <= limit
        for query in exam.queries:
            own = images.labels[query]
            assert half_of(own["class"]) is half
            expected = [
                k
                for k, labels in enumerate(images.labels)
                if ("class" not in labels or half_of(labels["class"]) is half)
                and (labels["designer"] != own["designer"] if by_designer else k != query)
            ]
            assert exam.gallery(query).tolist() == expected
            assert any(images.labels[k].get("class") == own["class"] for k in expected)


@given(seed=st.integers(0, 1000), depth=st.integers(1, 200), deeper=st.integers(0, 50))
@settings(deadline=None, max_examples=40)
def test_a_depth_stands_for_the_same_share_of_the_smaller_gallery(seed: int, depth: int, deeper: int) -> None:
    exam = exams(scattered(70, seed, classes=16), TASK)[Half.TUNING]
    query = exam.queries[0]
    here = len(exam.gallery(query))
    found = exam.depth(query, depth)
    assert 1 <= found <= here
    assert found <= exam.depth(query, depth + deeper)
    assert exam.depth(query, 69) == here
    assert found == here or abs(found / here - depth / 69) <= 0.5 / here + 1e-12 or found == 1


def test_the_sample_of_queries_depends_on_ids_alone_and_grows_with_the_limit() -> None:
    images = arranged(displaced=False)
    order = np.random.default_rng(5).permutation(len(images.image_ids)).tolist()
    shuffled = taken(images, order)
    few, many = (exams(images, replace(TASK, queries=count))[Half.TUNING] for count in (4, 9))
    other = exams(shuffled, replace(TASK, queries=4))[Half.TUNING]
    assert few.queries == many.queries[:4]
    assert [shuffled.image_ids[k] for k in other.queries] == [images.image_ids[k] for k in few.queries]


def test_only_the_named_values_of_the_query_field_ask() -> None:
    task = TuningTask(class_field="class", query_field="designer", query_values=frozenset({"d1", "d3"}))
    images = arranged(displaced=False)
    for exam in exams(images, task).values():
        assert {images.labels[query]["designer"] for query in exam.queries} == {"d1", "d3"}


def test_images_without_the_query_field_are_found_but_never_ask() -> None:
    images = arranged(displaced=False)
    labels = [{"class": each["class"]} if each["designer"] == "d0" else each for each in images.labels]
    images = replace(images, labels=tuple(labels))
    exam = exams(images, TuningTask(class_field="class", query_field="designer"))[Half.TUNING]
    assert all("designer" in labels[query] for query in exam.queries)
    assert any("designer" not in labels[k] for k in exam.gallery(exam.queries[0]).tolist())


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ([None] * 8, "expected images with label 'class'; got none"),
        (["a"] * 8, "at least 2 classes in each half"),
        ([f"single-{k}" for k in range(8)], "of 8 classes by label 'class' there are 0 in the tuning half and 0 in"),
    ],
)
def test_labels_that_can_not_be_tuned_on_are_refused(names: list[str | None], problem: str) -> None:
    images = scattered(8, 0)
    images = replace(images, labels=tuple({} if name is None else {"class": name} for name in names))
    with pytest.raises(InvalidQueryError, match=problem):
        tune(images, TASK)


def test_a_class_drawn_by_one_designer_alone_has_nothing_to_find() -> None:
    images = scattered(24, 0)
    images = replace(images, labels=tuple({"class": f"c{k % 12}", "designer": f"d{k % 12}"} for k in range(24)))
    assert exams(images, TASK)[Half.TUNING].queries
    with pytest.raises(InvalidQueryError, match="0 in the tuning half and 0 in the half held out"):
        exams(images, TuningTask(class_field="class", query_field="designer"))


def test_no_modes_no_queries_and_no_depth_are_refused() -> None:
    images = arranged(displaced=False)
    with pytest.raises(InvalidQueryError, match="at least one mode"):
        tune(images, TASK, modes=())
    with pytest.raises(InvalidQueryError, match="at least 1; got 0"):
        tune(images, replace(TASK, queries=0))
    with pytest.raises(InvalidQueryError, match="at least 1; got 0"):
        tune(images, TASK, depths=[0])


def naive_quality(relevant: list[bool], order: list[int], depth: int) -> tuple[float, float]:
    ranking = [k for k in order if k < depth] + list(range(depth, len(relevant)))
    assert sorted(ranking) == list(range(len(relevant)))
    r = sum(relevant)
    hits = [relevant[k] for k in ranking]
    return float(hits[0]), sum(sum(hits[: i + 1]) / (i + 1) * hits[i] for i in range(r)) / r


@given(data=st.data())
def test_every_depth_ranks_a_permutation_of_the_coarse_list(data: st.DataObject) -> None:
    relevant = data.draw(st.lists(st.booleans(), min_size=1, max_size=20).filter(any))
    deepest = data.draw(st.integers(1, len(relevant)))
    orders = [data.draw(st.permutations(range(deepest))) for _ in range(2)]
    depths = sorted(data.draw(st.sets(st.integers(1, deepest), min_size=1)))
    p_at_1, map_at_r = measured(np.array(relevant), np.array(orders), np.array(depths))
    for w, order in enumerate(orders):
        for k, depth in enumerate(depths):
            assert (p_at_1[w, k], map_at_r[w, k]) == pytest.approx(naive_quality(relevant, order, depth), abs=1e-12)


@given(seed=st.integers(0, 300), depth=st.integers(1, 60), weight=st.sampled_from([0.0, 0.25, 1.0]))
@settings(deadline=None, max_examples=25)
def test_a_half_is_measured_like_a_gallery_of_its_own(seed: int, depth: int, weight: float) -> None:
    images = scattered(60, seed, classes=10)
    task = TuningTask(class_field="class", query_field="designer", query_values=frozenset({"d1"}))
    try:
        exam = exams(images, task)[Half.TUNING]
    except InvalidQueryError:
        return
    ways = [
        MatchDefaults(settings=MatchSettings.of(mode, global_weight=weight), depth=depth)
        for mode in (MatchMode.STRUCTURAL, MatchMode.MAX_SIM, MatchMode.SAME_CELL)
    ]
    found = assess(exam, [NO_SECOND_STAGE, *ways], lambda *_: None)
    # Every query has the same gallery here, so it can be evaluated at the depth that stands for the wanted one.
    here = exam.depth(exam.queries[0], depth)
    report = evaluate(
        taken(images, np.flatnonzero(exam.members).tolist()),
        class_field="class",
        query_field="designer",
        query_values=frozenset({"d1"}),
        methods=[Method(name=str(k), settings=way.settings) for k, way in enumerate([NO_SECOND_STAGE, *ways])],
        depth=here,
    )
    assert report.queries == len(exam.queries)
    for k in range(4):
        expected = report.methods[str(k)]
        quality = found.quality(k)
        assert (quality.p_at_1, quality.map_at_r) == pytest.approx((expected.p_at_1, expected.map_at_r), abs=1e-12)


@given(seed=st.integers(0, 100))
@settings(deadline=None, max_examples=10)
def test_one_run_of_a_solver_gives_every_global_weight_and_depth(seed: int) -> None:
    images = scattered(40, seed, classes=8)
    try:
        exam = exams(images, TASK)[Half.TUNING]
    except InvalidQueryError:
        return
    ways = candidates([MatchMode.COSINE, MatchMode.STRUCTURAL], [5, 20, 40])
    together = assess(exam, ways, lambda *_: None)
    for k in (0, 1, 7, len(ways) - 1):
        alone = assess(exam, [ways[k]], lambda *_: None)
        np.testing.assert_array_equal(alone.map_at_r[:, 0], together.map_at_r[:, k])
        np.testing.assert_array_equal(alone.p_at_1[:, 0], together.p_at_1[:, k])


def qualities(map_at_r: NDArray[np.float64], classes: Sequence[int] | None = None) -> Qualities:
    numbers = np.arange(len(map_at_r)) if classes is None else np.array(classes)
    return Qualities(p_at_1=map_at_r, map_at_r=map_at_r, classes=numbers)


def ways_of(*modes: MatchMode, depth: int = 50) -> list[MatchDefaults]:
    return [MatchDefaults(settings=MatchSettings.of(mode, global_weight=0.0), depth=depth) for mode in modes]


def test_the_standard_error_is_that_of_the_mean_when_each_class_asks_once() -> None:
    values = np.random.default_rng(0).random((40, 3))
    means, errors = qualities(values).leads(1)
    differences = values[:, [1]] - values
    np.testing.assert_allclose(means, differences.mean(axis=0), atol=1e-15)
    np.testing.assert_allclose(errors, differences.std(axis=0, ddof=1) / 40**0.5)
    assert (means[1], errors[1]) == (0, 0)


def test_a_class_that_asks_many_times_counts_once() -> None:
    values = np.random.default_rng(1).random((30, 2))
    once = qualities(values).leads(0)
    tenfold = qualities(np.repeat(values, 10, axis=0), np.repeat(np.arange(30), 10).tolist()).leads(0)
    for first, second in zip(once, tenfold, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-12)


def test_a_clear_winner_is_chosen_however_dear() -> None:
    ways = ways_of(MatchMode.SAME_CELL, MatchMode.STRUCTURAL, MatchMode.EARTH_MOVER)
    values = np.random.default_rng(2).random((50, 1)) * 0.1 + np.array([0.2, 0.4, 0.7])
    assert choose(ways, qualities(values), [0, 1, 2]) == 2
    assert choose(ways, qualities(values), [0, 1]) == 1


def test_within_one_standard_error_the_cheaper_is_chosen_and_beyond_it_is_not() -> None:
    ways = ways_of(MatchMode.STRUCTURAL, MatchMode.SAME_CELL)
    noise = np.tile([0.1, -0.1], 50)
    error = noise.std(ddof=1) / 10
    for lead, expected in ((0.9, 1), (1.1, 0)):
        values = np.stack([0.5 + lead * error + noise, np.full(100, 0.5)], axis=1)
        assert best_of(ways, qualities(values), [0, 1]) == 0
        assert choose(ways, qualities(values), [0, 1]) == expected


def test_among_equally_cheap_ways_the_simpler_and_then_the_better_is_chosen() -> None:
    plain = MatchSettings(mode=MatchMode.MAX_SIM, marginals=Marginals.UNIFORM, global_weight=0.0)
    ways = [
        MatchDefaults(settings=replace(plain, spatial_weight=1.0), depth=50),
        MatchDefaults(settings=plain, depth=50),
        MatchDefaults(settings=MatchSettings(mode=MatchMode.STRIPES, global_weight=0.0), depth=50),
        MatchDefaults(settings=plain, depth=100),
    ]
    noise = np.random.default_rng(3).normal(size=(60, 4))
    noise -= noise.mean(axis=0)
    values = 0.5 + noise + np.array([0.02, 0.0, 0.01, 0.03])
    assert best_of(ways, qualities(values), range(4)) == 3
    assert choose(ways, qualities(values), range(4)) == 2


@given(seed=st.integers(0, 1000))
def test_what_is_chosen_is_no_dearer_than_the_best_and_not_worse_by_more_than_the_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ways = candidates([MatchMode.SAME_CELL, MatchMode.STRUCTURAL], [20, 100])
    found = qualities(rng.random((20, len(ways))), rng.permutation(20).tolist())
    every = range(len(ways))
    best, chosen = best_of(ways, found, every), choose(ways, found, every)
    means, errors = found.leads(best)
    assert relative_cost(ways[chosen]) <= relative_cost(ways[best])
    assert means[chosen] <= errors[chosen]
    assert (means >= 0).all()


def test_where_only_the_places_of_parts_tell_classes_apart_the_place_decides() -> None:
    report = tune(arranged(displaced=False), TASK)
    chosen = report.chosen.way.settings
    assert chosen.mode in POSITIONAL or chosen.spatial_weight > 0
    assert report.chosen.held_out.map_at_r > 0.95
    by_mode = {row.way.settings.mode: row for row in report.rows if row.best_of_mode}
    # Chance: 3 of about 28 images are right.
    assert by_mode[MatchMode.STRUCTURAL].held_out.map_at_r < 0.5
    assert by_mode[MatchMode.COSINE].held_out.map_at_r < 0.5
    assert report.gain_over_cosine.mean > 5 * report.gain_over_cosine.error


def test_where_parts_lie_elsewhere_in_each_image_the_place_has_little_weight() -> None:
    report = tune(arranged(displaced=True), TASK)
    chosen = report.chosen.way.settings
    assert chosen.mode not in POSITIONAL
    assert chosen.spatial_weight <= 0.25
    assert report.chosen.held_out.map_at_r > 0.95
    control = next(row for row in report.rows if row.way.settings.mode is MatchMode.SAME_CELL and row.best_of_mode)
    # A part or two lie in the same place by chance.
    assert control.held_out.map_at_r < 0.75


def test_global_vectors_that_tell_nothing_make_the_deepest_shortlist_win() -> None:
    report = tune(arranged(displaced=False), TASK, depths=[4, 14, 56])
    assert report.chosen.way.depth == 56
    assert [depth for depth, _ in report.depths] == [4, 14, 56]
    found = [quality.map_at_r for _, quality in report.depths]
    assert found == sorted(found)


def test_nothing_of_the_half_held_out_can_change_the_choice() -> None:
    images = arranged(displaced=False, noise=1.2)
    first = tune(images, TASK)
    rows = held_out_rows(images)
    rng = np.random.default_rng(7)
    labels = list(images.labels)
    for k, other in zip(rows, rng.permutation(rows).tolist(), strict=True):
        labels[k] = images.labels[other]
    mixed_up = tune(replace(images, labels=tuple(labels)), TASK)
    features = other_features(images.features, rows, rng)
    elsewhere = tune(replace(images, features=features), TASK)
    for other_report in (mixed_up, elsewhere):
        assert other_report.chosen.way == first.chosen.way
        assert [row.way for row in other_report.rows] == [row.way for row in first.rows]
        assert [row.tuning for row in other_report.rows] == [row.tuning for row in first.rows]
        assert other_report.depths == first.depths
    # ... while what is reported does change.
    assert mixed_up.chosen.held_out != first.chosen.held_out
    assert elsewhere.chosen.held_out != first.chosen.held_out


def other_features(features: FeatureBatch, rows: Sequence[int], rng: np.random.Generator) -> FeatureBatch:
    noise = random_batch(rng, len(rows), GRID.size, DIM)
    every = [features[k] for k in range(len(features))]
    for number, k in enumerate(rows):
        every[k] = noise[number]
    return FeatureBatch.stack(every)


def test_the_order_of_the_images_changes_nothing() -> None:
    images = arranged(displaced=False, noise=1.2)
    order = np.random.default_rng(1).permutation(len(images.image_ids)).tolist()
    first, second = (without_times(tune(each, TASK)) for each in (images, taken(images, order)))
    assert first == second


def test_the_report_has_the_references_the_present_defaults_and_one_choice() -> None:
    present = MatchDefaults(settings=MatchSettings(epsilon=0.1), depth=33)
    report = tune(arranged(displaced=False), TASK, modes={MatchMode.MAX_SIM}, present=present)
    modes = [row.way.settings.mode for row in report.rows if row.best_of_mode]
    assert set(modes) == {MatchMode.COSINE, MatchMode.SAME_CELL, MatchMode.MAX_SIM, MatchMode.STRUCTURAL}
    assert [row.chosen for row in report.rows].count(True) == 1
    assert report.chosen.way.settings.mode is MatchMode.MAX_SIM
    (now,) = (row for row in report.rows if row.present)
    assert now.way == present
    assert report.gain_over_present is not None
    expected = report.chosen.held_out.map_at_r - now.held_out.map_at_r
    assert report.gain_over_present.mean == pytest.approx(expected, abs=1e-12)
    assert report.tried == len(candidates([MatchMode.MAX_SIM], depths_for(56)))
    assert all(row.query_ms > 0 for row in report.rows)
    counts = report.counts
    assert counts[Half.TUNING].classes + counts[Half.HELD_OUT].classes == len(CLASSES)
    assert counts[Half.TUNING].images + counts[Half.HELD_OUT].images == 4 * len(CLASSES)


def test_what_is_best_already_stays() -> None:
    images = arranged(displaced=False)
    first = tune(images, TASK)
    again = tune(images, TASK, present=first.chosen.way)
    assert again.chosen.way == first.chosen.way
    assert again.chosen.present
    assert again.gain_over_present is not None
    assert (again.gain_over_present.mean, again.gain_over_present.error) == (0, 0)


def test_a_gallery_without_a_second_stage_is_known_whatever_else_its_defaults_say() -> None:
    present = MatchDefaults(settings=MatchSettings(mode=MatchMode.COSINE, global_weight=0.5), depth=7)
    report = tune(arranged(displaced=False), TASK, present=present)
    (now,) = (row for row in report.rows if row.present)
    assert now.way == NO_SECOND_STAGE


def test_where_the_global_vector_tells_all_no_second_stage_is_paid_for() -> None:
    images = arranged(displaced=False, noise=3.0)
    rng = np.random.default_rng(0)
    prototypes = {name: rng.normal(size=DIM) for name in CLASSES}
    vectors = np.stack([prototypes[labels["class"]] + 0.01 * rng.normal(size=DIM) for labels in images.labels])
    features = replace(images.features, embeddings=unit(vectors))
    report = tune(replace(images, features=features), TASK)
    assert report.chosen.way == NO_SECOND_STAGE
    assert report.depths == ()
    assert report.chosen.held_out.map_at_r == 1.0


def test_progress_is_told_for_every_part_of_the_work() -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    images = arranged(displaced=False)

    def tell(phase: str, done: int, total: int) -> None:
        told.setdefault(phase, []).append((done, total))

    tune(images, replace(TASK, queries=3), modes={MatchMode.STRIPES}, progress=tell)
    assert told == {
        "tuning half": [(0, 3), (1, 3), (2, 3), (3, 3)],
        "half held out": [(0, 3), (1, 3), (2, 3), (3, 3)],
        "time": [(0, 3), (1, 3), (2, 3), (3, 3)],
    }


def test_an_interruption_ends_it_at_once() -> None:
    def stop(_phase: str, done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(arranged(displaced=False), TASK, progress=stop)


def test_every_way_is_timed_in_a_gallery_shallower_than_its_depth() -> None:
    exam = exams(arranged(displaced=False), TASK)[Half.TUNING]
    ways = [NO_SECOND_STAGE, *ways_of(MatchMode.STRUCTURAL, depth=1), *ways_of(MatchMode.STRUCTURAL, depth=9_999)]
    times = query_times_ms(exam, ways, lambda *_: None)
    assert len(times) == 3
    assert all(time > 0 for time in times)


def test_the_grid_varies_what_each_mode_takes_and_nothing_else() -> None:
    every = solver_settings(MatchMode)
    assert len(set(every)) == len(every)
    assert {settings.mode for settings in every} == set(MatchMode)
    aware = [settings for settings in every if settings.mode is MatchMode.POSITION_AWARE]
    assert {settings.marginals for settings in aware} == set(Marginals)
    assert {settings.spatial_weight for settings in aware} == {0.1, 0.25, 0.5, 1.0, 2.0, 4.0}
    assert all(settings.global_weight == 0 for settings in every if settings.mode is not MatchMode.COSINE)


def test_no_way_of_the_grid_leaves_the_fast_kernels() -> None:
    for each in solver_settings([MatchMode.STRUCTURAL, MatchMode.POSITION_AWARE]):
        assert (2 + each.spatial_weight) / each.epsilon <= FLOAT32_EPSILONS
        assert 0.05 <= each.epsilon < 0.1


def test_every_way_can_be_stored_and_read_back() -> None:
    for way in candidates(MatchMode, [20, 840]):
        assert MatchDefaults.decode(way.encode(), "demo") == way


def test_the_papers_way_and_the_recommended_positions_are_in_the_grid() -> None:
    ways = candidates(PLAIN_MODES, [100])
    assert MatchDefaults() in ways
    assert MatchDefaults(settings=MatchSettings.of(MatchMode.POSITION_AWARE)) in ways
    assert MatchDefaults(settings=MatchSettings.of(MatchMode.PARTIAL)) in candidates(EXACT_MODES, [100])


@given(count=st.integers(2, 3000))
def test_the_depths_fit_the_gallery(count: int) -> None:
    depths = depths_for(count)
    assert list(depths) == sorted(set(depths))
    assert depths[-1] == min(count, 1000)
    assert all(1 <= depth <= 1000 for depth in depths)


def test_costs_grow_with_depth_and_from_no_second_stage_to_exact_plans() -> None:
    ladder = (MatchMode.COSINE, MatchMode.SAME_CELL, MatchMode.STRUCTURAL, MatchMode.EARTH_MOVER)
    costs = [relative_cost(way) for way in ways_of(*ladder)]
    assert costs == sorted(costs)
    assert len(set(costs)) == len(costs)
    deep, log_domain = (
        MatchDefaults(settings=MatchSettings(mode=MatchMode.POSITION_AWARE, spatial_weight=weight), depth=50)
        for weight in (1.0, 4.0)
    )
    assert relative_cost(log_domain) > 100 * relative_cost(deep)
    assert relative_cost(replace(deep, depth=100)) == 2 * relative_cost(deep)


def test_the_terms_of_a_score_are_counted() -> None:
    assert terms(MatchSettings.of(MatchMode.SAME_CELL, global_weight=0.0)) == 0
    assert terms(MatchSettings()) == 2
    assert terms(MatchSettings(mode=MatchMode.STRUCTURAL, marginals=Marginals.UNIFORM, global_weight=0.0)) == 0
    assert terms(MatchSettings.of(MatchMode.PARTIAL, global_weight=0.5)) == 4


def test_measured_scores_are_those_of_match() -> None:
    """A planted order: the ranking of a way is the order of `match`'s scores."""
    images = arranged(displaced=False)
    exam = exams(images, TASK)[Half.TUNING]
    way = MatchDefaults(settings=MatchSettings(global_weight=0.25), depth=56)
    found = assess(exam, [way], lambda *_: None)
    for row, query in enumerate(exam.queries[:5]):
        gallery = exam.gallery(query)
        scores = match(images.features[query], images.features.take(gallery), way.settings, grid=GRID).score
        order = sorted(range(len(gallery)), key=lambda k: (-scores[k], images.image_ids[gallery[k]]))
        relevant = [images.labels[gallery[k]]["class"] == images.labels[query]["class"] for k in order]
        expected = naive_quality(relevant, list(range(len(order))), len(order))
        assert (found.p_at_1[row, 0], found.map_at_r[row, 0]) == pytest.approx(expected, abs=1e-12)

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import GRID, gallery_spec, new_image, sample_features

from matchflow_index import METHODS, GalleryStore, InvalidQueryError, LabelledImages, evaluate
from matchflow_index.evaluation import EXACT_METHODS, measure, measure_queries, method_scores
from matchflow_matching import FeatureBatch, MatchMode, match

if TYPE_CHECKING:
    from pathlib import Path

    from matchflow_index import Method


def labelled(count: int, seed: int, classes: int, designers: int) -> LabelledImages:
    """Return images whose ids are in no order; every seventh has no class."""
    rng = np.random.default_rng(seed)
    labels = [
        {"designer": f"d{rng.integers(designers)}"} | ({"class": f"c{rng.integers(classes)}"} if k % 7 else {})
        for k in range(count)
    ]
    names = rng.permutation(count)
    features = sample_features(count, seed)
    # Some equal images, so that ties matter.
    copies = np.arange(count)
    copies[1::4] = copies[0::4][: len(copies[1::4])]
    return LabelledImages(
        image_ids=tuple(f"image-{k:03}" for k in names), labels=tuple(labels), grid=GRID, features=features.take(copies)
    )


def naive_metrics(ranking: list[int], relevant: set[int]) -> tuple[float, float, float]:
    """Return P@1, R-Precision and MAP@R, written as their definitions."""
    r = len(relevant)

    def precision(i: int) -> float:
        return sum(place in relevant for place in ranking[:i]) / i

    ap = sum(precision(i) * (ranking[i - 1] in relevant) for i in range(1, r + 1)) / r
    return precision(1), precision(r), ap


def naive_ranking(images: LabelledImages, query: int, gallery: list[int], method: Method, depth: int) -> list[int]:
    def score(k: int) -> tuple[float, float]:
        batch = FeatureBatch.stack([images.features[k]])
        matches = match(images.features[query], batch, method.settings, grid=GRID)
        return float(matches.cosine[0]), float(matches.score[0])

    scores = {k: score(k) for k in gallery}
    coarse = sorted(gallery, key=lambda k: (-scores[k][0], images.image_ids[k]))
    depth = depth or len(coarse)
    head = sorted(coarse[:depth], key=lambda k: (-scores[k][1], images.image_ids[k]))
    return head + coarse[depth:]


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(2, 14),
    classes=st.integers(1, 4),
    depth=st.integers(0, 15),
    by_designer=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_the_metrics_are_those_of_their_definitions(
    seed: int, count: int, classes: int, depth: int, *, by_designer: bool
) -> None:
    images = labelled(count, seed, classes, designers=2)
    asks = [not by_designer or each["designer"] == "d0" for each in images.labels]
    queries = [k for k in range(count) if asks[k]]
    if not queries or (by_designer and all(asks)):
        return
    report = evaluate(
        images,
        class_field="class",
        query_field="designer" if by_designer else None,
        query_values=frozenset({"d0"}),
        depth=depth,
    )
    values: dict[str, list[tuple[float, float, float]]] = {method.name: [] for method in METHODS}
    for query in queries:
        gallery = [k for k in range(count) if (not asks[k] if by_designer else k != query)]
        own = images.labels[query].get("class")
        relevant = {k for k in gallery if own is not None and images.labels[k].get("class") == own}
        for method in METHODS:
            if relevant:
                ranking = naive_ranking(images, query, gallery, method, depth)
                values[method.name].append(naive_metrics(ranking, relevant))
    measured = len(values["cosine"])
    assert (report.queries, report.skipped) == (measured, len(queries) - measured)
    assert report.gallery == (count - len(queries) if by_designer else count - 1)
    for method in METHODS:
        expected = np.mean(values[method.name], axis=0) if measured else np.zeros(3)
        metrics = report.methods[method.name]
        np.testing.assert_allclose((metrics.p_at_1, metrics.r_precision, metrics.map_at_r), expected, atol=1e-12)


@pytest.mark.parametrize("by_designer", [False, True])
def test_the_report_is_the_mean_over_the_queries_that_could_be_measured(*, by_designer: bool) -> None:
    images = labelled(22, 5, 4, 2)
    field, values = ("designer", frozenset({"d0"})) if by_designer else (None, frozenset[str]())
    measured = measure_queries(images, class_field="class", query_field=field, query_values=values, depth=6)
    assert measured.methods == tuple(method.name for method in METHODS)
    assert measured.values.shape == (len(measured.queries), len(METHODS), 3)
    # In order of the images; who has no class is among the skipped.
    assert (np.diff(measured.queries) > 0).all()
    asked = [images.labels[place] for place in measured.queries]
    assert all("class" in labels and (not by_designer or labels["designer"] == "d0") for labels in asked)
    report = evaluate(images, class_field="class", query_field=field, query_values=values, depth=6)
    assert measured.report() == report
    for column, method in enumerate(METHODS):
        metrics = report.methods[method.name]
        means = (metrics.p_at_1, metrics.r_precision, metrics.map_at_r)
        np.testing.assert_allclose(measured.values[:, column].mean(axis=0), means, rtol=1e-12)


def test_the_default_methods_leave_out_what_takes_minutes_and_no_mode_is_without_a_method() -> None:
    modes = {method.settings.mode for method in METHODS}
    exact = {method.settings.mode for method in EXACT_METHODS}
    assert not modes & exact
    assert modes | exact == set(MatchMode)
    names = [method.name for method in METHODS + EXACT_METHODS]
    assert len(set(names)) == len(names)


@given(relevant=st.lists(st.booleans(), min_size=1, max_size=30).filter(any))
def test_one_ranking_is_measured_as_defined(relevant: list[bool]) -> None:
    places = {k for k, each in enumerate(relevant) if each}
    expected = naive_metrics(list(range(len(relevant))), places)
    np.testing.assert_allclose(measure(np.array(relevant)), expected, rtol=1e-12)


@given(r=st.integers(1, 20), rest=st.integers(0, 20))
def test_a_perfect_ranking_measures_one_and_the_worst_zero(r: int, rest: int) -> None:
    assert measure(np.array([True] * r + [False] * rest)) == pytest.approx((1.0, 1.0, 1.0))
    if rest >= r:
        assert measure(np.array([False] * rest + [True] * r)) == (0.0, 0.0, 0.0)


def test_methods_share_the_solver_without_changing_a_bit() -> None:
    batch = sample_features(40)
    methods = METHODS + EXACT_METHODS
    for method, scores in zip(methods, method_scores(batch[0], batch, GRID, methods), strict=True):
        np.testing.assert_array_equal(scores, match(batch[0], batch, method.settings, grid=GRID).score)


def test_a_gallery_is_evaluated_like_the_same_images_in_memory(tmp_path: Path) -> None:
    images = labelled(24, 3, 4, 3)
    with GalleryStore.open(tmp_path) as store:
        gallery = store.create(gallery_spec())
        gallery.put([new_image(name, images.features[k], images.labels[k]) for k, name in enumerate(images.image_ids)])
        stored = evaluate(gallery.labelled_images(), class_field="class", depth=10)
    assert stored == evaluate(images, class_field="class", depth=10)


def test_a_report_is_flat_for_json() -> None:
    report = evaluate(labelled(20, 1, 3, 2), class_field="class", methods=METHODS[:1], depth=5)
    metrics = report.methods["cosine"]
    assert report.as_dict() == {
        "classes": 3,
        "gallery": 19,
        "queries": report.queries,
        "skipped": report.skipped,
        "depth": 5,
        "cosine": {"p_at_1": metrics.p_at_1, "r_precision": metrics.r_precision, "map_at_r": metrics.map_at_r},
    }


def test_progress_is_told_query_by_query() -> None:
    told: list[tuple[int, int]] = []
    images = labelled(5, 0, 2, 2)
    evaluate(images, class_field="class", methods=METHODS[:1], progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_without_relevant_images_all_is_skipped_and_zero() -> None:
    report = evaluate(labelled(4, 0, 2, 2), class_field="unknown")
    assert (report.queries, report.skipped, report.classes) == (0, 4, 0)
    assert report.methods["structural"].p_at_1 == 0.0


@pytest.mark.parametrize(
    ("count", "query_field", "query_values"),
    [(1, None, frozenset[str]()), (5, "designer", frozenset({"nobody"})), (5, "designer", frozenset({"d0", "d1"}))],
)
def test_no_query_or_no_gallery_is_refused(count: int, query_field: str | None, query_values: frozenset[str]) -> None:
    with pytest.raises(InvalidQueryError, match="queries and a gallery"):
        evaluate(labelled(count, 0, 2, 2), class_field="class", query_field=query_field, query_values=query_values)


def test_a_negative_depth_is_refused() -> None:
    with pytest.raises(InvalidQueryError, match="depth must be at least 0; got -1"):
        evaluate(labelled(5, 0, 2, 2), class_field="class", depth=-1)

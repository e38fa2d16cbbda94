"""At most so many hits of a group, counted after re-ranking, against sorting everything."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import gallery_spec, naive_search, new_image, new_images, sample_features

from matchflow_index import GalleryStore, ImageFilter, InvalidQueryError, LabelCondition, RerankState, SearchQuery
from matchflow_matching import MatchMode, MatchSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matchflow_index import Gallery, NewImage, SearchAnswer
    from matchflow_index.labels import LabelValue

MODES = [mode for mode in MatchMode if mode is not MatchMode.COSINE]
# Values that are written alike and are different groups all the same.
SUBJECTS: list[LabelValue | None] = ["1", 1.0, datetime(2024, 5, 1, tzinfo=UTC), "2", "3", None]


@pytest.fixture(scope="module")
def images() -> list[NewImage]:
    """120 images; of some subjects many, of others few, and of the last one it is not known."""
    batch = sample_features(120)
    chosen = [SUBJECTS[min(k % 11, 5)] for k in range(120)]
    return [
        new_image(f"image-{k:03}", batch[k], {"odd": str(k % 2)} | ({} if subject is None else {"subject": subject}))
        for k, subject in enumerate(chosen)
    ]


@pytest.fixture(scope="module")
def gallery(images: list[NewImage], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    with GalleryStore.open(tmp_path_factory.mktemp("groups")) as store:
        gallery = store.create(gallery_spec())
        gallery.put(new_images(40, seed=3))
        gallery.put(images)
        yield gallery


def shown(answer: SearchAnswer) -> list[tuple[str, float]]:
    return [(hit.record.image_id, hit.score) for hit in answer.hits]


@st.composite
def searches(draw: st.DrawFn) -> SearchQuery:
    odd = LabelCondition(field="odd", any_of=frozenset({"1"}))
    return SearchQuery(
        features=sample_features(1, seed=draw(st.integers(0, 40)))[0],
        top_k=draw(st.integers(1, 30) | st.integers(100, 130)),
        depth=draw(st.integers(1, 130)),
        settings=draw(st.none() | st.sampled_from(MODES).map(MatchSettings.of)),
        max_flows=0,
        filter=draw(st.sampled_from([ImageFilter(), ImageFilter(conditions=(odd,))])),
        group_by=draw(st.sampled_from(["subject", "odd", "unknown"])),
        group_limit=draw(st.integers(1, 4) | st.just(1000)),
    )


@given(query=searches())
@settings(deadline=None, max_examples=120)
def test_groups_are_counted_in_the_order_of_the_answer(
    gallery: Gallery, images: list[NewImage], query: SearchQuery
) -> None:
    answer = gallery.search(query)
    wanted = naive_search(images, query)
    expected = naive_search(images, query, exhaustive=True)
    assert shown(answer) == wanted
    if answer.exact:
        assert shown(answer) == expected
    counts: dict[object, int] = {}
    for hit in answer.hits:
        subject = hit.record.labels.get(query.group_by or "")
        if subject is not None:
            counts[type(subject), subject] = counts.get((type(subject), subject), 0) + 1
    assert max(counts.values(), default=0) <= query.group_limit


@given(query=searches(), min_score=st.none() | st.floats(-1, 1))
@settings(deadline=None, max_examples=80)
def test_exhaustive_searches_with_groups_prove_what_sorting_everything_gives(
    gallery: Gallery, images: list[NewImage], query: SearchQuery, min_score: float | None
) -> None:
    query = replace(query, settings=query.settings or MatchSettings(), exhaustive=True, min_score=min_score)
    answer = gallery.search(query)
    assert answer.exact
    assert answer.rerank_state is RerankState.COMPLETE
    assert shown(answer) == naive_search(images, query, exhaustive=True)
    inside = sum(query.filter.conditions == () or image.labels["odd"] == "1" for image in images)
    assert answer.depth_done + answer.proved_below == inside


def test_values_of_other_kinds_are_other_groups_and_images_without_are_never_limited(gallery: Gallery) -> None:
    query = SearchQuery(
        features=sample_features(1)[0], top_k=1000, depth=1000, group_by="subject", group_limit=1, max_flows=0
    )
    hits = [hit.record.labels.get("subject") for hit in gallery.search(query).hits]
    assert sorted(str(type(subject)) for subject in hits if subject is not None) == sorted(
        str(type(subject)) for subject in SUBJECTS if subject is not None
    )
    unlimited = gallery.search(SearchQuery(features=query.features, top_k=1000, depth=1000, max_flows=0)).hits
    assert hits.count(None) == sum("subject" not in hit.record.labels for hit in unlimited)


def test_the_order_within_a_group_is_that_of_the_scores_not_of_the_cosines(gallery: Gallery) -> None:
    differ = 0
    for seed in range(5):
        features = sample_features(1, seed=seed + 50)[0]
        chosen = MatchSettings(global_weight=0)
        query = SearchQuery(features=features, top_k=1000, depth=1000, settings=chosen, max_flows=0)
        everything = gallery.search(query).hits
        grouped = gallery.search(replace(query, group_by="odd", group_limit=3)).hits
        for value in "01":
            group = [hit for hit in everything if hit.record.labels.get("odd") == value]
            assert [hit for hit in grouped if hit.record.labels.get("odd") == value] == group[:3]
            differ += sorted(group, key=lambda hit: -hit.cosine)[:3] != group[:3]
    assert differ


def test_without_the_second_stage_others_take_the_place_of_those_left_out(gallery: Gallery) -> None:
    query = SearchQuery(features=sample_features(1)[0], top_k=10, depth=1000, settings=None)
    grouped = gallery.search(replace(query, group_by="subject"))
    assert len(grouped.hits) == 10
    assert len({hit.record.labels.get("subject") for hit in grouped.hits}) > 1
    assert grouped.exact


@pytest.mark.parametrize("deadline", [0.0, math.inf])
def test_a_deadline_leaves_groups_limited(gallery: Gallery, deadline: float) -> None:
    query = SearchQuery(
        features=sample_features(1)[0], top_k=50, group_by="odd", group_limit=2, deadline=deadline, exhaustive=True
    )
    answer = gallery.search(query)
    assert [hit.record.labels["odd"] for hit in answer.hits].count("1") == 2
    assert answer.exact == (deadline == math.inf)


def test_a_group_of_less_than_one_makes_no_sense(gallery: Gallery) -> None:
    with pytest.raises(InvalidQueryError, match="group_limit must be at least 1; got 0"):
        gallery.search(SearchQuery(features=sample_features(1)[0], group_by="odd", group_limit=0))

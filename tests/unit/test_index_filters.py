from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_strategies import START, conditions, filters, image_ids, labels, values

from matchflow_index import ImageFilter, ImageRecord, LabelCondition, LabelRange
from matchflow_index.labels import decode_label, encode_label, kind_of

if TYPE_CHECKING:
    from matchflow_index import LabelValue


def record(image_id: str, labels: dict[str, LabelValue]) -> ImageRecord:
    return ImageRecord(
        image_id=image_id, row_id=1, content_hash="", labels=labels, width_px=0, height_px=0, update_time_s=0.0
    )


def test_a_filter_wants_every_condition_and_no_excluded_image() -> None:
    image_filter = ImageFilter(
        conditions=(
            LabelCondition(field="designer", any_of=frozenset({"noto", "fluent"})),
            LabelCondition(field="class", any_of=frozenset({"cat"}), negated=True),
        ),
        exclude=frozenset({"b"}),
    )
    assert image_filter.accepts(record("a", {"designer": "noto"}))
    assert image_filter.accepts(record("a", {"designer": "fluent", "class": "dog"}))
    assert not image_filter.accepts(record("b", {"designer": "noto"}))
    assert not image_filter.accepts(record("a", {"designer": "noto", "class": "cat"}))
    assert not image_filter.accepts(record("a", {}))


def test_an_empty_filter_takes_everything() -> None:
    assert ImageFilter().accepts(record("a", {}))


def test_only_named_images_pass_and_an_empty_set_of_names_lets_none_through() -> None:
    assert ImageFilter(any_ids=frozenset({"a", "b"})).accepts(record("a", {}))
    assert not ImageFilter(any_ids=frozenset({"b"})).accepts(record("a", {}))
    assert not ImageFilter(any_ids=frozenset()).accepts(record("a", {}))
    assert not ImageFilter(any_ids=frozenset({"a"}), exclude=frozenset({"a"})).accepts(record("a", {}))


def test_a_condition_without_values_takes_nothing_unless_negated() -> None:
    nothing = LabelCondition(field="designer", any_of=frozenset())
    everything = LabelCondition(field="designer", any_of=frozenset(), negated=True)
    assert not nothing.accepts({"designer": "noto"})
    assert everything.accepts({"designer": "noto"})


def test_a_bare_condition_asks_whether_the_label_is_there_whatever_its_kind() -> None:
    there = LabelCondition(field="year")
    missing = LabelCondition(field="year", negated=True)
    for value in ("", 0.0, START):
        assert there.accepts({"year": value})
        assert not missing.accepts({"year": value})
    assert not there.accepts({})
    assert missing.accepts({})


@pytest.mark.parametrize(
    ("ends", "inside", "outside"),
    [
        (LabelRange(gte=18, lt=65), [18, 64.9], [17.9, 65, "18", START]),
        (LabelRange(gt=18, lte=65), [18.1, 65], [18, 65.1]),
        (LabelRange(lt=0), [-1e300], [0, -0.0]),
        (LabelRange(gte=START), [START, START + timedelta(days=1)], [START - timedelta(microseconds=1), 1e18]),
        (LabelRange(gt=START, lt=START), [], [START]),
    ],
)
def test_a_range_holds_between_its_ends_for_its_own_kind(
    ends: LabelRange, inside: list[LabelValue], outside: list[LabelValue]
) -> None:
    assert all(ends.holds(value) for value in inside)
    assert not any(ends.holds(value) for value in outside)


def test_set_and_range_of_one_condition_must_both_hold() -> None:
    both = LabelCondition(field="n", any_of=frozenset({1.0, 5.0}), within=LabelRange(gt=2))
    assert [both.accepts({"n": n}) for n in (1, 3, 5)] == [False, False, True]


@pytest.mark.parametrize("ends", [{}, {"gte": 1, "lt": START}, {"gte": "a"}])
def test_a_range_of_several_kinds_or_none_is_refused(ends: dict[str, LabelValue]) -> None:
    with pytest.raises(ValueError, match="the ends of a range are numbers or times, one at least"):
        LabelRange(**ends)  # type: ignore[arg-type]


@given(condition=conditions, each=labels)
def test_a_negated_condition_passes_exactly_where_the_other_does_not(
    condition: LabelCondition, each: dict[str, LabelValue]
) -> None:
    opposite = LabelCondition(
        field=condition.field, any_of=condition.any_of, within=condition.within, negated=not condition.negated
    )
    assert condition.accepts(each) != opposite.accepts(each)


@given(image_filter=filters, image_id=image_ids, each=labels)
def test_a_filter_is_all_of_its_parts(image_filter: ImageFilter, image_id: str, each: dict[str, LabelValue]) -> None:
    expected = (
        (image_filter.any_ids is None or image_id in image_filter.any_ids)
        and image_id not in image_filter.exclude
        and all(ImageFilter(conditions=(one,)).accepts(record("z", each)) for one in image_filter.conditions)
    )
    assert image_filter.accepts(record(image_id, each)) == expected


@given(values)
def test_a_value_is_written_down_and_read_back_exactly(value: LabelValue) -> None:
    again = decode_label(encode_label(value))
    assert again == value
    assert kind_of(again) is kind_of(value)


@given(st.datetimes(timezones=st.timezones() | st.just(UTC)))
def test_every_time_is_kept_to_the_microsecond(time: datetime) -> None:
    assert decode_label(encode_label(time)) == time.astimezone(UTC)

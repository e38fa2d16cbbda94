"""Labels and conditions as callers write them, and the messages that they become."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchflow import AllOf, Between, Not, Present, errors
from matchflow.filtering import search_filter
from matchflow.labels import labels_message, labels_of
from matchflow.v1 import search_pb2

NEW_YEAR = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
Message = search_pb2.LabelCondition

names = st.text("abc_0", min_size=1, max_size=4)
times = st.datetimes(
    min_value=dt.datetime(2, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=dt.datetime(9998, 1, 1),  # noqa: DTZ001 - likewise
    timezones=st.timezones(),
)
values = st.text(st.characters(codec="utf-8")) | st.floats(allow_nan=False, allow_infinity=False) | times


@given(st.dictionaries(names, values))
def test_labels_come_back_as_they_were_sent(labels: dict[str, Any]) -> None:
    # Only in UTC does every time equal itself: other zones have hours that come twice, or never.
    expected = {name: v.astimezone(dt.UTC) if isinstance(v, dt.datetime) else v for name, v in labels.items()}
    assert labels_of(labels_message(labels)) == expected


def test_times_come_back_in_utc() -> None:
    east = dt.datetime(2026, 1, 1, 5, 30, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30)))
    (time,) = labels_of(labels_message({"taken": east})).values()
    assert time == NEW_YEAR
    assert isinstance(time, dt.datetime)
    assert time.tzinfo is dt.UTC


def test_numbers_of_numpy_are_numbers() -> None:
    numbers: dict[str, Any] = {"a": np.float32(0.5), "b": np.int64(3), "c": np.float64(1.25)}
    labels = labels_message(numbers)
    assert dict(labels.numbers) == {"a": 0.5, "b": 3.0, "c": 1.25}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (dt.datetime(2026, 1, 1), "expected a time with its zone"),  # noqa: DTZ001 - the point
        (dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=1))), "years 1 to 9999"),
        (True, "expected a text, a number or a time; got True"),
        (None, "expected a text, a number or a time; got None"),
        (Decimal("1.5"), "expected a text, a number or a time"),
        (math.nan, "expected a finite number; got nan"),
        (-math.inf, "expected a finite number; got -inf"),
        (10**400, "expected a finite number"),
        (2**53 + 1, "expected a number that float64 holds exactly; got 9007199254740993: send it as text"),
        ("\udc80", "expected Unicode text"),
    ],
)
def test_a_value_that_can_not_be_sent_is_refused_by_name(value: Any, text: str) -> None:
    with pytest.raises(errors.InvalidFieldError, match=text) as refused:
        labels_message({"fine": 1, "odd": value})
    assert list(refused.value.fields) == ["labels['odd']"]


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(errors.InvalidFieldError, match="labels"):
        labels_message({3: "x"})  # type: ignore[dict-item]


def conditions(where: Any = None, where_not: Any = None) -> list[Message]:
    return list(search_filter("demo", where=where, where_not=where_not).labels)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("c1", Message(any_of=["c1"])),
        (["c1", "c2"], Message(any_of=["c1", "c2"])),
        (("c1",), Message(any_of=["c1"])),
        ([], Message()),
        (3, Message(any_number_of=[3])),
        ([1, 2.5], Message(any_number_of=[1, 2.5])),
        (Present(), Message(is_present=True)),
        (Between(gte=18, lt=65), Message(number_range=search_pb2.NumberRange(gte=18, lt=65))),
        (Between(gt=0, lte=0), Message(number_range=search_pb2.NumberRange(gt=0, lte=0))),
        (Not("c1"), Message(any_of=["c1"], negated=True)),
        (Not(Not("c1")), Message(any_of=["c1"])),
        (Not(Present()), Message(is_present=True, negated=True)),
        (Not(AllOf("c1")), Message(any_of=["c1"], negated=True)),
    ],
)
def test_a_condition_becomes_its_message(condition: Any, message: Message) -> None:
    message.field = "camera"
    assert conditions({"camera": condition}) == [message]
    message.negated = not message.negated
    assert conditions(where_not={"camera": condition}) == [message]


def test_times_are_asked_for_by_ranges() -> None:
    later = NEW_YEAR + dt.timedelta(microseconds=1)
    expected = search_pb2.TimeRange()
    expected.gte.FromDatetime(NEW_YEAR)
    expected.lt.FromDatetime(later)
    assert conditions({"taken": Between(gte=NEW_YEAR, lt=later)}) == [Message(field="taken", time_range=expected)]
    (exactly,) = conditions({"taken": NEW_YEAR})
    assert exactly.time_range.gte == exactly.time_range.lte == expected.gte


def test_several_conditions_on_a_label_stand_side_by_side() -> None:
    assert conditions({"camera": AllOf(Present(), Not("c1"), AllOf("c2"))}, {"camera": "c3"}) == [
        Message(field="camera", is_present=True),
        Message(field="camera", any_of=["c1"], negated=True),
        Message(field="camera", any_of=["c2"]),
        Message(field="camera", any_of=["c3"], negated=True),
    ]


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (["c1", 2], "expected only texts, or only numbers"),
        ([NEW_YEAR], "for times see Between"),
        ([True], "got True"),
        (b"c1", "expected a text, a number or a time"),
        (None, "expected a text, a number or a time"),
        (2**60 + 1, "float64 holds exactly"),
        (Between(), "at least one"),
        (Between(gte=1, lt=NEW_YEAR), "expected numbers or times as ends"),
        (Between(gte="1"), "expected a text, a number or a time; got '1'"),  # type: ignore[arg-type]
        (Between(lt=dt.datetime(2026, 1, 1)), "with its zone"),  # noqa: DTZ001 - the point
        (Between(gte=math.nan), "finite"),
        (Not(AllOf("a", "b")), "negate its parts one by one"),
    ],
)
def test_a_condition_that_can_not_be_said_is_refused_by_name(condition: Any, text: str) -> None:
    with pytest.raises(errors.InvalidFieldError, match=text) as refused:
        conditions({"camera": condition})
    assert list(refused.value.fields) == ["where['camera']"]


def test_an_empty_list_of_images_is_refused_because_the_wire_would_take_it_for_all() -> None:
    with pytest.raises(errors.InvalidFieldError, match="images: expected at least one id"):
        search_filter("demo", images=[])
    assert list(search_filter("demo", images=["a"]).images) == ["galleries/demo/images/a"]


def test_a_filter_of_nothing_is_empty() -> None:
    assert search_filter("demo") == search_pb2.Filter()

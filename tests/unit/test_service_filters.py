"""Labels, filters, etags and ends between messages and values."""

from __future__ import annotations

import datetime as dt
import math
import time
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from label_strategies import START, values

from matchflow.v1 import gallery_pb2, ingest_pb2, search_pb2, types_pb2
from matchflow_index import ImageFilter, LabelCondition, LabelRange, LabelValue
from matchflow_service.errors import FieldInvalidError
from matchflow_service.filters import differing, parse_exclude_same, parse_filter
from matchflow_service.image_fields import etag, parse_etag, parse_expiry
from matchflow_service.labels import labels_message, parse_labels, parse_time

Message = search_pb2.LabelCondition
names = st.text("abc_0", min_size=1, max_size=4)


@given(st.dictionaries(names, values))
def test_labels_are_read_back_as_they_were_written(labels: dict[str, LabelValue]) -> None:
    assert parse_labels(labels_message(labels), "labels") == labels


def test_labels_are_taken_to_their_limits_and_not_beyond() -> None:
    largest: dict[str, Any] = {f"{i:064}"[-64:]: "v" * 256 for i in range(62)} | {"n": 1.0, "t": START}
    assert parse_labels(labels_message(largest), "labels") == largest
    with pytest.raises(FieldInvalidError, match="at most 64 labels; got 65"):
        parse_labels(labels_message(largest | {"one_more": 1.0}), "labels")
    for name in ("", "n" * 65, "N", "a b", "ä", "a\n"):
        for value in ("", 1.0, START):
            with pytest.raises(FieldInvalidError, match="1-64 characters"):
                parse_labels(labels_message({name: value}), "labels")
    with pytest.raises(FieldInvalidError, match=r"labels.values\[n\]: .*at most 256 characters; got 257"):
        parse_labels(labels_message({"n": "v" * 257}), "labels")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_label_that_is_no_finite_number_is_refused(number: float) -> None:
    with pytest.raises(FieldInvalidError, match=r"labels.numbers\[age\]: expected a finite number"):
        parse_labels(types_pb2.Labels(numbers={"age": number}), "labels")


@pytest.mark.parametrize(
    "message",
    [
        types_pb2.Labels(values={"age": "3"}, numbers={"age": 3}),
        types_pb2.Labels(values={"age": "3"}, times={"age": Timestamp()}),
        types_pb2.Labels(numbers={"age": 3}, times={"age": Timestamp()}),
    ],
)
def test_a_name_of_two_kinds_is_refused(message: types_pb2.Labels) -> None:
    with pytest.raises(FieldInvalidError, match="each label in one map only; got 'age' again"):
        parse_labels(message, "labels")


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [(253_402_300_800, 0), (-62_135_596_801, 0), (0, -1), (0, 1_000_000_000), (2**63 - 1, 0), (-(2**63), 0)],
)
def test_a_time_out_of_range_is_refused(seconds: int, nanos: int) -> None:
    with pytest.raises(FieldInvalidError, match=r"labels.times\[t\]: expected a time of the years 1 to 9999"):
        parse_labels(types_pb2.Labels(times={"t": Timestamp(seconds=seconds, nanos=nanos)}), "labels")


def test_times_are_kept_to_the_microsecond_from_end_to_end_of_the_calendar() -> None:
    assert parse_time(Timestamp(seconds=-62_135_596_800), "t") == dt.datetime.min.replace(tzinfo=dt.UTC)
    last = parse_time(Timestamp(seconds=253_402_300_799, nanos=999_999_999), "t")
    assert last == dt.datetime.max.replace(tzinfo=dt.UTC)


def filter_of(*labels: Message, **fields: Any) -> ImageFilter:
    return parse_filter(search_pb2.Filter(labels=labels, **fields), "g", also_excluded=None)


def test_a_filter_carries_conditions_images_and_exclusions() -> None:
    message = search_pb2.Filter(
        labels=[Message(field="designer", any_of=["a", "b", "a"], negated=True)],
        exclude_images=["galleries/g/images/x"],
        images=["galleries/g/images/y", "galleries/g/images/z"],
    )
    parsed = parse_filter(message, "g", also_excluded="self")
    assert parsed.exclude == {"x", "self"}
    assert parsed.any_ids == frozenset({"y", "z"})
    assert parsed.conditions == (LabelCondition(field="designer", any_of=frozenset("ab"), negated=True),)
    assert filter_of() == ImageFilter()


@pytest.mark.parametrize(
    ("message", "condition"),
    [
        (Message(any_number_of=[1, 2.5]), {"any_of": frozenset({1.0, 2.5})}),
        (Message(number_range=search_pb2.NumberRange(gte=0, lt=5)), {"within": LabelRange(gte=0.0, lt=5.0)}),
        (Message(number_range=search_pb2.NumberRange(gt=0, lte=0)), {"within": LabelRange(gt=0.0, lte=0.0)}),
        (
            Message(time_range=search_pb2.TimeRange(gt=Timestamp(seconds=86_400))),
            {"within": LabelRange(gt=dt.datetime(1970, 1, 2, tzinfo=dt.UTC))},
        ),
        (Message(is_present=True), {}),
        (Message(is_present=True, negated=True), {"negated": True}),
    ],
)
def test_every_kind_of_condition_is_read(message: Message, condition: dict[str, Any]) -> None:
    message.field = "x"
    assert filter_of(message).conditions == (LabelCondition(field="x", **condition),)


@pytest.mark.parametrize(
    ("message", "field", "text"),
    [
        (Message(), "any_of", "at least one value, a range or is_present; got none"),
        (Message(any_of=["a"], any_number_of=[1]), "any_number_of", "got any_of and any_number_of"),
        (Message(is_present=True, time_range=search_pb2.TimeRange()), "is_present", "time_range and is_present"),
        (Message(any_of=["v"] * 1001), "any_of", "at most 1,000 entries"),
        (Message(any_number_of=[1] * 1001), "any_number_of", "at most 1,000 entries"),
        (Message(any_of=["v", "v" * 257]), "any_of[1]", "at most 256 characters"),
        (Message(any_number_of=[1, math.nan]), "any_number_of[1]", "finite"),
        (Message(number_range=search_pb2.NumberRange()), "number_range", "at least one of gte, gt, lte, lt; got none"),
        (Message(number_range=search_pb2.NumberRange(lt=math.inf)), "number_range.lt", "finite"),
        (Message(time_range=search_pb2.TimeRange()), "time_range", "at least one of"),
        (Message(time_range=search_pb2.TimeRange(gte=Timestamp(nanos=-1))), "time_range.gte", "years 1 to 9999"),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused_by_its_field(message: Message, field: str, text: str) -> None:
    message.field = "x"
    with pytest.raises(FieldInvalidError, match=text) as refused:
        filter_of(message)
    assert refused.value.field == f"filter.labels[0].{field}"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"images": ["galleries/other/images/x"]}, "filter.images[0]"),
        ({"images": ["galleries/g/images/x"] * 10_001}, "filter.images"),
        ({"exclude_images": ["x"]}, "filter.exclude_images[0]"),
    ],
)
def test_images_of_a_filter_are_of_its_gallery_and_not_too_many(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldInvalidError) as refused:
        filter_of(**fields)
    assert refused.value.field == field


def test_too_many_conditions_are_refused() -> None:
    with pytest.raises(FieldInvalidError, match="at most 64 entries"):
        filter_of(*[Message()] * 65)


def asking(**query: Any) -> search_pb2.SearchRequest:
    return search_pb2.SearchRequest(
        query=search_pb2.Query(**query), filter=search_pb2.Filter(exclude_same=["camera", "year"])
    )


def test_only_a_stored_image_has_labels_that_hits_can_differ_from() -> None:
    assert parse_exclude_same(asking(image="galleries/g/images/x")) == ("camera", "year")
    for query in ({"image_bytes": b"x"}, {"features": types_pb2.Features()}, {}):
        with pytest.raises(FieldInvalidError, match="expected a stored image as query"):
            parse_exclude_same(asking(**query))
    assert parse_exclude_same(search_pb2.SearchRequest()) == ()


@pytest.mark.parametrize("value", ["c1", 3.0, START])
def test_differing_leaves_out_the_same_value_and_nothing_else(value: LabelValue) -> None:
    narrowed = differing(ImageFilter(), {"camera": value, "other": "x"}, ["camera", "unknown"])
    (condition,) = narrowed.conditions
    assert not condition.accepts({"camera": value})
    assert condition.accepts({"camera": "another"})
    assert condition.accepts({})


@given(st.integers(1, 2**63 - 1))
def test_an_etag_stands_for_its_change(sequence: int) -> None:
    assert parse_etag(etag(sequence), "etag") == sequence


def test_no_change_has_no_etag_and_no_etag_asks_for_none() -> None:
    assert etag(0) == ""
    assert parse_etag("", "etag") is None


@pytest.mark.parametrize("value", ["7", '"0"', '"-1"', '"7', '"٣"', '"' + "9" * 20 + '"', 'W/"7"', '"7"\n', "*"])
def test_an_etag_that_nobody_gave_is_refused(value: str) -> None:
    with pytest.raises(FieldInvalidError, match="an etag as the server gave it"):
        parse_etag(value, "etag")


def test_an_image_ends_at_a_time_or_after_one_or_never() -> None:
    at = int(time.time()) + 1000
    image = gallery_pb2.Image(expire_time=Timestamp(seconds=at, nanos=250_000_000))
    assert parse_expiry(image) == at + 0.25
    item = ingest_pb2.IngestImagesRequest(ttl=Duration(seconds=60, nanos=500_000_000))
    assert parse_expiry(item) == pytest.approx(time.time() + 60.5, abs=5)
    assert parse_expiry(gallery_pb2.Image()) is None


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({"expire_time": Timestamp(seconds=1)}, "image.expire_time", "a time to come"),
        ({"expire_time": Timestamp(seconds=2**62)}, "image.expire_time", "years 1 to 9999"),
        ({"ttl": Duration()}, "image.ttl", "more than 0 s"),
        ({"ttl": Duration(seconds=-5)}, "image.ttl", "got -5 s"),
        ({"ttl": Duration(seconds=253_402_300_799)}, "image.ttl", "to the year 9999"),
    ],
)
def test_an_end_that_is_over_or_never_comes_is_refused(fields: dict[str, Any], field: str, text: str) -> None:
    with pytest.raises(FieldInvalidError, match=text) as refused:
        parse_expiry(gallery_pb2.Image(**fields), "image.")
    assert refused.value.field == field

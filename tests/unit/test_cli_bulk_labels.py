"""Labels of an import: texts, numbers and times, and everything that is none of them."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from import_samples import rules

from matchflow_cli.bulk_labels import check_labels, labels_digest
from matchflow_cli.bulk_samples import Reason, RejectedError

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3.0),
        (" -2.5 ", -2.5),
        ("+1e3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("0x", None),
        ("1_000", None),
        ("1,5", None),
        ("nan", None),
        ("inf", None),
        ("-infinity", None),
        ("1e999", None),
        ("three", None),
        ("٣", None),
        ("9007199254740992", 2.0**53),
        ("9007199254740993", None),
        ("9" * 5000, None),
    ],
)
def test_a_text_in_a_number_column_is_a_number_or_a_bad_label(text: str, number: float | None) -> None:
    numbers = rules(numbers=["size"])
    if number is None:
        with pytest.raises(RejectedError, match="label size: expected a") as caught:
            numbers.labels({"size": text})
        assert caught.value.reason is Reason.LABEL_INVALID
        assert len(str(caught.value)) < 200
    else:
        assert numbers.labels({"size": text}) == {"size": number}


@pytest.mark.parametrize(
    ("value", "time"),
    [
        ("2026-01-31T12:00:00Z", NOON),
        ("2026-01-31 12:00:00", NOON),
        ("2026-01-31T13:00:00+01:00", NOON),
        ("2026-01-31", NOON.replace(hour=0)),
        ("20260131T120000Z", NOON),
        (NOON, NOON),
        (NOON.replace(tzinfo=None), NOON),
        (dt.date(2026, 1, 31), NOON.replace(hour=0)),
        ("31.01.2026", None),
        ("12:00", None),
        ("2026-02-30", None),
        ("", "none"),
        (1769860800, None),
        ("0001-01-01T00:00:00+14:00", None),
    ],
)
def test_a_value_in_a_time_column_is_a_time_or_a_bad_label(value: object, time: Any) -> None:
    times = rules(times=["seen"])
    if time is None:
        with pytest.raises(RejectedError, match="label seen: "):
            times.labels({"seen": value})
    else:
        assert times.labels({"seen": value}) == ({} if time == "none" else {"seen": time})


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("3", "3"),
        (3, 3.0),
        (0, 0.0),
        (2.5, 2.5),
        (Decimal("2.5"), 2.5),
        (True, "true"),
        (False, "false"),
        (NOON, NOON),
        (" spaced ", " spaced "),
    ],
)
def test_what_comes_typed_keeps_its_type(value: object, label: object) -> None:
    (made,) = rules().labels({"x": value}).values()
    assert (made, type(made)) == (label, type(label))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Decimal("NaN"), Decimal("1e999"), 2**53 + 1, -(2**70)])
def test_numbers_that_a_float_can_not_hold_are_bad_labels(value: object) -> None:
    with pytest.raises(RejectedError, match="label x: expected a"):
        rules().labels({"x": value})


@pytest.mark.parametrize("value", [[1], {"a": 1}, b"bytes", object(), ("a",), dt.time(12)])
def test_what_is_no_scalar_is_a_bad_label(value: object) -> None:
    with pytest.raises(RejectedError, match="expected a text, a number or a time"):
        rules().labels({"x": value})


def test_a_truth_value_is_no_number() -> None:
    with pytest.raises(RejectedError, match="expected a number; got bool True"):
        rules(numbers=["x"]).labels({"x": True})


def test_only_the_labels_that_are_wanted_are_looked_at() -> None:
    assert rules("a").labels({"a": "1", "b": ["no label"], "c": None}) == {"a": "1"}
    assert rules().labels({"a": None, "b": ""}) == {}


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({"Name": "x"}, "a label name of 1-64 characters"),
        ({"": "x"}, "a label name"),
        ({"a" * 65: "x"}, "a label name"),
        ({"new\nline": "x"}, "a label name"),
        ({"x": "a" * 257}, "at most 256 characters; got 257"),
        ({"x": "\ud800"}, "is no Unicode text"),
        ({f"l{i}": "x" for i in range(65)}, "at most 64 labels; got 65"),
    ],
)
def test_labels_that_no_server_takes_are_found_before_they_are_sent(labels: dict[str, str], problem: str) -> None:
    with pytest.raises(RejectedError, match=problem) as caught:
        check_labels(labels)
    assert str(caught.value).isprintable()


def test_labels_at_the_limits_are_taken() -> None:
    check_labels({f"l{i}": "x" * 256 for i in range(64)} | {"l0": 1.0, "l1": NOON})


def test_a_text_a_number_and_a_time_that_look_alike_have_different_digests() -> None:
    alike: list[dict[str, Any]] = [{"x": "1.0"}, {"x": 1.0}, {"x": NOON}, {"x": NOON.isoformat()}, {"y": 1.0}, {}]
    assert len({labels_digest(labels) for labels in alike}) == len(alike)


def test_the_order_of_labels_the_zone_and_the_sign_of_zero_do_not_matter() -> None:
    elsewhere = NOON.astimezone(dt.timezone(dt.timedelta(hours=5)))
    assert labels_digest({"a": NOON, "b": 0.0}) == labels_digest({"b": -0.0, "a": elsewhere})


NAMES = st.text("abc", min_size=1, max_size=3)
VALUES = st.one_of(st.text(max_size=5), st.floats(allow_nan=False), st.datetimes(timezones=st.just(dt.UTC)))


@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, VALUES))
def test_labels_have_the_same_digest_exactly_when_they_are_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (labels_digest(one) == labels_digest(other)) == (one == other)

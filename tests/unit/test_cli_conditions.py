from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from matchflow import AllOf, Between, Not
from matchflow.filtering import search_filter
from matchflow_cli.conditions import parse_where
from matchflow_cli.failures import CommandError
from matchflow_cli.output import labels


def test_conditions_of_one_label_are_alternatives() -> None:
    texts = ["designer=noto", "designer=fluent", "name=a=b", "empty=", "odd=a>b", "lines=a\nb"]
    assert parse_where(texts, []) == {
        "designer": AllOf(["noto", "fluent"]),
        "name": AllOf(["a=b"]),
        "empty": AllOf([""]),
        "odd": AllOf(["a>b"]),
        "lines": AllOf(["a\nb"]),
    }


def test_what_is_not_wanted_is_none_of_its_values() -> None:
    assert parse_where(["camera!=c1", "camera!=c2"], []) == {"camera": AllOf(Not(["c1", "c2"]))}
    assert parse_where(["camera=c3"], ["camera=c1", "camera=c2", "age<18"]) == {
        "camera": AllOf(["c3"], Not(["c1", "c2"])),
        "age": AllOf(Not(Between(lt=18))),
    }


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("age>=18", Between(gte=18)),
        ("age>-1.5e3", Between(gt=-1500)),
        ("age<=0", Between(lte=0)),
        ("age<65", Between(lt=65)),
        ("age==30", Between(gte=30, lte=30)),
        ("age<2026-01-31", Between(lt=dt.datetime(2026, 1, 31, tzinfo=dt.UTC))),
        ("age>=2026-01-31T08:30:00", Between(gte=dt.datetime(2026, 1, 31, 8, 30, tzinfo=dt.UTC))),
        ("age>2026-01-31T08:30:00Z", Between(gt=dt.datetime(2026, 1, 31, 8, 30, tzinfo=dt.UTC))),
        ("age<=2026-01-31T08:30:00+02:00", Between(lte=dt.datetime(2026, 1, 31, 6, 30, tzinfo=dt.UTC))),
    ],
)
def test_numbers_and_times_are_compared(text: str, condition: Between) -> None:
    assert parse_where([text], []) == {"age": AllOf(condition)}


def test_both_ends_of_a_range_must_hold() -> None:
    assert parse_where(["age>=18", "age<65"], []) == {"age": AllOf(Between(gte=18), Between(lt=65))}


@pytest.mark.parametrize("text", ["designer", "=noto", "", "!=x", ">5", "!x"])
def test_a_text_that_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match="--where must be like designer=noto") as refused:
        parse_where([text], [])
    assert refused.value.exit_code == 2
    with pytest.raises(CommandError, match="--where-not must be like designer=noto"):
        parse_where([], [text])


@pytest.mark.parametrize("value", ["", "abc", "nan", "inf", "-inf", "2026-13-01", "1e999"])
def test_what_is_no_number_and_no_time_can_not_be_compared(value: str) -> None:
    with pytest.raises(CommandError, match="--where age>= needs a number, or a time such as 2026-01-31"):
        parse_where([f"age>={value}"], [])


@pytest.mark.parametrize(
    "texts",
    [["camera=c1"], ["camera!=c1", "age>=18", "age<65"], ["taken<2026-01-01", "taken==2025-06-01T00:00:00Z"]],
)
def test_whatever_is_understood_can_be_sent(texts: list[str]) -> None:
    sent = search_filter("demo", where=parse_where(texts, texts))
    assert len(sent.labels) == 2 * len(texts)


def test_labels_of_every_kind_are_shown() -> None:
    values: dict[str, Any] = {"camera": "c1", "age": 31.0, "taken": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "q": 0.25}
    assert labels(values) == "age=31  camera=c1  q=0.25  taken=2026-01-01T00:00:00+00:00"

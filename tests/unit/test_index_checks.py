from __future__ import annotations

import math
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from label_strategies import labels

from matchflow_index import ImageRejectedError, LabelValue
from matchflow_index.checks import check_labels


@given(labels)
def test_texts_numbers_and_times_may_be_labels(each: dict[str, LabelValue]) -> None:
    check_labels("image", each)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("\ud800", "no valid text"),
        (math.nan, "finite number that float64 holds exactly; got nan"),
        (-math.inf, "finite number"),
        (2**53 + 1, "float64 holds exactly; got 9007199254740993"),
        (10**400, "finite number"),
        (datetime(2026, 1, 1), "time with its zone"),  # noqa: DTZ001 - the point
        (True, "expected a text, a number or a time; got True"),
        (b"bytes", "expected a text, a number or a time"),
        (None, "expected a text, a number or a time"),
        (Fraction(1, 2), "expected a text, a number or a time"),
    ],
)
def test_anything_else_is_refused_by_name(value: Any, text: str) -> None:
    with pytest.raises(ImageRejectedError, match=text) as refused:
        check_labels("image", {"fine": datetime(2026, 1, 1, tzinfo=UTC), "odd": value})
    assert "'image'" in str(refused.value)
    assert "odd" in str(refused.value) or isinstance(value, str)

"""How pairs are scored, as the client says it and reads it back."""

from __future__ import annotations

import ctypes
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import matchflow
from matchflow import Marginals, RerankMode, RerankSettings, Tuning, ranking
from matchflow.v1 import matching_pb2

NUMBERS = st.none() | st.floats(0, 100, width=32).map(ranking.written)


@st.composite
def tunings(draw: st.DrawFn) -> Tuning:
    """Draw settings, each given or left to the server."""
    return Tuning(
        global_weight=draw(NUMBERS),
        marginals=draw(st.none() | st.sampled_from(Marginals)),
        epsilon=draw(NUMBERS),
        tolerance=draw(NUMBERS),
        max_iterations=draw(st.none() | st.integers(1, 10_000)),
        spatial_weight=draw(NUMBERS),
        matched_mass=draw(NUMBERS),
    )


@given(st.sampled_from(RerankMode), st.none() | st.integers(1, 10_000), tunings())
def test_settings_that_were_sent_are_read_back(mode: RerankMode, depth: int | None, tuning: Tuning) -> None:
    sent = ranking.rerank(mode, tuning, depth=depth)
    received = matching_pb2.Rerank.FromString(sent.SerializeToString())
    settings = ranking.rerank_settings(received)
    assert settings == RerankSettings(mode=mode, depth=depth, tuning=tuning)
    assert ranking.rerank(settings.mode, settings.tuning, depth=settings.depth) == sent


def test_nothing_given_is_nothing_sent() -> None:
    assert ranking.rerank(None, None) == matching_pb2.Rerank()
    assert ranking.rerank(None, Tuning()) == matching_pb2.Rerank()
    assert ranking.rerank("partial", None).mode == matching_pb2.RERANK_MODE_PARTIAL


@pytest.mark.parametrize("number", [0, 99])
def test_a_reply_without_a_mode_or_with_one_of_another_time_states_nothing(number: Any) -> None:
    assert ranking.rerank_settings(matching_pb2.Rerank(mode=number, depth=7)) is None


@pytest.mark.parametrize("name", ["telepathy", "STRUCTURAL", ""])
def test_a_mode_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a valid RerankMode"):
        ranking.rerank(name, None)


@given(st.floats(width=32, allow_nan=False))
def test_a_number_is_read_as_the_shortest_that_means_the_same(value: float) -> None:
    short = ranking.written(value)
    assert ctypes.c_float(short).value == value
    if math.isfinite(value):
        digits, those_of_the_value = (Decimal(repr(x)).normalize().as_tuple().digits for x in (short, value))
        assert len(digits) <= len(those_of_the_value)


@pytest.mark.parametrize("decimal", [0.05, 1e-4, 1e-6, 0.75, 0.1, 10.0, 0.0, 3.4028235e38])
def test_what_was_written_in_few_digits_comes_back(decimal: float) -> None:
    assert ranking.written(ctypes.c_float(decimal).value) == decimal


def test_what_is_no_number_stays_what_it_is() -> None:
    assert str(ranking.written(float("nan"))) == "nan"
    assert ranking.written(float("-inf")) == float("-inf")


def test_settings_are_public_values() -> None:
    for name in ("RerankMode", "Marginals", "Tuning", "RerankSettings"):
        assert name in matchflow.__all__

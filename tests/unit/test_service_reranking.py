"""The message Rerank to settings and back, with and without a gallery's default."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import matchflow
from matchflow.v1 import matching_pb2, search_pb2
from matchflow_index import MatchDefaults, StoreUnavailableError
from matchflow_matching import Marginals, MatchMode, MatchSettings
from matchflow_matching.settings import SPATIAL_MODES
from matchflow_service import fields
from matchflow_service.errors import FieldInvalidError
from matchflow_service.reranking import MODES, PAPER, parse_rerank, rerank_in, rerank_message, written

Rerank = matching_pb2.Rerank
TUNED = MatchDefaults(
    settings=MatchSettings(
        mode=MatchMode.PARTIAL,
        global_weight=0.25,
        marginals=Marginals.UNIFORM,
        epsilon=0.07,
        tolerance=0.001,
        max_iterations=77,
        spatial_weight=2.0,
        matched_mass=0.6,
    ),
    depth=321,
)


@st.composite
def all_settings(draw: st.DrawFn) -> MatchSettings:
    """Draw settings of any mode, with as many digits as float64 has."""
    mode = draw(st.sampled_from(MatchMode))
    return MatchSettings(
        mode=mode,
        global_weight=draw(st.floats(0, 10)),
        marginals=draw(st.sampled_from(Marginals)),
        epsilon=draw(st.floats(0.005, 10)),
        tolerance=draw(st.floats(1e-6, 1)),
        max_iterations=draw(st.integers(1, 10_000)),
        spatial_weight=draw(st.floats(0, 100)) if mode in SPATIAL_MODES else 0.0,
        matched_mass=draw(st.floats(0.05, 1)) if mode is MatchMode.PARTIAL else 1.0,
    )


def over_the_wire(message: matching_pb2.Rerank) -> matching_pb2.Rerank:
    return Rerank.FromString(message.SerializeToString())


def test_every_mode_is_one_of_the_contract_of_the_kernels_and_of_the_client() -> None:
    numbers = set(matching_pb2.RerankMode.values()) - {matching_pb2.RERANK_MODE_UNSPECIFIED}
    assert set(MODES) == numbers
    assert set(MODES.values()) == set(MatchMode)
    names = {matching_pb2.RerankMode.Name(number).removeprefix("RERANK_MODE_").lower() for number in numbers}
    assert {mode.value for mode in matchflow.RerankMode} == names
    for number, mode in MODES.items():
        expected = "none" if mode is MatchMode.COSINE else mode.value
        assert matching_pb2.RerankMode.Name(number) == f"RERANK_MODE_{expected.upper()}"


def test_every_way_to_weigh_cells_is_one_of_the_contract_of_the_kernels_and_of_the_client() -> None:
    numbers = set(matching_pb2.Marginals.values()) - {matching_pb2.MARGINALS_UNSPECIFIED}
    assert {matching_pb2.Marginals.Name(number) for number in numbers} == {
        f"MARGINALS_{each.name}" for each in matchflow.Marginals
    }
    assert {each.value for each in Marginals} == {each.value for each in matchflow.Marginals}
    for marginals in Marginals:
        message = rerank_message(MatchSettings(marginals=marginals))
        assert parse_rerank(message).settings.marginals is marginals


def test_what_stood_in_search_proto_is_still_found_there() -> None:
    assert search_pb2.Rerank is matching_pb2.Rerank
    assert search_pb2.RERANK_MODE_MAX_SIM == matching_pb2.RERANK_MODE_MAX_SIM
    assert search_pb2.MARGINALS_UNIFORM == matching_pb2.MARGINALS_UNIFORM


def test_an_absent_rerank_is_the_paper_or_the_default() -> None:
    assert parse_rerank(Rerank()) == MatchDefaults(settings=MatchSettings(), depth=100) == PAPER
    assert parse_rerank(Rerank(), TUNED) == TUNED


@pytest.mark.parametrize("number", MODES)
def test_a_mode_alone_is_what_is_recommended_for_it_whatever_the_default(number: Any) -> None:
    for default in (PAPER, TUNED):
        parsed = parse_rerank(Rerank(mode=number), default)
        assert parsed == MatchDefaults(settings=MatchSettings.of(MODES[number]), depth=100)


def test_what_is_given_replaces_what_the_default_says() -> None:
    message = Rerank(
        depth=7,
        global_weight=0.3,
        marginals=matching_pb2.MARGINALS_CROSS_CORRELATION,
        epsilon=0.06,
        tolerance=0.002,
        max_iterations=11,
        spatial_weight=0.5,
        matched_mass=0.8,
    )
    expected = MatchSettings(
        mode=MatchMode.PARTIAL,
        global_weight=0.3,
        marginals=Marginals.CROSS_CORRELATION,
        epsilon=0.06,
        tolerance=0.002,
        max_iterations=11,
        spatial_weight=0.5,
        matched_mass=0.8,
    )
    assert parse_rerank(over_the_wire(message), TUNED) == MatchDefaults(settings=expected, depth=7)
    message.mode = matching_pb2.RERANK_MODE_PARTIAL
    assert parse_rerank(over_the_wire(message)) == MatchDefaults(settings=expected, depth=7)


@given(all_settings(), st.integers(1, 10_000))
def test_what_a_reply_states_is_read_as_the_same_whatever_the_default(settings: MatchSettings, depth: int) -> None:
    used = parse_rerank(Rerank(), MatchDefaults(settings=settings, depth=depth))
    stated = over_the_wire(rerank_message(used.settings, used.depth))
    assert parse_rerank(stated) == parse_rerank(stated, TUNED) == used
    assert used.depth == depth
    for name in ("global_weight", "epsilon", "tolerance", "spatial_weight", "matched_mass"):
        value = getattr(settings, name)
        assert getattr(used.settings, name) == pytest.approx(value, rel=2**-23, abs=2e-45)


@given(all_settings())
def test_written_settings_stay_as_they_are(settings: MatchSettings) -> None:
    assert written(written(settings)) == written(settings)


def test_settings_of_few_digits_are_the_same_on_the_wire_and_off_it() -> None:
    assert written(TUNED.settings) == TUNED.settings
    assert parse_rerank(over_the_wire(rerank_message(TUNED.settings, 5))).settings == TUNED.settings


MODE = matching_pb2.RerankMode
REFUSED: list[tuple[str, matching_pb2.Rerank, str]] = [
    ("mode", Rerank(mode=99), "expected a value of RerankMode; got 99"),  # type: ignore[arg-type]
    ("marginals", Rerank(marginals=99), "expected a value of Marginals; got 99"),  # type: ignore[arg-type]
    ("depth", Rerank(depth=0), "expected 1 to 10,000; got 0"),
    ("depth", Rerank(depth=10_001), "got 10,001"),
    ("global_weight", Rerank(global_weight=10.5), "expected 0 to 10; got 10.5"),
    ("epsilon", Rerank(epsilon=0.004), "expected 0.005 to 10; got 0.004"),
    ("tolerance", Rerank(tolerance=2), "expected 1e-06 to 1; got 2"),
    ("max_iterations", Rerank(max_iterations=0), "expected 1 to 10,000; got 0"),
    ("spatial_weight", Rerank(mode=MODE.RERANK_MODE_PARTIAL, spatial_weight=-1), "expected 0 to 100; got -1"),
    ("spatial_weight", Rerank(mode=MODE.RERANK_MODE_PARTIAL, spatial_weight=101), "expected 0 to 100; got 101"),
    ("spatial_weight", Rerank(mode=MODE.RERANK_MODE_PARTIAL, spatial_weight=math.nan), "got nan"),
    ("spatial_weight", Rerank(spatial_weight=1), "expected 0 with structural; got 1; choose position_aware"),
    ("spatial_weight", Rerank(mode=MODE.RERANK_MODE_STRIPES, spatial_weight=0.5), "expected 0 with stripes; got 0.5"),
    ("spatial_weight", Rerank(mode=MODE.RERANK_MODE_NONE, spatial_weight=1), "expected 0 with none; got 1"),
    ("matched_mass", Rerank(mode=MODE.RERANK_MODE_PARTIAL, matched_mass=0.04), "expected 0.05 to 1; got 0.04"),
    ("matched_mass", Rerank(mode=MODE.RERANK_MODE_PARTIAL, matched_mass=1.1), "expected 0.05 to 1; got 1.1"),
    ("matched_mass", Rerank(mode=MODE.RERANK_MODE_EARTH_MOVER, matched_mass=0.5), "expected 1 with earth_mover"),
]


@pytest.mark.parametrize(("name", "message", "said"), REFUSED)
def test_what_is_out_of_range_or_of_no_use_to_the_mode_is_refused_by_name(
    name: str, message: matching_pb2.Rerank, said: str
) -> None:
    with pytest.raises(FieldInvalidError) as caught:
        parse_rerank(over_the_wire(message), field="gallery.default_rerank")
    assert caught.value.field == f"gallery.default_rerank.{name}"
    assert said in caught.value.description


@pytest.mark.parametrize("number", MODES)
def test_the_neutral_value_of_a_setting_is_taken_by_every_mode(number: Any) -> None:
    parsed = parse_rerank(Rerank(mode=number, spatial_weight=0, matched_mass=1))
    assert (parsed.settings.spatial_weight, parsed.settings.matched_mass) == (0, 1)


def test_a_setting_that_the_mode_of_the_default_has_no_use_for_is_refused() -> None:
    position_aware = MatchDefaults(settings=MatchSettings.of(MatchMode.POSITION_AWARE))
    assert parse_rerank(Rerank(spatial_weight=3), position_aware).settings.spatial_weight == 3
    with pytest.raises(FieldInvalidError, match=r"expected 1 with position_aware; got 0\.5"):
        parse_rerank(Rerank(matched_mass=0.5), position_aware)


def test_defaults_that_can_not_be_read_are_in_nobodys_way_who_names_a_mode() -> None:
    class Damaged:
        @property
        def match_defaults(self) -> MatchDefaults:
            raise StoreUnavailableError("damaged")

    gallery: Any = Damaged()
    assert rerank_in(gallery, Rerank(mode=matching_pb2.RERANK_MODE_STRUCTURAL)) == PAPER
    with pytest.raises(StoreUnavailableError):
        rerank_in(gallery, Rerank())
    whole: Any = SimpleNamespace(match_defaults=TUNED)
    assert rerank_in(whole, Rerank()) == TUNED


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_number_is_read_as_the_shortest_that_means_the_same(value: float) -> None:
    short = fields.written(value)
    assert np.float32(short) == value
    assert fields.written(short) == short
    assert len(repr(short)) <= len(repr(value))

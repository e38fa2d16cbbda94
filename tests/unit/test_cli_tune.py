"""What `matchflow tune` says: commands that work, settings as the client has them, tables and figures."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

import matchflow
from matchflow import ranking
from matchflow_cli import tune_report, tune_storing
from matchflow_cli.application import run
from matchflow_cli.output import console
from matchflow_index import MatchDefaults
from matchflow_index.tuning import HalfCounts, TuningReport, TuningRow
from matchflow_index.tuning_grid import NO_SECOND_STAGE, candidates
from matchflow_index.tuning_halves import Half
from matchflow_index.tuning_quality import Lead, Quality
from matchflow_matching import Marginals, MatchMode, MatchSettings
from matchflow_service.reranking import parse_rerank

if TYPE_CHECKING:
    from pathlib import Path

EVERY_WAY = [
    *candidates(MatchMode, [20, 100]),
    MatchDefaults(settings=MatchSettings(epsilon=0.1, tolerance=1e-3, max_iterations=50), depth=7),
    MatchDefaults(settings=MatchSettings.of(MatchMode.PARTIAL, matched_mass=0.625)),
]


@given(way=st.sampled_from(EVERY_WAY))
def test_what_goes_through_the_server_is_what_was_chosen(way: MatchDefaults) -> None:
    sent = tune_storing.as_rerank(way)
    message = ranking.rerank(sent.mode, sent.tuning, depth=sent.depth)
    assert parse_rerank(message) == way


def typed(command: str, monkeypatch: pytest.MonkeyPatch) -> MatchDefaults:
    """Return what the server would be told by a command line."""
    told: list[Any] = []

    class Recorder:
        def __init__(self, _server: str) -> None: ...

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def set_default_rerank(self, gallery: str, **arguments: Any) -> None:
            told.append((gallery, arguments))
            raise matchflow.MatchflowError("enough seen")

    # The server itself is asked in tests/service; here thousands of commands need none.
    monkeypatch.setattr("matchflow_cli.gallery_commands.matchflow.Client", Recorder)
    words = shlex.split(command)
    assert words[0] == "matchflow"
    assert run(words[1:]) == 1
    ((gallery, arguments),) = told
    assert gallery == "my gallery"
    return parse_rerank(ranking.rerank(arguments["mode"], arguments["tuning"], depth=arguments["depth"]))


def test_the_command_shown_sets_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for way in EVERY_WAY[:: 1 + len(EVERY_WAY) // 60] + EVERY_WAY[-2:]:
        assert typed(tune_storing.set_default_command("my gallery", way), monkeypatch) == way


def test_the_command_says_no_more_than_it_must() -> None:
    assert (
        tune_storing.set_default_command("demo", MatchDefaults())
        == "matchflow gallery set-default demo --mode structural"
    )
    aware = MatchDefaults(settings=MatchSettings.of(MatchMode.POSITION_AWARE, spatial_weight=0.5), depth=50)
    assert tune_storing.set_default_command("demo", aware) == (
        "matchflow gallery set-default demo --mode position_aware --depth 50 --spatial-weight 0.5"
    )
    whole = MatchDefaults(settings=MatchSettings.of(MatchMode.MAX_SIM, spatial_weight=4.0, global_weight=0.0))
    assert tune_storing.set_default_command("demo", whole) == (
        "matchflow gallery set-default demo --mode max_sim --global-weight 0 --spatial-weight 4"
    )
    assert tune_storing.set_default_command("demo", NO_SECOND_STAGE) == "matchflow gallery set-default demo --mode none"


@pytest.mark.parametrize("mode", list(MatchMode))
def test_modes_have_one_name_on_either_side(mode: MatchMode) -> None:
    assert tune_storing.match_mode(tune_storing.rerank_mode(mode)) is mode


def row(way: MatchDefaults, **changes: Any) -> TuningRow:
    values: dict[str, Any] = {
        "way": way,
        "chosen": False,
        "best_of_mode": True,
        "present": False,
        "tuning": Quality(p_at_1=0.5, map_at_r=0.4),
        "held_out": Quality(p_at_1=0.625, map_at_r=0.375),
        "behind": Lead(mean=0.012, error=0.003),
        "query_ms": 0.25,
    }
    return TuningRow(**(values | changes))


def report(*rows: TuningRow, **changes: Any) -> TuningReport:
    values: dict[str, Any] = {
        "tried": 1234,
        "counts": {half: HalfCounts(classes=7, queries=31, images=44) for half in Half},
        "rows": rows,
        "gain_over_cosine": Lead(mean=0.065, error=0.01),
        "gain_over_present": Lead(mean=0.041, error=0.008),
        "depths": ((20, Quality(p_at_1=0.5, map_at_r=0.39)), (50, Quality(p_at_1=0.5, map_at_r=0.4))),
    }
    return TuningReport(**(values | changes))


CHOSEN = row(
    MatchDefaults(
        settings=MatchSettings(
            mode=MatchMode.POSITION_AWARE,
            marginals=Marginals.UNIFORM,
            spatial_weight=2.0,
            epsilon=0.06,
            global_weight=0.25,
        ),
        depth=1_000,
    ),
    chosen=True,
)
ROWS = (
    row(NO_SECOND_STAGE),
    row(MatchDefaults(settings=MatchSettings.of(MatchMode.SAME_CELL, global_weight=0.0))),
    row(MatchDefaults(), present=True, best_of_mode=False),
    CHOSEN,
    row(MatchDefaults(settings=MatchSettings.of(MatchMode.PARTIAL))),
)


def shown(found: TuningReport, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    tune_report.show(console(), found)
    return capsys.readouterr().out


def test_the_table_marks_choice_present_default_and_references(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(report(*ROWS), capsys).splitlines()
    headings = lines[0].split()
    assert " ".join(headings) == ("mode cells spatial cosine depth P@1 MAP@R behind P@1 held out MAP@R held out ms")
    cells = [line.split() for line in lines[2:7]]
    figures = ["50.0", "40.0", "1.2", "±", "0.3", "62.5", "37.5", "0.25"]
    assert cells == [
        ["none", "(no", "re-ranking)", "-", "-", "-", "-", *figures],
        ["same_cell", "(control)", "-", "-", "0", "100", *figures],
        ["now", "structural", "cross-correlation", "-", "1", "100", *figures],
        ["chosen", "position_aware", "epsilon", "0.06", "uniform", "2", "0.25", "1,000", *figures],
        ["partial", "0.75", "self-correlation", "1", "0", "100", *figures],
    ]


def test_a_narrow_window_has_every_row_in_whole_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matchflow_cli.output.WIDTH_WITHOUT_TERMINAL", 80)
    lines = shown(report(*ROWS), capsys).partition("tuning half:")[0].splitlines()
    assert all(len(line) <= 80 for line in lines)
    words = " ".join(lines).replace("±", " ").split()
    for word in ("chosen:", "position_aware", "cross-correlation,", "(control),", "1,000", "now:", "37.5", "0.25"):
        assert word in words


def test_the_sentences_say_what_was_measured_and_what_was_gained(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(report(*ROWS), capsys)
    assert "tuning half: 31 queries of 7 classes among 44 images" in out
    assert "chosen among 1,234 ways: the cheapest within one standard error of the highest MAP@R" in out
    assert "by depth: 20: 39.0, 50: 40.0" in out
    assert "held out: +6.5 ± 1.0 over no re-ranking, +4.1 ± 0.8 over what it had" in out
    assert "do not show" not in out


def test_a_gain_that_may_be_chance_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(report(*ROWS, gain_over_present=Lead(mean=0.004, error=0.005)), capsys)
    assert "the classes held out do not show that it is better than what the gallery had" in out


def test_what_stays_or_pays_for_nothing_gains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    stays = row(MatchDefaults(), chosen=True, present=True)
    out = shown(report(row(NO_SECOND_STAGE), stays), capsys)
    assert "chosen, now" in out
    assert "over what it had" not in out
    nothing = row(NO_SECOND_STAGE, chosen=True)
    out = shown(report(nothing, depths=(), gain_over_present=None), capsys)
    assert "over" not in out.rpartition("tuning half;")[2].replace("over the", "")
    assert "by depth" not in out


def test_the_figures_hold_every_row_with_its_settings() -> None:
    figures = json.loads(json.dumps(tune_report.as_figures(report(*ROWS))))
    assert figures["tried"] == 1234
    assert figures["halves"]["held_out"] == {"classes": 7, "queries": 31, "images": 44}
    assert (figures["chosen"]["mode"], figures["chosen"]["depth"]) == ("position_aware", 1000)
    assert figures["chosen"]["epsilon"] == 0.06
    assert figures["gain_over_present"] == {"map_at_r": 0.041, "standard_error": 0.008}
    assert [each["roles"] for each in figures["rows"]] == [
        ["best of its mode"],
        ["best of its mode"],
        ["now"],
        ["chosen", "best of its mode"],
        ["best of its mode"],
    ]
    assert figures["rows"][0]["mode"] == "none"
    assert figures["rows"][3]["held_out"] == {"p_at_1": 0.625, "map_at_r": 0.375}
    assert figures["depths"][1] == {"depth": 50, "p_at_1": 0.5, "map_at_r": 0.4}
    assert (
        json.loads(json.dumps(tune_report.as_figures(report(*ROWS, gain_over_present=None))))["gain_over_present"]
        is None
    )


def test_the_plot_has_a_point_per_row() -> None:
    fewer, more = (tune_report.plot(report(*rows), "demo") for rows in (ROWS[:4], ROWS))
    assert fewer.startswith(b"\x89PNG")
    assert fewer != more


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--query", "noto"], "--query names values of a label"),
        (["--mode", "telepathy"], "telepathy"),
        (["--depth", "-1"], "--depth"),
        (["--depth", "10001"], "--depth"),
        (["--queries", "0"], "--queries"),
    ],
)
def test_a_tuning_that_makes_no_sense_is_refused_before_the_store_is_read(
    arguments: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tune", "demo", "--store", str(tmp_path / "none"), *arguments]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tune", "demo", "--store", str(tmp_path / "none")]) == 1
    assert "--store" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()

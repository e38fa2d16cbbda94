"""What the command line says: errors in one line, options as they are typed, values as they are shown."""

from __future__ import annotations

import datetime as dt
import json
from io import StringIO
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from rich.console import Console

import matchflow
from matchflow_bundle import BundleExistsError, GoldenMismatchError, ResizePolicy
from matchflow_cli import explain_command, failures, options, output, scoring, search_command
from matchflow_cli.export_command import Policy
from matchflow_index import GalleryNotFoundError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            matchflow.ServerUnreachableError("no server at host:1"),
            "no server at host:1; is it running? Start one with `matchflow serve`, or name another with --server",
        ),
        (failures.CommandError("do this instead"), "do this instead"),
        (BundleExistsError("x exists"), "x exists; choose another --output, or replace it with --overwrite"),
        (
            GoldenMismatchError("off by 1"),
            "off by 1; export it again on this machine with `matchflow export`",
        ),
        (
            GalleryNotFoundError("demo"),
            (
                "there is no gallery 'demo'; `matchflow gallery list` shows what there is, "
                "`matchflow gallery create` makes one"
            ),
        ),
        (matchflow.MatchflowError("several\n  lines"), "several lines"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "a.png: No such file or directory"),
        (UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates not allowed"), r"'a\udcff' is no text in UTF-8"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "the package torch is not installed; run: pip install 'matchflow[service,export]'",
        ),
        (
            ZeroDivisionError("division by zero"),
            (
                "unexpected ZeroDivisionError: division by zero; run again as `matchflow --debug ...` "
                "and report what it prints"
            ),
        ),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(error: Exception, line: str) -> None:
    assert failures.one_line(error) == line
    assert failures.exit_code_of(error) == 1


def test_a_command_asked_wrongly_ends_with_two() -> None:
    assert failures.exit_code_of(failures.CommandError("no", exit_code=2)) == 2


def test_values_that_pydantic_refuses_are_named() -> None:
    class Port(BaseModel):
        port: int

    with pytest.raises(ValidationError) as caught:
        Port(port="many")  # type: ignore[arg-type]
    assert failures.one_line(caught.value).startswith("port: Input should be a valid integer")


def test_an_advice_is_for_an_error_that_exists() -> None:
    names = set(dir(matchflow))
    for package in ("matchflow_bundle", "matchflow_index", "matchflow_exporter"):
        names |= set(dir(__import__(package)))
    assert set(failures.ADVICE) <= names


@pytest.mark.parametrize(("text", "size"), [("256x128", (256, 128)), ("128", (128, 128)), ("8X4", (8, 4))])
def test_a_size_is_rows_by_columns(text: str, size: tuple[int, int]) -> None:
    assert options.parse_size(text, "--grid") == size


@pytest.mark.parametrize("text", ["", "x", "4x", "x4", "4x4x4", "-1x3", "four", "²x²"])
def test_another_text_is_no_size(text: str) -> None:
    with pytest.raises(failures.CommandError, match="--grid must be like 256x128"):
        options.parse_size(text, "--grid")


def test_exactly_one_query_must_be_named() -> None:
    assert options.query_of("photo.jpg", None, "demo") == "photo.jpg"
    assert options.query_of(None, "cat", "demo") == matchflow.ImageRef("demo", "cat")
    for image, image_id in ((None, None), ("photo.jpg", "cat")):
        with pytest.raises(failures.CommandError, match="name one query"):
            options.query_of(image, image_id, "demo")


def test_the_policies_offered_are_those_of_the_bundle() -> None:
    assert {policy.value for policy in Policy} == {policy.value for policy in ResizePolicy}


def box(left: float, top: float, right: float, bottom: float) -> matchflow.Box:
    return matchflow.Box(left=left, top=top, right=right, bottom=bottom)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (box(0, 0, 0.25, 0.25), "top left"),
        (box(0.25, 0.25, 0.75, 0.75), "centre"),
        (box(0.75, 0.75, 1, 1), "bottom right"),
        (box(0.4, 0.9, 0.6, 1), "bottom centre"),
        (box(0, 0.4, 0.2, 0.6), "middle left"),
        (box(1, 1, 1, 1), "bottom right"),
    ],
)
def test_a_place_is_said_in_words(where: matchflow.Box, words: str) -> None:
    assert output.place(where) == words


def test_parts_are_shares_of_the_structural_score() -> None:
    flow = matchflow.Flow(
        query_cell=0,
        image_cell=15,
        query_box=box(0, 0, 0.25, 0.25),
        image_box=box(0.75, 0.75, 1, 1),
        mass=0.5,
        similarity=0.5,
        contribution=0.25,
    )
    assert output.parts([flow, flow], 0.5, 1) == ["top left → bottom right 50%"]
    assert output.parts([flow], None, 1) == output.parts([flow], 0.0, 1) == output.parts([flow], -0.5, 1) == []
    assert output.percent_box(flow.image_box) == "75%,75% - 100%,100%"


def test_labels_that_look_like_markup_stay_text() -> None:
    sink = StringIO()
    Console(file=sink, width=80).print(output.labels({"name": "[red]x[/red]"}))
    assert "name=[red]x[/red]" in sink.getvalue()


@pytest.mark.parametrize(
    "character", ["\x00", "\x07", "\x1b", "\r", "\n", "\x7f", "\x9b", "\u202e", "\u2066", "\udcff"]
)
def test_nothing_that_users_chose_can_steer_the_terminal(character: str) -> None:
    shown = (
        output.text(f"a{character}b"),
        output.labels({"name": f"a{character}b"}),
        failures.one_line(matchflow.MatchflowError(f"a{character}b")),
    )
    assert all(each.isprintable() for each in shown)


def test_letters_of_any_script_and_joined_emoji_are_shown_as_they_are() -> None:
    for name in ("Žluťoučký", "日本語", "👩\u200d🚒", "क्\u200dष"):
        assert output.text(name) == name


def test_one_is_singular() -> None:
    counts = [output.counted(count, noun) for noun in ("image", "gallery") for count in (0, 1, 2000)]
    assert counts == ["0 images", "1 image", "2,000 images", "0 galleries", "1 gallery", "2,000 galleries"]


def settings(mode: matchflow.RerankMode) -> matchflow.RerankSettings:
    """Return every setting, as a server states them."""
    tuning = matchflow.Tuning(
        global_weight=0.5,
        marginals=matchflow.Marginals.SELF_CORRELATION,
        epsilon=0.05,
        tolerance=1e-4,
        max_iterations=200,
        spatial_weight=2.0,
        matched_mass=0.75,
    )
    return matchflow.RerankSettings(mode=mode, depth=1000, tuning=tuning)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("none", "none"),
        ("same_cell", "same_cell, global weight 0.5, depth 1000"),
        ("stripes", "stripes, global weight 0.5, depth 1000"),
        ("max_sim", "max_sim, self-correlation weights, spatial weight 2, global weight 0.5, depth 1000"),
        ("chamfer", "chamfer, self-correlation weights, spatial weight 2, global weight 0.5, depth 1000"),
        (
            "structural",
            (
                "structural, self-correlation weights, epsilon 0.05, tolerance 0.0001, iterations at most 200, "
                "global weight 0.5, depth 1000"
            ),
        ),
        (
            "position_aware",
            (
                "position_aware, self-correlation weights, spatial weight 2, epsilon 0.05, tolerance 0.0001, "
                "iterations at most 200, global weight 0.5, depth 1000"
            ),
        ),
        ("earth_mover", "earth_mover, self-correlation weights, spatial weight 2, global weight 0.5, depth 1000"),
        (
            "partial",
            "partial, self-correlation weights, spatial weight 2, matched mass 0.75, global weight 0.5, depth 1000",
        ),
    ],
)
def test_settings_in_words_are_those_that_the_mode_uses(mode: str, words: str) -> None:
    assert scoring.in_words(settings(matchflow.RerankMode(mode))) == words


def test_every_mode_has_words() -> None:
    for mode in matchflow.RerankMode:
        assert scoring.in_words(settings(mode)).split(", ")[0] == mode


def test_what_a_server_does_not_state_is_left_out() -> None:
    bare = matchflow.RerankSettings(mode=matchflow.RerankMode.PARTIAL, depth=None, tuning=matchflow.Tuning())
    assert scoring.in_words(bare) == "partial"
    assert scoring.in_words(None) == "the server does not say how"


def answer(structural: float | None = 0.5, **proof: Any) -> matchflow.SearchResult[matchflow.Hit]:
    here, there = box(0.25, 0.75, 0.5, 1), box(0.25, 0.75, 0.5, 1)
    flow = matchflow.Flow(
        query_cell=0, image_cell=1, query_box=here, image_box=there, mass=0.5, similarity=0.5, contribution=0.25
    )
    image = matchflow.Image(
        ref=matchflow.ImageRef("demo", "emojione-1f469-200d-1f692"),
        labels={"class": "1f469-200d-1f692", "designer": "emojione", "name": "woman-firefighter"},
        row_id=1,
        content_hash="",
        width_px=128,
        height_px=128,
        update_time=dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    )
    hit = matchflow.Hit(
        coarse_score=0.25,
        structural_score=structural,
        score=0.75,
        certificate=None,
        flows=(flow, flow) if structural else (),
        residual=0.0,
        image=image,
        coarse_rank=3,
        _render=bytes,
    )
    timings = matchflow.StageTimings(
        decode_ms=1, encode_ms=2, coarse_ms=3, gather_ms=4, match_ms=5, explain_ms=6, total_ms=21
    )
    return matchflow.SearchResult(
        hits=(hit,),
        rerank=matchflow.RerankState.COMPLETE if structural else matchflow.RerankState.NOT_REQUESTED,
        depth_done=1,
        timings=timings,
        bundle_digest="",
        sequence=1,
        query_id="",
        rerank_settings=settings(matchflow.RerankMode.POSITION_AWARE),
        **proof,
    )


def searched(width: int, structural: float | None = 0.5, *, exhaustive: bool = False, **proof: Any) -> list[str]:
    sink = StringIO()
    search_command.report(Console(file=sink, width=width), answer(structural, **proof), exhaustive=exhaustive)
    return sink.getvalue().splitlines()


def test_a_proved_answer_says_so_and_what_was_spared() -> None:
    assert "exact: proved to be what matching every image gives" in searched(180, exact=True)
    spared = "exact: proved to be what matching every image gives; bounds put 1,200 images below without matching"
    assert spared in searched(180, exact=True, proved_below=1200, exhaustive=True)


def test_an_answer_without_a_proof_says_so_only_when_one_was_asked_for() -> None:
    assert not any("exact" in line for line in searched(180))
    assert "not proved exact before time was up; allow more with --timeout" in searched(180, exhaustive=True)


def test_a_search_says_how_it_was_scored() -> None:
    assert any(line.startswith("scored by position_aware, self-correlation weights") for line in searched(180))


def test_a_search_says_which_generation_answered_where_the_server_says() -> None:
    assert any(line.endswith("(1 matched); generation 2") for line in searched(180, generation=2))
    assert not any("generation" in line for line in searched(180))


def explained(width: int, *, penalty: float = 0.0, gap: float | None = None, generation: int = 0) -> str:
    flow = matchflow.Flow(
        query_cell=0,
        image_cell=5,
        query_box=box(0, 0, 0.25, 0.25),
        image_box=box(0.25, 0.25, 0.5, 0.5),
        mass=0.5,
        similarity=0.75,
        penalty=penalty,
        contribution=0.5 * (0.75 - penalty),
    )
    certificate = matchflow.Certificate(
        iterations=9,
        marginal_error=0.0,
        converged=True,
        query_marginal_is_uniform=False,
        image_marginal_is_uniform=False,
        duality_gap=gap,
    )
    explanation = matchflow.Explanation(
        coarse_score=0.5,
        structural_score=flow.contribution,
        score=flow.contribution,
        certificate=certificate,
        flows=(flow,),
        residual=0.0,
        grid=matchflow.CellGrid(rows=4, columns=4),
        query_weights=(),
        image_weights=(),
        bundle_digest="",
        image=answer().hits[0].image,
        rerank_settings=settings(matchflow.RerankMode.PARTIAL),
        generation=generation,
    )
    sink = StringIO()
    explain_command.report(Console(file=sink, width=width), explanation, 12)
    return sink.getvalue()


@pytest.mark.parametrize("width", [80, 180])
def test_an_explanation_shows_what_distance_costs_where_it_costs_something(width: int) -> None:
    assert "penalty" not in explained(width)
    costly = explained(width, penalty=0.125)
    assert "penalty" in costly
    assert "0.1250" in costly
    assert "0.3125" in costly
    assert "adds up" in costly
    assert all(len(line) <= width for line in costly.splitlines())


def test_an_explanation_says_how_it_was_scored_and_what_the_solver_proves() -> None:
    assert "scored by    partial, self-correlation weights" in explained(180)
    assert "duality gap" not in explained(180)
    assert "converged after 9 iterations, marginal error 0.0e+00, duality gap 1.0e-12" in explained(180, gap=1e-12)


def test_an_explanation_says_of_which_generation_it_is_where_the_server_says() -> None:
    assert "generation   2\n" in explained(180, generation=2)
    assert "generation" not in explained(180)


def test_a_wide_window_has_one_line_per_hit() -> None:
    (line,) = (line for line in searched(180) if "emojione-" in line)
    for part in ("designer=emojione", "bottom centre → bottom centre 50%, bottom", "0.2500", "0.5000", "0.7500", "4"):
        assert part in line


def test_eighty_columns_break_no_word_and_no_number() -> None:
    lines = searched(80)
    for whole in ("coarse place", "structural", "emojione-1f469-200d-1f692", "bottom centre → bottom centre 50%"):
        assert any(whole in line for line in lines), whole
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("width", [80, 180])
def test_a_search_without_re_ranking_has_a_dash_for_the_score_and_checks_nothing(width: int) -> None:
    said = "\n".join(searched(width, None))
    assert " - " in said
    assert "re-ranking not requested" in said
    assert "add up" not in said


def test_values_become_json_without_what_is_private() -> None:
    gallery = matchflow.Gallery(
        id="demo",
        model="lite0",
        bundle_digest="d",
        grid=matchflow.CellGrid(rows=4, columns=2),
        embedding_dim=2,
        image_count=1,
        sequence=3,
        create_time=dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        keeps_thumbnails=True,
    )
    plain = json.loads(output.as_json([gallery]))
    assert plain[0]["grid"] == {"rows": 4, "columns": 2}
    assert plain[0]["create_time"] == "2026-01-02T00:00:00+00:00"

"""What `matchflow tune` shows: the table, the sentences below it, figures for JSON and the plot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matchflow_cli.output import WIDE, table
from matchflow_cli.scoring import ENTROPIC, SPATIAL, WEIGHTED
from matchflow_cli.tune_storing import rerank_mode
from matchflow_index.tuning_halves import Half
from matchflow_matching import MatchMode, MatchSettings
from matchflow_service.scatter import ScatterPoint, ScatterTexts, render_scatter

if TYPE_CHECKING:
    from rich.console import Console

    from matchflow_index.tuning import TuningReport, TuningRow
    from matchflow_index.tuning_quality import Lead, Quality

DESCRIBED = ("mode", "cells", "spatial", "cosine", "depth")
NOTHING = "-"
NOTES = {MatchMode.COSINE: "no re-ranking", MatchMode.SAME_CELL: "control"}


def show(out: Console, report: TuningReport) -> None:
    """Print the table and what it means; in a narrow window each way is described in one column."""
    wide = out.width >= WIDE
    figures = ("P@1", "MAP@R", "behind", "P@1 held out", "MAP@R held out", "ms")
    headings = ("", *DESCRIBED, *figures) if wide else ("way", *figures)
    listed = table(*headings, right=("spatial", "cosine", "depth", *figures))
    for row in report.rows:
        roles, description = ", ".join(_roles(row)), _description(row)
        cells = [roles, *description] if wide else [(f"{roles}: " if roles else "") + _in_one(description)]
        listed.add_row(
            *cells,
            *_per_cent(row.tuning),
            f"{100 * row.behind.mean:.1f} ± {100 * row.behind.error:.1f}",
            *_per_cent(row.held_out),
            f"{row.query_ms:.2f}",
            style="bold" if row.chosen else None,
        )
    out.print(listed)
    for line in _sentences(report):
        out.print(line, soft_wrap=True)


def _description(row: TuningRow) -> list[str]:
    """Return mode, weights of cells, spatial weight, weight of the cosine and depth; what a mode has not is a dash."""
    settings, mode = row.way.settings, rerank_mode(row.way.settings.mode)
    second_stage = settings.mode is not MatchMode.COSINE
    return [
        _mode_in_words(settings),
        settings.marginals.replace("_", "-") if mode in WEIGHTED else NOTHING,
        f"{settings.spatial_weight:g}" if mode in SPATIAL else NOTHING,
        f"{settings.global_weight:g}" if second_stage else NOTHING,
        f"{row.way.depth:,}" if second_stage else NOTHING,
    ]


def _in_one(description: list[str]) -> str:
    numbers = zip(DESCRIBED[2:], description[2:], strict=True)
    parts = [*description[:2], *(f"{name} {value}" for name, value in numbers if value != NOTHING)]
    return ", ".join(part for part in parts if part != NOTHING)


def _roles(row: TuningRow) -> list[str]:
    return [name for name, holds in (("chosen", row.chosen), ("now", row.present)) if holds]


def _mode_in_words(settings: MatchSettings) -> str:
    parts = [str(rerank_mode(settings.mode))]
    if settings.mode is MatchMode.PARTIAL:
        parts.append(f"{settings.matched_mass:g}")
    if rerank_mode(settings.mode) in ENTROPIC and settings.epsilon != MatchSettings().epsilon:
        parts.append(f"epsilon {settings.epsilon:g}")
    if settings.mode in NOTES:
        parts.append(f"({NOTES[settings.mode]})")
    return " ".join(parts)


def _per_cent(quality: Quality) -> tuple[str, str]:
    return f"{100 * quality.p_at_1:.1f}", f"{100 * quality.map_at_r:.1f}"


def _sentences(report: TuningReport) -> list[str]:
    tuning, held_out = report.counts[Half.TUNING], report.counts[Half.HELD_OUT]
    chosen = report.chosen
    halves = (
        f"tuning half: {tuning.queries:,} queries of {tuning.classes:,} classes among {tuning.images:,} images; "
        f"held out: {held_out.queries:,} of {held_out.classes:,} among {held_out.images:,}. "
        "ms: cosines of the whole gallery and a shortlist of that depth matched, one thread"
    )
    rule = (
        f"chosen among {report.tried:,} ways: the cheapest within one standard error of the highest MAP@R on the "
        "tuning half; shown are the best of each mode there"
    )
    lines = [halves, rule]
    if report.depths:
        lines.append(
            "its MAP@R on the tuning half by depth: "
            + ", ".join(f"{depth:,}: {100 * quality.map_at_r:.1f}" for depth, quality in report.depths)
        )
    gains = []
    if chosen.way.settings.mode is not MatchMode.COSINE:
        gains.append(f"{_points(report.gain_over_cosine)} over no re-ranking")
    if report.gain_over_present is not None and not chosen.present:
        gains.append(f"{_points(report.gain_over_present)} over what it had")
    if gains:
        lines.append(f"MAP@R on the classes held out: {', '.join(gains)} (points ± standard error)")
    doubtful = report.gain_over_present
    if doubtful is not None and not chosen.present and doubtful.mean <= doubtful.error:
        lines.append("[yellow]the classes held out do not show that it is better than what the gallery had[/]")
    return lines


def _points(lead: Lead) -> str:
    return f"{100 * lead.mean:+.1f} ± {100 * lead.error:.1f}"


def as_figures(report: TuningReport) -> dict[str, Any]:
    """Return everything that is shown for JSON; qualities 0 to 1."""
    return {
        "tried": report.tried,
        "halves": {
            half: {"classes": counts.classes, "queries": counts.queries, "images": counts.images}
            for half, counts in report.counts.items()
        },
        "chosen": _way(report.chosen),
        "gain_over_cosine": _lead(report.gain_over_cosine),
        "gain_over_present": None if report.gain_over_present is None else _lead(report.gain_over_present),
        "rows": [
            _way(row)
            | {
                "roles": [*_roles(row), *(["best of its mode"] if row.best_of_mode else [])],
                "tuning": _quality(row.tuning),
                "held_out": _quality(row.held_out),
                "behind_best": _lead(row.behind),
                "query_ms": round(row.query_ms, 4),
            }
            for row in report.rows
        ],
        "depths": [{"depth": depth} | _quality(quality) for depth, quality in report.depths],
    }


def _way(row: TuningRow) -> dict[str, Any]:
    settings = {name: getattr(row.way.settings, name) for name in MatchSettings.__slots__}
    return settings | {"mode": rerank_mode(row.way.settings.mode), "depth": row.way.depth}


def _quality(quality: Quality) -> dict[str, float]:
    return {"p_at_1": quality.p_at_1, "map_at_r": quality.map_at_r}


def _lead(lead: Lead) -> dict[str, float]:
    return {"map_at_r": lead.mean, "standard_error": lead.error}


def plot(report: TuningReport, gallery: str) -> bytes:
    """Return a PNG: MAP@R on the classes held out against the time of a query, one point per row of the table."""
    held_out = report.counts[Half.HELD_OUT]
    texts = ScatterTexts(
        title=f"{gallery}: quality against time per query",
        subtitle=f"{held_out.queries:,} queries of {held_out.classes:,} classes held out from tuning; "
        "per mode the best of the tuning half",
        x_label="milliseconds per query, one thread: coarse stage, fetching and matching",
        y_label="MAP@R in per cent, classes held out",
    )
    points = [
        ScatterPoint(
            x=row.query_ms,
            y=100 * row.held_out.map_at_r,
            label=_label(row),
            highlighted=row.chosen,
            hollow=row.present or row.way.settings.mode in NOTES,
        )
        for row in report.rows
    ]
    return render_scatter(points, texts)


def _label(row: TuningRow) -> str:
    settings, roles = row.way.settings, ", ".join(_roles(row))
    words = [f"{roles}: {rerank_mode(settings.mode)}" if roles else str(rerank_mode(settings.mode))]
    if settings.mode in NOTES:
        words.append(f"({NOTES[settings.mode]})")
    if settings.mode is not MatchMode.COSINE:
        words.append(f"depth {row.way.depth:,}")
    return " ".join(words)

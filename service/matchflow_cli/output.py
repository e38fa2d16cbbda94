"""How results look: consoles, tables, places in words, and values as JSON."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from matchflow import Box, Flow

# In a file or a pipe nobody is at hand to widen the window.
WIDTH_WITHOUT_TERMINAL = 180
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")


def console() -> Console:
    """Return where results are printed."""
    out = Console(highlight=False, soft_wrap=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)
    return out


def progress_console() -> Console:
    """Return where progress is shown: beside the results, so that these can be piped."""
    return Console(highlight=False, stderr=True)


def table(*headings: str, right: Sequence[str] = (), title: str | None = None) -> Table:
    """Return an empty table; headings in `right` have numbers under them."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return made


def text(value: object) -> str:
    """Return a value that users chose so that no markup in it comes to life."""
    return escape(str(value))


def labels(values: Mapping[str, str]) -> str:
    """Return labels as one readable text."""
    return text("  ".join(f"{name}={value}" for name, value in sorted(values.items())))


def score(value: float | None) -> str:
    """Return a score with the digits that matter, a dash for none."""
    return "-" if value is None else f"{value:.4f}"


def place(box: Box) -> str:
    """Return where in an image a box is, in words."""
    row, column = _third((box.top + box.bottom) / 2), _third((box.left + box.right) / 2)
    return "centre" if (row, column) == (1, 1) else f"{ROWS[row]} {COLUMNS[column]}"


def parts(flows: Sequence[Flow], structural_score: float | None, count: int) -> str:
    """Return the strongest matched parts with their share of the structural score."""
    if not structural_score:
        return "-"
    return ", ".join(
        f"{place(flow.query_box)} → {place(flow.image_box)} {flow.contribution / structural_score:.0%}"
        for flow in flows[:count]
    )


def percent_box(box: Box) -> str:
    """Return a box as left, top - right, bottom in per cent of the image."""
    return f"{box.left:.0%},{box.top:.0%} - {box.right:.0%},{box.bottom:.0%}"


def as_json(value: object) -> str:
    """Return a value of the client, or a collection of them, as readable JSON."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not field.name.startswith("_")
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value.isoformat() if isinstance(value, dt.datetime) else value


def _third(fraction: float) -> int:
    return min(2, max(0, int(fraction * 3)))

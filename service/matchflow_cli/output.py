"""How results look: consoles, tables, places in words, and values as JSON."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from matchflow import Box, Flow, Labels, LabelValue

# In a file or a pipe nobody is at hand to widen the window.
WIDTH_WITHOUT_TERMINAL = 180
# Below, a row has not room for everything side by side.
WIDE = 130
# Zero-width joiners: no control characters, and part of many emoji and scripts.
JOINERS = frozenset("\u200c\u200d")
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
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return made


def printable(value: object) -> str:
    """Return a value as text that can't steer a terminal: control characters are escaped as in Python."""
    return "".join(c if c.isprintable() or c in JOINERS else repr(c)[1:-1] for c in str(value))


def text(value: object) -> str:
    """Return a value that users chose so that neither markup nor control characters in it come to life."""
    return escape(printable(value))


def counted(count: int, noun: str) -> str:
    """Return how many there are of what: "1 image", "2 images"; for a noun in -y "2 galleries".

    >>> counted(1, "gallery"), counted(2_000, "gallery"), counted(0, "image")
    ('1 gallery', '2,000 galleries', '0 images')
    """
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def labels(values: Labels) -> str:
    """Return labels as one readable text."""
    return text("  ".join(f"{name}={label(value)}" for name, value in sorted(values.items())))


def label(value: LabelValue) -> str:
    """Return the value of a label: whole numbers without a point, times as ISO 8601 has them.

    >>> label("c1"), label(31.0), label(0.5), label(dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    ('c1', '31', '0.5', '2026-01-01T00:00:00+00:00')
    """
    if isinstance(value, dt.datetime):
        return value.isoformat()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def score(value: float | None) -> str:
    """Return a score with the digits that matter, a dash for none."""
    return "-" if value is None else f"{value:.4f}"


def place(box: Box) -> str:
    """Return where in an image a box is, in words."""
    row, column = _third((box.top + box.bottom) / 2), _third((box.left + box.right) / 2)
    return "centre" if (row, column) == (1, 1) else f"{ROWS[row]} {COLUMNS[column]}"


def parts(flows: Sequence[Flow], structural_score: float | None, count: int) -> list[str]:
    """Return the first matched parts with their share of the structural score; none where that is not positive."""
    if structural_score is None or structural_score <= 0:
        return []
    return [
        f"{place(flow.query_box)} → {place(flow.image_box)} {flow.contribution / structural_score:.0%}"
        for flow in flows[:count]
    ]


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

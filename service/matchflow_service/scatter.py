"""A scatter plot: named points over a logarithmic x axis, each with its label beside it.

The highlighted point differs in shape as well as in colour, so that colour alone never tells. Shapes are drawn enlarged
and scaled down, which smooths them; text is drawn last at its final size.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from matchflow_service.drawing import (
    FAINT_INK,
    FRAME,
    HUES,
    INK,
    VERMILLION,
    WHITE,
    Box,
    Colour,
    fit_text,
    png_bytes,
    scalable_font,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from PIL import ImageFont

MAX_POINTS = 32
WIDTH_PX, HEIGHT_PX = 960, 600
ENLARGED = 3
MARGIN_PX = 24
TEXT_PX = 15
RADIUS_PX = 6
# How far labels may stand from their points, in steps of half a line.
RINGS = 14
DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
Y_TICKS = 6
LINE_PARTS = 16


class ScatterInvalidError(ValueError):
    """A scatter plot was asked for that can't be drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterPoint:
    """One point; x must be above 0. `hollow`: for what others are compared with."""

    x: float
    y: float
    label: str
    highlighted: bool = False
    hollow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterTexts:
    """What is written around the points."""

    title: str
    subtitle: str
    x_label: str
    y_label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    """Where values lie in pixels: `area` is left, top, right, bottom of the field, from the first to the last ticks."""

    area: Box
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point lies."""
        left, top, right, bottom = self.area
        across = math.log(x / self.x_ticks[0]) / math.log(self.x_ticks[-1] / self.x_ticks[0])
        up = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return left + across * (right - left), bottom - up * (bottom - top)


def render_scatter(points: Sequence[ScatterPoint], texts: ScatterTexts, *, curve: bool = False) -> bytes:
    """Draw 1 to 32 points as a PNG of 960 x 600; as a `curve` they are joined in order of x, above a y of 0.

    Raises ScatterInvalidError for another number of them, numbers that are not finite, or an x that is not positive.
    """
    _check(points)
    # Where there is little room the most important label takes it, and its point lies on top.
    points = sorted(points, key=lambda point: not point.highlighted)
    axes = _Axes(
        area=(MARGIN_PX + 62.0, MARGIN_PX + 62.0, WIDTH_PX - MARGIN_PX - 8.0, HEIGHT_PX - MARGIN_PX - 52.0),
        x_ticks=log_ticks([point.x for point in points]),
        y_ticks=linear_ticks([*(point.y for point in points), *([0.0] if curve else [])]),
    )
    font = scalable_font(TEXT_PX)
    places = [axes.place(point.x, point.y) for point in points]
    boxes = place_labels(places, [_extent(point.label, font) for point in points], axes.area)
    canvas = _draw_shapes(points, places, boxes, axes, joined=sorted(places) if curve else [])
    pen = ImageDraw.Draw(canvas)
    _write_ticks(pen, axes, font)
    _write_texts(canvas, texts, axes)
    for point, (left, top, right, bottom) in zip(points, boxes, strict=True):
        middle = (left + right) / 2, (top + bottom) / 2
        # The curve may pass behind it.
        halo = 4 if curve else 0
        pen.text(middle, point.label, fill=_colour(point), font=font, anchor="mm", stroke_width=halo, stroke_fill=WHITE)
    return png_bytes(canvas)


def _check(points: Sequence[ScatterPoint]) -> None:
    if not 1 <= len(points) <= MAX_POINTS:
        raise ScatterInvalidError(f"expected 1 to {MAX_POINTS} points; got {len(points)}")
    for point in points:
        if not (math.isfinite(point.x) and math.isfinite(point.y) and point.x > 0):
            raise ScatterInvalidError(f"expected finite numbers and x above 0; got {point}")


def log_ticks(values: Iterable[float]) -> list[float]:
    """Return 1, 2 and 5 times powers of ten that enclose the values, all above 0, with a step between.

    >>> log_ticks([0.3, 1.7])
    [0.2, 0.5, 1.0, 2.0]
    """
    values = list(values)
    low, high = min(values), max(values)
    steps = [
        float(f"{factor}e{power}")
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        for factor in (1, 2, 5)
    ]
    first = max(k for k, step in enumerate(steps) if step <= low)
    last = min(k for k, step in enumerate(steps) if step >= high)
    return steps[first : max(last, first + 1) + 1]


def linear_ticks(values: Iterable[float]) -> list[float]:
    """Return about six round numbers that enclose the values.

    >>> linear_ticks([51.2, 64.9])
    [50.0, 55.0, 60.0, 65.0]
    """
    values = list(values)
    low, high = min(values), max(values)
    span = max(high - low, 1e-9, 1e-6 * abs(high))
    rough = span / (Y_TICKS - 1)
    power = math.floor(math.log10(rough))
    digits = next(digit for digit in (1, 2, 5, 10) if digit * 10.0**power >= rough)
    step = digits * 10.0**power
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def _extent(text: str, font: ImageFont.FreeTypeFont) -> tuple[float, float]:
    return font.getlength(text) + 4, TEXT_PX * 1.25


def place_labels(places: Sequence[tuple[float, float]], extents: Sequence[tuple[float, float]], area: Box) -> list[Box]:
    """Return a box for each label: near its point, inside `area`, and free of points and labels where there is room.

    Labels are placed in turn, each at the nearest place where it hides nothing, or the one where it hides least. A
    label that stands apart needs a line to its point, which must be free as well.
    """
    points = np.array(places).reshape(-1, 2)
    dots = np.concatenate([points - RADIUS_PX, points + RADIUS_PX], axis=1)
    lines = np.empty((0, 4))
    taken: list[Box] = []
    for place, extent in zip(places, extents, strict=True):
        labels = np.array(taken).reshape(-1, 4)
        obstacles = np.concatenate([dots, labels, lines])
        best, least = None, math.inf
        for box in _around(place, extent):
            lost = _hidden([box], obstacles) + _hidden(_line(place, box), labels) + _outside(box, area)
            if lost < least:
                best, least = box, lost
            if not lost:
                break
        assert best is not None, "there are boxes around every point"
        taken.append(best)
        lines = np.concatenate([lines, np.array(_line(place, best)).reshape(-1, 4)])
    return taken


def _line(place: tuple[float, float], box: Box) -> list[Box]:
    """Return the line from a point to its label as a row of small boxes; none where they are neighbours."""
    (x, y), (end_x, end_y) = place, _nearest(place, box)
    if math.dist(place, (end_x, end_y)) <= 2 * RADIUS_PX:
        return []
    steps = [(x + (end_x - x) * k / LINE_PARTS, y + (end_y - y) * k / LINE_PARTS) for k in range(LINE_PARTS)]
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in steps]


def _nearest(place: tuple[float, float], box: Box) -> tuple[float, float]:
    """Return the point of a box that is nearest to a place."""
    return min(max(place[0], box[0]), box[2]), min(max(place[1], box[1]), box[3])


def _around(place: tuple[float, float], extent: tuple[float, float]) -> Iterator[Box]:
    """Give the boxes that a label may have, the nearest first."""
    (x, y), (width, height) = place, extent
    for ring, (across, down) in itertools.product(range(RINGS), DIRECTIONS):
        gap = RADIUS_PX + 3 + ring * height / 2
        middle_x = x + across * (gap + width / 2)
        middle_y = y + down * (gap + height / 2)
        yield middle_x - width / 2, middle_y - height / 2, middle_x + width / 2, middle_y + height / 2


def _hidden(boxes: Sequence[Box], others: NDArray[np.float64]) -> float:
    """Return the area that boxes share with others [M, 4]."""
    each = np.array(boxes).reshape(-1, 1, 4)
    sides = np.minimum(each[..., 2:], others[:, 2:]) - np.maximum(each[..., :2], others[:, :2])
    return float(np.maximum(sides, 0).prod(axis=2).sum())


def _outside(box: Box, area: Box) -> float:
    """Return the part of a box that is outside of the area."""
    left, top, right, bottom = area
    if left <= box[0] and top <= box[1] and box[2] <= right and box[3] <= bottom:
        return 0.0
    return (box[2] - box[0]) * (box[3] - box[1]) - _hidden([box], np.array([area]))


def _colour(point: ScatterPoint) -> Colour:
    if point.highlighted:
        return VERMILLION
    return FAINT_INK if point.hollow else HUES[0]


def _draw_shapes(
    points: Sequence[ScatterPoint],
    places: Sequence[tuple[float, float]],
    boxes: Sequence[Box],
    axes: _Axes,
    *,
    joined: Sequence[tuple[float, float]],
) -> Image.Image:
    """Draw grid, curve, points, and lines to the labels that stand apart; scaled down to the finished size."""
    times = ENLARGED
    canvas = Image.new("RGB", (WIDTH_PX * times, HEIGHT_PX * times), WHITE)
    pen = ImageDraw.Draw(canvas)
    left, top, right, bottom = (edge * times for edge in axes.area)
    for tick in axes.x_ticks:
        x = axes.place(tick, axes.y_ticks[0])[0] * times
        pen.line((x, top, x, bottom), fill=FRAME, width=times)
    for tick in axes.y_ticks:
        y = axes.place(axes.x_ticks[0], tick)[1] * times
        pen.line((left, y, right, y), fill=FRAME, width=times)
    if joined:
        pen.line([(x * times, y * times) for x, y in joined], fill=HUES[0], width=2 * times)
    for place, box in zip(places, boxes, strict=True):
        if _line(place, box):
            ends = [(x * times, y * times) for x, y in (place, _nearest(place, box))]
            pen.line(ends, fill=FAINT_INK, width=times)
    for point, (x, y) in reversed(list(zip(points, places, strict=True))):
        _draw_point(pen, point, x * times, y * times, RADIUS_PX * times)
    return canvas.reduce(times)


def _draw_point(pen: ImageDraw.ImageDraw, point: ScatterPoint, x: float, y: float, radius: float) -> None:
    colour = _colour(point)
    if point.highlighted:
        outer = radius * 1.5
        diamond = [(x, y - outer), (x + outer, y), (x, y + outer), (x - outer, y)]
        pen.polygon(diamond, fill=colour, outline=WHITE, width=round(radius / 4))
    elif point.hollow:
        pen.circle((x, y), radius, fill=WHITE, outline=colour, width=round(radius / 2.5))
    else:
        pen.circle((x, y), radius, fill=colour, outline=WHITE, width=round(radius / 4))


def _write_ticks(pen: ImageDraw.ImageDraw, axes: _Axes, font: ImageFont.FreeTypeFont) -> None:
    left, _, _, bottom = axes.area
    for tick in axes.x_ticks:
        x = axes.place(tick, axes.y_ticks[0])[0]
        pen.text((x, bottom + 8), f"{tick:g}", fill=INK, font=font, anchor="mt")
    for tick in axes.y_ticks:
        y = axes.place(axes.x_ticks[0], tick)[1]
        pen.text((left - 8, y), f"{tick:g}", fill=INK, font=font, anchor="rm")


def _write_texts(canvas: Image.Image, texts: ScatterTexts, axes: _Axes) -> None:
    pen = ImageDraw.Draw(canvas)
    left, top, right, bottom = axes.area
    large, small = scalable_font(TEXT_PX * 1.35), scalable_font(TEXT_PX)
    width = WIDTH_PX - 2 * MARGIN_PX
    pen.text((MARGIN_PX, MARGIN_PX), fit_text(texts.title, large, width), fill=INK, font=large, anchor="lt")
    under = MARGIN_PX + TEXT_PX * 1.8
    pen.text((MARGIN_PX, under), fit_text(texts.subtitle, small, width), fill=FAINT_INK, font=small, anchor="lt")
    x_label = fit_text(texts.x_label, small, right - left)
    pen.text(((left + right) / 2, bottom + 6 + TEXT_PX * 1.6), x_label, fill=INK, font=small, anchor="mt")
    # Upright text is drawn flat and turned.
    y_label = fit_text(texts.y_label, small, bottom - top)
    strip = Image.new("RGB", (round(bottom - top), round(TEXT_PX * 1.5)), WHITE)
    middle = strip.width / 2, strip.height / 2
    ImageDraw.Draw(strip).text(middle, y_label, fill=INK, font=small, anchor="mm")
    canvas.paste(strip.transpose(Image.Transpose.ROTATE_90), (MARGIN_PX - 8, round(top)))

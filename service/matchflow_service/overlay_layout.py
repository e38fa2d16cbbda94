"""Where everything of an overlay stands, in pixels of the finished picture; nothing is drawn here.

The labels are what the layout turns on: they stand in columns between the images, each as near as possible to the
middle of its line and never on another, and every line runs through its own label.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from matchflow_service.drawing import Box, Colour, fitted_size, nth_colour, scalable_font

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

DESIGN_HEIGHT_PX = 384
SMALLEST_TEXT_PX = 9
PANEL_ASPECT = (0.6, 1.8)
GAP_PER_PANEL = 0.75
LABEL_SPACING_PX = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PartMatch:
    """One matched part: (left, top, right, bottom) at both ends in fractions of the image, and its share of the score.

    The share is contribution / structural score: 0.25 is written as "25 %".
    """

    query_box: Box
    image_box: Box
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The frame of the picture.

    `top` and `bottom` bound the space of images and labels; `query` and `image` are the images' rectangles in it, and
    `columns` are the x of the labels' centres.
    """

    width: int
    height: int
    unit: float
    margin: int
    text_px: int
    label_px: int
    label_width: float
    label_height: float
    top: int
    bottom: int
    query: Box
    image: Box
    columns: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPart:
    """One part in pixels: its boxes, where its line leaves (`start`) and arrives (`end`), and its label's centre."""

    colour: Colour
    thickness: float
    text: str
    query_box: Box
    image_box: Box
    start: tuple[float, float]
    label: tuple[float, float]
    end: tuple[float, float]


def share_text(share: float) -> str:
    """Return the share in percent, with a decimal below ten.

    >>> share_text(0.254), share_text(0.0312), share_text(-0.004)
    ('25 %', '3.1 %', '-0.4 %')
    """
    one_decimal = f"{share * 100:.1f} %"
    return one_decimal if len(one_decimal.lstrip("-")) <= len("9.9 %") else f"{share * 100:.0f} %"


def lay_out(
    query_shape: tuple[int, ...], image_shape: tuple[int, ...], parts: Sequence[PartMatch], height_px: int
) -> Layout:
    """Divide a picture of `height_px` between two images of shape [H, W, 3] and the labels of `parts`."""
    unit = height_px / DESIGN_HEIGHT_PX
    text_px = max(SMALLEST_TEXT_PX, round(15 * unit))
    margin = max(6, round(16 * unit))
    top = margin + round(text_px * 1.7)
    panel = height_px - margin - round(text_px * 1.9) - top
    label_px, per_column = _label_size(len(parts), text_px, panel)
    font = scalable_font(label_px)
    label_width = max((font.getlength(share_text(part.share)) for part in parts), default=0.0) + label_px
    columns = math.ceil(len(parts) / per_column)
    pitch = label_width + max(10.0, 24 * unit)
    gap = round(max(GAP_PER_PANEL * panel, columns * pitch + 0.25 * panel))
    query_width, image_width = (_panel_width(shape, panel) for shape in (query_shape, image_shape))
    middle = margin + query_width + gap / 2
    return Layout(
        width=2 * margin + query_width + gap + image_width,
        height=height_px,
        unit=unit,
        margin=margin,
        text_px=text_px,
        label_px=label_px,
        label_width=label_width,
        label_height=_label_height(label_px),
        top=top,
        bottom=top + panel,
        query=_centred(query_shape, (margin, top), (query_width, panel)),
        image=_centred(image_shape, (margin + query_width + gap, top), (image_width, panel)),
        columns=tuple(middle + (column - (columns - 1) / 2) * pitch for column in range(columns)),
    )


def _label_height(label_px: int) -> float:
    return label_px * 1.45


def _label_size(count: int, text_px: int, panel_px: int) -> tuple[int, int]:
    """Return the largest text at which `count` labels fit in one column, else the smallest, and how many then fit."""
    size_px = text_px
    while True:
        per_column = max(1, int(panel_px / (_label_height(size_px) + LABEL_SPACING_PX)))
        if per_column >= count or size_px <= max(SMALLEST_TEXT_PX, round(text_px * 0.75)):
            return size_px, per_column
        size_px -= 1


def _panel_width(shape: tuple[int, ...], panel_px: int) -> int:
    # Bounded: a panorama or a mast is drawn smaller, so that it neither makes the picture endless nor loses its title.
    narrowest, widest = PANEL_ASPECT
    return round(panel_px * min(widest, max(narrowest, shape[1] / shape[0])))


def _centred(shape: tuple[int, ...], corner: tuple[int, int], space: tuple[int, int]) -> Box:
    width, height = fitted_size(shape[1], shape[0], *space)
    left, top = corner[0] + (space[0] - width) // 2, corner[1] + (space[1] - height) // 2
    return (left, top, left + width, top + height)


def place_parts(parts: Sequence[PartMatch], layout: Layout) -> list[PlacedPart]:
    """Place the parts, strongest first, so that no label touches another and boxes on one cell are nested."""
    query_boxes = _nested([part.query_box for part in parts], layout.query, layout.unit)
    image_boxes = _nested([part.image_box for part in parts], layout.image, layout.unit)
    labels = _label_centres(query_boxes, image_boxes, layout)
    starts = _spread_on_edge(query_boxes, [part.query_box for part in parts], labels, edge=2)
    ends = _spread_on_edge(image_boxes, [part.image_box for part in parts], labels, edge=0)
    strongest = max((abs(part.share) for part in parts), default=0.0) or 1.0
    return [
        PlacedPart(
            colour=nth_colour(rank),
            thickness=layout.unit * (1.2 + 3.3 * abs(part.share) / strongest),
            text=share_text(part.share),
            query_box=query_boxes[rank],
            image_box=image_boxes[rank],
            start=starts[rank],
            label=labels[rank],
            end=ends[rank],
        )
        for rank, part in enumerate(parts)
    ]


def _nested(boxes: Sequence[Box], panel: Box, unit: float) -> list[Box]:
    """Return fractions of the panel as pixels; a box that comes again lies inside the one before."""
    seen: dict[Box, int] = defaultdict(int)
    placed = []
    for box in boxes:
        left, top, right, bottom = _on_panel(box, panel)
        inset = min((0.8 + 3.6 * seen[box]) * unit, 0.4 * (right - left), 0.4 * (bottom - top))
        seen[box] += 1
        placed.append((left + inset, top + inset, right - inset, bottom - inset))
    return placed


def _on_panel(box: Box, panel: Box) -> Box:
    width, height = panel[2] - panel[0], panel[3] - panel[1]
    left, right = sorted(panel[0] + min(1.0, max(0.0, x)) * width for x in (box[0], box[2]))
    top, bottom = sorted(panel[1] + min(1.0, max(0.0, y)) * height for y in (box[1], box[3]))
    return (left, top, right, bottom)


def _label_centres(query_boxes: Sequence[Box], image_boxes: Sequence[Box], layout: Layout) -> list[tuple[float, float]]:
    wished = [(q[1] + q[3] + i[1] + i[3]) / 4 for q, i in zip(query_boxes, image_boxes, strict=True)]
    downwards = sorted(range(len(wished)), key=lambda rank: (wished[rank], rank))
    centres = [(0.0, 0.0)] * len(wished)
    half = layout.label_height / 2
    for column, x in enumerate(layout.columns):
        members = downwards[column :: len(layout.columns)]
        heights = spaced(
            [wished[rank] for rank in members],
            layout.label_height + LABEL_SPACING_PX,
            layout.top + half,
            layout.bottom - half,
        )
        for rank, y in zip(members, heights, strict=True):
            centres[rank] = (x, y)
    return centres


def spaced(wished: Sequence[float], distance: float, lowest: float, highest: float) -> list[float]:
    """Return ascending positions at least `distance` apart, as near to the ascending `wished` as can be.

    They lie in lowest..highest where that has room, and start at `lowest` where it has not.
    Least squares: subtracting the distances leaves an isotonic regression, solved by pooling adjacent violators.

    >>> spaced([5.0, 5.0, 9.0], 2.0, 0.0, 10.0)
    [4.0, 6.0, 9.0]
    """
    blocks: list[tuple[float, int]] = []
    for rank, position in enumerate(wished):
        mean, size = position - rank * distance, 1
        while blocks and blocks[-1][0] >= mean:
            earlier_mean, earlier_size = blocks.pop()
            mean = (mean * size + earlier_mean * earlier_size) / (size + earlier_size)
            size += earlier_size
        blocks.append((mean, size))
    pooled = [mean for mean, size in blocks for _ in range(size)]
    room = highest - (len(pooled) - 1) * distance
    return [max(lowest, min(room, mean)) + rank * distance for rank, mean in enumerate(pooled)]


def _spread_on_edge(
    placed: Sequence[Box], cells: Sequence[Box], labels: Sequence[tuple[float, float]], *, edge: int
) -> list[tuple[float, float]]:
    """Return a point on each box's edge (0 left, 2 right).

    Boxes in one row of cells take turns over its height, in their labels' order: lines that leave side by side would
    otherwise run on each other.
    """
    rows: dict[tuple[float, float], list[int]] = defaultdict(list)
    for rank in sorted(range(len(cells)), key=lambda rank: labels[rank][1]):
        rows[cells[rank][1], cells[rank][3]].append(rank)
    points = [(0.0, 0.0)] * len(cells)
    for ranks in rows.values():
        for place, rank in enumerate(ranks, start=1):
            box = placed[rank]
            points[rank] = (box[edge], box[1] + (box[3] - box[1]) * place / (len(ranks) + 1))
    return points


def curve(points: Sequence[tuple[float, float]], step_px: float = 3.0) -> NDArray[np.float64]:
    """Return a smooth path [K, 2] through `points`, which ascend in x, horizontal at both ends.

    Monotone cubic Hermite interpolation (Fritsch and Carlson, 1980): it never swings beyond its points.
    """
    # To a thousandth of a pixel: rises too small to see must not reach the quotients below.
    x, y = np.array(points, dtype=np.float64).round(3).T
    slopes = np.diff(y) / np.diff(x)
    tangents = np.zeros_like(y)
    agree = slopes[:-1] * slopes[1:] > 0
    before, after = slopes[:-1][agree], slopes[1:][agree]
    tangents[1:-1][agree] = 2 * before * after / (before + after)
    pieces = [
        _hermite((x[i], x[i + 1]), (y[i], y[i + 1]), (tangents[i], tangents[i + 1]), step_px) for i in range(len(x) - 1)
    ]
    return np.concatenate([*(piece[:-1] for piece in pieces), np.array([[x[-1], y[-1]]])])


def _hermite(
    x: tuple[float, float], y: tuple[float, float], tangents: tuple[float, float], step_px: float
) -> NDArray[np.float64]:
    width = x[1] - x[0]
    t = np.linspace(0.0, 1.0, max(8, math.ceil(width / step_px)) + 1)
    rise, start = (3 - 2 * t) * t**2, t * (1 - t) ** 2
    heights = y[0] + (y[1] - y[0]) * rise + width * (tangents[0] * start - tangents[1] * t**2 * (1 - t))
    return np.stack([x[0] + t * width, heights], axis=1)

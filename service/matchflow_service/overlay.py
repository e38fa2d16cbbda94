"""The overlay: query and hit side by side, their strongest matched parts joined.

Every part has one colour: a box at both ends, a smooth line between them, and on the line its share of the score. Lines
and boxes are drawn enlarged and scaled down, which smooths them; text is drawn last at its final size, which keeps it
crisp.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from matchflow_service.drawing import (
    FAINT_INK,
    FRAME,
    INK,
    WHITE,
    Box,
    Colour,
    fit_text,
    png_bytes,
    readable_on,
    resized,
    scalable_font,
)
from matchflow_service.overlay_layout import (
    DESIGN_HEIGHT_PX,
    SMALLEST_TEXT_PX,
    Layout,
    PartMatch,
    PlacedPart,
    curve,
    lay_out,
    place_parts,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["OverlayInvalidError", "PartMatch", "render_match"]

MAX_PARTS = 64
MIN_HEIGHT_PX = 128
MAX_HEIGHT_PX = 1024
# Enlargement while drawing. Large pictures need less of it to look smooth.
ENLARGED = 3
ENLARGED_LARGE = 2
LARGE_PX = 600


class OverlayInvalidError(ValueError):
    """An overlay was asked for that can't be drawn."""


def render_match(
    query: NDArray[np.uint8],
    image: NDArray[np.uint8],
    parts: Sequence[PartMatch],
    *,
    query_title: str = "",
    image_title: str = "",
    score_text: str = "",
    height_px: int = DESIGN_HEIGHT_PX,
) -> bytes:
    """Draw the pair as a PNG of `height_px`, 128 to 1,024; its width follows from the images and the labels.

    query, image: uint8 RGB [H, W, 3] of any size. parts: at most 64. Raises OverlayInvalidError for anything else.
    """
    _check(query, image, parts, height_px)
    strongest_first = sorted(parts, key=lambda part: -part.share)
    layout = lay_out(query.shape, image.shape, strongest_first, height_px)
    placed = place_parts(strongest_first, layout)
    canvas = _draw_enlarged(query, image, placed, layout)
    pen = ImageDraw.Draw(canvas)
    _write_labels(pen, placed, layout)
    _write_titles(pen, layout, query_title, image_title)
    _write_score(pen, layout, score_text, strongest_first)
    return png_bytes(canvas)


def _check(query: NDArray[np.uint8], image: NDArray[np.uint8], parts: Sequence[PartMatch], height_px: int) -> None:
    for name, pixels in (("query", query), ("image", image)):
        if pixels.dtype != np.uint8 or pixels.shape[2:] != (3,) or not pixels.size:
            raise OverlayInvalidError(f"expected {name} as uint8 [H, W, 3]; got {pixels.dtype} {list(pixels.shape)}")
    if not MIN_HEIGHT_PX <= height_px <= MAX_HEIGHT_PX:
        raise OverlayInvalidError(f"expected a height of {MIN_HEIGHT_PX} to {MAX_HEIGHT_PX} pixels; got {height_px}")
    if len(parts) > MAX_PARTS:
        raise OverlayInvalidError(f"expected at most {MAX_PARTS} parts; got {len(parts)}")
    for part in parts:
        if not all(map(math.isfinite, (*part.query_box, *part.image_box, part.share))):
            raise OverlayInvalidError(f"expected finite boxes and shares; got {part}")


def _draw_enlarged(
    query: NDArray[np.uint8], image: NDArray[np.uint8], placed: Sequence[PlacedPart], layout: Layout
) -> Image.Image:
    """Draw images, lines, boxes and the labels' grounds, scaled down to the finished size."""
    times = ENLARGED if layout.height < LARGE_PX else ENLARGED_LARGE
    canvas = Image.new("RGB", (layout.width * times, layout.height * times), WHITE)
    pen = ImageDraw.Draw(canvas)
    for pixels, panel in ((query, layout.query), (image, layout.image)):
        left, top, right, bottom = (round(edge * times) for edge in panel)
        canvas.paste(resized(pixels, (right - left, bottom - top)), (left, top))
        pen.rectangle((left - times, top - times, right + times - 1, bottom + times - 1), outline=FRAME, width=times)
    # The weakest first: where lines cross, the stronger one lies on top.
    for part in reversed(placed):
        _draw_line(pen, part, layout.unit, times)
    for part in reversed(placed):
        for box in (part.query_box, part.image_box):
            _draw_box(pen, box, part.colour, layout.unit, times)
    for part in reversed(placed):
        _draw_ends(pen, part, layout.unit, times)
        _draw_label_ground(pen, part, layout, times)
    return canvas.reduce(times)


def _draw_line(pen: ImageDraw.ImageDraw, part: PlacedPart, unit: float, times: int) -> None:
    path = curve([part.start, part.label, part.end]) * times
    # A white casing keeps the line readable on any picture and where lines cross.
    for thickness, colour in ((part.thickness + 2 * unit, WHITE), (part.thickness, part.colour)):
        pen.polygon([(x, y) for x, y in _ribbon(path, thickness * times)], fill=colour)


def _ribbon(path: NDArray[np.float64], thickness: float) -> NDArray[np.float64]:
    """Return the outline [2 K, 2] of a path [K, 2] drawn with that thickness."""
    direction = np.gradient(path, axis=0)
    normal = np.stack([-direction[:, 1], direction[:, 0]], axis=1) / np.linalg.norm(direction, axis=1)[:, None]
    aside = normal * thickness / 2
    return np.concatenate([path + aside, (path - aside)[::-1]])


def _draw_box(pen: ImageDraw.ImageDraw, box: Box, colour: Colour, unit: float, times: int) -> None:
    stroke = max(1, round(2.2 * unit * times))
    casing = max(1, round(0.7 * unit * times))
    left, top, right, bottom = (round(edge * times) for edge in box)
    # Never inside out: a part in the padding around an image has a box without width or height.
    right, bottom = max(right, left + stroke), max(bottom, top + stroke)
    radius = 3 * unit * times
    pen.rounded_rectangle((left, top, right, bottom), radius, outline=WHITE, width=stroke + casing)
    pen.rounded_rectangle((left, top, right, bottom), radius, outline=colour, width=stroke)


def _draw_ends(pen: ImageDraw.ImageDraw, part: PlacedPart, unit: float, times: int) -> None:
    radius = (part.thickness / 2 + 1.6 * unit) * times
    for x, y in (part.start, part.end):
        pen.circle((x * times, y * times), radius + unit * times, fill=WHITE)
        pen.circle((x * times, y * times), radius, fill=part.colour)


def _draw_label_ground(pen: ImageDraw.ImageDraw, part: PlacedPart, layout: Layout, times: int) -> None:
    x, y = part.label
    half_width, half_height = layout.label_width / 2, layout.label_height / 2
    edges = tuple(e * times for e in (x - half_width, y - half_height, x + half_width, y + half_height))
    pen.rounded_rectangle(edges, half_height * times, fill=part.colour)


def _write_labels(pen: ImageDraw.ImageDraw, placed: Sequence[PlacedPart], layout: Layout) -> None:
    font = scalable_font(layout.label_px)
    for part in placed:
        pen.text(part.label, part.text, fill=readable_on(part.colour), font=font, anchor="mm")


def _write_titles(pen: ImageDraw.ImageDraw, layout: Layout, query_title: str, image_title: str) -> None:
    """Write each name over its image, within its half of the picture."""
    font = scalable_font(layout.text_px)
    middle = (layout.query[2] + layout.image[0]) / 2
    spacing = layout.text_px / 2
    for title, left, right in (
        (query_title, layout.margin, middle - spacing),
        (image_title, middle + spacing, layout.width - layout.margin),
    ):
        text = fit_text(title, font, right - left)
        panel = layout.query if left == layout.margin else layout.image
        half = font.getlength(text) / 2
        x = min(max((panel[0] + panel[2]) / 2, left + half), right - half)
        pen.text((x, layout.margin + layout.text_px * 0.45), text, fill=INK, font=font, anchor="mm")


def _write_score(pen: ImageDraw.ImageDraw, layout: Layout, score_text: str, parts: Sequence[PartMatch]) -> None:
    """Write the score on the line below the images, and where there is room how much the drawn parts carry of it."""
    font = scalable_font(max(SMALLEST_TEXT_PX, round(layout.text_px * 0.85)))
    width = layout.width - 2 * layout.margin
    text = fit_text(score_text, font, width)
    if parts:
        noun = "1 part carries" if len(parts) == 1 else f"{len(parts)} parts carry"
        carried = f"{noun} {sum(part.share for part in parts) * 100:.0f} % of the structural score"
        both = f"{text}   |   {carried}" if text else carried
        text = both if font.getlength(both) <= width else text
    y = layout.height - layout.margin - layout.text_px * 0.35
    pen.text((layout.width / 2, y), text, fill=FAINT_INK, font=font, anchor="mm")

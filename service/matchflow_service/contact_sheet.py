"""The contact sheet: queries down the left, their best hits beside them, each framed as right or wrong.

Right and wrong differ in colour, in their mark (a tick, a cross) and in the frame's stroke, so that colour alone never
tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from matchflow_bundle import decode_image
from matchflow_service.drawing import (
    BLUISH_GREEN,
    FAINT_INK,
    FRAME,
    INK,
    VERMILLION,
    WHITE,
    Colour,
    fit_text,
    fitted_size,
    png_bytes,
    resized,
    scalable_font,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ROWS = 200
MIN_TILE_PX = 32
MAX_TILE_PX = 512
ENLARGED = 3


class ContactSheetInvalidError(ValueError):
    """A contact sheet was asked for that can't be drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetHit:
    """One hit: an encoded image, its name, its score, and whether it is right (None: not known)."""

    image: bytes
    title: str
    score: float
    correct: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetRow:
    """One query, an encoded image, its name, and its hits, best first."""

    query: bytes
    title: str
    hits: Sequence[SheetHit]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sheet:
    """The measures of a sheet in pixels; column 0 holds the queries."""

    tile: int
    columns: int
    rows: int
    text: int
    header: int

    @property
    def pitch(self) -> tuple[int, int]:
        """The distance from one tile to the next, right and down: the tile, its two lines of text, the spacing."""
        return self.tile + self.text + 6, self.tile + round(self.text * 4.1)

    @property
    def margin(self) -> int:
        return self.text + 4

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        right, down = self.pitch
        return (
            2 * self.margin + right * self.columns + self.query_gap - (right - self.tile),
            2 * self.margin + self.header + down * self.rows - self.text,
        )

    @property
    def query_gap(self) -> int:
        """What the queries stand apart from their hits, beyond the usual spacing."""
        return self.tile // 4

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Return left and top of a tile."""
        right, down = self.pitch
        gap = self.query_gap if column else 0
        return self.margin + right * column + gap, self.margin + self.header + down * row


def render_contact_sheet(rows: Sequence[SheetRow], *, title: str = "", tile_px: int = 112) -> bytes:
    """Draw up to 200 queries and their hits as a PNG; rows may have different numbers of hits.

    Raises ContactSheetInvalidError for no or too many rows and for tiles outside 32 to 512 pixels, and the ImageError
    of an image that can't be read.
    """
    if not 1 <= len(rows) <= MAX_ROWS:
        raise ContactSheetInvalidError(f"expected 1 to {MAX_ROWS} rows; got {len(rows)}")
    if not MIN_TILE_PX <= tile_px <= MAX_TILE_PX:
        raise ContactSheetInvalidError(f"expected tiles of {MIN_TILE_PX} to {MAX_TILE_PX} pixels; got {tile_px}")
    text = max(9, round(tile_px * 0.105))
    columns = 1 + max(len(row.hits) for row in rows)
    sheet = _Sheet(tile=tile_px, columns=columns, rows=len(rows), text=text, header=round(text * 3.4))
    canvas = Image.new("RGB", sheet.size, WHITE)
    _write_header(canvas, sheet, title, rows)
    for r, row in enumerate(rows):
        _draw_tile(canvas, sheet, sheet.corner(r, 0), row.query, correct=None)
        _write_caption(canvas, sheet, sheet.corner(r, 0), (row.title, "query"))
        for c, hit in enumerate(row.hits, start=1):
            _draw_tile(canvas, sheet, sheet.corner(r, c), hit.image, correct=hit.correct)
            _write_caption(canvas, sheet, sheet.corner(r, c), (hit.title, f"{hit.score:.3f}"))
    return png_bytes(canvas)


def _write_header(canvas: Image.Image, sheet: _Sheet, title: str, rows: Sequence[SheetRow]) -> None:
    """Write the title and how many of the first hits are right, as far as that is known."""
    pen = ImageDraw.Draw(canvas)
    judged = [row.hits[0].correct for row in rows if row.hits and row.hits[0].correct is not None]
    counted = f"first hit right: {sum(judged)} of {len(judged)}" if judged else ""
    large, small = scalable_font(round(sheet.text * 1.4)), scalable_font(sheet.text)
    width = canvas.width - 2 * sheet.margin
    pen.text((sheet.margin, sheet.margin), fit_text(title, large, width), fill=INK, font=large, anchor="lt")
    y = sheet.margin + sheet.text * 1.9
    pen.text((sheet.margin, y), fit_text(counted, small, width), fill=FAINT_INK, font=small, anchor="lt")


def _draw_tile(
    canvas: Image.Image, sheet: _Sheet, corner: tuple[int, int], encoded: bytes, *, correct: bool | None
) -> None:
    """Paste one image into its tile with its frame and mark, drawn enlarged and scaled down."""
    pixels = decode_image(encoded)
    times = ENLARGED
    side = sheet.tile * times
    stroke = max(1, round(sheet.tile * 0.028)) * times
    tile = Image.new("RGB", (side, side), WHITE)
    inner = side - 2 * stroke - 2 * times
    size = fitted_size(pixels.shape[1], pixels.shape[0], inner, inner)
    tile.paste(resized(pixels, size), ((side - size[0]) // 2, (side - size[1]) // 2))
    pen = ImageDraw.Draw(tile)
    if correct is None:
        pen.rectangle((0, 0, side - 1, side - 1), outline=FRAME, width=times)
    else:
        colour = BLUISH_GREEN if correct else VERMILLION
        pen.rectangle((0, 0, side - 1, side - 1), outline=colour, width=stroke if correct else max(times, stroke // 2))
        _draw_mark(pen, side, colour, correct=correct)
    canvas.paste(tile.reduce(times), corner)


def _draw_mark(pen: ImageDraw.ImageDraw, side: int, colour: Colour, *, correct: bool) -> None:
    """Draw a tick or a cross on a disc in the tile's upper right corner."""
    radius = side * 0.085
    x, y = side - radius * 1.15, radius * 1.15
    pen.circle((x, y), radius, fill=colour)
    tick = [((-0.45, 0.05), (-0.12, 0.4), (0.48, -0.36))]
    cross = [((-0.36, -0.36), (0.36, 0.36)), ((-0.36, 0.36), (0.36, -0.36))]
    for stroke in tick if correct else cross:
        points = [(x + dx * radius, y + dy * radius) for dx, dy in stroke]
        pen.line(points, fill=WHITE, width=max(2, round(radius * 0.26)), joint="curve")


def _write_caption(canvas: Image.Image, sheet: _Sheet, corner: tuple[int, int], lines: tuple[str, str]) -> None:
    """Write name and score below a tile."""
    pen = ImageDraw.Draw(canvas)
    font = scalable_font(sheet.text)
    x = corner[0] + sheet.tile / 2
    for line, (text, colour) in enumerate(zip(lines, (INK, FAINT_INK), strict=True)):
        y = corner[1] + sheet.tile + sheet.text * (0.85 + 1.2 * line)
        pen.text((x, y), fit_text(text, font, sheet.tile + sheet.text), fill=colour, font=font, anchor="mm")

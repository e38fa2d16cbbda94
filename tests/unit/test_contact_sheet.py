from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from matchflow_bundle import ImageUnreadableError
from matchflow_service.contact_sheet import ContactSheetInvalidError, SheetHit, SheetRow, render_contact_sheet
from matchflow_service.drawing import BLUISH_GREEN, FRAME, VERMILLION


def encoded(width: int = 40, height: int = 30, colour: str = "grey") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def hit(
    *, correct: bool | None = None, image: bytes | None = None, title: str = "noto", score: float = 1.4
) -> SheetHit:
    return SheetHit(image=image or encoded(), title=title, score=score, correct=correct)


def row(*hits: SheetHit, title: str = "cat") -> SheetRow:
    return SheetRow(query=encoded(), title=title, hits=hits)


def pixels(png: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image)


def count(png: bytes, colour: tuple[int, int, int]) -> int:
    return int((pixels(png) == colour).all(axis=2).sum())


def test_a_right_hit_is_framed_green_and_a_wrong_one_red() -> None:
    right, wrong = render_contact_sheet([row(hit(correct=True))]), render_contact_sheet([row(hit(correct=False))])
    assert count(right, BLUISH_GREEN) > 400 > count(right, VERMILLION) == 0
    assert count(wrong, VERMILLION) > 200 > count(wrong, BLUISH_GREEN) == 0


def test_right_and_wrong_differ_without_colour_too() -> None:
    frames = [
        (pixels(render_contact_sheet([row(hit(correct=correct))])) != 255).any(axis=2) for correct in (True, False)
    ]
    assert (frames[0] != frames[1]).any()


def test_a_hit_that_nobody_judged_has_a_neutral_frame() -> None:
    sheet = render_contact_sheet([row(hit())])
    assert count(sheet, BLUISH_GREEN) == count(sheet, VERMILLION) == 0
    # Query and hit have the same frame.
    assert count(sheet, FRAME) > 700


def test_the_sheet_grows_with_rows_and_hits() -> None:
    small, wide, high = (
        pixels(render_contact_sheet(rows)).shape for rows in ([row(hit())], [row(*[hit()] * 5)], [row(hit())] * 3)
    )
    assert wide[1] > small[1]
    assert wide[0] == small[0]
    assert high[0] > small[0]
    assert high[1] == small[1]


def test_rows_may_have_different_numbers_of_hits_and_none() -> None:
    ragged = pixels(render_contact_sheet([row(hit(), hit()), row(hit()), row()]))
    assert ragged.shape == pixels(render_contact_sheet([row(hit(), hit())] * 3)).shape
    assert pixels(render_contact_sheet([row()])).shape[1] > 112


def test_the_header_counts_the_right_first_hits() -> None:
    mixed = [row(hit(correct=True), hit(correct=False)), row(hit(correct=False)), row(hit()), row()]
    unjudged = [row(hit(), hit()), row(hit()), row(hit()), row()]
    counted, silent = (pixels(render_contact_sheet(rows))[:44] for rows in (mixed, unjudged))
    assert (counted != 255).any()
    assert (silent == 255).all()


def test_title_and_captions_leave_ink() -> None:
    bare = render_contact_sheet([row(hit(title="", score=1.0), title="")])
    assert render_contact_sheet([row(hit(title="", score=1.0), title="")], title="Emoji") != bare
    assert render_contact_sheet([row(hit(title="noto", score=1.0), title="")]) != bare
    assert render_contact_sheet([row(hit(title="", score=2.0), title="")]) != bare
    assert render_contact_sheet([row(hit(title="", score=1.0), title="x" * 500)]) != bare


def test_the_same_rows_give_the_same_bytes() -> None:
    rows = [row(hit(correct=True), hit(correct=False))]
    assert render_contact_sheet(rows) == render_contact_sheet(rows)


@pytest.mark.parametrize("tile_px", [32, 112, 512])
@pytest.mark.parametrize("size", [(1, 1), (600, 2), (2, 600)])
def test_images_of_any_shape_fit_their_tiles(tile_px: int, size: tuple[int, int]) -> None:
    sheet = render_contact_sheet([row(hit(image=encoded(*size, colour="black"), correct=True))], tile_px=tile_px)
    assert pixels(sheet).shape[0] > tile_px


@pytest.mark.parametrize("rows", [[], [row()] * 201])
def test_no_rows_and_too_many_are_refused(rows: list[SheetRow]) -> None:
    with pytest.raises(ContactSheetInvalidError, match=f"expected 1 to 200 rows; got {len(rows)}"):
        render_contact_sheet(rows)


@pytest.mark.parametrize("tile_px", [-1, 31, 513])
def test_tiles_out_of_range_are_refused(tile_px: int) -> None:
    with pytest.raises(ContactSheetInvalidError, match=f"32 to 512 pixels; got {tile_px}"):
        render_contact_sheet([row()], tile_px=tile_px)


def test_an_image_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ImageUnreadableError):
        render_contact_sheet([row(hit(image=b"no image"))])

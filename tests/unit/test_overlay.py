from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from matchflow_service.drawing import HUES, fit_text, fitted_size, nth_colour, readable_on, scalable_font
from matchflow_service.overlay import OverlayInvalidError, PartMatch, render_match
from matchflow_service.overlay_layout import (
    LABEL_SPACING_PX,
    Layout,
    PlacedPart,
    curve,
    lay_out,
    place_parts,
    share_text,
    spaced,
)

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]

GREY: Pixels = np.full((64, 64, 3), 200, np.uint8)
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def cell(row: int, column: int, rows: int = 4, columns: int = 4) -> Box:
    return (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)


def part(share: float = 0.5, query_box: Box = WHOLE, image_box: Box = WHOLE) -> PartMatch:
    return PartMatch(query_box=query_box, image_box=image_box, share=share)


def random_parts(count: int, seed: int = 0, rows: int = 4, columns: int = 4) -> list[PartMatch]:
    rng = np.random.default_rng(seed)

    def random_cell() -> Box:
        return cell(int(rng.integers(rows)), int(rng.integers(columns)), rows, columns)

    return [part(float(share), random_cell(), random_cell()) for share in rng.dirichlet(np.ones(count))]


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode) == ("PNG", "RGB")
    image.load()
    return image


def placed(parts: list[PartMatch], height_px: int = 384, shape: tuple[int, ...] = (64, 64, 3)) -> list[PlacedPart]:
    return place_parts(parts, lay_out(shape, shape, parts, height_px))


def overlapping(first: Box, second: Box) -> bool:
    across = first[0] < second[2] and second[0] < first[2]
    return across and first[1] < second[3] and second[1] < first[3]


def label_box(one: PlacedPart, layout: Layout) -> Box:
    (x, y), half_width, half_height = one.label, layout.label_width / 2, layout.label_height / 2
    return (x - half_width, y - half_height, x + half_width, y + half_height)


# The picture


@pytest.mark.parametrize("height_px", [128, 384, 599, 600, 1024])
def test_the_picture_is_as_high_as_asked_for(height_px: int) -> None:
    assert opened(render_match(GREY, GREY, random_parts(8), height_px=height_px)).height == height_px


def test_the_same_match_gives_the_same_bytes() -> None:
    parts = random_parts(8)
    first = render_match(GREY, GREY, parts, query_title="q", image_title="x", score_text="1.2")
    assert first == render_match(GREY, GREY, parts, query_title="q", image_title="x", score_text="1.2")


def test_the_order_of_the_parts_does_not_matter() -> None:
    parts = random_parts(8)
    assert render_match(GREY, GREY, parts) == render_match(GREY, GREY, parts[::-1])


def test_query_stands_left_and_image_right() -> None:
    red, blue = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    picture = opened(render_match(red, blue, []))
    row = np.asarray(picture)[picture.height // 2].astype(int)
    reds, blues = (np.flatnonzero((row == colour).all(axis=1)) for colour in ([255, 0, 0], [0, 0, 255]))
    assert len(reds) > 200
    assert len(blues) > 200
    assert reds.max() < blues.min()


def test_a_part_is_drawn_in_its_colour_at_both_ends_and_between() -> None:
    picture = np.asarray(opened(render_match(GREY, GREY, [part(1.0, cell(1, 1), cell(2, 2))]))).astype(int)
    coloured = np.abs(picture - np.array(HUES[0])).sum(axis=2) < 30
    columns = np.flatnonzero(coloured.any(axis=0))
    layout = lay_out(GREY.shape, GREY.shape, [part(1.0)], 384)
    assert columns.min() < layout.query[2] < layout.image[0] < columns.max()
    # One line without a gap, from the query's box to the image's.
    assert np.diff(columns[(columns > layout.query[2]) & (columns < layout.image[0])]).max() == 1


def test_a_match_without_parts_shows_both_images() -> None:
    picture = np.asarray(opened(render_match(GREY, GREY, [], score_text="cosine 0.7")))
    assert (picture == 200).all(axis=2).sum() > 2 * 200 * 200


def test_titles_and_score_leave_ink() -> None:
    bare = np.asarray(opened(render_match(GREY, GREY, [])))
    for written in (
        render_match(GREY, GREY, [], query_title="cat"),
        render_match(GREY, GREY, [], image_title="dog"),
        render_match(GREY, GREY, [], score_text="1.5"),
    ):
        assert (np.asarray(opened(written)) != bare).any()


def test_what_the_parts_carry_is_left_out_where_it_does_not_fit() -> None:
    parts = [part(0.5)]
    long = "a score so long that nothing else fits on its line, not even when the text is shortened " * 3
    with_parts = np.asarray(opened(render_match(GREY, GREY, parts, height_px=128, score_text=long)))
    assert with_parts.shape[0] == 128


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5000, 3), (5000, 1, 3), (3, 900, 3), (2000, 1500, 3)])
@pytest.mark.parametrize("height_px", [128, 384])
def test_images_of_any_shape_are_drawn(shape: tuple[int, int, int], height_px: int) -> None:
    odd = np.zeros(shape, np.uint8)
    picture = opened(render_match(odd, GREY, random_parts(5), height_px=height_px))
    mirrored = opened(render_match(GREY, odd, random_parts(5), height_px=height_px))
    assert picture.height == mirrored.height == height_px
    assert picture.width < 6 * height_px


def test_proportions_are_kept() -> None:
    layout = lay_out((100, 50, 3), (50, 100, 3), [], 384)
    for (left, top, right, bottom), aspect in ((layout.query, 0.5), (layout.image, 2.0)):
        assert (right - left) / (bottom - top) == pytest.approx(aspect, rel=0.03)


def test_sixty_four_parts_can_be_drawn_at_every_height() -> None:
    for height_px in (128, 384):
        assert opened(render_match(GREY, GREY, random_parts(64), height_px=height_px)).height == height_px


def test_boxes_without_width_are_drawn() -> None:
    flat: Box = (0.0, 0.5, 0.0, 0.5)
    assert opened(render_match(GREY, GREY, [part(0.4, flat, (1.0, 1.0, 1.0, 1.0))])).height == 384


def test_shares_below_zero_and_all_zero_are_drawn() -> None:
    assert opened(render_match(GREY, GREY, [part(-0.2), part(1.2)])).height == 384
    assert opened(render_match(GREY, GREY, [part(0.0)])).height == 384


def test_titles_of_any_characters_are_drawn() -> None:
    odd = "\x00\n\t\u202e\U0001f600" + "w" * 5000
    assert opened(render_match(GREY, GREY, [], query_title=odd, image_title=odd, score_text=odd)).height == 384


def test_read_only_and_strided_pixels_are_drawn() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels.setflags(write=False)
    assert render_match(pixels, pixels[::2, ::-1], [part()])


# What is refused


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3, 1), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_pixels_that_are_not_rgb_are_refused(pixels: Pixels) -> None:
    with pytest.raises(OverlayInvalidError, match=r"expected query as uint8 \[H, W, 3\]; got"):
        render_match(pixels, GREY, [])
    with pytest.raises(OverlayInvalidError, match=r"expected image as uint8 \[H, W, 3\]; got"):
        render_match(GREY, pixels, [])


@pytest.mark.parametrize("height_px", [-1, 0, 127, 1025])
def test_a_height_out_of_range_is_refused(height_px: int) -> None:
    with pytest.raises(OverlayInvalidError, match=f"128 to 1024 pixels; got {height_px}"):
        render_match(GREY, GREY, [], height_px=height_px)


def test_more_than_sixty_four_parts_are_refused() -> None:
    with pytest.raises(OverlayInvalidError, match="at most 64 parts; got 65"):
        render_match(GREY, GREY, [part()] * 65)


@pytest.mark.parametrize("broken", [part(math.nan), part(0.5, (0, 0, math.inf, 1)), part(0.5, WHOLE, (math.nan,) * 4)])
def test_numbers_that_are_not_finite_are_refused(broken: PartMatch) -> None:
    with pytest.raises(OverlayInvalidError, match="expected finite boxes and shares"):
        render_match(GREY, GREY, [broken])


# The layout


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 64),
    height_px=st.sampled_from([128, 200, 384, 1024]),
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(64, 64, 3), (10, 1000, 3), (1000, 10, 3), (256, 128, 3)]),
)
def test_no_label_touches_another_or_leaves_the_space_between_the_images(
    count: int, height_px: int, seed: int, shape: tuple[int, ...]
) -> None:
    parts = random_parts(count, seed)
    layout = lay_out(shape, shape, parts, height_px)
    boxes = [label_box(one, layout) for one in place_parts(parts, layout)]
    assert not any(overlapping(a, b) for a, b in itertools.combinations(boxes, 2))
    for left, top, right, bottom in boxes:
        assert layout.query[2] < left < right < layout.image[0]
        assert layout.top - 0.01 <= top < bottom <= layout.bottom + 0.01


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 64), seed=st.integers(0, 1000), height_px=st.sampled_from([128, 384]))
def test_boxes_lie_on_their_images_and_lines_start_and_end_on_their_boxes(
    count: int, seed: int, height_px: int
) -> None:
    parts = random_parts(count, seed, rows=8, columns=3)
    layout = lay_out((256, 128, 3), (64, 64, 3), parts, height_px)
    for one in place_parts(parts, layout):
        for (left, top, right, bottom), panel in ((one.query_box, layout.query), (one.image_box, layout.image)):
            assert panel[0] <= left <= right <= panel[2]
            assert panel[1] <= top <= bottom <= panel[3]
        assert one.start[0] == one.query_box[2]
        assert one.end[0] == one.image_box[0]
        assert one.query_box[1] <= one.start[1] <= one.query_box[3]
        assert one.image_box[1] <= one.end[1] <= one.image_box[3]


def test_boxes_on_one_cell_are_nested() -> None:
    outer, inner = placed([part(0.6, cell(1, 1), cell(0, 0)), part(0.4, cell(1, 1), cell(3, 3))])
    assert outer.query_box[0] < inner.query_box[0] < inner.query_box[2] < outer.query_box[2]
    assert outer.query_box[1] < inner.query_box[1] < inner.query_box[3] < outer.query_box[3]


def test_lines_from_one_row_of_cells_leave_at_different_heights() -> None:
    one, other = placed([part(0.6, cell(1, 0), cell(1, 0)), part(0.4, cell(1, 1), cell(1, 1))])
    assert one.start[1] != other.start[1]
    assert one.end[1] != other.end[1]


def test_boxes_beyond_the_image_are_clipped_to_it() -> None:
    beyond = part(1.0, (-3.0, -3.0, 9.0, 9.0), (2.0, 2.0, 3.0, 3.0))
    layout = lay_out((64, 64, 3), (64, 64, 3), [beyond], 384)
    one = place_parts([beyond], layout)[0]
    assert one.query_box[0] >= layout.query[0]
    assert one.image_box[2] <= layout.image[2]


def test_the_strongest_line_is_the_thickest() -> None:
    strong, weak = placed([part(0.6), part(0.1)])
    assert strong.thickness > weak.thickness > 0


def test_no_parts_need_no_columns() -> None:
    assert lay_out((64, 64, 3), (64, 64, 3), [], 384).columns == ()
    assert placed([]) == []


def test_labels_that_need_it_take_more_columns() -> None:
    few, many = (lay_out((64, 64, 3), (64, 64, 3), random_parts(n), 384) for n in (8, 64))
    assert len(few.columns) == 1
    assert len(many.columns) > 1
    assert many.label_px < few.label_px


@settings(max_examples=200)
@given(
    wished=st.lists(st.floats(-100, 100), max_size=20).map(sorted),
    distance=st.floats(0.1, 10),
)
def test_spaced_positions_keep_their_distance_and_stay_inside(wished: list[float], distance: float) -> None:
    lowest, highest = -100.0, -100.0 + 20 * 10.0
    positions = spaced(wished, distance, lowest, highest)
    assert len(positions) == len(wished)
    assert all(b - a >= distance - 1e-9 for a, b in itertools.pairwise(positions))
    assert all(lowest - 1e-9 <= position <= highest + 1e-9 for position in positions)


def test_positions_that_are_far_enough_apart_stay_where_they_are() -> None:
    assert spaced([1.0, 4.0, 9.0], 2.0, 0.0, 10.0) == [1.0, 4.0, 9.0]


def test_crowded_positions_spread_evenly_around_their_mean() -> None:
    assert spaced([5.0, 5.0, 5.0], 2.0, 0.0, 10.0) == [3.0, 5.0, 7.0]


def test_positions_without_room_start_at_the_lowest() -> None:
    assert spaced([5.0, 5.0], 9.0, 4.0, 6.0) == [4.0, 13.0]


def test_labels_keep_their_spacing() -> None:
    parts = [part(0.1, cell(0, 0), cell(0, 0)) for _ in range(6)]
    layout = lay_out((64, 64, 3), (64, 64, 3), parts, 384)
    heights = sorted(one.label[1] for one in place_parts(parts, layout))
    assert min(np.diff(heights)) == pytest.approx(layout.label_height + LABEL_SPACING_PX)


@settings(max_examples=100)
@given(heights=st.lists(st.floats(0, 500), min_size=3, max_size=3))
def test_a_curve_runs_through_its_points_and_never_beyond_them(heights: list[float]) -> None:
    points = list(zip((0.0, 100.0, 250.0), heights, strict=True))
    path = curve(points)
    assert (np.diff(path[:, 0]) > 0).all()
    assert path[:, 1].min() >= min(heights) - 1e-3
    assert path[:, 1].max() <= max(heights) + 1e-3
    for x, y in points:
        nearest = path[np.abs(path[:, 0] - x).argmin()]
        assert nearest == pytest.approx((x, y), abs=1e-3)


# Text and colours


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.254, "25 %"), (0.0312, "3.1 %"), (0.0999, "10 %"), (1.0, "100 %"), (0.0, "0.0 %"), (-0.004, "-0.4 %")],
)
def test_a_share_is_written_in_percent(share: float, text: str) -> None:
    assert share_text(share) == text


def test_sixty_four_ranks_have_sixty_four_colours() -> None:
    colours = [nth_colour(rank) for rank in range(64)]
    assert len(set(colours)) == 64
    assert tuple(colours[:8]) == HUES
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)


def test_text_on_every_colour_reaches_the_contrast_of_wcag_aa() -> None:
    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for rank in range(64):
        colour = nth_colour(rank)
        darker, lighter = sorted((luminance(colour), luminance(readable_on(colour))))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_text_that_fits_is_left_alone() -> None:
    assert fit_text("cat.jpg", scalable_font(12), 500) == "cat.jpg"


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=80), width_px=st.floats(0, 300))
def test_fitted_text_is_one_line_that_fits(text: str, width_px: float) -> None:
    font = scalable_font(12)
    fitted = fit_text(text, font, width_px)
    assert fitted.isprintable()
    assert font.getlength(fitted) <= width_px or not fitted


def test_shortened_text_keeps_its_beginning_and_its_end() -> None:
    shorter = fit_text("gallery/a-very-long-name-of-a-picture.jpg", scalable_font(12), 120)
    assert shorter.startswith("gal")
    assert "..." in shorter
    assert shorter.endswith("jpg")


def test_text_without_any_room_is_left_out() -> None:
    assert fit_text("cat", scalable_font(12), 1) == ""


def test_a_fitted_size_fills_one_side_and_is_never_empty() -> None:
    assert fitted_size(200, 100, 50, 50) == (50, 25)
    assert fitted_size(100_000, 1, 50, 50) == (50, 1)
    assert fitted_size(1, 1, 50, 80) == (50, 50)

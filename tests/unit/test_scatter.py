from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from matchflow_service.drawing import FAINT_INK, HUES, VERMILLION
from matchflow_service.scatter import (
    HEIGHT_PX,
    WIDTH_PX,
    ScatterInvalidError,
    ScatterPoint,
    ScatterTexts,
    linear_ticks,
    log_ticks,
    place_labels,
    render_scatter,
)

TEXTS = ScatterTexts(title="demo", subtitle="ten queries", x_label="ms", y_label="MAP@R")
AREA = (80.0, 80.0, 900.0, 500.0)
positive = st.floats(1e-3, 1e4)
places = st.lists(st.tuples(st.floats(90, 890), st.floats(90, 490)), min_size=1, max_size=12)


def pixels(png: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (WIDTH_PX, HEIGHT_PX))
    return np.asarray(image)


def coloured(png: bytes, colour: tuple[int, int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (pixels(png) == colour).all(axis=2)
    return found


def middle(png: bytes, colour: tuple[int, int, int]) -> tuple[float, float]:
    rows, columns = np.nonzero(coloured(png, colour))
    return float(columns.mean()), float(rows.mean())


def test_points_lie_further_right_and_up_the_larger_their_numbers() -> None:
    def drawn(x: float, y: float) -> tuple[float, float]:
        frame = [ScatterPoint(x=1, y=0, label=""), ScatterPoint(x=100, y=10, label="")]
        return middle(render_scatter([*frame, ScatterPoint(x=x, y=y, label="", highlighted=True)], TEXTS), VERMILLION)

    low, centre, high = drawn(2, 1), drawn(10, 5), drawn(50, 9)
    assert low[0] < centre[0] < high[0]
    assert low[1] > centre[1] > high[1]
    # Logarithmic: 10 lies half way between 1 and 100.
    assert centre[0] == pytest.approx((low[0] + high[0]) / 2, abs=2)


def test_a_curve_joins_its_points_in_order() -> None:
    points = [ScatterPoint(x=x, y=y, label="") for x, y in ((100, 30), (1, 0), (10, 10))]
    apart, joined = (pixels(render_scatter(points, TEXTS, curve=curve)).astype(int) for curve in (False, True))
    drawn = np.abs(joined - apart).sum(axis=2) > 60
    columns = np.flatnonzero(drawn.any(axis=0))
    assert columns[-1] - columns[0] > WIDTH_PX / 2
    # But for the points themselves it is one line, which rises from left to right.
    assert len(columns) > 0.9 * (columns[-1] - columns[0])
    heights = [float(np.flatnonzero(drawn[:, column]).mean()) for column in columns]
    assert max(np.diff(heights)) <= 1 < heights[0] - heights[-1]


def test_a_curve_stands_above_nothing() -> None:
    points = [ScatterPoint(x=x, y=y, label="") for x, y in ((1, 30), (100, 32))]
    tight, above = (coloured(render_scatter(points, TEXTS, curve=curve), HUES[0]) for curve in (False, True))
    spread = [np.ptp(np.flatnonzero(each.any(axis=1))) for each in (tight, above)]
    assert spread[1] < spread[0] / 5


def test_kinds_of_points_differ_in_shape_and_colour() -> None:
    def point(*, highlighted: bool = False, hollow: bool = False) -> bytes:
        return render_scatter([ScatterPoint(x=1, y=1, label="", highlighted=highlighted, hollow=hollow)], TEXTS)

    full, chosen, hollow = point(), point(highlighted=True), point(hollow=True)
    assert coloured(full, HUES[0]).sum() > 60
    assert coloured(chosen, VERMILLION).sum() > coloured(full, HUES[0]).sum()
    assert coloured(hollow, FAINT_INK).sum() > 10
    shapes = [(pixels(png) != 255).any(axis=2) for png in (full, chosen, hollow)]
    assert all((first != second).any() for first, second in itertools.combinations(shapes, 2))


def test_texts_and_labels_are_written() -> None:
    point = ScatterPoint(x=1, y=1, label="position_aware")
    plain = ScatterTexts(title="", subtitle="", x_label="", y_label="")
    nothing = pixels(render_scatter([ScatterPoint(x=1, y=1, label="")], plain))
    for changed in (
        render_scatter([point], plain),
        *(
            render_scatter([ScatterPoint(x=1, y=1, label="")], ScatterTexts(**{**EMPTY, name: "words"}))
            for name in EMPTY
        ),
    ):
        assert (pixels(changed) != nothing).any()


EMPTY = {"title": "", "subtitle": "", "x_label": "", "y_label": ""}


def test_the_same_points_give_the_same_picture() -> None:
    points = [ScatterPoint(x=x, y=y, label=f"{x}") for x, y in ((0.1, 50), (0.2, 60), (0.2, 60.1))]
    assert render_scatter(points, TEXTS) == render_scatter(points, TEXTS)


def test_long_texts_and_many_points_at_one_place_are_drawn() -> None:
    points = [ScatterPoint(x=0.2, y=60, label=f"way number {k} " * 5) for k in range(32)]
    texts = ScatterTexts(title="t" * 500, subtitle="s" * 500, x_label="x" * 500, y_label="y" * 500)
    assert pixels(render_scatter(points, texts)).any()


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ([], "expected 1 to 32 points; got 0"),
        ([ScatterPoint(x=1, y=1, label="")] * 33, "got 33"),
        ([ScatterPoint(x=0, y=1, label="")], "x above 0"),
        ([ScatterPoint(x=math.nan, y=1, label="")], "finite"),
        ([ScatterPoint(x=1, y=math.inf, label="")], "finite"),
    ],
)
def test_what_can_not_be_drawn_is_refused(points: list[ScatterPoint], problem: str) -> None:
    with pytest.raises(ScatterInvalidError, match=problem):
        render_scatter(points, TEXTS)


@given(values=st.lists(positive, min_size=1, max_size=8))
def test_logarithmic_ticks_are_one_two_and_five_and_enclose_the_values(values: list[float]) -> None:
    ticks = log_ticks(values)
    assert ticks[0] <= min(values) <= max(values) <= ticks[-1]
    assert ticks == sorted(set(ticks))
    assert len(ticks) >= 2
    assert all(f"{tick:e}"[0] in "125" and float(f"{tick:.0e}") == tick for tick in ticks)
    # None more than it takes.
    assert len(ticks) == 2 or (ticks[1] > min(values) and ticks[-2] < max(values))


@given(values=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8))
def test_linear_ticks_are_even_few_and_enclose_the_values(values: list[float]) -> None:
    ticks = linear_ticks(values)
    assert 2 <= len(ticks) <= 9
    slack = 1e-6 * max(1.0, *map(abs, values))
    assert ticks[0] <= min(values) + slack
    assert max(values) <= ticks[-1] + slack
    steps = np.diff(ticks)
    assert (steps > 0).all()
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)


def overlap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, across) * max(0.0, down)


@given(points=places)
@settings(deadline=None)
def test_labels_stay_inside_and_hide_neither_each_other_nor_points(points: list[tuple[float, float]]) -> None:
    boxes = place_labels(points, [(100.0, 18.0)] * len(points), AREA)
    for k, box in enumerate(boxes):
        assert box[2] - box[0] == pytest.approx(100)
        assert box[3] - box[1] == pytest.approx(18)
        assert overlap(box, AREA) == pytest.approx(1800)
        assert all(overlap(box, other) < 1e-6 for other in boxes[:k])
        assert all(overlap(box, (x - 6, y - 6, x + 6, y + 6)) < 1e-6 for x, y in points)


def test_a_lonely_label_stands_right_of_its_point_unless_there_is_no_room() -> None:
    (left,) = place_labels([(200, 200)], [(100, 18)], AREA)
    assert (left[0], (left[1] + left[3]) / 2) == (209, 200)
    (right,) = place_labels([(890, 200)], [(100, 18)], AREA)
    assert right[2] == 881

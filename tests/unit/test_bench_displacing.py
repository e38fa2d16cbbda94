from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
SIDE_PX = 128
PINNED = (0.8400687520895976, 0.7815357366308465, 0.2404254789245016)


@pytest.fixture
def displacing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # Benchmarks are scripts: each finds its neighbours in its own folder.
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    return importlib.import_module("displacing")


def names(count: int) -> list[str]:
    return [f"noto-{number:x}" for number in range(count)]


def test_a_name_is_displaced_the_same_way_every_time(displacing: ModuleType) -> None:
    assert displacing.Displacement.of("noto-1f600") == displacing.Displacement.of("noto-1f600")
    assert len({displacing.Displacement.of(name) for name in names(100)}) == 100


def test_the_displacement_of_a_name_is_pinned(displacing: ModuleType) -> None:
    # Another draw would be another benchmark: figures would no longer compare.
    move = displacing.Displacement.of("noto-1f600")
    assert (move.scale, move.left, move.top) == pytest.approx(PINNED, abs=1e-12)


def test_the_shrunk_image_lies_inside_and_reaches_every_border(displacing: ModuleType) -> None:
    boxes = np.array([displacing.Displacement.of(name).box(SIDE_PX) for name in names(2000)])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides[:, 0] == sides[:, 1]).all()
    assert boxes.min() == 0
    assert boxes.max() == SIDE_PX
    assert sides.min() == round(0.6 * SIDE_PX)
    assert sides.max() == round(0.9 * SIDE_PX)
    # Uniform draws: the middle of the range on average, and left tells nothing of top.
    assert sides.mean() == pytest.approx(0.75 * SIDE_PX, rel=0.01)
    moves = [displacing.Displacement.of(name) for name in names(2000)]
    values = np.array([(move.scale, move.left, move.top) for move in moves])
    np.testing.assert_allclose(values[:, 1:].mean(axis=0), 0.5, atol=0.03)
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.08


def test_the_image_is_inside_its_box_and_white_is_around_it(displacing: ModuleType) -> None:
    move = displacing.Displacement.of("noto-1f600")
    moved = np.asarray(move.apply(Image.new("RGB", (SIDE_PX, SIDE_PX), (200, 30, 60))))
    left, top, right, bottom = move.box(SIDE_PX)
    expected = np.full((SIDE_PX, SIDE_PX, 3), 255, np.uint8)
    expected[top:bottom, left:right] = (200, 30, 60)
    np.testing.assert_array_equal(moved, expected)


def test_shrinking_averages_and_keeps_what_lies_where(displacing: ModuleType) -> None:
    # Fine black and white lines become grey, the dark quarter stays the upper left one.
    image = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    image[:, ::2] = 255
    image[: SIDE_PX // 2, : SIDE_PX // 2] = 0
    move = displacing.Displacement(scale=0.6, left=1.0, top=1.0)
    moved = np.asarray(move.apply(Image.fromarray(image))).astype(float)
    left, top, right, bottom = move.box(SIDE_PX)
    middle = (left + right) // 2
    assert (right, bottom) == (SIDE_PX, SIDE_PX)
    assert moved[top : top + 30, left : left + 30].max() == 0
    assert moved[top + 5 : bottom - 5, middle + 5 : right - 5].mean() == pytest.approx(127.5, abs=4)
    assert moved[:top].min() == 255


def test_an_image_that_is_not_square_is_refused(displacing: ModuleType) -> None:
    with pytest.raises(ValueError, match="square image; got 20 x 10"):
        displacing.Displacement.of("a").apply(Image.new("RGB", (20, 10)))

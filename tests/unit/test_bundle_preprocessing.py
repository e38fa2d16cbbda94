"""From an image of any shape to the model's input, and boxes back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchflow_bundle import EncoderInputError, Preprocessing, ResizePolicy

POLICIES = list(ResizePolicy)
SIDES = st.integers(1, 300)
INPUTS = st.integers(1, 64)


def flat(height: int, width: int, value: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((height, width, 3), value, np.uint8)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(POLICIES), SIDES, SIDES, INPUTS, INPUTS)
def test_any_image_becomes_the_input_asked_for(
    policy: ResizePolicy, height: int, width: int, input_height: int, input_width: int
) -> None:
    made = Preprocessing(height_px=input_height, width_px=input_width, policy=policy).apply(flat(height, width, 7))
    assert made.shape == (input_height, input_width, 3)
    assert made.dtype == np.uint8
    # A flat image stays flat; only padding is white.
    assert set(np.unique(made)) <= ({7, 255} if policy is ResizePolicy.PAD else {7})


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(POLICIES), SIDES, SIDES, INPUTS, INPUTS)
def test_the_whole_input_maps_to_the_part_of_the_image_that_was_used(
    policy: ResizePolicy, height: int, width: int, input_height: int, input_width: int
) -> None:
    preprocessing = Preprocessing(height_px=input_height, width_px=input_width, policy=policy)
    left, top, right, bottom = preprocessing.image_box((0.0, 0.0, 1.0, 1.0), width, height)
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1
    if policy is not ResizePolicy.CENTER_CROP:
        assert (left, top, right, bottom) == (0.0, 0.0, 1.0, 1.0)
    else:
        used = (right - left) * width / ((bottom - top) * height)
        assert used == pytest.approx(input_width / input_height, rel=1e-6)
        assert left == pytest.approx(1 - right)
        assert top == pytest.approx(1 - bottom)


def test_an_image_of_the_inputs_size_is_left_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    for policy in POLICIES:
        assert Preprocessing(height_px=16, width_px=24, policy=policy).apply(image) is image


def test_shrinking_averages_and_does_not_pick() -> None:
    stripes = flat(64, 64)
    stripes[:, ::2] = 255
    shrunk = Preprocessing(height_px=8, width_px=8).apply(stripes)
    assert np.abs(shrunk.astype(int) - 127).max() < 20


def test_stretching_keeps_fractions() -> None:
    assert Preprocessing(height_px=10, width_px=20).image_box((0.1, 0.2, 0.3, 0.4), 999, 333) == pytest.approx(
        (0.1, 0.2, 0.3, 0.4)
    )


def test_a_centre_crop_takes_the_middle() -> None:
    image = flat(10, 30)
    image[:, 10:20] = 200
    preprocessing = Preprocessing(height_px=10, width_px=10, policy=ResizePolicy.CENTER_CROP)
    np.testing.assert_array_equal(preprocessing.apply(image), flat(10, 10, 200))
    assert preprocessing.image_box((0.0, 0.0, 0.5, 1.0), 30, 10) == pytest.approx((1 / 3, 0.0, 0.5, 1.0))


def test_padding_keeps_the_shape_and_centres_it_on_white() -> None:
    preprocessing = Preprocessing(height_px=12, width_px=12, policy=ResizePolicy.PAD)
    made = preprocessing.apply(flat(10, 20))
    assert (made[:3] == 255).all()
    assert (made[3:9] == 0).all()
    assert (made[9:] == 255).all()
    assert preprocessing.image_box((0.0, 0.25, 1.0, 0.5), 20, 10) == pytest.approx((0.0, 0.0, 1.0, 0.5))


def test_a_box_on_padding_collapses_to_the_images_edge() -> None:
    preprocessing = Preprocessing(height_px=12, width_px=12, policy=ResizePolicy.PAD)
    assert preprocessing.image_box((0.0, 0.0, 1.0, 0.1), 20, 10) == (0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_marked_place_is_found_where_its_box_says(policy: ResizePolicy) -> None:
    preprocessing = Preprocessing(height_px=64, width_px=48, policy=policy)
    image = flat(200, 200)
    image[90:130, 80:110] = (0, 255, 0)
    made = preprocessing.apply(image).astype(int)
    # Green without red: neither the black ground nor white padding.
    rows, columns = np.nonzero(made[..., 1] - made[..., 0] > 127)
    box = (columns.min() / 48, rows.min() / 64, (columns.max() + 1) / 48, (rows.max() + 1) / 64)
    assert preprocessing.image_box(box, 200, 200) == pytest.approx((0.4, 0.45, 0.55, 0.65), abs=0.03)


@pytest.mark.parametrize(("height", "width"), [(0, 8), (8, 0), (-1, 8)])
def test_an_input_without_pixels_is_refused(height: int, width: int) -> None:
    with pytest.raises(EncoderInputError, match="at least 1 x 1"):
        Preprocessing(height_px=height, width_px=width)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_are_no_rgb_pixels_is_refused(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    with pytest.raises(EncoderInputError, match="expected uint8"):
        Preprocessing(height_px=4, width_px=4).apply(image)

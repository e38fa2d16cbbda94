"""Resource names, fields and page tokens."""

from __future__ import annotations

import contextlib
import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchflow_service import fields
from matchflow_service.errors import FieldInvalidError, shown
from matchflow_service.names import (
    ImageName,
    check_gallery_id,
    gallery_name,
    model_name,
    parse_gallery,
    parse_image,
    parse_image_in,
    parse_model,
)
from matchflow_service.pages import page_token, parse_page_token

GALLERY_IDS = st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True)
IMAGE_IDS = st.text(st.characters(exclude_characters="/", exclude_categories=("Cc", "Cs")), min_size=1, max_size=256)


@given(GALLERY_IDS, IMAGE_IDS)
def test_every_name_is_read_back_as_it_was_written(gallery_id: str, image_id: str) -> None:
    name = ImageName(gallery_id=gallery_id, image_id=image_id)
    assert parse_image(str(name), "name") == name
    assert parse_image_in(str(name), gallery_id, "name") == image_id
    assert parse_gallery(gallery_name(gallery_id), "name") == gallery_id
    assert check_gallery_id(gallery_id, "gallery_id") == gallery_id


@given(st.text())
def test_any_text_is_a_name_or_is_refused(text: str) -> None:
    for parse in (parse_image, parse_gallery, parse_model, check_gallery_id):
        with contextlib.suppress(FieldInvalidError):
            assert parse(text, "the_field")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "galleries/g/images/",
        "galleries/g/images",
        "galleries/g/images/a/b",
        "galleries//images/a",
        "galleries/G/images/a",
        "gallery/g/images/a",
        "galleries/g/image/a",
        "galleries/g/images/" + "a" * 257,
        "galleries/g/images/a\nb",
        "galleries/g/images/a\x7f",
        "galleries/g\n/images/a",
    ],
)
def test_what_is_no_image_name_is_refused(name: str) -> None:
    with pytest.raises(FieldInvalidError, match="expected") as raised:
        parse_image(name, "name")
    assert raised.value.field == "name"


@pytest.mark.parametrize("space", ["\u00a0", "\u2028", "\u200b", " "])
def test_characters_that_do_not_print_are_no_control_characters(space: str) -> None:
    assert unicodedata.category(space) != "Cc"
    assert parse_image(f"galleries/g/images/a{space}b", "name").image_id == f"a{space}b"


@pytest.mark.parametrize(
    "name", ["", "galleries", "galleries/", "galleries/g/", "galleries/g/images/a", "g", "galleries/g\n"]
)
def test_what_is_no_gallery_name_is_refused(name: str) -> None:
    with pytest.raises(FieldInvalidError, match=r"expected galleries/\{gallery\}"):
        parse_gallery(name, "name")


@pytest.mark.parametrize("name", ["", "models", "models/", "models/a/b", "model/a"])
def test_what_is_no_model_name_is_refused(name: str) -> None:
    with pytest.raises(FieldInvalidError, match=r"expected models/\{model\}"):
        parse_model(name, "name")


def test_a_model_name_gives_its_id() -> None:
    assert parse_model(model_name("lite0"), "name") == "lite0"


def test_an_image_of_another_gallery_is_refused() -> None:
    with pytest.raises(FieldInvalidError, match="expected an image of galleries/mine; got 'galleries/other/images/a'"):
        parse_image_in("galleries/other/images/a", "mine", "name")


def test_a_long_value_is_cut_where_it_is_shown() -> None:
    assert shown("short") == "'short'"
    assert len(shown("x" * 10_000)) < 100


def test_numbers_within_their_range_pass_and_others_are_named() -> None:
    assert fields.whole(1, "n", low=1, high=10_000) == 1
    assert fields.whole(10_000, "n", low=1, high=10_000) == 10_000
    with pytest.raises(FieldInvalidError, match="n: expected 1 to 10,000; got 10,001"):
        fields.whole(10_001, "n", low=1, high=10_000)


@given(st.floats(min_value=0.125, max_value=8, width=32))
def test_a_real_number_means_what_the_client_wrote(value: float) -> None:
    written = fields.real(value, "x", low=1e-6, high=10)
    assert np.float32(written) == np.float32(value)


@pytest.mark.parametrize("written", [1e-6, 0.03, 0.05, 0.1, 1e-4, 10.0])
def test_a_decimal_survives_the_wire_exactly(written: float) -> None:
    assert fields.real(float(np.float32(written)), "x", low=1e-6, high=10) == written


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 10.1])
def test_what_is_no_number_in_range_is_refused(value: float) -> None:
    with pytest.raises(FieldInvalidError, match="expected 1e-06 to 10; got"):
        fields.real(value, "x", low=1e-6, high=10)


def test_a_finite_number_passes_and_nan_does_not() -> None:
    assert fields.finite(-3.5, "x") == -3.5
    with pytest.raises(FieldInvalidError, match="finite"):
        fields.finite(math.nan, "x")


def test_a_page_size_of_zero_is_the_default() -> None:
    assert (fields.page_size(0), fields.page_size(7), fields.page_size(1000)) == (100, 7, 1000)


@given(st.text(), st.text(), st.text())
def test_a_page_token_is_read_back_by_its_own_request_only(method: str, parent: str, after: str) -> None:
    token = page_token(method, parent, after)
    assert parse_page_token(token, method, parent) == after
    with pytest.raises(FieldInvalidError, match="expected a token of"):
        parse_page_token(token, method, parent + "x")


@given(st.text(min_size=1) | st.binary(min_size=1).map(lambda data: data.hex()))
def test_any_text_is_a_page_token_or_is_refused(text: str) -> None:
    with pytest.raises(FieldInvalidError):
        parse_page_token(text, "ListImages", "galleries/g")


@pytest.mark.parametrize("after", ["\ud800", "a\udfff"])
def test_a_token_of_what_is_no_text_is_refused(after: str) -> None:
    with pytest.raises(FieldInvalidError, match="expected a next_page_token"):
        parse_page_token(page_token("ListImages", "galleries/g", after), "ListImages", "galleries/g")


def test_a_forged_token_is_quoted_and_cut() -> None:
    with pytest.raises(FieldInvalidError) as caught:
        parse_page_token(page_token("\x1b[31m" + "z" * 5000, "galleries/g", ""), "ListImages", "galleries/g")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_no_page_token_means_the_first_page() -> None:
    assert parse_page_token("", "ListImages", "galleries/g") is None

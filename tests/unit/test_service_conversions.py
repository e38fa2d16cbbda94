"""Messages to values and back; geometry; deadlines; thumbnails; the calls in flight."""

from __future__ import annotations

import asyncio
import io
import math
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from service_harness import encoded, picture, random_features

if TYPE_CHECKING:
    from matchflow_service.models import Model

from matchflow.v1 import types_pb2
from matchflow_bundle import ImageUnreadableError, Preprocessing, ResizePolicy
from matchflow_index import GalleryNotFoundError
from matchflow_matching import CellGrid, FeaturesInvalidError
from matchflow_service import conversions
from matchflow_service.calls import CallInterceptor, CallsInFlight
from matchflow_service.deadlines import Deadline
from matchflow_service.errors import (
    BundleNotLoadedError,
    DeadlinePassedError,
    ModelNotFoundError,
    ShuttingDownError,
)
from matchflow_service.gallery_service import GalleryServicer
from matchflow_service.geometry import Geometry
from matchflow_service.images import ImageReader, thumbnail
from matchflow_service.models import Models

GRID = CellGrid(rows=2, columns=3)


@given(st.floats(min_value=0, max_value=4e9))
def test_a_time_keeps_its_microseconds(seconds: float) -> None:
    message = conversions.timestamp(seconds)
    assert message.seconds + message.nanos / 1e9 == pytest.approx(seconds, abs=1e-5)


def test_features_are_read_back_as_they_were_written() -> None:
    features = random_features(1, cells=GRID.size, dim=8)[0]
    message = conversions.features_message(features, "digest")
    again = conversions.parse_features(message, GRID, 8)
    for name in ("embedding", "cells", "scales"):
        np.testing.assert_array_equal(getattr(again, name), getattr(features, name))
        assert getattr(again, name).dtype == getattr(features, name).dtype
    assert message.bundle_digest == "digest"
    assert conversions.features_hash(again) == conversions.features_hash(features)
    other = random_features(1, cells=GRID.size, dim=8, seed=1)[0]
    assert conversions.features_hash(other) != conversions.features_hash(features)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("embedding", [1.0] * 7, "expected 8 embedding values"),
        ("embedding", [], "got 0"),
        ("cells", b"\0" * 47, "got 8, 47 and 6"),
        ("cell_scales", [0.1] * 7, "6 cell scales"),
        ("embedding", [math.inf, *[0.0] * 7], "not finite"),
        ("cell_scales", [math.nan] * 6, "not finite"),
        ("embedding", [0.5] * 8, "unit length"),
        ("cell_scales", [-1.0] * 6, "cell scales must be from 0"),
        ("cell_scales", [1e6] * 6, "cell scales must be from 0"),
        ("cell_scales", [1.0] * 6, "cells must have unit length, or be zero; cell 0 has"),
        ("cells", b"\1" * 48, "cells must have unit length"),
    ],
)
def test_features_that_do_not_fit_are_refused(field: str, value: object, text: str) -> None:
    message = conversions.features_message(random_features(1, cells=GRID.size, dim=8)[0], "digest")
    message.ClearField(field)  # type: ignore[arg-type]
    changed = types_pb2.Features(**{field: value})  # type: ignore[arg-type]
    message.MergeFrom(changed)
    with pytest.raises(FeaturesInvalidError, match=text):
        conversions.parse_features(message, GRID, 8)


@pytest.mark.parametrize("dim", [2, 8, 128, 1024])
def test_whatever_quantising_makes_of_unit_cells_is_taken(dim: int) -> None:
    batch = random_features(200, cells=GRID.size, dim=dim)
    for i in range(len(batch)):
        message = conversions.features_message(batch[i], "digest")
        assert conversions.parse_features(message, GRID, dim).cells.shape == (GRID.size, dim)
    one_hot = conversions.features_message(batch[0], "digest")
    one_hot.cells = (b"\x7f" + b"\0" * (dim - 1)) * GRID.size
    one_hot.cell_scales[:] = [1 / 127] * GRID.size
    assert conversions.parse_features(one_hot, GRID, dim).cells[0, 0] == 127


def test_scales_too_small_for_float16_become_zero_without_a_warning() -> None:
    message = conversions.features_message(random_features(1, cells=GRID.size, dim=8)[0], "digest")
    message.cell_scales[0] = 1e-12
    assert conversions.parse_features(message, GRID, 8).scales[0] == 0


def test_boxes_follow_the_preprocessing_of_the_bundle() -> None:
    padded = Preprocessing(height_px=100, width_px=100, policy=ResizePolicy.PAD)
    wide = Geometry(grid=CellGrid(rows=1, columns=2), preprocessing=padded, width_px=200, height_px=100)
    assert wide.box(0) == pytest.approx((0, 0, 0.5, 1))
    tall = Geometry(grid=CellGrid(rows=1, columns=2), preprocessing=padded, width_px=100, height_px=200)
    assert tall.box(1) == pytest.approx((0.5, 0, 1, 1))
    assert tall.boxes() == [tall.box(0), tall.box(1)]
    cropped = Preprocessing(height_px=100, width_px=100, policy=ResizePolicy.CENTER_CROP)
    middle = Geometry(grid=CellGrid(rows=1, columns=1), preprocessing=cropped, width_px=200, height_px=100)
    assert middle.box(0) == pytest.approx((0.25, 0, 0.75, 1))


def test_an_image_of_unknown_size_has_the_shape_of_the_input_and_an_unknown_model_no_boxes() -> None:
    preprocessing = Preprocessing(height_px=10, width_px=10, policy=ResizePolicy.PAD)
    unknown_size = Geometry(grid=GRID, preprocessing=preprocessing, width_px=0, height_px=0)
    assert unknown_size.boxes() == [GRID.box(cell) for cell in range(GRID.size)]
    unknown_model = Geometry(grid=GRID, preprocessing=None, width_px=10, height_px=10)
    assert unknown_model.boxes() == [None] * GRID.size


@pytest.mark.parametrize("remaining_s", [None, math.inf, 1e12])
def test_a_call_without_a_deadline_may_take_its_time(remaining_s: float | None) -> None:
    assert Deadline.of(SimpleNamespace(time_remaining=lambda: remaining_s)).at_s is None


@pytest.mark.parametrize("remaining_s", [0.0, 0.01, 1.0, 100.0])
def test_a_deadline_keeps_something_back_for_the_reply(remaining_s: float) -> None:
    before = time.monotonic()
    deadline = Deadline.of(SimpleNamespace(time_remaining=lambda: remaining_s))
    assert deadline.at_s is not None
    assert before + remaining_s - 0.25 <= deadline.at_s
    assert deadline.at_s <= time.monotonic() + remaining_s * 0.9976


def test_work_is_cut_off_at_the_deadline_and_its_result_passes_before_it() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async def quick() -> int:
        return 3

    async def main() -> None:
        with pytest.raises(DeadlinePassedError):
            await Deadline(at_s=time.monotonic() - 1).bound(forever())
        with pytest.raises(DeadlinePassedError):
            await Deadline(at_s=time.monotonic() + 0.01).bound(forever())
        assert await Deadline(at_s=time.monotonic() + 60).bound(quick()) == 3
        assert await Deadline(at_s=None).bound(quick()) == 3

    asyncio.run(main())


@pytest.mark.parametrize(
    ("size", "expected"), [((800, 400), (256, 128)), ((100, 300), (85, 256)), ((64, 32), (64, 32))]
)
def test_a_thumbnail_is_at_most_256_pixels_on_its_longer_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    drawn = Image.open(io.BytesIO(thumbnail(picture(1, width=size[0], height=size[1]))))
    assert drawn.format == "JPEG"
    assert drawn.size == pytest.approx(expected, abs=1)


def test_a_reader_makes_only_what_is_asked_for() -> None:
    reader = ImageReader(max_bytes=10**6, max_pixels=10**6)
    preprocessing = Preprocessing(height_px=32, width_px=16)
    data = encoded(picture(1, width=60, height=40))
    plain = reader.read(data, preprocessing)
    assert (plain.width_px, plain.height_px, plain.model_input.shape) == (60, 40, (32, 16, 3))
    assert (plain.thumbnail, plain.rgb) == (None, None)
    full = reader.read(data, preprocessing, with_thumbnail=True, with_rgb=True)
    assert full.thumbnail == data
    np.testing.assert_array_equal(full.rgb, picture(1, width=60, height=40))
    with pytest.raises(ImageUnreadableError):
        reader.decode(b"x")


def test_a_small_file_is_its_own_thumbnail_and_a_large_one_is_drawn() -> None:
    reader = ImageReader(max_bytes=10**7, max_pixels=10**6)
    preprocessing = Preprocessing(height_px=32, width_px=32)
    noise = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for rgb, own in (
        (picture(1, width=128, height=128), True),
        (picture(1, width=257, height=9), False),
        (noise, False),
    ):
        data = encoded(rgb)
        kept = reader.read(data, preprocessing, with_thumbnail=True).thumbnail
        assert kept is not None
        assert (kept == data) == own
        assert max(reader.decode(kept).shape) <= 256


def test_models_are_found_by_name_and_by_digest() -> None:
    first, second = stand_ins = [
        cast("Model", SimpleNamespace(name=name, bundle_digest=digest))
        for name, digest in (("b", "digest-b"), ("a", "digest-a"))
    ]
    models = Models(stand_ins)
    assert models.named("") is first
    assert models.named("a") is second
    assert models.of_bundle("digest-a") is second
    assert models.by_name() == [second, first]
    with pytest.raises(ModelNotFoundError, match="no model 'c' is loaded; there are a, b"):
        models.named("c")
    with pytest.raises(BundleNotLoadedError, match="needs the model of bundle 'digest-c'"):
        models.of_bundle("digest-c")


def test_calls_are_counted_and_refused_while_draining() -> None:
    async def main() -> None:
        calls = CallsInFlight()
        assert await calls.drain(0)
        with pytest.raises(ShuttingDownError), calls.admitted():
            pass
        calls.draining.clear()
        with calls.admitted():
            assert calls.count == 1
            assert not await calls.drain(0)
        assert await calls.drain(60)
        assert calls.count == 0

    asyncio.run(main())


def test_the_interceptor_leaves_other_services_and_unknown_methods_alone() -> None:
    async def main() -> None:
        interceptor = CallInterceptor(CallsInFlight())
        handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, _: request)

        async def found(_: grpc.HandlerCallDetails) -> Any:
            return handler

        async def not_found(_: grpc.HandlerCallDetails) -> None:
            return None

        health: Any = SimpleNamespace(method="/grpc.health.v1.Health/Check")
        ours: Any = SimpleNamespace(method="/matchflow.v1.SearchService/Search")
        assert await interceptor.intercept_service(found, health) is handler
        assert await interceptor.intercept_service(not_found, ours) is None
        assert await interceptor.intercept_service(found, ours) is not handler

    asyncio.run(main())


def test_a_gallery_that_is_deleted_while_it_is_listed_is_left_out() -> None:
    def gallery(gallery_id: str) -> str:
        if gallery_id == "gone":
            raise GalleryNotFoundError(gallery_id)
        return gallery_id

    store = SimpleNamespace(gallery=gallery)
    servicer = GalleryServicer(store=store, models=None, workers=None)  # type: ignore[arg-type]
    listed: list[Any] = list(servicer._still_there(["a", "gone", "b"]))
    assert listed == ["a", "b"]

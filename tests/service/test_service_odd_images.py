"""1,000 broken or odd inputs through the real server: handled right, or refused with a reason; and life goes on."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from service_harness import (
    LIMIT_S,
    Api,
    by_bytes,
    encoded,
    image_name,
    item,
    picture,
    png,
    read_status,
    refusal_of,
)

from matchflow.v1 import gallery_pb2, model_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator


TOTAL = 1_000
UNREADABLE, TOO_LARGE = "IMAGE_UNREADABLE", "IMAGE_TOO_LARGE"
REASONS = {UNREADABLE, TOO_LARGE}
RGB = picture(7, width=120, height=80)
WHITE = 255
# Options with which a format changes the pixels as little as it can.
BEST: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}


@dataclass(frozen=True, slots=True, kw_only=True)
class OddImage:
    """An input; `reason` it must be refused with (None: taken), or any outcome that is no fault where `open_ended`.

    `like`: what it must look like to the model, uint8 [H, W, 3].
    """

    name: str
    data: bytes
    reason: str | None = None
    open_ended: bool = False
    like: np.ndarray | None = None


def formats() -> dict[str, bytes]:
    """The same picture in every format."""
    return {kind: encoded(RGB, kind, **BEST.get(kind, {})) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}


def truncated() -> Iterator[OddImage]:
    for kind, data in formats().items():
        for end in np.linspace(1, len(data) - 1, 100).astype(int):
            # Whether the last few bytes matter is up to the format; a half-read picture must never pass.
            yield OddImage(
                name=f"{kind} cut at {end}",
                data=data[:end],
                reason=UNREADABLE,
                open_ended=bool(end > len(data) - 8),
            )


def corrupted() -> Iterator[OddImage]:
    rng = np.random.default_rng(3)
    for kind, data in formats().items():
        for turn in range(25):
            spoilt = bytearray(data)
            for position in rng.integers(0, len(data), 20):
                spoilt[position] = rng.integers(0, 256)
            yield OddImage(name=f"{kind} spoilt {turn}", data=bytes(spoilt), open_ended=True)


def noise() -> Iterator[OddImage]:
    rng = np.random.default_rng(4)
    magic = [
        b"",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x10\x00\x00\x00WEBPVP8 ",
        b"GIF89a",
        b"BM",
        b"II*\x00",
    ]
    for turn in range(140):
        data = magic[turn % len(magic)] + rng.bytes(int(rng.integers(1, 3000)))
        yield OddImage(name=f"noise {turn}", data=data, open_ended=True)


def wrong_types() -> Iterator[OddImage]:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    for name, data in {
        "nothing": b"",
        "one byte": b"\0",
        "text": b"a cat on a mat",
        "json": b'{"image": null}',
        "svg": svg,
        "pdf": b"%PDF-1.7\n%%EOF",
        "zip": b"PK\x05\x06" + bytes(18),
        "wav": b"RIFF\x24\0\0\0WAVEfmt ",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage",
        "ico": encoded(RGB, "ICO"),
        "tga": encoded(RGB, "TGA"),
        "ppm": encoded(RGB, "PPM"),
    }.items():
        yield OddImage(name=name, data=data, reason=UNREADABLE)


def png_claiming(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size that its pixels don't have."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def bombs() -> Iterator[OddImage]:
    bmp = bytearray(formats()["BMP"])
    bmp[18:26] = struct.pack("<ii", 30_000, 30_000)
    gif = bytearray(formats()["GIF"])
    gif[6:10] = struct.pack("<HH", 30_000, 30_000)
    jpeg = bytearray(formats()["JPEG"])
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 30_000, 30_000)
    yield OddImage(name="PNG of 30,000 x 30,000", data=png_claiming(30_000, 30_000), reason=TOO_LARGE)
    yield OddImage(name="BMP of 30,000 x 30,000", data=bytes(bmp), reason=TOO_LARGE)
    yield OddImage(name="GIF of 30,000 x 30,000", data=bytes(gif), reason=TOO_LARGE)
    yield OddImage(name="JPEG of 30,000 x 30,000", data=bytes(jpeg), reason=TOO_LARGE)
    yield OddImage(name="PNG of 2^31 x 2^31", data=png_claiming(2**31 - 1, 2**31 - 1), reason=TOO_LARGE)
    yield OddImage(name="PNG without width", data=png_claiming(0, 10), reason=UNREADABLE)
    yield OddImage(name="PNG that lacks rows", data=png_claiming(200, 200), reason=UNREADABLE)
    yield OddImage(name="20 MiB and one byte", data=formats()["PNG"] + bytes(20 * 1024 * 1024), reason=TOO_LARGE)


def good() -> Iterator[OddImage]:
    """Pictures in unusual dress, each with what the model must see."""
    image = Image.fromarray(RGB)
    for kind, data in formats().items():
        if kind != "GIF":
            yield OddImage(name=kind, data=data, like=RGB)
    yield OddImage(name="CMYK", data=saved(image.convert("CMYK"), "JPEG", quality=95), like=RGB)
    yield OddImage(name="CMYK TIFF", data=saved(image.convert("CMYK"), "TIFF"), like=RGB)
    yield OddImage(name="progressive", data=saved(image, "JPEG", progressive=True, quality=95), like=RGB)
    grey = np.asarray(image.convert("L"))
    as_rgb = np.repeat(grey[:, :, None], 3, axis=2)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    yield OddImage(name="16-bit grey", data=saved(deep, "PNG"), like=as_rgb)
    yield OddImage(name="16-bit TIFF", data=saved(deep, "TIFF"), like=as_rgb)
    yield OddImage(name="grey", data=saved(image.convert("L"), "PNG"), like=as_rgb)
    one_bit = image.convert("1")
    yield OddImage(name="1-bit", data=saved(one_bit, "PNG"), like=np.asarray(one_bit.convert("RGB")))
    palette = image.quantize(64)
    yield OddImage(name="palette", data=saved(palette, "PNG"), like=np.asarray(palette.convert("RGB")))
    # A GIF has a palette, so what the model must see is the picture in that palette.
    yield OddImage(name="GIF", data=saved(palette, "GIF"), like=np.asarray(palette.convert("RGB")))
    frames = [Image.fromarray(picture(seed, width=120, height=80)) for seed in (7, 8, 9)]
    for kind in ("WEBP", "PNG", "TIFF"):
        animated = saved(frames[0], kind, save_all=True, append_images=frames[1:], **BEST.get(kind, {}))
        yield OddImage(name=f"animated {kind}", data=animated, like=RGB)
    animated = saved(palette, "GIF", save_all=True, append_images=[frame.quantize(64) for frame in frames[1:]])
    yield OddImage(name="animated GIF", data=animated, like=np.asarray(palette.convert("RGB")))
    alpha = np.zeros((80, 120), np.uint8)
    alpha[:, 60:] = 255
    see_through = Image.fromarray(np.dstack([RGB, alpha]))
    composed = RGB.copy()
    composed[:, :60] = WHITE
    for kind in ("PNG", "TIFF"):
        yield OddImage(name=f"alpha {kind}", data=saved(see_through, kind), like=composed)
    yield OddImage(name="alpha WEBP", data=saved(see_through, "WEBP", lossless=True), like=composed)
    for orientation, turn in ORIENTATIONS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("JPEG", "PNG", "WEBP"):
            data = saved(image.transpose(turn) if turn is not None else image, kind, exif=exif, **BEST.get(kind, {}))
            yield OddImage(name=f"{kind} of orientation {orientation}", data=data, like=RGB)
    for width, height in ((1, 1), (1, 500), (500, 1), (3, 2)):
        tiny = picture(7, width=width, height=height)
        yield OddImage(name=f"{width} x {height}", data=encoded(tiny), like=tiny)
    yield OddImage(name="with a tail", data=formats()["PNG"] + b"tail", like=RGB)


# What was done to the stored pixels, by the EXIF orientation that undoes it.
ORIENTATIONS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def odd_images() -> list[OddImage]:
    fixed = [*wrong_types(), *bombs(), *good(), *truncated(), *corrupted()]
    images = fixed + list(noise())
    # Random bytes fill up to the round number.
    rng = np.random.default_rng(5)
    while len(images) < TOTAL:
        images.append(OddImage(name=f"random {len(images)}", data=rng.bytes(777), reason=UNREADABLE))
    return images


def judge(odd: OddImage, code: int, reason: str) -> str | None:
    """Return what is wrong with how an input was treated."""
    if code and reason not in REASONS:
        return f"{odd.name}: {reason}"
    if not odd.open_ended and (reason or None) != odd.reason:
        return f"{odd.name}: expected {odd.reason}; got {reason or 'a result'}"
    return None


def test_a_thousand_odd_inputs_are_ingested_or_refused_with_a_reason(api: Api, odd_images: list[OddImage]) -> None:
    assert len(odd_images) >= TOTAL
    api.create("odd")
    answers = api.put(item("odd", f"{i}", odd.data, item_id=i) for i, odd in enumerate(odd_images))
    assert len(answers) == len(odd_images)
    complaints = []
    for odd, answer in zip(odd_images, answers, strict=True):
        refusal = read_status(answer.status) if answer.status.code else None
        assert refusal is None or refusal.message
        complaints.append(judge(odd, answer.status.code, refusal.reason if refusal else ""))
    assert [complaint for complaint in complaints if complaint] == []
    assert api.find("odd", by_bytes(png(1))).hits
    stored = api.galleries.GetGallery(gallery_pb2.GetGalleryRequest(name="galleries/odd")).image_count
    assert stored == sum(not answer.status.code for answer in answers)


def test_a_thousand_odd_inputs_are_embedded_or_refused_with_a_reason(api: Api, odd_images: list[OddImage]) -> None:
    complaints = []
    for start in range(0, len(odd_images), 50):
        part = odd_images[start : start + 50]
        request = model_pb2.EmbedImagesRequest(images=[odd.data for odd in part])
        reply = api.models.EmbedImages(request, timeout=LIMIT_S)
        for odd, embedding in zip(part, reply.embeddings, strict=True):
            reason = read_status(embedding.status).reason if embedding.status.code else ""
            complaints.append(judge(odd, embedding.status.code, reason))
    assert [complaint for complaint in complaints if complaint] == []


def test_a_search_by_an_odd_input_is_refused_and_the_next_one_works(api: Api, odd_images: list[OddImage]) -> None:
    api.create("next")
    api.put_images("next", {"one": png(1)})
    for odd in [odd for odd in odd_images if odd.reason and not odd.open_ended][::25]:
        refusal = refusal_of(lambda odd=odd: api.find("next", by_bytes(odd.data)))  # type: ignore[misc]
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", odd.reason), odd.name
        assert api.find("next", by_bytes(png(1))).hits[0].image.name == image_name("next", "one")


def unit(features: types_pb2.Features) -> np.ndarray:
    return np.array(features.embedding)


@pytest.mark.parametrize("odd", list(good()), ids=lambda odd: odd.name)
def test_a_picture_in_unusual_dress_looks_to_the_model_like_the_plain_one(api: Api, odd: OddImage) -> None:
    assert odd.like is not None
    request = model_pb2.EmbedImagesRequest(images=[odd.data, encoded(odd.like)])
    dressed, plain = api.models.EmbedImages(request, timeout=LIMIT_S).embeddings
    assert dressed.status.code == plain.status.code == 0
    lossy = "JPEG" in odd.name or odd.name in {"CMYK", "progressive"}
    assert unit(dressed.features) @ unit(plain.features) > (0.9 if lossy else 0.9999)


def test_the_stored_size_is_that_of_the_upright_image(api: Api) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    api.create("upright")
    api.put_images(
        "upright", {"one": saved(Image.fromarray(RGB).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)}
    )
    image = api.galleries.GetImage(gallery_pb2.GetImageRequest(name=image_name("upright", "one")))
    assert (image.width_px, image.height_px) == (120, 80)

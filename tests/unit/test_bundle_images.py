"""Decoding: what a picture is, whatever file it comes in; and what is refused, before it costs anything."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from matchflow_bundle import ImageError, ImageTooLargeError, ImageUnreadableError, decode_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
LOSSLESS = ["PNG", "BMP", "TIFF", "GIF"]
FORMATS = [*LOSSLESS, "JPEG", "WEBP"]
ORIENTATION = 0x0112


def quadrants(height: int = 24, width: int = 40) -> NDArray[np.uint8]:
    """Red, green / blue, white: every rotation and reflection looks different."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[: height // 2, : width // 2] = RED
    rgb[: height // 2, width // 2 :] = GREEN
    rgb[height // 2 :, : width // 2] = BLUE
    rgb[height // 2 :, width // 2 :] = WHITE
    return rgb


def encoded(image: Image.Image | NDArray[Any], kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG written by hand: Pillow can't write every kind that it reads."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + body + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_lossless_file_gives_back_its_pixels(kind: str) -> None:
    decoded = decode_image(encoded(quadrants(), kind))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, quadrants())


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_lossy_file_gives_back_nearly_its_pixels(kind: str) -> None:
    grey = np.full((16, 24, 3), 120, np.uint8)
    assert np.abs(decode_image(encoded(grey, kind)).astype(int) - grey).max() <= 3


def test_a_decoded_image_may_be_written_to() -> None:
    for kind in FORMATS:
        assert decode_image(encoded(quadrants(), kind)).flags.writeable


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_a_tiff_of_any_compression_is_read(compression: str | None) -> None:
    decoded = decode_image(encoded(np.full((16, 16, 3), 120, np.uint8), "TIFF", compression=compression))
    assert np.abs(decoded.astype(int) - 120).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_every_exif_orientation_is_made_upright(kind: str, orientation: int) -> None:
    # What a camera would store so that the picture is upright after turning it as the tag says.
    turns: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = turns[orientation](quadrants())
    faithful: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
    data = encoded(np.ascontiguousarray(stored), kind, exif=exif_with(orientation), **faithful.get(kind, {}))
    decoded = decode_image(data)
    assert decoded.shape == quadrants().shape
    assert decoded.flags.c_contiguous
    assert np.abs(decoded.astype(int) - quadrants()).mean() < 4


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(orientation: int) -> None:
    data = encoded(quadrants(), "PNG", exif=exif_with(orientation))
    np.testing.assert_array_equal(decode_image(data), quadrants())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01"]
)
def test_corrupted_exif_does_not_matter(kind: str, exif: bytes) -> None:
    assert decode_image(encoded(quadrants(), kind, exif=exif)).shape == quadrants().shape


def test_cmyk_becomes_the_colours_it_stands_for() -> None:
    cmyk = Image.fromarray(quadrants()).convert("CMYK")
    np.testing.assert_array_equal(decode_image(encoded(cmyk, "TIFF")), quadrants())
    decoded = decode_image(encoded(cmyk, "JPEG", quality=95, subsampling=0))
    assert np.abs(decoded[4:8, 4:8].astype(int) - RED).max() < 25
    assert np.abs(decoded[16:20, 30:34].astype(int) - WHITE).max() < 25


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    decoded = decode_image(encoded(grey, kind))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 1, 128, 255])
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


def test_16_bit_rgb_is_scaled_and_not_clipped() -> None:
    row = struct.pack(">B6H", 0, 0, 0x80FF, 0xFFFF, 0x0100, 0x7F00, 0x00FF)
    decoded = decode_image(png(2, 1, depth=16, colour=2, rows=row))
    np.testing.assert_array_equal(decoded, [[[0, 0x80, 255], [1, 0x7F, 0]]])


def test_a_transparent_colour_is_white_at_8_and_16_bits() -> None:
    key = png_chunk(b"tRNS", struct.pack(">3H", 10, 20, 30))
    eight = png(2, 1, depth=8, colour=2, rows=bytes([0, 10, 20, 30, 1, 2, 3]), extra=key)
    np.testing.assert_array_equal(decode_image(eight), [[WHITE, (1, 2, 3)]])
    key = png_chunk(b"tRNS", struct.pack(">3H", 0x4000, 0x5000, 0x6000))
    row = struct.pack(">B6H", 0, 0x4000, 0x5000, 0x6000, 0x1000, 0x1000, 0x1000)
    sixteen = png(2, 1, depth=16, colour=2, rows=row, extra=key)
    np.testing.assert_array_equal(decode_image(sixteen), [[WHITE, (16, 16, 16)]])


def test_a_transparent_grey_is_white_at_8_and_16_bits() -> None:
    eight = png(2, 1, depth=8, colour=0, rows=bytes([0, 10, 20]), extra=png_chunk(b"tRNS", struct.pack(">H", 10)))
    np.testing.assert_array_equal(decode_image(eight)[0, :, 0], [255, 20])
    row = struct.pack(">B2H", 0, 0x1234, 0x4040)
    sixteen = png(2, 1, depth=16, colour=0, rows=row, extra=png_chunk(b"tRNS", struct.pack(">H", 0x1234)))
    np.testing.assert_array_equal(decode_image(sixteen)[0, :, 0], [255, 0x40])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_on_white(kind: str) -> None:
    rgba = np.dstack([quadrants(), np.full(quadrants().shape[:2], 255, np.uint8)])
    rgba[: rgba.shape[0] // 2, :, 3] = 0
    decoded = decode_image(encoded(rgba, kind, **({"lossless": True} if kind == "WEBP" else {})))
    expected = quadrants()
    expected[: rgba.shape[0] // 2] = WHITE
    np.testing.assert_array_equal(decoded, expected)


def test_half_an_alpha_is_half_white() -> None:
    grey_alpha = np.dstack([np.zeros((3, 3), np.uint8), np.full((3, 3), 128, np.uint8)])
    decoded = decode_image(encoded(Image.fromarray(grey_alpha, "LA"), "PNG"))
    np.testing.assert_array_equal(decoded, np.full((3, 3, 3), 127))


def test_a_palette_with_transparency_is_laid_on_white() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([*RED, *GREEN, *BLUE])
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG")), [[RED, GREEN, BLUE]])
    one = encoded(image, "PNG", transparency=1)
    np.testing.assert_array_equal(decode_image(one), [[RED, WHITE, BLUE]])
    each = encoded(image, "PNG", transparency=bytes([255, 0, 0]))
    np.testing.assert_array_equal(decode_image(each), [[RED, WHITE, WHITE]])
    np.testing.assert_array_equal(decode_image(encoded(image, "GIF", transparency=2)), [[RED, GREEN, WHITE]])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_one_bit_is_black_and_white(kind: str) -> None:
    image = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode_image(encoded(image, kind))[..., 1], [[0, 255], [255, 0]])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_picture_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    np.testing.assert_array_equal(decode_image(data), np.full((16, 16, 3), RED))


def test_an_apng_whose_header_makes_no_sense_is_still_a_png() -> None:
    plain = encoded(quadrants(), "PNG")
    at = 8 + 25
    broken = plain[:at] + png_chunk(b"acTL", struct.pack(">II", 0, 0)) * 2 + plain[at:]
    np.testing.assert_array_equal(decode_image(broken), quadrants())


def test_compressed_text_in_a_png_is_never_expanded() -> None:
    plain = encoded(quadrants(), "PNG")
    bomb = zlib.compress(bytes(64 * 1024 * 1024), 9)
    text = png_chunk(b"zTXt", b"k\0\0" + bomb) + png_chunk(b"iTXt", b"k\0\1\0\0\0" + bomb)
    profile = png_chunk(b"iCCP", b"k\0\0" + bomb)
    np.testing.assert_array_equal(decode_image(plain[:33] + text + profile + plain[33:]), quadrants())


def test_pixels_of_32_bits_are_refused_for_want_of_a_scale() -> None:
    for mode in ("I", "F"):
        with pytest.raises(ImageUnreadableError, match="32-bit"):
            decode_image(encoded(Image.new(mode, (4, 4)), "TIFF"))


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"hello, this is no image", b"%PDF-1.7", b"RIFF\0\0\0\0WAVEfmt ", b"<svg></svg>", bytes(4096)],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageUnreadableError, match="expected an image"):
        decode_image(data)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(noise, kind)
    with pytest.raises(ImageUnreadableError):
        decode_image(data[: int(len(data) * share)])


def bmp_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(quadrants(), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(quadrants(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(quadrants(), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def gif_with_a_frame_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("L", (1, 1)), "GIF"))
    frame = data.rindex(b",\0\0\0\0")
    data[frame + 5 : frame + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_claiming(kind: bytes, width: int, height: int) -> bytes:
    if kind == b"VP8X":
        payload = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        payload = b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + bytes(9)
    else:
        payload = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)
    return b"RIFF" + struct.pack("<I", 12 + len(payload)) + b"WEBP" + kind + struct.pack("<I", len(payload)) + payload


def tiff_claiming(width: int, height: int) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 16}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(64)


@pytest.mark.parametrize(
    "data",
    [
        png(30_000, 30_000, depth=8, colour=2, rows=b""),
        bmp_claiming(30_000, 30_000),
        jpeg_claiming(30_000, 30_000),
        gif_claiming(30_000, 30_000),
        gif_with_a_frame_of(30_000, 30_000),
        gif_with_a_frame_of(10_000, 10_000),
        tiff_claiming(30_000, 30_000),
        webp_claiming(b"VP8X", 30_000, 30_000),
        webp_claiming(b"VP8L", 16_000, 16_000),
        webp_claiming(b"VP8 ", 16_000, 16_000),
    ],
    ids=["png", "bmp", "jpeg", "gif", "gif-frame", "gif-frame-warned", "tiff", "webp-x", "webp-l", "webp"],
)
def test_a_header_that_claims_too_many_pixels_is_refused_before_decoding(data: bytes) -> None:
    with pytest.raises(ImageTooLargeError):
        decode_image(data)


def test_an_image_of_exactly_the_allowed_pixels_is_read() -> None:
    data = encoded(quadrants(), "PNG")
    assert decode_image(data, max_pixels=24 * 40).shape == (24, 40, 3)
    with pytest.raises(ImageTooLargeError, match="at most 959 pixels; the header claims 40 x 24"):
        decode_image(data, max_pixels=959)


def test_more_bytes_than_allowed_are_refused() -> None:
    data = encoded(quadrants(), "PNG")
    assert decode_image(data, max_bytes=len(data)).shape == (24, 40, 3)
    with pytest.raises(ImageTooLargeError, match="bytes"):
        decode_image(data, max_bytes=len(data) - 1)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_header_that_claims_no_pixels_is_refused(size: tuple[int, int]) -> None:
    for data in (png(*size, depth=8, colour=2, rows=b""), bmp_claiming(*size), tiff_claiming(*size)):
        with pytest.raises(ImageError):
            decode_image(data)


def test_a_webp_of_no_pixels_is_refused_by_its_header() -> None:
    with pytest.raises(ImageUnreadableError, match="at least 1 x 1 pixels; the header claims 0 x 9"):
        decode_image(webp_claiming(b"VP8 ", 0, 9))


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(kind: str, data: st.DataObject) -> None:
    original = encoded(quadrants(), kind, **({"exif": exif_with(6)} if kind in ("JPEG", "PNG", "TIFF", "WEBP") else {}))
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_image(bytes(damaged), max_pixels=1_000_000)
    except ImageError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 3
    assert decoded.shape[2] == 3


@settings(max_examples=60, deadline=None)
@given(
    prefix=st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"II+\0"]),
    rest=st.binary(max_size=200),
)
def test_random_bytes_after_a_known_signature_are_refused(prefix: bytes, rest: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(prefix + rest)


def test_a_tiff_that_makes_its_reader_warn_is_silent_and_the_filters_stay() -> None:
    data = encoded(quadrants(), "TIFF")
    # An entry whose data lies behind the end of the file: Pillow warns and skips it.
    at = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[at : at + 2])[0]
    entries = data[at + 2 : at + 2 + 12 * count]
    odd = struct.pack("<HHII", 315, 2, 100, len(data) + 500)
    moved = data[:4] + struct.pack("<I", len(data)) + data[8:]
    moved += struct.pack("<H", count + 1) + entries + odd + bytes(4)
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoded = decode_image(moved)
    np.testing.assert_array_equal(decoded, quadrants())
    assert not caught
    assert list(warnings.filters) == before


def test_many_threads_decode_at_once_and_agree() -> None:
    files = {kind: encoded(quadrants(), kind) for kind in FORMATS}
    expected = {kind: decode_image(data) for kind, data in files.items()}
    barrier = threading.Barrier(4)
    filters = list(warnings.filters)

    def decode_all(_: int) -> bool:
        barrier.wait()
        return all(np.array_equal(decode_image(files[kind]), expected[kind]) for _ in range(10) for kind in FORMATS)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(decode_all, range(4)))
    assert list(warnings.filters) == filters

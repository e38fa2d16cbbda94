"""What is read from image files before a decoder is."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchflow_bundle.containers import (
    ImageFormat,
    exif_orientation,
    image_format,
    jpeg_segments,
    strip_jpeg,
    strip_png,
    webp_size,
)


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


SCAN = b"\xff\xda\x00\x04ab" + b"entropy coded \xff\x00 data" + b"\xff\xd9"


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\xff\xd8\xff\xe0", ImageFormat.JPEG),
        (b"\x89PNG\r\n\x1a\n", ImageFormat.PNG),
        (b"RIFF\x10\0\0\0WEBPVP8 ", ImageFormat.WEBP),
        (b"GIF87a", ImageFormat.GIF),
        (b"GIF89a", ImageFormat.GIF),
        (b"BM", ImageFormat.BMP),
        (b"II*\0", ImageFormat.TIFF),
        (b"MM\0*", ImageFormat.TIFF),
        (b"II+\0", ImageFormat.TIFF),
        (b"MM\0+", ImageFormat.TIFF),
        (b"RIFF\x10\0\0\0AVI ", None),
        (b"\x89PNG", None),
        (b"", None),
    ],
)
def test_a_format_is_known_by_its_first_bytes(start: bytes, kind: ImageFormat | None) -> None:
    assert image_format(start) is kind


def test_a_jpeg_loses_its_metadata_and_keeps_what_colours_need() -> None:
    jfif, adobe = segment(0xE0, b"JFIF\0"), segment(0xEE, b"Adobe")
    exif, profile, comment = segment(0xE1, b"Exif\0\0II*\0"), segment(0xE2, b"ICC_PROFILE"), segment(0xFE, b"hello")
    table = segment(0xDB, bytes(65))
    data = b"\xff\xd8" + jfif + exif + profile + adobe + comment + table + SCAN
    assert strip_jpeg(data) == (b"\xff\xd8" + jfif + adobe + table + SCAN, b"Exif\0\0II*\0")


def test_of_two_exif_blocks_in_a_jpeg_the_first_counts() -> None:
    data = b"\xff\xd8" + segment(0xE1, b"Exif\0\0one") + segment(0xE1, b"Exif\0\0two") + SCAN
    assert strip_jpeg(data)[1] == b"Exif\0\0one"


def test_other_blocks_in_app1_are_no_exif() -> None:
    assert strip_jpeg(b"\xff\xd8" + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>") + SCAN)[1] == b""


def test_fill_bytes_and_bare_markers_between_segments_are_passed() -> None:
    table = segment(0xDB, bytes(65))
    data = b"\xff\xd8" + b"\xff\xff" + table + b"\xff\x01" + table + SCAN
    assert [marker for marker, _, _ in jpeg_segments(data)] == [0xDB, 0x01, 0xDB]


def test_a_segment_that_claims_more_than_the_file_ends_the_reading() -> None:
    data = b"\xff\xd8" + segment(0xDB, bytes(65)) + b"\xff\xe1\xff\xff" + b"short"
    assert len(list(jpeg_segments(data))) == 1
    assert strip_jpeg(data)[0] == data


def test_a_png_keeps_only_the_chunks_that_make_its_pixels() -> None:
    def chunk(kind: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + kind + payload + b"crc!"

    signature = b"\x89PNG\r\n\x1a\n"
    kept = [chunk(b"IHDR", bytes(13)), chunk(b"PLTE", bytes(3)), chunk(b"tRNS", bytes(1)), chunk(b"IDAT", b"data")]
    cut = [chunk(b"tEXt", b"k\0v"), chunk(b"eXIf", b"II*\0"), chunk(b"acTL", bytes(8)), chunk(b"prIv", b"x")]
    end = chunk(b"IEND", b"")
    data = signature + b"".join(a + b for a, b in zip(kept, cut, strict=True)) + end
    assert strip_png(data) == (signature + b"".join(kept) + end, b"II*\0")


@given(st.binary(max_size=300))
def test_no_bytes_break_the_readers(data: bytes) -> None:
    assert strip_png(b"\x89PNG\r\n\x1a\n" + data)[0].startswith(b"\x89PNG")
    assert strip_jpeg(b"\xff\xd8" + data)[0].startswith(b"\xff\xd8")
    assert exif_orientation(b"II*\0" + data) in range(1, 9)
    assert exif_orientation(data) in range(1, 9)
    webp_size(b"RIFF\0\0\0\0WEBP" + data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_the_orientation_is_read_in_both_byte_orders(order: str, prefix: bytes) -> None:
    start = b"II*\0" if order == "<" else b"MM\0*"
    entries = struct.pack(f"{order}HHIHH", 0x010F, 3, 1, 3, 0) + struct.pack(f"{order}HHIHH", 0x0112, 3, 1, 6, 0)
    assert exif_orientation(prefix + start + struct.pack(f"{order}IH", 8, 2) + entries) == 6


def test_exif_without_an_orientation_or_cut_off_is_upright() -> None:
    whole = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    assert exif_orientation(whole) == 6
    assert exif_orientation(whole[:-1]) == 1
    assert exif_orientation(b"II*\0" + struct.pack("<IH", 8, 0)) == 1
    assert exif_orientation(b"") == 1


def test_a_webp_header_too_short_or_unknown_claims_nothing() -> None:
    assert webp_size(b"RIFF") is None
    assert webp_size(b"RIFF\0\0\0\0WEBPALPH" + bytes(20)) is None

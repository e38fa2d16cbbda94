"""What can be said about an image file before a decoder sees it: format, claimed size, orientation, what to leave out.

Metadata is where image files hurt: compressed text that expands a thousandfold, damaged EXIF, animations whose headers
contradict each other. None of it changes the pixels of the first frame, so it is cut off here and never parsed,
except for one number: the EXIF orientation.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIF_PREFIX = b"Exif\x00\x00"
ORIENTATION_TAG = 0x0112
ORIENTATIONS = range(1, 9)
UPRIGHT = 1
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# tRNS is ancillary by name, but it changes pixels.
PNG_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
PNG_CHUNK_OVERHEAD = 12
JPEG_SOI = b"\xff\xd8"
JPEG_START_OF_SCAN = 0xDA
JPEG_APP1 = 0xE1
# APP0 (JFIF) and APP14 (Adobe) say how colours are coded; other APPn segments and comments are metadata.
JPEG_METADATA = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
# Markers without a length: TEM and RST0..RST7.
JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
WEBP_HEADER_BYTES = 30
IFD_ENTRY_BYTES = 12


class ImageFormat(StrEnum):
    """A file format that is read."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WebP"
    GIF = "GIF"
    BMP = "BMP"
    TIFF = "TIFF"


SIGNATURES = {
    b"\xff\xd8\xff": ImageFormat.JPEG,
    PNG_SIGNATURE: ImageFormat.PNG,
    b"GIF87a": ImageFormat.GIF,
    b"GIF89a": ImageFormat.GIF,
    b"BM": ImageFormat.BMP,
    b"II*\x00": ImageFormat.TIFF,
    b"MM\x00*": ImageFormat.TIFF,
    b"II+\x00": ImageFormat.TIFF,
    b"MM\x00+": ImageFormat.TIFF,
}


def image_format(data: bytes) -> ImageFormat | None:
    """Return the format that the first bytes name, None for any other."""
    if data.startswith(b"RIFF"):
        return ImageFormat.WEBP if data[8:12] == b"WEBP" else None
    return next((kind for signature, kind in SIGNATURES.items() if data.startswith(signature)), None)


def strip_png(data: bytes) -> tuple[bytes, bytes]:
    """Return the PNG with only the chunks that make its default image, and its EXIF block (empty if it has none)."""
    kept, exif = [PNG_SIGNATURE], b""
    position = len(PNG_SIGNATURE)
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + PNG_CHUNK_OVERHEAD + length
        if kind in PNG_PIXEL_CHUNKS:
            kept.append(data[position:end])
        elif kind == b"eXIf":
            exif = data[position + 8 : position + 8 + length]
        position = end
    return b"".join(kept), exif


def strip_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Return the JPEG without its metadata segments, and its EXIF block (empty if it has none)."""
    kept, exif = [JPEG_SOI], b""
    rest = len(JPEG_SOI)
    for marker, start, end in jpeg_segments(data):
        rest = end
        payload = data[start + 4 : end]
        if marker == JPEG_APP1 and payload.startswith(EXIF_PREFIX):
            exif = exif or payload
        if marker not in JPEG_METADATA:
            kept.append(data[start:end])
    kept.append(data[rest:])
    return b"".join(kept), exif


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of the segments before the first scan; stop where the file stops making sense."""
    position = len(JPEG_SOI)
    while position + 4 <= len(data) and data[position] == 0xFF:  # noqa: PLR2004 - every marker starts so
        marker = data[position + 1]
        if marker == 0xFF:  # noqa: PLR2004 - a fill byte
            position += 1
            continue
        if marker == JPEG_START_OF_SCAN:
            return
        length = 0 if marker in JPEG_BARE else int.from_bytes(data[position + 2 : position + 4], "big")
        end = position + 2 + length
        if end > len(data):
            return
        yield marker, position, end
        position = end


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) that a WebP header claims, None if it is no WebP header.

    The decoder allocates its canvas as soon as it is created, so this is asked first.
    Source: RFC 9649, sections 2.5 to 2.7.
    """
    if len(data) < WEBP_HEADER_BYTES:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        bits = int.from_bytes(data[26:30], "little")
        return bits & 0x3FFF, bits >> 16 & 0x3FFF
    return None


def exif_orientation(exif: bytes) -> int:
    """Return the orientation 1..8 that an EXIF block gives; 1 (upright) if it gives none or makes no sense.

    Only the first directory is read, and from it only this tag. Source: Exif 2.32, section 4.6.4 A.
    """
    block = exif.removeprefix(EXIF_PREFIX)
    if block.startswith(b"II*\x00"):
        little = True
    elif block.startswith(b"MM\x00*"):
        little = False
    else:
        return UPRIGHT

    def number(start: int, size: int) -> int:
        return int.from_bytes(block[start : start + size], "little" if little else "big")

    directory = number(4, 4)
    for index in range(number(directory, 2)):
        entry = directory + 2 + index * IFD_ENTRY_BYTES
        if entry + IFD_ENTRY_BYTES > len(block):
            break
        if number(entry, 2) == ORIENTATION_TAG:
            value = number(entry + 8, 2)
            return value if value in ORIENTATIONS else UPRIGHT
    return UPRIGHT

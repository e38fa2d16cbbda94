"""Bytes of an image file to upright RGB pixels, whatever the bytes are.

The decoders of Pillow are called directly, one per format, not through `Image.open`: that would try every plugin,
and would warn (or not) by settings global to the process. Refusals happen on the header's claim, before pixels are
decoded. Nothing global is changed, so any number of threads may decode at once; TIFF, whose reader can't be stopped
from warning about odd tags, and GIF are taken one at a time.
"""

from __future__ import annotations

import io
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from matchflow_bundle.containers import (
    UPRIGHT,
    ImageFormat,
    exif_orientation,
    image_format,
    strip_jpeg,
    strip_png,
    webp_size,
)
from matchflow_bundle.errors import ImageError, ImageTooLargeError, ImageUnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MAX_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 50_000_000
WHITE = (255, 255, 255)
UINT16_PER_UINT8 = 257
UINT8_MAX = 255

DECODERS: dict[ImageFormat, type[ImageFile.ImageFile]] = {
    ImageFormat.JPEG: JpegImageFile,
    ImageFormat.PNG: PngImageFile,
    ImageFormat.WEBP: WebPImageFile,
    ImageFormat.GIF: GifImageFile,
    ImageFormat.BMP: BmpImageFile,
    ImageFormat.TIFF: TiffImageFile,
}
WARNING_FORMATS = frozenset({ImageFormat.TIFF, ImageFormat.GIF})
_warnings_lock = threading.Lock()


def decode_image(data: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode JPEG, PNG, WebP, GIF, BMP or TIFF to upright RGB, uint8 [height, width, 3].

    The EXIF orientation is applied; transparency is laid on white; CMYK, palettes, 1-bit and 16-bit pixels are
    converted (16-bit by scale, not by clipping); of an animation the first picture is taken. Colour profiles are not
    applied. Raises ImageTooLargeError beyond `max_bytes`, or when the header claims more than `max_pixels` (nothing is
    decoded then), and ImageUnreadableError for everything else that is not a whole image.
    """
    if len(data) > max_bytes:
        raise ImageTooLargeError(f"expected at most {max_bytes} bytes; got {len(data)}")
    kind = image_format(data)
    if kind is None:
        formats = ", ".join(ImageFormat)
        raise ImageUnreadableError(f"expected an image ({formats}); got {len(data)} bytes of something else")
    try:
        with _silence(kind):
            return _decode(data, kind, max_pixels)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{kind} image refused by its decoder: {error}") from error
    except Exception as error:  # a decoder's failure on hostile bytes can be of any type
        raise ImageUnreadableError(f"damaged {kind} image: {error or type(error).__name__}") from error


def _decode(data: bytes, kind: ImageFormat, max_pixels: int) -> NDArray[np.uint8]:
    """Decode `data`, known to start as `kind` does."""
    exif = b""
    if kind is ImageFormat.PNG:
        data, exif = strip_png(data)
    elif kind is ImageFormat.JPEG:
        data, exif = strip_jpeg(data)
    elif kind is ImageFormat.WEBP and (claimed := webp_size(data)):
        _check_size(claimed, max_pixels)
    with DECODERS[kind](io.BytesIO(data)) as image:
        _check_size(image.size, max_pixels)
        image.load()
        if kind is ImageFormat.WEBP:
            exif = image.info.get("exif", b"")
        return _upright(_rgb(image), exif_orientation(exif))


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raise unless `size` (width, height) has at least one pixel and at most `max_pixels`."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageUnreadableError(f"expected at least 1 x 1 pixels; the header claims {width} x {height}")
    if width * height > max_pixels:
        raise ImageTooLargeError(f"expected at most {max_pixels} pixels; the header claims {width} x {height}")


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of a loaded image of any mode as RGB on white, uint8 [height, width, 3]."""
    if image.mode.startswith("I;16"):
        return _grey16(image)
    if image.mode in ("I", "F"):
        raise ImageUnreadableError(f"expected 8 or 16 bits a channel; got 32-bit pixels ({image.mode}) without a scale")
    if image.has_transparency_data:
        return _on_white(image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _grey16(image: Image.Image) -> NDArray[np.uint8]:
    """Scale 16-bit grey to 8 bits; a transparent grey becomes white."""
    grey = np.asarray(image).astype(np.uint32)
    scaled = ((grey + UINT16_PER_UINT8 // 2) // UINT16_PER_UINT8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[grey == transparent] = UINT8_MAX
    return np.repeat(scaled[:, :, None], 3, axis=2)


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    """Composite an image with transparency of any kind on white."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > UINT8_MAX:
        # Pillow has cut 16-bit pixels to their high bytes, but not the transparent colour.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    pixels = image.convert("RGBA")
    canvas = Image.new("RGB", pixels.size, WHITE)
    canvas.paste(pixels, mask=pixels)
    return np.array(canvas)


def _upright(rgb: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation 1..8 of [height, width, 3]."""
    if orientation == UPRIGHT:
        return rgb
    turned = {
        2: lambda: rgb[:, ::-1],
        3: lambda: rgb[::-1, ::-1],
        4: lambda: rgb[::-1],
        5: lambda: rgb.transpose(1, 0, 2),
        6: lambda: rgb[::-1].transpose(1, 0, 2),
        7: lambda: rgb[::-1, ::-1].transpose(1, 0, 2),
        8: lambda: rgb[:, ::-1].transpose(1, 0, 2),
    }[orientation]()
    return np.ascontiguousarray(turned)


@contextmanager
def _silence(kind: ImageFormat) -> Iterator[None]:
    """Keep the readers that warn from doing so; the filters are the process's, hence the lock."""
    if kind not in WARNING_FORMATS:
        yield
        return
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""What the pictures of the service share: colours, text that fits, and images scaled into a space.

Depends on NumPy and Pillow alone, whose built-in scalable font spares a font file.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, TypeAlias

from PIL import Image, ImageFont

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Box: TypeAlias = tuple[float, float, float, float]
Colour: TypeAlias = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
INK: Colour = (34, 34, 34)
FAINT_INK: Colour = (105, 105, 105)
FRAME: Colour = (208, 208, 208)
BLUISH_GREEN: Colour = (0, 158, 115)
VERMILLION: Colour = (213, 94, 0)
# Okabe and Ito's palette, which colour-blind readers can tell apart; its yellow and black, which are lost on white and
# among outlines, gave way to a wine red and a grey.
HUES: tuple[Colour, ...] = (
    (0, 114, 178),
    VERMILLION,
    BLUISH_GREEN,
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (136, 34, 85),
    (90, 90, 90),
)
# Past the last hue they return, each time as another shade: towards black (below 0) or towards white.
SHADES = (0.0, -0.4, 0.35, -0.2, 0.2, -0.6, 0.5, -0.5)
# The luminance on which black and white text stand out alike (WCAG 2: their contrast ratios are equal).
EVEN_LUMINANCE = (1.05 * 0.05) ** 0.5 - 0.05
LONGEST_TEXT = 400


def nth_colour(rank: int) -> Colour:
    """Return the colour of that rank; the first 64 differ, the first 8 clearly."""
    shade = SHADES[rank // len(HUES) % len(SHADES)]
    target = 255 if shade > 0 else 0
    red, green, blue = HUES[rank % len(HUES)]
    return (_mixed(red, target, abs(shade)), _mixed(green, target, abs(shade)), _mixed(blue, target, abs(shade)))


def _mixed(channel: int, target: int, amount: float) -> int:
    return round(channel + (target - channel) * amount)


def readable_on(colour: Colour) -> Colour:
    """Return black or white, whichever stands out more on `colour` (WCAG 2 relative luminance)."""
    red, green, blue = (((channel / 255 + 0.055) / 1.055) ** 2.4 for channel in colour)
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > EVEN_LUMINANCE else WHITE


def scalable_font(size_px: float) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, new for each caller: threads must not share a face."""
    font = ImageFont.load_default(size_px)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def fit_text(text: str, font: ImageFont.FreeTypeFont, width_px: float) -> str:
    """Return `text` as one line of at most `width_px`, its middle replaced by "..." where it is too long."""
    clean = "".join(c if c.isprintable() else " " for c in text[:LONGEST_TEXT])
    if font.getlength(clean) <= width_px:
        return clean
    for kept in range(len(clean) - 1, 0, -1):
        shorter = clean[: (kept + 1) // 2].rstrip() + "..." + clean[len(clean) - kept // 2 :].lstrip()
        if font.getlength(shorter) <= width_px:
            return shorter
    return ""


def fitted_size(width_px: float, height_px: float, space_width_px: float, space_height_px: float) -> tuple[int, int]:
    """Return the size that fills the space with the proportions kept, at least 1 x 1."""
    scale = min(space_width_px / width_px, space_height_px / height_px)
    return max(1, round(width_px * scale)), max(1, round(height_px * scale))


def resized(pixels: NDArray[np.uint8], size_px: tuple[int, int]) -> Image.Image:
    """Return RGB pixels [H, W, 3] as a picture of that width and height."""
    return Image.fromarray(pixels).resize(size_px, Image.Resampling.LANCZOS, reducing_gap=3.0)


def png_bytes(picture: Image.Image) -> bytes:
    """Return the picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()

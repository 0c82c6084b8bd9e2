"""White paper for a picture: lines and words in shades of grey.

Axis letters:  R, C rows and columns of a picture.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

FONT_IN, LINE_IN = 10 / 72, 0.8 / 72
"""Size of the letters; width of lines."""
BLACK, WHITE = 0, 255


class Box(NamedTuple):
    """Pixels of a picture."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Its columns."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Its rows."""
        return self.bottom - self.top

    def of(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """These of (R, C, ...) pixels; changes to them are changes to those."""
        return pixels[self.top : self.bottom, self.left : self.right]

    def stretch(self, values: NDArray[Any]) -> NDArray[Any]:
        """(H, W) values drawn over the box, without blending neighbours."""
        rows, columns = (
            np.arange(side) * count // side
            for side, count in zip((self.height, self.width), values.shape, strict=True)
        )
        stretched: NDArray[Any] = values[rows[:, None], columns]
        return stretched

    def grow(self, width: int) -> Box:
        """The box with a rim."""
        return Box(self.left - width, self.top - width, self.right + width, self.bottom + width)


class Paper:
    """Something to draw on."""

    def __init__(self, shape: tuple[int, int], dpi: float) -> None:
        """Empty paper of (R, C) pixels, so many of them in an inch."""
        self._image = Image.new("L", shape[::-1], WHITE)
        self._draw = ImageDraw.Draw(self._image)
        self._dpi = dpi
        self._font = load_font(round(FONT_IN * dpi))
        self.line = max(1, round(LINE_IN * dpi))
        """Pixels of a line's width."""

    def pixels(self, inches: float) -> int:
        """How many pixels a length is."""
        return round(inches * self._dpi)

    def fill(self, box: Box, grey: int = BLACK) -> None:
        """Fill a box."""
        left, top, right, bottom = box
        self._draw.rectangle((left, top, right - 1, bottom - 1), fill=grey)

    def frame(self, box: Box) -> None:
        """Draw a line around a box, which is left white."""
        self.fill(box.grow(self.line))
        self.fill(box, WHITE)

    def measure(self, text: str) -> int:
        """Pixels of a text's width."""
        return round(self._font.getlength(text))

    def write(self, text: str, place: tuple[int, int], anchor: str) -> None:
        """Write a text, (x, y) of which is where Pillow's anchor says."""
        self._draw.text(place, text, fill=BLACK, font=self._font, anchor=anchor)

    def write_upwards(self, text: str, place: tuple[int, int]) -> None:
        """Write a text from below upwards, the middle of its left side at (x, y)."""
        left, top, right, bottom = map(int, self._font.getbbox(text, anchor="ls"))
        strip = Image.new("L", (right - left, bottom - top), WHITE)
        ImageDraw.Draw(strip).text((-left, -top), text, fill=BLACK, font=self._font, anchor="ls")
        turned = strip.transpose(Image.Transpose.ROTATE_90)
        x, y = place
        self._image.paste(turned, (x, y - turned.height // 2))

    def shorten(self, text: str, width: int) -> str:
        """A text on one line, without its end where it is wider than `width` pixels."""
        text = " ".join(text.split())
        if self.measure(text) <= width:
            return text
        most = next(n for n in range(len(text), -1, -1) if self.measure(f"{text[:n]}…") <= width)
        return f"{text[:most]}…"

    def to_levels(self, count: int) -> NDArray[np.uint8]:
        """(R, C) uint8 shade of each pixel, black 0 and white `count` - 1."""
        greys = np.asarray(self._image).astype(np.uint16)
        return ((greys * (count - 1) + WHITE // 2) // WHITE).astype(np.uint8)


@cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib; where its distribution lacks it, Pillow's own."""
    found = importlib.util.find_spec("matplotlib")
    folder = Path(found.origin or "").parent if found else Path()
    path = folder / "mpl-data/fonts/ttf/DejaVuSans.ttf"
    layout = ImageFont.Layout.BASIC  # the other one is not everywhere
    try:
        return ImageFont.truetype(path, size, layout_engine=layout)
    except OSError:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font

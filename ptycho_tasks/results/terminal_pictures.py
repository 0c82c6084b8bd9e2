"""Small pictures as the text that makes a terminal show them.

Axis letters:  R, C rows and columns of a picture.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.results.thumbnails import Thumbnail
from ptycho_tasks.system.graphics import Graphics

_MOST_LETTERS = 4096
"""Of one message of kitty's protocol."""
_BAND = 6
"""Rows of pixels in a row of sixels."""
_PER_COLOUR = 8
"""Colours of a picture that become one sixel colour: terminals have few of them."""


def draw_picture(picture: Thumbnail, graphics: Graphics) -> str:
    """Text, whole lines, that shows a picture."""
    draw = {"kitty": _draw_kitty, "sixel": _draw_sixels, "blocks": _draw_blocks}[graphics]
    return draw(picture)


def _draw_kitty(picture: Thumbnail) -> str:
    """A PNG by https://sw.kovidgoyal.net/kitty/graphics-protocol/; the terminal is not to answer,
    since nobody would read that."""
    data = base64.b64encode(picture.to_png()).decode()
    parts = [data[at : at + _MOST_LETTERS] for at in range(0, len(data), _MOST_LETTERS)]
    messages = []
    for index, part in enumerate(parts):
        keys = "a=T,f=100,q=2," if index == 0 else ""
        messages.append(f"\x1b_G{keys}m={int(index < len(parts) - 1)};{part}\x1b\\")
    return "".join(messages) + "\n"


def _draw_sixels(picture: Thumbnail) -> str:
    """Sixels as in DEC's manual of the VT330, chapter 14."""
    R, C = picture.pixels.shape
    pixels = (picture.pixels.astype(int) + _PER_COLOUR - 1) // _PER_COLOUR  # 0 stays alone
    colours = [
        f"#{number};2;" + ";".join(str(round(int(part) / 2.55)) for part in colour)
        for number, colour in enumerate(_list_sixel_colours(picture))
    ]
    bands = (pixels[top : top + _BAND] for top in range(0, R, _BAND))
    lines = "-".join("$".join(_draw_band(band)) for band in bands)
    return f'\x1bP0;1q"1;1;{C};{R}{"".join(colours)}{lines}\x1b\\\n'


def _list_sixel_colours(picture: Thumbnail) -> NDArray[np.uint8]:
    middles = picture.colours[1 + _PER_COLOUR // 2 :: _PER_COLOUR]
    return np.concatenate([picture.colours[:1], middles])


def _draw_band(band: NDArray[np.int_]) -> Iterator[str]:
    """Up to 6 rows (R, C), a text for each colour in them."""
    bits = 1 << np.arange(len(band))[:, None]
    for colour in np.unique(band):
        values = ((band == colour) * bits).sum(axis=0) + 63
        runs = ((chr(value), len([*same])) for value, same in itertools.groupby(values.tolist()))
        yield f"#{colour}" + "".join(f"!{n}{one}" if n > 3 else one * n for one, n in runs)


def _draw_blocks(picture: Thumbnail) -> str:
    """Half a letter for each pixel, in 24 bits of colour."""
    image = picture.colours[picture.pixels]
    if len(image) % 2:
        image = np.concatenate([image, np.zeros_like(image[:1])])
    lines = []
    for upper, lower in zip(image[::2], image[1::2], strict=True):
        cells = (
            f"\x1b[38;2;{a};{b};{c};48;2;{d};{e};{f}m\u2580"
            for (a, b, c), (d, e, f) in zip(upper.tolist(), lower.tolist(), strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m\n")
    return "".join(lines)

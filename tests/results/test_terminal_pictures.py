"""Small pictures, read back as a terminal or a browser would."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.results.terminal_pictures import draw_picture
from ptycho_tasks.results.thumbnails import make_thumbnails


def make_object(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(rows, columns)) + 1j * rng.normal(size=(rows, columns))
    seen = rng.random((rows, columns)) > 0.3
    return image.astype(np.complex64), seen


def read_sixels(text):
    """(rows, columns, 3) per cent of red, green, blue."""
    body = re.fullmatch(r'\x1bP0;1q"1;1;(\d+);(\d+)(.*)\x1b\\\n', text, re.DOTALL)
    columns, rows, data = int(body[1]), int(body[2]), body[3]
    image = np.full((rows + 5, columns, 3), -1)
    colours, colour, top, at = {}, 0, 0, 0
    for token in re.finditer(r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)(.)|([$-])|([?-~])", data):
        number, red, green, blue, count, run, move, one = token.groups()
        if number and red:
            colours[int(number)] = int(red), int(green), int(blue)
        elif number:
            colour = int(number)
        elif move:
            at, top = 0, top + 6 * (move == "-")
        else:
            end = at + int(count or 1)
            for bit in range(6):
                if (ord(run or one) - 63) >> bit & 1:
                    image[top + bit, at:end] = colours[colour]
            at = end
    assert (image[rows:] == -1).all()
    return image[:rows]


@given(rows=st.integers(1, 30), columns=st.integers(1, 30), seed=st.integers(0, 9))
def test_sixels_are_the_pixels_within_a_few_shades(rows, columns, seed):
    for picture in make_thumbnails(*make_object(rows, columns, seed), side=64).values():
        wanted = picture.colours[picture.pixels] / 2.55
        assert np.abs(read_sixels(draw_picture(picture, "sixel")) - wanted).max() < 6


def test_kitty_gets_the_png_and_does_not_answer():
    (picture, _) = make_thumbnails(*make_object(200, 300), side=256).values()
    messages = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", draw_picture(picture, "kitty"))
    assert messages[0][0] == "a=T,f=100,q=2,m=1"
    assert [keys for keys, _ in messages[1:]] == ["m=1"] * (len(messages) - 2) + ["m=0"]
    assert all(len(data) <= 4096 for _, data in messages)
    data = base64.b64decode("".join(data for _, data in messages))
    assert data == picture.to_png()


def test_blocks_are_two_pixels_a_letter():
    (picture, _) = make_thumbnails(*make_object(5, 4), side=8).values()
    lines = draw_picture(picture, "blocks").splitlines()
    assert len(lines) == 3
    assert all(line.count("\u2580") == 4 and line.endswith("\x1b[0m") for line in lines)
    first = re.match(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m", lines[0])
    colours = picture.colours[picture.pixels[:2, 0]].ravel().tolist()
    assert [int(part) for part in first.groups()] == colours


def test_a_png_holds_the_pixels():
    pyplot = pytest.importorskip("matplotlib.image")
    (picture, _) = make_thumbnails(*make_object(70, 31), side=64).values()
    shown = pyplot.imread(io.BytesIO(picture.to_png()), format="png")
    assert shown.shape[:2] == (35, 16)
    wanted = picture.colours[picture.pixels] / 255
    assert np.abs(shown[..., :3] - wanted).max() < 1e-6


def test_what_was_not_seen_can_be_transparent():
    pyplot = pytest.importorskip("matplotlib.image")
    seen = np.arange(12).reshape(3, 4) % 3 > 0
    (picture, _) = make_thumbnails(np.ones((3, 4), np.complex64), seen, side=8).values()
    shown = pyplot.imread(io.BytesIO(picture.to_png(is_clear=True)), format="png")
    assert np.array_equal(shown[..., 3] == 1, seen)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (500, 3)])
@pytest.mark.parametrize("fill", [0, 1, np.nan, np.inf])
def test_any_object_gives_a_picture(shape, fill):
    image = np.full(shape, fill, np.complex64)
    for picture in make_thumbnails(image, np.ones(shape, bool), side=16).values():
        assert max(picture.pixels.shape) <= 16
        assert np.isfinite([picture.low, picture.high]).all()
        assert (picture.pixels == 0).all() == (not np.isfinite(fill))
        assert draw_picture(picture, "sixel").isascii()


def test_blocks_of_pixels_become_their_mean():
    image = np.array([[1, 3, 5], [1, 3, 5]], np.complex64)
    seen = np.array([[True, True, True], [True, True, False]])
    pictures = make_thumbnails(image, seen, side=2)
    assert pictures["amplitude"].pixels.tolist() == [[1, 255]]

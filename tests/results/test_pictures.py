"""The pictures: right way up, honest colours, and no crash on odd objects."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ptycho_tasks.results.pictures import (
    Kind,
    centred_phase,
    choose_ticks,
    colour_limits,
    picture_bytes,
    round_length,
)

KINDS: tuple[Kind, ...] = ("amplitude", "phase")


def picture(
    image: NDArray[Any],
    mask: NDArray[np.bool_] | None = None,
    kind: Kind = "amplitude",
    title: str = "a title",
    pixel_size_m: tuple[float, float] | None = None,
) -> bytes:
    seen = np.ones(image.shape, bool) if mask is None else mask
    return picture_bytes(
        image.astype(np.complex64), seen, kind=kind, title=title, pixel_size_m=pixel_size_m
    )


def pixels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def lines(shape: tuple[int, int] = (60, 90)) -> NDArray[Any]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.asarray((1 + 0.2 * np.sin(x / 5)) * np.exp(0.4j * np.cos(y / 7)))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_content_gives_equal_bytes_without_date_or_version(kind: Kind) -> None:
    png = picture(lines(), kind=kind)
    assert png == picture(lines(), kind=kind)
    assert png.startswith(b"\x89PNG")
    assert png.count(b"tEXt") == 1
    assert b"tEXtSoftware\0ptycho-tasks" in png
    for chunk in (b"iTXt", b"zTXt", b"tIME"):
        assert chunk not in png


def test_matplotlib_is_not_imported() -> None:
    code = (
        "import sys, numpy as np; from ptycho_tasks.results.pictures import picture_bytes; "
        "picture_bytes("
        "np.ones((9, 9), 'c8'), np.ones((9, 9), bool), kind='phase', title='', pixel_size_m=None);"
        "print('matplotlib' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


SHAPES: list[tuple[int, int]] = [(1, 1), (1, 50), (50, 1), (8, 400), (400, 8), (37, 61)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_odd_shapes_work(kind: Kind, shape: tuple[int, int]) -> None:
    assert pixels(picture(lines(shape), kind=kind)).ndim == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 1.0, -2.0 + 1j, 1e-30, 1e20, np.nan, np.inf])
def test_all_equal_images_work(kind: Kind, value: complex) -> None:
    assert pixels(picture(np.full((20, 30), value), kind=kind)).ndim == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seen", [0, 1, 2])
def test_tiny_masks_work(kind: Kind, seen: int) -> None:
    mask = np.zeros((60, 90), bool)
    mask.ravel()[1000 : 1000 + seen] = True
    assert pixels(picture(lines(), mask, kind)).ndim == 3


@pytest.mark.parametrize("pixel_size_m", [(1e-8, 1e-8), (1e-8, 4e-8), (3e-3, 1e-3), (1e-12, 1e-12)])
def test_any_pixel_size_works(pixel_size_m: tuple[float, float]) -> None:
    with_scale = picture(lines(), pixel_size_m=pixel_size_m)
    assert with_scale != picture(lines())


def test_a_title_is_shown_as_it_stands() -> None:
    assert picture(lines(), title="run_$1: amplitude $") != picture(
        lines(), title="run_1: amplitude"
    )
    picture(lines(), title="a very long name " * 20)


def test_what_was_not_seen_is_grey_and_lies_where_the_mask_says() -> None:
    """Row 0 is on top: the left half of the first rows is grey, the rest has colours."""
    mask = np.ones((60, 60), bool)
    mask[:20, :30] = False
    shown = pixels(picture(lines((60, 60)), mask)).astype(int)
    grey = np.all(shown == 191, axis=-1)
    rows, columns = (np.flatnonzero(grey.sum(axis=axis) > 50) for axis in (1, 0))
    height, width = grey.shape
    assert 0.05 < grey.mean() < 0.2
    assert rows[-1] < 0.5 * height
    assert columns[-1] < 0.6 * width


@given(st.floats(-np.pi, np.pi), st.floats(0.05, 2.5))
def test_the_global_phase_moves_nothing(turn: float, contrast: float) -> None:
    seen = np.ones((9, 11), bool)
    wanted = np.linspace(-contrast, contrast, 99).reshape(9, 11)
    image = np.exp(1j * (wanted + turn)).astype(np.complex64)
    np.testing.assert_allclose(centred_phase(image, seen), wanted, atol=1e-5)


def test_the_phase_is_centred_over_what_was_seen() -> None:
    image = np.exp(1j * np.array([[0.5, 0.5, 0.7, -2.0, -2.0, -2.0]])).astype(np.complex64)
    seen = np.array([[True, True, True, False, False, False]])
    np.testing.assert_allclose(centred_phase(image, seen)[seen], [0.0, 0.0, 0.2], atol=1e-6)


def test_colours_ignore_a_few_hot_pixels() -> None:
    values = np.linspace(1.0, 2.0, 10_000).astype(np.float32)
    values[:20] = 1e6
    low, high = colour_limits(values, "amplitude")
    assert 0.99 < low < high < 2.01


def test_colours_of_the_same_values_have_a_range() -> None:
    for value in (0.0, 1.0, 1e-20):
        low, high = colour_limits(np.full(5, value, np.float32), "amplitude")
        assert low < value < high or value == low == 0


def test_a_phase_all_around_gets_cyclic_colours() -> None:
    values = np.linspace(-np.pi, np.pi, 1000).astype(np.float32)
    assert colour_limits(values, "phase") == (-np.pi, np.pi)
    assert colour_limits(np.float32(0.5) * values, "phase")[1] < 1.6


@given(st.floats(-1e30, 1e30), st.floats(1e-3, 2))
def test_ticks_are_few_tell_values_apart_and_are_right(low: float, share: float) -> None:
    high = low + share * (abs(low) or 1.0)
    ticks = choose_ticks(low, high)
    assert 4 <= len(ticks.texts) <= 12
    assert len({*ticks.texts.values()}) == len(ticks.texts)
    least = -(high - low) / 100
    for value, text in ticks.texts.items():
        assert low + least <= value <= high - least
        shown = float(text.replace("\N{MINUS SIGN}", "-")) * 10.0**ticks.power
        assert abs(shown - value) < (high - low) / 100


@pytest.mark.parametrize("shape", [(8, 400), (400, 8)])
def test_a_strip_is_not_hidden_by_its_scale(shape: tuple[int, int]) -> None:
    shown = pixels(picture(lines(shape))).astype(int)
    image, colour_bar = 750 * 15, 30 * (225 if shape[0] < shape[1] else 750)
    assert (np.ptp(shown, axis=-1) > 40).sum() == pytest.approx(image + colour_bar, rel=0.02)


@given(st.floats(1e-9, 1e9))
def test_lengths_are_round_and_fit(most: float) -> None:
    length = round_length(most)
    assert 0.39 * most <= length <= most * (1 + 1e-6)
    assert f"{length:.0e}"[0] in "125"
    assert length == pytest.approx(float(f"{length:.0e}"))

"""Amplitude and phase of an object as PNG pictures with their scales.

Drawn here and not by matplotlib, which takes longer to import than a scan to be reconstructed.

Axis letters:  H, W object grid;  R, C rows and columns of a picture.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.results.palette import encode_png, list_colours
from ptycho_tasks.results.paper import Box, Paper

Kind = Literal["amplitude", "phase"]
SOFTWARE = "ptycho-tasks"
"""What the pictures name as their maker."""

CLIPPED = 2.0
"""Per cent of the seen pixels beyond each end of the colours: a few hot ones at the rim of what
was seen must not take the contrast from the rest."""
LEAST_RANGE = 1e-3
"""Least range of the colours, in rad, or as a share of the amplitude: less is rounding."""
UNSEEN = 191
"""Neutral grey of what was not seen, which is in neither colour map."""
SIDE_IN = 5.0
"""The image's longer side."""
LEFT_IN, RIGHT_IN, BELOW_IN, ABOVE_IN = 0.1, 1.1, 0.1, 0.4
"""Room around the image: for the colour bar, the title."""
LEAST_SIDE = 0.3
"""Of the shorter side's place, as a share of the longer."""
BAR_GAP_IN, BAR_IN, TICK_IN = 0.1, 0.2, 0.05
"""Distance of the colour bar from the image, its width, and the length of its ticks."""
GREYS, COLOURS = 32, 223
"""Indices of a picture: greys of the paper, one for what was not seen, colours of the image."""


def picture_bytes(
    image: NDArray[np.complex64],
    mask: NDArray[np.bool_],
    *,
    kind: Kind,
    title: str,
    pixel_size_m: tuple[float, float] | None,
) -> bytes:
    """A PNG of an object's amplitude or phase; equal content gives equal bytes.

    Row 0 is on top. Colours span the seen pixels but for the outermost 2 % at either end; the
    phase is that of `centred_phase`, and where it goes nearly all around, the colours do too.

    Args:
        image: (H, W) complex.
        mask: (H, W) bool, true where the object was seen; the rest is grey.
        kind: what to show; the phase is in rad.
        title: shown above, as it stands.
        pixel_size_m: (height, width) of a pixel in metres; None gives a scale in pixels.
    """
    seen = np.asarray(mask, dtype=bool) & np.isfinite(image)
    values = centred_phase(image, seen) if kind == "phase" else np.abs(image)
    limits = colour_limits(values[seen], kind)
    layout = _Layout.of(image.shape, pixel_size_m)
    paper = Paper(layout.shape, layout.dpi)
    _write_title(paper, layout, title)
    for box in (layout.image, layout.bar):
        paper.frame(box)
    _add_ticks(paper, layout.bar, limits, kind)
    scale = _add_scale(paper, layout, image.shape[1], pixel_size_m)
    pixels = paper.to_levels(GREYS)
    covered = scale.of(pixels).copy()
    layout.image.of(pixels)[...] = layout.image.stretch(_index(values, seen, limits))
    layout.bar.of(pixels)[...] = layout.bar.stretch(_RAMP)
    scale.of(pixels)[...] = covered
    is_around = kind == "phase" and limits[1] - limits[0] >= 2 * np.pi
    return encode_png(pixels, _list_colours("phase" if is_around else "viridis"), SOFTWARE)


def is_picture(path: Path) -> bool:
    """Whether a file is a picture that `picture_bytes` made.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(1024)
    return head.startswith(b"\x89PNG") and b"Software\0" + SOFTWARE.encode() in head


def centred_phase(image: NDArray[np.complex64], seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The phase in rad, -pi..pi, its median over the seen pixels at zero.

    The data do not tell the global phase. It is taken off as a factor before the angle is, so
    that the jump from pi to -pi lies opposite to the most common phase.

    Args:
        image: (H, W) complex.
        seen: (H, W) bool.
    """
    turned = np.where(seen, image, 0)
    for middle in (_mean_phase, _median_phase):
        turned = turned * np.exp(-1j * middle(turned[seen])).astype(np.complex64)
    return np.asarray(np.angle(turned), dtype=np.float32)


def _mean_phase(values: NDArray[np.complex64]) -> float:
    return float(np.angle(values.sum(dtype=np.complex128)))


def _median_phase(values: NDArray[np.complex64]) -> float:
    return float(np.median(np.angle(values))) if values.size else 0.0


def colour_limits(seen_values: NDArray[np.float32], kind: Kind) -> tuple[float, float]:
    """Lowest and highest value of the colours; for a phase all around, -pi and pi."""
    if not seen_values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(seen_values, (CLIPPED, 100 - CLIPPED)))
    if kind == "phase" and high - low > 1.8 * np.pi:
        return -np.pi, np.pi
    unit = 1.0 if kind == "phase" else max(abs(low), abs(high)) or 1.0
    middle, half = (low + high) / 2, max(high - low, LEAST_RANGE * unit) / 2
    return middle - half, middle + half


_FIRST_COLOUR = GREYS + 1
_RAMP = np.arange(_FIRST_COLOUR + COLOURS - 1, _FIRST_COLOUR - 1, -1, dtype=np.uint8)[:, None]


@cache
def _list_colours(name: str) -> NDArray[np.uint8]:
    greys = [*(round(255 * level / (GREYS - 1)) for level in range(GREYS)), UNSEEN]
    grey_rows = np.repeat(np.array(greys, np.uint8)[:, None], 3, axis=1)
    return np.concatenate([grey_rows, list_colours(name, COLOURS)])


def _index(
    values: NDArray[np.float32], seen: NDArray[np.bool_], limits: tuple[float, float]
) -> NDArray[np.uint8]:
    """(H, W) index of each pixel's colour."""
    low, high = limits
    share = np.clip((np.where(seen, values, low) - low) / (high - low), 0, 1)
    colours = _FIRST_COLOUR + np.rint((COLOURS - 1) * share)
    return np.where(seen, colours, GREYS).astype(np.uint8)


class _Layout(NamedTuple):
    """What lies where in a picture."""

    shape: tuple[int, int]
    """(R, C)."""
    dpi: float
    place: Box
    """Where the image may lie."""
    image: Box
    bar: Box

    @classmethod
    def of(cls, shape: tuple[int, ...], pixel_size_m: tuple[float, float] | None) -> _Layout:
        """The layout for an object of some shape."""
        # Up to some 3000 pixels a side, every pixel of the object gets one of the picture.
        dpi = float(np.clip(max(shape) / SIDE_IN, 150, 600))
        left, right, below, above, gap, bar = (
            round(inches * dpi)
            for inches in (LEFT_IN, RIGHT_IN, BELOW_IN, ABOVE_IN, BAR_GAP_IN, BAR_IN)
        )
        sides = np.array(shape) * (pixel_size_m or (1.0, 1.0))
        image = np.maximum(np.rint(sides / sides.max() * SIDE_IN * dpi), 1).astype(int)
        # A long strip keeps its shape; only the paper around it grows.
        height, width = np.maximum(image, round(LEAST_SIDE * SIDE_IN * dpi)).tolist()
        top, start = above + (height - image[0]) // 2, left + (width - image[1]) // 2
        return cls(
            (height + below + above, width + left + right),
            dpi,
            Box(left, above, left + width, above + height),
            Box(int(start), int(top), int(start + image[1]), int(top + image[0])),
            Box(left + width + gap, above, left + width + gap + bar, above + height),
        )


def _write_title(paper: Paper, layout: _Layout, title: str) -> None:
    middle = (layout.place.left + layout.place.right) // 2
    most = 2 * min(middle, layout.shape[1] - middle)
    place = middle, layout.place.top - paper.pixels(0.1)
    paper.write(paper.shorten(title, most), place, "ms")


def _add_ticks(paper: Paper, bar: Box, limits: tuple[float, float], kind: Kind) -> None:
    """The values of the colour bar, and what they are."""
    ticks = choose_ticks(*limits)
    tick = gap = paper.pixels(TICK_IN)
    start, half = bar.right + paper.line, paper.line // 2
    for value, text in ticks.texts.items():
        share = (value - limits[0]) / (limits[1] - limits[0])
        y = bar.bottom - 1 - round(share * (bar.height - 1))
        paper.fill(Box(start, y - half, start + tick, y - half + paper.line))
        paper.write(text, (start + tick + gap, y), "lm")
    widest = max(map(paper.measure, ticks.texts.values()), default=0)
    label = "phase (rad)" if kind == "phase" else "amplitude"
    label += f" / 1e{ticks.power}" if ticks.power else ""
    x = start + tick + gap + widest + gap
    paper.write_upwards(label, (x, (bar.top + bar.bottom) // 2))


class Ticks(NamedTuple):
    """Round values of a scale."""

    texts: dict[float, str]
    """What to write at each."""
    power: int
    """The power of ten that the texts leave out."""


def choose_ticks(low: float, high: float) -> Ticks:
    """Choose 4 to 11 round values between two."""
    step = round_length((high - low) / 4.5)
    largest = max(abs(low), abs(high))
    power = int(np.floor(np.log10(largest)))
    power = 0 if -3 < power < 5 else power
    digits = max(0, power - int(np.floor(np.log10(step) + 1e-9)))
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    values = [number * step for number in range(first, last + 1)]
    texts = (f"{value / 10.0**power:.{digits}f}".replace("-", "\N{MINUS SIGN}") for value in values)
    return Ticks(dict(zip(values, texts, strict=True)), power)


def _add_scale(
    paper: Paper, layout: _Layout, columns: int, pixel_size_m: tuple[float, float] | None
) -> Box:
    """Draw a bar of a round length, about a quarter of the width; gives the box that it is in."""
    width, unit = (1e6 * pixel_size_m[1], "µm") if pixel_size_m else (1.0, "px")
    length = round_length(columns * width / 4)
    text = f"{length:g} {unit}"
    bar = max(1, round(length / (columns * width) * layout.image.width))
    pad, height, rim = (paper.pixels(inches) for inches in (0.04, 0.24, 0.09))
    inside = max(bar, paper.measure(text)) + 2 * pad
    left, bottom = layout.place.left + rim, layout.place.bottom - rim
    box = Box(left, bottom - height, left + inside, bottom)
    paper.frame(box)
    start, top = left + (inside - bar) // 2, box.top + pad
    paper.fill(Box(start, top, start + bar, top + paper.line))
    paper.write(text, (left + inside // 2, (top + paper.line + bottom) // 2), "mm")
    return box.grow(paper.line)


def round_length(most: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is at most `most`, which is above 0."""
    power = 10.0 ** np.floor(np.log10(most))
    return float(power * max(step for step in (1, 2, 5) if step * power <= most * (1 + 1e-9)))

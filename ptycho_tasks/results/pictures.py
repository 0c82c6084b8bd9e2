"""Amplitude and phase of an object as PNG pictures with their scales.

Axis letters:  H, W object grid.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


Kind = Literal["amplitude", "phase"]
SOFTWARE = "ptycho-tasks"
"""What the pictures name as their maker."""

CLIPPED = 2.0
"""Per cent of the seen pixels beyond each end of the colours: a few hot ones at the rim of what
was seen must not take the contrast from the rest."""
LEAST_RANGE = 1e-3
"""Least range of the colours, in rad, or as a share of the amplitude: less is rounding."""
UNSEEN = "0.75"
"""Neutral grey, which is in neither colour map."""
SIDE_IN = 5.0
"""The image's longer side."""
LEFT_IN, RIGHT_IN, BELOW_IN, ABOVE_IN = 0.1, 1.1, 0.1, 0.4
"""Room around the image: for the colour bar, the title."""


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    seen = np.asarray(mask, dtype=bool) & np.isfinite(image)
    values = centred_phase(image, seen) if kind == "phase" else np.abs(image)
    # Up to some 3000 pixels a side, every pixel of the object gets one of the picture.
    dpi = float(np.clip(max(image.shape) / SIDE_IN, 150, 600))
    sides = width, height = _sides(image.shape, pixel_size_m)
    paper = width + LEFT_IN + RIGHT_IN, height + BELOW_IN + ABOVE_IN
    figure = Figure(paper, dpi=dpi)
    axes = figure.add_axes((LEFT_IN / paper[0], BELOW_IN / paper[1], *np.divide(sides, paper)))
    shown = _draw(axes, values, seen, kind)
    axes.set_title(title, fontsize=10, parse_math=False, wrap=True)
    label = "phase (rad)" if kind == "phase" else "amplitude"
    figure.colorbar(shown, cax=axes.inset_axes((1.0 + 0.1 / width, 0, 0.2 / width, 1)), label=label)
    _add_scale(axes, image.shape[1], pixel_size_m)
    stream = io.BytesIO()
    # Not matplotlib's name and version: an equal picture has equal bytes, and is known as ours.
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(stream, metadata={"Software": SOFTWARE})  # type: ignore[no-untyped-call]
    return stream.getvalue()


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


def _sides(shape: tuple[int, ...], pixel_size_m: tuple[float, float] | None) -> tuple[float, float]:
    """(width, height) of the image in inches."""
    height, width = np.array(shape) * (pixel_size_m or (1.0, 1.0))
    # A long strip keeps its shape in the axes; only the paper around it grows.
    rows, columns = np.maximum((height, width) / max(height, width), 0.3) * SIDE_IN
    return float(columns), float(rows)


def _draw(
    axes: Axes, values: NDArray[np.float32], seen: NDArray[np.bool_], kind: Kind
) -> AxesImage:
    low, high = colour_limits(values[seen], kind)
    all_around = kind == "phase" and high - low >= 2 * np.pi
    axes.set_facecolor(UNSEEN)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(
        np.ma.masked_array(values, ~seen),
        cmap="twilight" if all_around else "viridis",
        vmin=low,
        vmax=high,
        interpolation="nearest",  # blends make colours that stand for no value
        interpolation_stage="data",  # colours take eight times the memory of values
    )


def _add_scale(axes: Axes, columns: int, pixel_size_m: tuple[float, float] | None) -> None:
    """A bar of a round length, about a quarter of the width."""
    from mpl_toolkits.axes_grid1.anchored_artists import (  # type: ignore[import-untyped]
        AnchoredSizeBar,
    )

    height, width = (1e6 * side for side in pixel_size_m) if pixel_size_m else (1.0, 1.0)
    unit = "µm" if pixel_size_m else "px"
    length = round_length(columns * width / 4)
    axes.set_aspect(height / width)
    bar = AnchoredSizeBar(
        axes.transData, length / width, f"{length:g} {unit}", "lower left", pad=0.3, borderpad=0.6
    )
    axes.add_artist(bar)


def round_length(most: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is at most `most`, which is above 0."""
    power = 10.0 ** np.floor(np.log10(most))
    return float(power * max(step for step in (1, 2, 5) if step * power <= most * (1 + 1e-9)))

"""A picture of a scan: its mean frame with bad pixels and centre, its positions over the light."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from ptycho_tasks.results.pictures import SOFTWARE, UNSEEN
from ptycho_tasks.scans.doctor.case import Case

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PIXELS = 4096
"""Along a side of the light that is drawn; positions that span more are drawn without."""


def draw_scan(case: Case) -> bytes:
    """A PNG of a scan as it was mended; equal content gives equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((10.0, 5.0), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_mean(left, case)
    _draw_positions(right, case)
    stream = io.BytesIO()
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(stream, metadata={"Software": SOFTWARE})  # type: ignore[no-untyped-call]
    return stream.getvalue()


def _draw_mean(axes: Axes, case: Case) -> None:
    bad = np.roll(case.bad, case.roll, axis=(0, 1))
    shown = np.ma.masked_array(np.log10(np.maximum(case.mean, 1e-3)), bad)
    axes.set_facecolor("red")
    axes.imshow(shown, cmap="viridis", interpolation="nearest")
    middle = case.size // 2
    axes.axhline(middle, color="white", linewidth=0.5)
    axes.axvline(middle, color="white", linewidth=0.5)
    axes.set_title(f"mean frame, log10 of counts; {int(bad.sum())} bad pixels", fontsize=10)


def _draw_positions(axes: Axes, case: Case) -> None:
    """The positions, and the light that falls around each."""
    y, x = case.places.T
    axes.set_title(f"{len(case.keep)} positions over the light (x, y in pixels)", fontsize=10)
    low = np.floor(case.places.min(axis=0)) - case.size // 2
    shape = np.ceil(np.ptp(case.places, axis=0)).astype(int) + case.size + 1
    axes.set_facecolor(str(UNSEEN / 255))
    if case.probe is not None and shape.max() <= MOST_PIXELS:
        from ptycho_tasks.physics.forward import illumination_of

        origin = int(low[0]), int(low[1])
        light = illumination_of(case.probe, case.places, origin, (int(shape[0]), int(shape[1])))
        extent = (low[1], low[1] + shape[1], low[0] + shape[0], low[0])
        axes.imshow(light, cmap="gray", extent=extent)
    axes.plot(x, y, ".", color="tab:orange", markersize=2)
    axes.set_aspect("equal")
    if not axes.yaxis_inverted():
        axes.invert_yaxis()

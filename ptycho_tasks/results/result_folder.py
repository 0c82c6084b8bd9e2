"""A reconstruction that lies on disk, for whoever looks at it: in a notebook, in a report.

Axis letters:  M frames,  N patch side,  P probe modes,  E epochs,  H, W object grid.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.layout import METRICS, RECONSTRUCTION
from ptycho_tasks.results.pictures import Kind, centred_phase, colour_limits, picture_bytes
from ptycho_tasks.results.product import ProductDetails, read_product_details

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STAGES = ("refinement", "inference")
"""Folders of a variant, the one first that goes on from the other."""
_KINDS: tuple[Kind, ...] = ("amplitude", "phase")


@dataclass(frozen=True, repr=False)
class ResultFolder:
    """A reconstruction and all that was kept beside it; see `open_result`."""

    folder: Path
    """Where its files lie."""
    metrics: Mapping[str, Any]
    """What `metrics.json` holds: `r_factor`, `poisson_deviance`, `scores` against the object in
    the scan's file, where it has one and which may be a guess, `made_from`."""
    details: ProductDetails
    """Every array of `reconstruction.h5`."""

    @property
    def object(self) -> NDArray[np.complex64]:
        """(H, W) complex64; a result only where `seen`."""
        return self.details.object

    @property
    def seen(self) -> NDArray[np.bool_]:
        """(H, W) bool, where enough light fell."""
        return self.details.seen

    @property
    def probe(self) -> NDArray[np.complex64]:
        """(P, N, N) complex64, incoherent modes, |probe|^2 in counts."""
        return self.details.probe

    @property
    def positions(self) -> NDArray[np.float64]:
        """(M, 2) float64 (y, x), pixels of the scan's object grid; refined, where that was done."""
        return self.details.positions

    @property
    def origin(self) -> tuple[int, int]:
        """(row, column) on the scan's object grid of the pixel object[0, 0]."""
        return self.details.origin

    @property
    def residual(self) -> NDArray[np.float32]:
        """(M,) float32, how badly each frame is predicted; their mean is the R-factor."""
        return self.details.residual

    @property
    def losses(self) -> NDArray[np.float64]:
        """(E,) float64, the loss after each step or epoch of the reconstruction."""
        return self.details.losses

    @property
    def pixel_size_m(self) -> tuple[float, float] | None:
        """(height, width) of an object pixel in metres; None where unknown."""
        return self.details.pixel_size_m

    def show(self) -> Figure:
        """Amplitude, phase and the first probe mode as a figure of matplotlib, which a notebook
        or a window shows."""
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")
        phase = centred_phase(self.object, self._shown)
        values = {"amplitude": np.abs(self.object), "phase (rad)": phase}
        for place, kind, (title, array) in zip(axes, _KINDS, values.items(), strict=False):
            low, high = colour_limits(array[self._shown], kind)
            masked = np.ma.masked_array(array, ~self._shown)
            image = place.imshow(masked, vmin=low, vmax=high, interpolation="nearest")
            place.set_title(title)
            figure.colorbar(image, ax=place)
        axes[2].imshow(np.abs(self.probe[0]), interpolation="nearest")
        axes[2].set_title("probe, first mode")
        figure.suptitle(str(self.folder), parse_math=False)
        return figure

    def __repr__(self) -> str:
        """One line."""
        rows, columns = self.object.shape
        misfit = self.metrics.get("r_factor")
        value = f", R-factor {misfit:.4g}" if isinstance(misfit, float) else ""
        return f"<ResultFolder {self.folder}: object {rows} x {columns}{value}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: scores and pictures, in one piece."""
        numbers = {**self.metrics, **(self.metrics.get("scores") or {})}
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(str(name))}</th>"
            f"<td>{value:.4g}</td></tr>"
            for name, value in numbers.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        )
        pictures = "".join(
            f"<img alt='{kind}' style='max-width:20em' src='data:image/png;base64,{data}'>"
            for kind, data in zip(_KINDS, map(self._encode_picture, _KINDS), strict=True)
        )
        title = html.escape(str(self.folder))
        return f"<div><strong>{title}</strong><table>{rows}</table>{pictures}</div>"

    def _encode_picture(self, kind: Kind) -> str:
        data = picture_bytes(
            self.object, self.seen, kind=kind, title=kind, pixel_size_m=self.pixel_size_m
        )
        return base64.b64encode(data).decode()

    @functools.cached_property
    def _shown(self) -> NDArray[np.bool_]:
        return self.seen & np.isfinite(self.object)


def read_result_folder(path: str | os.PathLike[str]) -> ResultFolder:
    """See `open_result`."""
    folder = _find_folder(Path(path))
    return ResultFolder(
        folder, _read_metrics(folder / METRICS), read_product_details(folder / RECONSTRUCTION)
    )


def _find_folder(path: Path) -> Path:
    if path.name == RECONSTRUCTION or (path / RECONSTRUCTION).exists():
        return path.parent if path.name == RECONSTRUCTION else path
    found: list[Path] = []
    for place in (*(path / stage for stage in _STAGES), path):
        found = found or sorted(file.parent for file in _list_products(place))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise ScanError(f"{path}: holds {len(found)} reconstructions; name one of {names}")
    raise ScanError(f"{path}: holds no {RECONSTRUCTION}; run `doit infer`, or name another folder")


def _list_products(place: Path) -> list[Path]:
    return [*place.glob(RECONSTRUCTION), *place.glob(f"*/{RECONSTRUCTION}")]


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ScanError(f"{path}: cannot be read ({error}); make the result again") from error
    if not isinstance(metrics, dict):
        raise ScanError(f"{path}: holds no metrics; make the result again")
    return metrics

"""What viewers of NeXus files, such as silx and h5web, need to show a product's images at once.

The group that holds them is an NXentry, with an NXdata group a picture: the arrays in these are
hard links, so that nothing is stored twice. `@default`, from the root down, leads to the object.
See https://manual.nexusformat.org/classes/base_classes/NXdata.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import h5py

    from ptycho_tasks.backend import Reconstruction

IMAGE = "image"
"""The NXdata group that viewers open first: the object."""


def add_views(
    entry: h5py.Group, reconstruction: Reconstruction, pixel_size_m: tuple[float, float] | None
) -> None:
    """Add views of a product to the group of ours in it, which holds all that is drawn.

    Coordinates are those of pixels' centres, as Ptychodus has them: in metres, in the frame of
    the positions, or in pixels where their size is unknown.

    Args:
        entry: the group; the product's own datasets lie beside it, in the root.
        reconstruction: what the product holds.
        pixel_size_m: (height, width) of an object pixel.
    """
    root = entry.parent
    unit = "px" if pixel_size_m is None else "m"
    pixel = pixel_size_m or (1.0, 1.0)
    root.attrs.update(NX_class="NXroot", default=entry.name.lstrip("/"))
    entry.attrs.update(NX_class="NXentry", default=IMAGE)
    places = {name: root[name] for name in ("probe_position_x_m", "probe_position_y_m")}
    if pixel_size_m is not None:
        for dataset in places.values():
            dataset.attrs["units"] = unit
    entry["illumination"].attrs["units"] = "counts"

    image = _add_view(entry, IMAGE, {"object": root["object"]}, (".", "y", "x"))
    _add_axes(image, reconstruction.origin, pixel, unit)
    light = _add_view(entry, "light", {"illumination": entry["illumination"]}, ("y", "x"))
    for axis in ("y", "x"):
        light[axis] = image[axis]
    probe = _add_view(entry, "probe", {"probe": root["probe"]}, (".", ".", "y", "x"))
    corner = -reconstruction.probe.shape[-1] / 2
    _add_axes(probe, (corner, corner), pixel, unit)
    # Of a scatter, the horizontal axis comes first.
    _add_view(entry, "misfit", {"residual": entry["residual"], **places}, tuple(places))
    if len(root["loss_values"]):
        losses = {name: root[name] for name in ("loss_values", "loss_epochs")}
        _add_view(entry, "losses", losses, ("loss_epochs",))


def _add_view(
    entry: h5py.Group, name: str, datasets: Mapping[str, h5py.Dataset], axes: tuple[str, ...]
) -> h5py.Group:
    """An NXdata group with links to datasets, of which the first is drawn."""
    view = entry.create_group(name)
    signal, *_ = datasets
    view.attrs.update(NX_class="NXdata", signal=signal)
    view.attrs["axes"] = np.array(axes, dtype=object)
    for key, dataset in datasets.items():
        view[key] = dataset
    if axes[-2:] == ("y", "x"):
        datasets[signal].attrs["interpretation"] = "image"
    return view


def _add_axes(
    view: h5py.Group, corner: tuple[float, float], pixel: tuple[float, float], unit: str
) -> None:
    """The coordinates of rows and columns of a view's image, whose corner is given in pixels."""
    signal = view[view.attrs["signal"]]
    for name, start, length, step in zip("yx", corner, signal.shape[-2:], pixel, strict=True):
        view[name] = (start + 0.5 + np.arange(length)) * np.float64(step)
        view[name].attrs["units"] = unit

"""Viewers of NeXus files open a reconstruction on its image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from made_products import ORIGIN, PIXEL_M, write_product
from ptycho_tasks.backend import Reconstruction
from ptycho_tasks.scan import ScanData


def default_of(group: h5py.Group) -> h5py.Group:
    """The NXdata group that `@default` leads to, as the NeXus manual has it."""
    while group.attrs["NX_class"] != "NXdata":
        group = group[group.attrs["default"]]
    return group


def views_of(group: h5py.Group) -> Iterator[h5py.Group]:
    for item in group.values():
        if isinstance(item, h5py.Group) and item.attrs.get("NX_class") == "NXdata":
            yield item


def test_the_default_is_the_object_with_its_axes(product: Path) -> None:
    with h5py.File(product) as file:
        view = default_of(file)
        assert view[view.attrs["signal"]] == file["object"]
        assert view.attrs["axes"].tolist() == [".", "y", "x"]
        for axis, name in enumerate("yx"):
            values = view[name][:]
            assert len(values) == file["object"].shape[1 + axis]
            assert view[name].attrs["units"] == "m"
            # A position is where the middle of its patch is, half a pixel before pixel N // 2.
            place = (file[f"probe_position_{name}_m"][:] - values[0]) / PIXEL_M[axis]
            expected = file["ptycho_tasks/positions"][:, axis] - ORIGIN[axis] - 0.5
            np.testing.assert_allclose(place, expected, atol=1e-9)


def test_every_view_is_made_of_what_the_file_holds_anyway(product: Path) -> None:
    with h5py.File(product) as file:
        stored = [*file.values(), *file["ptycho_tasks"].values()]
        stored = [item for item in stored if isinstance(item, h5py.Dataset)]
        views = list(views_of(file["ptycho_tasks"]))
        assert len(views) == 5
        for view in views:
            signal = view[view.attrs["signal"]]
            assert signal in stored
            axes = [view[name] for name in view.attrs["axes"] if name != "."]
            assert [len(axis) for axis in axes] in (
                list(signal.shape[-len(axes) :]),
                [len(signal)] * 2,  # a scatter
            )
            added = [item for item in view.values() if item not in stored]
            assert sum(item.nbytes for item in added) <= 8 * sum(signal.shape[-2:])


@pytest.mark.parametrize("case", ["unknown pixel", "no losses"])
def test_what_is_unknown_is_not_shown_as_metres_or_empty(
    reconstruction: Reconstruction, scan: ScanData, tmp_path: Path, case: str
) -> None:
    path = tmp_path / "reconstruction.h5"
    write_product(path, replace(reconstruction, losses=()), replace(scan, pixel_size_m=None))
    with h5py.File(path) as file:
        if case == "no losses":
            assert "losses" not in file["ptycho_tasks"]
        else:
            view = default_of(file)
            assert view["y"].attrs["units"] == "px"
            assert view["y"][0] == ORIGIN[0] + 0.5
            assert "units" not in file["probe_position_x_m"].attrs


def test_silx_opens_it_on_the_image(product: Path) -> None:
    nxdata: Any = pytest.importorskip("silx.io.nxdata", reason="silx is not installed")
    import silx.io

    with silx.io.open(str(product)) as file:
        shown = nxdata.get_default(file)
        assert shown.signal_name == "object"
        assert shown.interpretation == "image"
        assert np.array_equal(shown.signal[0], file["object"][0])
        assert shown.axes_names == [None, "y (m)", "x (m)"]
        assert [axis if axis is None else len(axis) for axis in shown.axes] == [
            None,
            *file["object"].shape[1:],
        ]
        for name in ("light", "probe", "misfit", "losses"):
            view = nxdata.get_default(file[f"ptycho_tasks/{name}"])
            assert view.is_valid, (name, view.issues)

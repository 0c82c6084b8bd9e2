"""The Ptychodus product: its layout, its geometry, and the way back."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from made_products import ORIGIN, PIXEL_M
from ptycho_tasks.backend import Reconstruction
from ptycho_tasks.errors import ScanError
from ptycho_tasks.physics.metrics import data_misfit
from ptycho_tasks.results.product import (
    GROUP,
    overlap_count,
    product_bytes,
    read_product,
    read_product_details,
)
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.scans.readers import read_scan

PROVENANCE = {"backend": {"name": "epie", "code": None}, "a": [1, "µ"]}


def written(reconstruction: Reconstruction, scan: ScanData) -> bytes:
    residual = np.arange(scan.frame_count, dtype=np.float32)
    return product_bytes(reconstruction, scan, residual=residual, provenance=PROVENANCE)


def opened(reconstruction: Reconstruction, scan: ScanData) -> h5py.File:
    return h5py.File(io.BytesIO(written(reconstruction, scan)), "r")


def test_has_the_layout_of_a_product(reconstruction: Reconstruction, scan: ScanData) -> None:
    with opened(reconstruction, scan) as file:
        assert dict(file.attrs) == {
            "name": "demo",
            "comments": "Made by ptycho-tasks.",
            "detector_object_distance_m": 2.0,
            "probe_energy_eV": 8000.0,
            "exposure_time_s": 0.1,
            "NX_class": "NXroot",
            "default": GROUP,
            "probe_photon_count": pytest.approx(
                np.sum(np.abs(reconstruction.probe) ** 2), rel=1e-5
            ),
        }
        layout = {
            key: (file[key].dtype.str, file[key].shape) for key in file if key != "ptycho_tasks"
        }
        height, width = reconstruction.object.shape
        assert height != width
        assert layout == {
            "object": ("<c8", (1, height, width)),
            "object_layer_spacing_m": ("<f8", (0,)),
            "probe": ("<c8", (1, 2, 32, 32)),
            "probe_position_indexes": ("<i8", (25,)),
            "probe_position_x_m": ("<f8", (25,)),
            "probe_position_y_m": ("<f8", (25,)),
            "loss_values": ("<f8", (3,)),
            "loss_epochs": ("<i8", (3,)),
        }
        assert file["loss_values"][:].tolist() == [3.0, 2.0, 1.5]
        assert file["loss_epochs"][:].tolist() == [0, 1, 2]
        assert file["probe_position_indexes"][:].tolist() == list(range(25))
        for key in ("object", "probe"):
            assert file[key].attrs["pixel_height_m"] == PIXEL_M[0]
            assert file[key].attrs["pixel_width_m"] == PIXEL_M[1]
        assert np.array_equal(file["object"][0], reconstruction.object)
        assert np.array_equal(file["probe"][0], reconstruction.probe)


def test_positions_fall_on_the_object_as_ptychodus_maps_them(
    reconstruction: Reconstruction, scan: ScanData
) -> None:
    """Ptychodus: index = (position - centre) / pixel + (length - 1) / 2, of the patch's middle,
    which lies half a pixel before the patch's pixel N // 2."""
    with opened(reconstruction, scan) as file:
        for axis, (name, side) in enumerate((("y", "height"), ("x", "width"))):
            pixel_m = file["object"].attrs[f"pixel_{side}_m"]
            centre_m = file["object"].attrs[f"center_{name}_m"]
            middle = (file[f"probe_position_{name}_m"][:] - centre_m) / pixel_m
            middle += (file["object"].shape[1 + axis] - 1) / 2
            expected = reconstruction.positions[:, axis] - ORIGIN[axis] - 0.5
            np.testing.assert_allclose(middle, expected, atol=1e-9)


def test_what_ptychodus_has_no_place_for(reconstruction: Reconstruction, scan: ScanData) -> None:
    with opened(reconstruction, scan) as file:
        group = file["ptycho_tasks"]
        assert " ".join(sorted(group)) == (
            "illumination image light losses misfit origin overlap_count positions probe "
            "provenance residual seen"
        )
        assert group["residual"][:].tolist() == list(range(25))
        assert group["origin"][:].tolist() == list(ORIGIN)
        assert np.array_equal(group["positions"], reconstruction.positions)
        text = group["provenance"].asstr()[()]
        assert json.loads(text) == PROVENANCE
        assert text == json.dumps(PROVENANCE, sort_keys=True)
        assert np.array_equal(group["illumination"], reconstruction.illumination)
        assert np.array_equal(group["overlap_count"], overlap_count(reconstruction))
        assert np.array_equal(group["seen"], reconstruction.seen)
        assert group["seen"].dtype == bool
        assert group.attrs["pixel_size_known"]


def test_what_was_written_is_read_again(
    reconstruction: Reconstruction, scan: ScanData, tmp_path: Path
) -> None:
    path = tmp_path / "reconstruction.h5"
    path.write_bytes(written(reconstruction, scan))
    assert read_product(path).flux is None
    assert read_product(path).background is None
    flux = np.linspace(0.5, 2, scan.frame_count, dtype=np.float32)
    background = np.linspace(0, 1, scan.size**2, dtype=np.float32).reshape(scan.size, -1)
    reconstruction = replace(reconstruction, flux=flux, background=background)
    path.write_bytes(written(reconstruction, scan))
    again = read_product(path)
    assert again.origin == reconstruction.origin
    for name in ("object", "probe", "positions", "losses", "flux", "background"):
        assert np.array_equal(getattr(again, name), getattr(reconstruction, name)), name


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("missing", "there is no such file"),
        ("truncated", "it is damaged, or is no HDF5 file"),
        ("another program's", "it lacks the group ptycho_tasks"),
        ("older", "the attribute pixel_size_known of ptycho_tasks is missing"),
    ],
)
def test_what_is_no_product_of_ours_is_refused(
    reconstruction: Reconstruction, scan: ScanData, tmp_path: Path, damage: str, reason: str
) -> None:
    path = tmp_path / "reconstruction.h5"
    if damage == "truncated":
        path.write_bytes(written(reconstruction, scan)[:3000])
    elif damage == "another program's":
        with h5py.File(path, "w") as file:
            file["object"] = np.ones((1, 4, 4))
    elif damage == "older":
        path.write_bytes(written(reconstruction, scan))
        with h5py.File(path, "a") as file:
            del file[GROUP].attrs["pixel_size_known"]
    said = rf"reconstruction.h5: is no reconstruction of ptycho-tasks \({reason}\); make it again"
    with pytest.raises(ScanError, match=said):
        read_product_details(path)


def linked(file: h5py.File) -> None:
    with h5py.File(file.filename.replace("reconstruction", "other"), "w") as other:
        other["object"] = np.ones((1, 40, 40), np.complex64)
    file["object"] = h5py.ExternalLink("other.h5", "object")


HOSTILE: dict[str, tuple[str, Callable[[h5py.File], None]]] = {
    "empty": ("object", lambda file: file.create_dataset("object", data=h5py.Empty("c8"))),
    "text": ("probe", lambda file: file.create_dataset("probe", data="a probe")),
    "no axes": ("probe", lambda file: file.create_dataset("probe", data=1j)),
    "huge": ("object", lambda file: file.create_dataset("object", (1, 2**20, 2**20), "c8")),
    "another file": ("object", linked),
    "group": ("loss_values", lambda file: file.create_group("loss_values")),
    "text of an origin": (
        f"{GROUP}/origin",
        lambda file: file.create_dataset(f"{GROUP}/origin", data="ab"),
    ),
    "infinite origin": (
        f"{GROUP}/origin",
        lambda file: file.create_dataset(f"{GROUP}/origin", data=[np.inf, np.nan]),
    ),
    "no group": (GROUP, lambda file: file.create_dataset(GROUP, data=3)),
}


@pytest.mark.parametrize(("name", "put"), HOSTILE.values(), ids=HOSTILE)
def test_a_product_that_holds_something_else_is_refused(
    reconstruction: Reconstruction,
    scan: ScanData,
    tmp_path: Path,
    name: str,
    put: Callable[[h5py.File], None],
) -> None:
    path = tmp_path / "reconstruction.h5"
    path.write_bytes(written(reconstruction, scan))
    with h5py.File(path, "a") as file:
        del file[name]
        put(file)
    with pytest.raises(ScanError, match=r"is no reconstruction of ptycho-tasks .*make it again"):
        read_product(path)


def test_an_unknown_pixel_is_one_metre_and_says_so(
    reconstruction: Reconstruction, scan: ScanData
) -> None:
    unknown = replace(scan, pixel_size_m=None, energy_ev=0.0, distance_m=0.0, exposure_s=0.0)
    with opened(reconstruction, unknown) as file:
        assert file["object"].attrs["pixel_width_m"] == 1.0
        assert "Pixel size unknown" in file.attrs["comments"]
        assert file.attrs["probe_energy_eV"] == 0.0
        assert file.attrs["detector_object_distance_m"] == 0.0
        assert not file["ptycho_tasks"].attrs["pixel_size_known"]
        np.testing.assert_array_equal(file["probe_position_x_m"], reconstruction.positions[:, 1])


@pytest.mark.parametrize("known", [True, False])
def test_the_reader_takes_it_back(
    reconstruction: Reconstruction, scan: ScanData, tmp_path: Path, known: bool
) -> None:
    scan = scan if known else replace(scan, pixel_size_m=None)
    frames, product = tmp_path / "frames.npz", tmp_path / "product.h5"
    write_scan(frames, scan)
    product.write_bytes(written(reconstruction, scan))
    back = read_scan(frames, product=product)
    np.testing.assert_allclose(back.positions + ORIGIN, reconstruction.positions, atol=1e-9)
    assert back.object is not None
    assert np.array_equal(back.object, reconstruction.object)
    assert np.array_equal(back.probe, reconstruction.probe)
    assert back.pixel_size_m == (PIXEL_M if known else (1.0, 1.0))
    assert (back.energy_ev, back.distance_m, back.exposure_s) == (8000.0, 2.0, 0.1)
    before = data_misfit(
        reconstruction.object, ORIGIN, reconstruction.probe, scan.positions, scan.diffraction
    )
    after = data_misfit(back.object, (0, 0), back.probe, back.positions, back.diffraction)
    assert after.r_factor == pytest.approx(before.r_factor, rel=1e-6)


def test_equal_content_gives_equal_bytes(reconstruction: Reconstruction, scan: ScanData) -> None:
    before = written(reconstruction, scan)
    time.sleep(1.1)  # HDF5 counts its times in seconds
    assert written(reconstruction, scan) == before


def test_overlap_counts_the_spots_that_light_a_pixel() -> None:
    probe = np.zeros((1, 8, 8), np.complex64)
    probe[0, 3:6, 2] = (1.0, 0.2, 0.05)  # the last has a quarter per cent of the light
    spots = Reconstruction(
        object=np.ones((20, 30), np.complex64),
        origin=(5, -1),
        probe=probe,
        positions=np.array([[12.0, 9.0], [13.0, 9.0], [12.0, 21.0]]),
    )
    count = overlap_count(spots)
    lit = {(int(y), int(x)): int(count[y, x]) for y, x in np.argwhere(count)}
    assert lit == {(6, 8): 1, (7, 8): 2, (8, 8): 1, (6, 20): 1, (7, 20): 1}
    assert count.dtype == np.int32


def test_a_patch_outside_the_object_is_refused(
    reconstruction: Reconstruction, scan: ScanData
) -> None:
    with pytest.raises(ScanError, match="reach outside the object"):
        written(replace(reconstruction, origin=(40, 0)), scan)


def test_provenance_with_nan_is_refused(reconstruction: Reconstruction, scan: ScanData) -> None:
    residual = np.zeros(25, np.float32)
    provenance: dict[str, Any] = {"loss": float("nan")}
    with pytest.raises(ValueError, match="JSON compliant"):
        product_bytes(reconstruction, scan, residual=residual, provenance=provenance)


def test_importing_it_is_light() -> None:
    code = (
        "import sys, ptycho_tasks.results.product, ptycho_tasks.results.pictures, "
        "ptycho_tasks.physics.metrics, ptycho_tasks.physics.simulate; "
        "print([m for m in ('matplotlib', 'skimage', 'scipy.ndimage', "
        "'scipy.fft', 'h5py') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"

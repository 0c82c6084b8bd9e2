"""A reconstruction in the formats of other programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from made_products import PIXEL_M, write_product
from ptycho_tasks.backend import Reconstruction
from ptycho_tasks.commands.export import export_command
from ptycho_tasks.errors import ConfigError, ScanError
from ptycho_tasks.results.export import FORMATS, export_product
from ptycho_tasks.results.pictures import centred_phase
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.scans.readers import read_scan


def test_tiff_holds_amplitude_and_phase_of_what_was_seen(
    product: Path, reconstruction: Reconstruction, tmp_path: Path
) -> None:
    output = tmp_path / "object.tif"
    export_product(product, output)
    with tifffile.TiffFile(output) as file:
        amplitude, phase = file.asarray()
        labels = (file.imagej_metadata or {})["Labels"]
        unit = (file.imagej_metadata or {})["unit"]
        across, down = (file.pages[0].tags[f"{axis}Resolution"].value for axis in "XY")
    assert amplitude.dtype == np.float32
    assert (labels, unit) == (["amplitude", "phase (rad)"], "um")
    assert (down[1] / down[0], across[1] / across[0]) == pytest.approx(
        [1e6 * side for side in PIXEL_M], rel=1e-6
    )
    image, seen = reconstruction.object, reconstruction.seen
    assert not seen.all()
    assert np.array_equal(amplitude[seen], np.abs(image)[seen])
    assert np.array_equal(phase[seen], centred_phase(image, seen)[seen])
    assert np.isnan(amplitude[~seen]).all()
    assert np.isnan(phase[~seen]).all()


def test_tiff_names_no_size_of_a_pixel_that_is_unknown(
    reconstruction: Reconstruction, scan: ScanData, tmp_path: Path
) -> None:
    write_product(tmp_path / "r.h5", reconstruction, replace(scan, pixel_size_m=None))
    export_product(tmp_path / "r.h5", tmp_path / "object.tiff")
    with tifffile.TiffFile(tmp_path / "object.tiff") as file:
        assert "unit" not in (file.imagej_metadata or {})


def test_npz_holds_the_product(product: Path, tmp_path: Path) -> None:
    export_product(product, tmp_path / "product.npz")
    with np.load(tmp_path / "product.npz") as arrays, h5py.File(product) as file:
        for name in ("object", "probe", "probe_position_y_m", "loss_values"):
            assert np.array_equal(arrays[name], file[name]), name
        assert arrays["object_pixel_height_m"] == file["object"].attrs["pixel_height_m"]
        assert arrays["object_center_x_m"] == file["object"].attrs["center_x_m"]
        assert arrays["photon_energy_eV"] == 8000.0
        assert str(arrays["name"]) == "demo"


def test_cxi_holds_the_product(product: Path, tmp_path: Path) -> None:
    export_product(product, tmp_path / "product.cxi")
    with h5py.File(tmp_path / "product.cxi") as cxi, h5py.File(product) as file:
        assert np.array_equal(cxi["entry_1/instrument_1/source_1/illumination"], file["probe"])
        assert np.array_equal(cxi["entry_1/image_2/data"], file["object"])
        x, y, z = cxi["entry_1/data_1/translation"][:].T
        assert np.array_equal(x, file["probe_position_x_m"])
        assert np.array_equal(y, file["probe_position_y_m"])
        assert not z.any()
        sides = [PIXEL_M[1] * file["object"].shape[2], PIXEL_M[0] * file["object"].shape[1], 0]
        np.testing.assert_allclose(cxi["entry_1/image_2/image_size"], sides)


@pytest.mark.parametrize("suffix", [".cxi", ".npz"])
def test_an_export_is_read_again(
    product: Path, reconstruction: Reconstruction, scan: ScanData, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"product{suffix}"
    export_product(product, output)
    write_scan(tmp_path / "frames.npz", scan)
    back = read_scan(tmp_path / "frames.npz", product=output)
    expected = reconstruction.positions - reconstruction.origin
    np.testing.assert_allclose(back.positions, expected, atol=1e-9)
    assert back.object is not None
    assert np.array_equal(back.object, reconstruction.object)
    assert np.array_equal(back.probe, reconstruction.probe)
    assert back.pixel_size_m == PIXEL_M
    assert (back.energy_ev, back.distance_m, back.exposure_s) == (8000.0, 2.0, 0.1)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_folder_will_do_and_equal_content_gives_equal_bytes(
    product: Path, tmp_path: Path, suffix: str
) -> None:
    one, two = tmp_path / f"one{suffix}", tmp_path / f"two{suffix.upper()}"
    export_product(product.parent, one)
    export_product(product, two)
    assert one.read_bytes() == two.read_bytes()


def test_no_part_of_a_cxi_holds_the_time_of_its_making(product: Path, tmp_path: Path) -> None:
    export_product(product, tmp_path / "product.cxi")
    times: dict[str, int] = {}
    with h5py.File(tmp_path / "product.cxi") as cxi:
        cxi.visititems(lambda name, at: times.update({name: h5py.h5g.get_objinfo(at.id).mtime}))
    assert len(times) > 20
    assert not any(times.values()), times


@pytest.mark.parametrize(
    ("path", "output", "kind", "message"),
    [
        ("", "a.png", ConfigError, r"a\.png: unknown format; end it in one of \.cxi, \.npz, "),
        ("", "a", ConfigError, r"a: unknown format"),
        ("nowhere", "a.cxi", ScanError, r"nowhere: no such file"),
        ("..", "a.cxi", ScanError, r"\.\..*reconstruction\.h5: no such file; give one of /"),
    ],
)
def test_what_cannot_be_exported(
    product: Path, tmp_path: Path, path: str, output: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        export_product(product.parent / path, tmp_path / output)
    assert not list(tmp_path.iterdir())


def test_the_command_replaces_nothing_unasked(product: Path, tmp_path: Path) -> None:
    output = tmp_path / "product.npz"
    output.write_text("mine")
    line = [str(product), str(output)]
    refused = CliRunner().invoke(export_command, line)
    assert isinstance(refused.exception, ConfigError)
    assert output.read_text() == "mine"
    done = CliRunner().invoke(export_command, [*line, "--force"])
    assert done.output == f"{output}: {output.stat().st_size} bytes\n"

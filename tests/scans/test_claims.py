"""What a scan's file says of itself is followed or refused, and what its numbers say is told."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import h5py
import numpy as np
import pytest

from ptycho_tasks.errors import ScanError
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.scans.plausibility import doubts
from ptycho_tasks.scans.raw_scan import ranges
from ptycho_tasks.scans.readers import read_scan

SCAN = simulate(SimulationOptions(size=32, grid=8, step=4.0, jitter=1.0, photons=1e6, seed=3))
COUNTS = np.rint(np.square(SCAN.diffraction, dtype=np.float64)).astype(np.int32)
M, N = COUNTS.shape[:2]
DISC = simulate(SimulationOptions(size=32, grid=6, step=4.0, probe="disc"))
X, Y = SCAN.positions[:, 1], SCAN.positions[:, 0]
DETECTOR = "entry_1/instrument_1/detector_1"
ENERGY = "entry_1/instrument_1/source_1/energy"
PLACES = "entry_1/data_1/translation"
ENERGY_EV, DISTANCE_M, PITCH_M = 8800.0, 2.0, 172e-6
PIXEL_M = 1.2398419843320026e-06 / ENERGY_EV * DISTANCE_M / (N * PITCH_M)

Change = Callable[[h5py.File], Any]


def write_cxi(path: Path, change: Change | None = None) -> Path:
    with h5py.File(path, "w") as file:
        file["entry_1/data_1/data"] = COUNTS
        file[PLACES] = np.column_stack([X * PIXEL_M, Y * PIXEL_M, 0 * X])
        file["entry_1/instrument_1/source_1/illumination"] = SCAN.probe[0]
        file[ENERGY] = ENERGY_EV * 1.602176634e-19
        file[f"{DETECTOR}/distance"] = DISTANCE_M
        for axis in "xy":
            file[f"{DETECTOR}/{axis}_pixel_size"] = PITCH_M
        if change is not None:
            change(file)
    return path


def put(key: str, value: Any, units: Any = None) -> Change:
    def change(file: h5py.File) -> None:
        if key in file:
            del file[key]
        file[key] = value
        if units is not None:
            file[key].attrs["units"] = units

    return change


def moved(positions: Any) -> Any:
    return positions - positions.min(axis=0)


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(ScanError) as caught:
        read_scan(path, **settings)
    assert str(path) in str(caught.value) or settings
    assert "\n" not in str(caught.value)
    return str(caught.value)


IN_OTHER_UNITS = {
    "mm": put(f"{DETECTOR}/distance", DISTANCE_M * 1e3, "mm"),
    "bytes": put(f"{DETECTOR}/distance", DISTANCE_M * 1e3, np.bytes_("mm")),
    "eV": put(ENERGY, ENERGY_EV, "eV"),
    "keV": put(ENERGY, ENERGY_EV / 1e3, "keV"),
    "joules": put(ENERGY, ENERGY_EV * 1.602176634e-19, "Joules"),
    "um": put(f"{DETECTOR}/x_pixel_size", PITCH_M * 1e6, "\u00b5m"),
    "blank": put(f"{DETECTOR}/distance", DISTANCE_M, " "),
    "nm": put(PLACES, np.column_stack([X, Y]) * PIXEL_M * 1e9, "nm"),
}


@pytest.mark.parametrize("change", IN_OTHER_UNITS.values(), ids=IN_OTHER_UNITS)
def test_units_are_followed(tmp_path: Path, change: Change) -> None:
    usual = read_scan(write_cxi(tmp_path / "usual.cxi"))
    scan = read_scan(write_cxi(tmp_path / "other.cxi", change))
    np.testing.assert_allclose(scan.positions, usual.positions, atol=1e-6)
    assert scan.pixel_size_m == pytest.approx(usual.pixel_size_m)
    np.testing.assert_allclose(moved(scan.positions), moved(SCAN.positions), atol=1e-6)


SOURCE_OF_A_MACHINE = put(ENERGY, 3e9, "eV")
BEAMS = {
    "NXcxi_ptycho": (put("entry_1/instrument_1/beam_1/energy", ENERGY_EV, "eV"), True),
    "sample": (put("entry_1/sample_1/beam/incident_energy", ENERGY_EV / 1e3, "keV"), True),
    "wavelength": (put("entry/instrument/beam/incident_wavelength", 1.40891134, "angstrom"), True),
    "a frame": (put("entry/instrument/beam_1/energy", np.full(M, ENERGY_EV), "eV"), True),
    "monochromator": (put("entry/instrument/monochromator/energy", ENERGY_EV, "eV"), False),
}


@pytest.mark.parametrize(("change", "has_source"), BEAMS.values(), ids=BEAMS)
def test_the_energy_of_the_photons_is_that_of_the_beam(
    tmp_path: Path, change: Change, has_source: bool
) -> None:
    def write(file: h5py.File) -> None:
        change(file)
        if has_source:
            SOURCE_OF_A_MACHINE(file)
        else:
            del file[ENERGY]

    scan = read_scan(write_cxi(tmp_path / "s.cxi", write))
    assert scan.energy_ev == pytest.approx(ENERGY_EV)


def test_frames_of_nexus_say_how_large_a_pixel_is(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        file["entry/data/data"] = COUNTS
        put("entry/sample/beam/incident_energy", ENERGY_EV / 1e3, "keV")(file)
        put("entry/instrument/detector/detector_distance", DISTANCE_M * 1e3, "mm")(file)
        for axis in "xy":
            put(f"entry/instrument/detector/{axis}_pixel_size", PITCH_M * 1e6, "um")(file)
    np.savetxt(tmp_path / "p.txt", np.column_stack([X, Y]) * PIXEL_M * 1e6)
    given = {"positions": tmp_path / "p.txt", "probe": "estimate", "units": "um"}
    scan = read_scan(tmp_path / "frames.h5", **given)
    assert scan.pixel_size_m == pytest.approx((PIXEL_M, PIXEL_M))
    np.testing.assert_allclose(scan.positions, SCAN.positions)


def test_a_wavelength_without_units_is_refused(tmp_path: Path) -> None:
    path = write_cxi(tmp_path / "s.cxi", put("entry/instrument/beam/incident_wavelength", 1.4))
    assert "is 1.4; expected the wavelength in metres, or with its units" in refusal(path)


@pytest.mark.parametrize("units", ["furlong", 3.0, "V"])
def test_units_that_nobody_knows_are_refused(tmp_path: Path, units: Any) -> None:
    path = write_cxi(tmp_path / "s.cxi", put(f"{DETECTOR}/distance", 2.0, units))
    assert f"{DETECTOR}/distance" in refusal(path)


def test_units_of_positions_can_be_set(tmp_path: Path) -> None:
    write_scan(tmp_path / "s.npz", replace(SCAN, positions=SCAN.positions * PIXEL_M * 1e6))
    assert "source.units" in refusal(tmp_path / "s.npz")
    assert "source.pixel_size_m" in refusal(tmp_path / "s.npz", units="um")
    scan = read_scan(tmp_path / "s.npz", units="um", pixel_size_m=PIXEL_M)
    np.testing.assert_allclose(scan.positions, SCAN.positions)
    # Who says that they are pixels is believed.
    assert read_scan(tmp_path / "s.npz", units="pixels").frame_count == M
    path = write_cxi(tmp_path / "s.cxi", put(PLACES, np.column_stack([X, Y])))
    assert np.allclose(moved(read_scan(path, units="pixels").positions), moved(SCAN.positions))


BASES = {
    "usual": ([0, 1, 0], [1, 0, 0], lambda x, y: (y, x)),
    "mirrored": ([0, -1, 0], [-1, 0, 0], lambda x, y: (-y, -x)),
    "turned": ([1, 0, 0], [0, -1, 0], lambda x, y: (x, -y)),
}


@pytest.mark.parametrize(("slow", "fast", "expected"), BASES.values(), ids=BASES)
@pytest.mark.parametrize("shape", [(2, 3), (M, 2, 3)])
def test_the_detector_s_basis_turns_positions(
    tmp_path: Path, slow: Any, fast: Any, expected: Any, shape: Any
) -> None:
    def change(file: h5py.File) -> None:
        vectors = np.array([slow, fast], float) * PITCH_M
        file[f"{DETECTOR}/basis_vectors"] = np.broadcast_to(vectors, shape)
        del file[f"{DETECTOR}/x_pixel_size"], file[f"{DETECTOR}/y_pixel_size"]

    scan = read_scan(write_cxi(tmp_path / "s.cxi", change))
    wanted = np.stack(expected(X, Y), axis=1)
    np.testing.assert_allclose(moved(scan.positions), moved(wanted), atol=1e-6)


@pytest.mark.parametrize(
    "vectors",
    [np.eye(3), np.ones((2, 3)), [[0, 1, 0], [1, 1, 0]], [[0, 0, 1], [1, 0, 0]], "text",
     [[0, np.nan, 0], [1, 0, 0]]],
)  # fmt: skip
def test_a_basis_that_cannot_be_followed_is_refused(tmp_path: Path, vectors: Any) -> None:
    value = vectors if isinstance(vectors, str) else np.asarray(vectors, float)
    path = write_cxi(tmp_path / "s.cxi", put(f"{DETECTOR}/basis_vectors", value))
    assert "basis_vectors" in refusal(path)


def test_a_shifted_zero_frequency_is_refused(tmp_path: Path) -> None:
    def attribute(file: h5py.File) -> None:
        file["entry_1/data_1/data"].attrs["is_fft_shifted"] = 1

    flags = [attribute, put("entry_1/data_1/is_fft_shifted", 1)]
    for index, flag in enumerate(flags):
        shifted = write_cxi(tmp_path / f"{index}.cxi", flag)
        text = refusal(shifted)
        assert "is_fft_shifted" in text
        assert "set source.centre to corner" in text
        whole = read_scan(write_cxi(tmp_path / "whole.cxi")).diffraction
        found = read_scan(shifted, centre="corner").diffraction
        np.testing.assert_array_equal(found, np.fft.fftshift(whole, axes=(1, 2)))
    path = write_cxi(tmp_path / "no.cxi", put("entry_1/data_1/is_fft_shifted", 0))
    assert read_scan(path).frame_count == M


def test_bits_of_a_cxi_mask(tmp_path: Path) -> None:
    """Signal (0x10000) and corrected artefacts (0x800) are good; hot (0x4) and missing are not."""
    mask = np.zeros((N, N), np.uint32)
    mask[0, :3] = 0x10000 | 0x800, 0x10000 | 0x4, 0x200
    scan = read_scan(write_cxi(tmp_path / "s.cxi", put(f"{DETECTOR}/mask", mask)))
    assert scan.bad_pixels is not None
    assert np.argwhere(scan.bad_pixels).tolist() == [[0, 1], [0, 2]]


def write_product(path: Path, rows: Any, **attrs: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs.update({"detector_object_distance_m": 1.0, "photon_energy_eV": 9e3} | attrs)
        image = file.create_dataset("object", data=np.ones((1, 90, 80), "c8"))
        image.attrs.update(
            center_x_m=0.0, center_y_m=0.0, pixel_width_m=PIXEL_M, pixel_height_m=PIXEL_M
        )
        file["probe"] = SCAN.probe[None]
        file["probe_position_indexes"] = rows
        file["probe_position_x_m"] = (X[: len(rows)] - 40) * PIXEL_M
        file["probe_position_y_m"] = (Y[: len(rows)] - 45) * PIXEL_M
    return path


def write_frames(path: Path, numbers: Any, frames: Any = COUNTS, bad: Any = None) -> Path:
    """Ptychodus' frames, in both of its formats."""
    arrays = {"patterns": frames, "indexes": numbers}
    if bad is not None:
        arrays["bad_pixels"] = bad
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file.create_dataset(key, data=value, compression="lzf")
    return path


@pytest.mark.parametrize("ending", ["npz", "h5"])
def test_frames_are_matched_by_their_numbers(tmp_path: Path, ending: str) -> None:
    """The product's positions are those of frames 100, 101, ...; the file holds more, mixed."""
    rng = np.random.default_rng(1)
    order = rng.permutation(M)
    frames = write_frames(tmp_path / f"f.{ending}", 100 + order, COUNTS[order])
    product = write_product(tmp_path / "p.h5", 100 + np.arange(M - 9))
    scan = read_scan(frames, product=product)
    assert scan.frame_count == M - 9
    of_frame = order[order < M - 9]
    np.testing.assert_allclose(scan.diffraction, np.sqrt(COUNTS[of_frame]), rtol=1e-6)
    np.testing.assert_allclose(scan.positions, SCAN.positions[of_frame], atol=1e-6)


@pytest.mark.parametrize("ending", ["npz", "h5"])
@pytest.mark.parametrize("numbers", [np.zeros(M), np.arange(M) + 0.5, np.arange(M - 1)])
def test_numbers_that_name_no_frame_are_refused(tmp_path: Path, ending: str, numbers: Any) -> None:
    product = write_product(tmp_path / "p.h5", np.arange(M))
    path = write_frames(tmp_path / f"f.{ending}", numbers)
    assert "frame" in refusal(path, product=product)


@pytest.mark.parametrize("ending", ["npz", "h5"])
def test_bad_pixels_of_ptychodus(tmp_path: Path, ending: str) -> None:
    product = write_product(tmp_path / "p.h5", np.arange(M))
    bad = np.eye(N, dtype=bool)
    path = write_frames(tmp_path / f"f.{ending}", np.arange(M), bad=bad)
    scan = read_scan(path, product=product)
    assert scan.bad_pixels is not None
    np.testing.assert_array_equal(scan.bad_pixels, bad)
    assert read_scan(path, product=product, bad_pixels="ignore").bad_pixels is None


def test_a_near_field_product_is_refused(tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "f.h5", np.arange(M))
    near = write_product(tmp_path / "near.h5", np.arange(M), far_field=False)
    with pytest.raises(ScanError, match="'far_field' is false"):
        read_scan(frames, product=near)
    far = write_product(tmp_path / "far.h5", np.arange(M), far_field=True)
    assert read_scan(frames, product=far).frame_count == M


NO_NUMBERS = {
    "empty energy": put(ENERGY, h5py.Empty("f8")),
    "energy in words": put(ENERGY, "hard"),
    "empty frames": put("entry_1/data_1/data", h5py.Empty("i4")),
    "frames in words": put("entry_1/data_1/data", np.full((M, 2, 2), b"dark")),
    "empty translation": put(PLACES, h5py.Empty("f8")),
    "translation in words": put(PLACES, np.full((M, 3), b"left")),
    "probe in words": put("entry_1/instrument_1/source_1/illumination", "round"),
    "empty probe": put("entry_1/instrument_1/source_1/illumination", h5py.Empty("c8")),
    "compound frames": put("entry_1/data_1/data", np.zeros((M, N, N), [("a", "i4")])),
    "empty mask": put(f"{DETECTOR}/mask", "none"),
    "group for frames": put("entry_1/data_1/data/more", 1),
}  # fmt: skip


@pytest.mark.parametrize("change", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_what_holds_no_numbers_is_refused(tmp_path: Path, change: Change) -> None:
    def instead(file: h5py.File) -> None:
        if change is NO_NUMBERS["group for frames"]:
            del file["entry_1/data_1/data"]
        change(file)

    refusal(write_cxi(tmp_path / "s.cxi", instead))


def test_huge_shapes_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    def huge(file: h5py.File) -> None:
        del file["entry_1/data_1/data"]
        file.create_dataset("entry_1/data_1/data", (M, 1 << 20, 1 << 20), "f4", chunks=(1, 64, 64))
        file["entry_1/data_1/data"][0, :64, :64] = 1

    assert "entry_1" in refusal(write_cxi(tmp_path / "s.cxi", huge))


# ------------------------------------------------------------------------------------------ NPZ


def npz(path: Path, **change: Any) -> Path:
    arrays = {"diff3d": SCAN.diffraction, "xcoords": X, "ycoords": Y, "probeGuess": SCAN.probe}
    np.savez(path, **arrays | change)
    return path


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "s.npz")
    np.save(tmp_path / "x.npy", X + 3)
    with ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.write(tmp_path / "x.npy", "xcoords.npy")
    assert "'xcoords' stands in the file twice" in refusal(path)


def test_a_file_of_many_keys_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = npz(tmp_path / "s.npz", **{f"key{i}": np.zeros(1) for i in range(300)})
    opened = []

    class Counted(ZipFile):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            opened.append(arguments)
            super().__init__(*arguments, **settings)

    monkeypatch.setattr(zipfile, "ZipFile", Counted)
    assert read_scan(path).frame_count == M
    assert len(opened) <= 3  # not once a key


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_scan_numbers_beyond_int64_are_refused(tmp_path: Path, value: int) -> None:
    path = npz(tmp_path / "s.npz", scan_index=np.full(M, value, np.uint64))
    assert "'scan_index'" in refusal(path)


def test_one_of_several_scans_can_be_taken(tmp_path: Path) -> None:
    index = np.repeat([4, 7], M // 2)
    path = npz(tmp_path / "s.npz", scan_index=index)
    scan = read_scan(path, scan_index=7)
    np.testing.assert_array_equal(scan.diffraction, SCAN.diffraction[index == 7])
    np.testing.assert_array_equal(scan.positions, SCAN.positions[index == 7])
    assert "source.scan_index" in refusal(path, scan_index=5)
    assert read_scan(npz(tmp_path / "one.npz"), scan_index=0).frame_count == M


# ----------------------------------------------------------------------------------- plausible


def test_a_few_frames_far_from_all_others(tmp_path: Path) -> None:
    x = np.where(np.isin(np.arange(M), [20, 21]), 10_000.0, X)
    path = npz(tmp_path / "s.npz", xcoords=x)
    text = refusal(path)
    assert "frames 20-21" in text
    assert "source.stray_frames" in text
    assert read_scan(path, stray_frames="keep").frame_count == M
    scan = read_scan(path, stray_frames="drop")
    np.testing.assert_array_equal(scan.positions, np.delete(SCAN.positions, [20, 21], axis=0))
    half = np.where(np.arange(M) < M // 2, X, X + 500)
    assert read_scan(npz(tmp_path / "halves.npz", xcoords=half)).frame_count == M


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-6, 0.01, 0.05])
def test_positions_that_hardly_differ_are_refused(tmp_path: Path, scale: float) -> None:
    path = npz(tmp_path / "s.npz", xcoords=X * scale + 40, ycoords=Y * scale + 40)
    assert "xcoords" in refusal(path)


def test_dense_scans_line_scans_and_bursts_are_right(tmp_path: Path) -> None:
    assert read_scan(npz(tmp_path / "dense.npz", xcoords=X / 4, ycoords=Y / 4)).frame_count == M
    assert read_scan(npz(tmp_path / "line.npz", xcoords=0 * X + 40)).frame_count == M
    twice = {key: np.repeat(value, 2, 0) for key, value in
             {"diff3d": SCAN.diffraction, "xcoords": X, "ycoords": Y}.items()}  # fmt: skip
    assert read_scan(npz(tmp_path / "burst.npz", **twice)).frame_count == 2 * M


def test_a_right_scan_leaves_no_doubt() -> None:
    assert doubts(SCAN) == []
    for photons in (30.0, 1e4, 1e9):
        for probe in ("disc", "defocused"):
            options = SimulationOptions(size=32, grid=6, step=4.0, photons=photons, probe=probe)
            assert doubts(simulate(options)) == []


DOUBTFUL = {
    "source.measurement": replace(SCAN, diffraction=np.square(SCAN.diffraction)),
    "corner": replace(SCAN, diffraction=np.fft.ifftshift(SCAN.diffraction, axes=(1, 2))),
    "centre": replace(DISC, diffraction=np.roll(DISC.diffraction, 12, axis=2)),
    "flux": replace(SCAN, probe=SCAN.probe * np.float32(1e-5)),
}


@pytest.mark.parametrize(("word", "scan"), DOUBTFUL.items(), ids=DOUBTFUL)
def test_what_is_doubtful_is_said(word: str, scan: Any) -> None:
    assert any(word in doubt for doubt in doubts(scan))


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([3], "3"), ([1, 2, 3, 7], "1-3, 7"), (range(0, 40, 2), "0, 2, 4, 6, 8, 10, ...")],
)
def test_ranges(numbers: Any, text: str) -> None:
    assert ranges(np.array([*numbers])) == text

"""Settings that change frames and positions: orientation, centre, crop, bin; probe and positions
from other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.errors import ScanError
from ptycho_tasks.options import OrientationOptions, SimulationOptions
from ptycho_tasks.physics.metrics import data_misfit
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scan import ScanData, canvas_of
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.scans.readers import read_scan
from ptycho_tasks.scans.shaping import orient
from scan_files import (
    COUNTS,
    DETECTOR_PIXEL_M,
    DISTANCE_M,
    WAVELENGTH_M,
    M,
    N,
    canonical,
    cxi,
    message,
    save,
    save_hdf5,
)

TURNS = st.builds(
    OrientationOptions, swap=st.booleans(), flip_x=st.booleans(), flip_y=st.booleans(),
    rotate_deg=st.floats(-180, 180),
)  # fmt: skip


@pytest.fixture(scope="module")
def simulated() -> ScanData:
    options = SimulationOptions(size=32, grid=5, step=4, photons=1e9, probe_radius=5, seed=2)
    return simulate(options)


@pytest.fixture
def write(simulated: ScanData, tmp_path: Path) -> Any:
    def write(**changes: Any) -> Path:
        write_scan(tmp_path / "scan.npz", simulated)
        if not changes:
            return tmp_path / "scan.npz"
        with np.load(tmp_path / "scan.npz") as arrays:
            return save(tmp_path, {**arrays, **changes}, "changed.npz")

    return write


def misfit(scan: ScanData, truth: ScanData) -> float:
    """The R-factor of the true object, where the scan's own pixels are those of the truth."""
    assert truth.object is not None
    canvas = canvas_of(truth.positions, truth.size)
    (y, x), (height, width) = canvas.origin, canvas.shape
    part = truth.object[y : y + height, x : x + width]
    found = data_misfit(part, canvas.origin, scan.probe, scan.positions, scan.diffraction)
    return found.r_factor


def test_what_asks_for_no_change_leaves_frames_mapped(write: Any) -> None:
    scan = read_scan(write(), centre=[16, 16], crop=32, bin=1, orientation=OrientationOptions())
    assert isinstance(scan.diffraction, np.memmap)
    assert scan.notes == ()


def test_orientation_leaves_frames_mapped(write: Any) -> None:
    scan = read_scan(write(), orientation=OrientationOptions(swap=True))
    assert isinstance(scan.diffraction, np.memmap)
    assert scan.object is None


@pytest.mark.parametrize(
    ("wrong", "setting"),
    [
        (lambda y, x: (x, y), OrientationOptions(swap=True)),
        (lambda y, x: (y, -x), OrientationOptions(flip_x=True)),
        (lambda y, x: (-y, -x), OrientationOptions(flip_x=True, flip_y=True)),
        (lambda y, x: (-x, y), OrientationOptions(swap=True, flip_x=True)),
    ],
)
def test_positions_that_lie_otherwise_are_put_right(
    write: Any, simulated: ScanData, wrong: Any, setting: OrientationOptions
) -> None:
    y, x = wrong(*simulated.positions.T)
    scan = read_scan(write(ycoords=y, xcoords=x), orientation=setting)
    moved = scan.positions - scan.positions[0]
    np.testing.assert_allclose(moved, simulated.positions - simulated.positions[0], atol=1e-9)


@given(TURNS)
def test_distances_stay_and_turning_back_gives_the_same(turn: OrientationOptions) -> None:
    places = np.random.default_rng(0).uniform(0, 50, (7, 2))
    turned = orient(places, turn, places)
    np.testing.assert_allclose(
        np.linalg.norm(turned - turned[0], axis=1), np.linalg.norm(places - places[0], axis=1)
    )
    only_turned = OrientationOptions(rotate_deg=turn.rotate_deg)
    back = OrientationOptions(rotate_deg=-turn.rotate_deg)
    there = orient(places, only_turned, places)
    np.testing.assert_allclose(orient(there, back, there), places, atol=1e-9)


def test_a_turn_is_from_x_to_y() -> None:
    places = np.array([[0.0, -1.0], [0.0, 1.0]])  # (y, x): along x
    turned = orient(places, OrientationOptions(rotate_deg=90.0), places)
    np.testing.assert_allclose(turned, [[-1.0, 0.0], [1.0, 0.0]], atol=1e-12)


@pytest.mark.parametrize("centre", ["auto", [19, 14]])
def test_frames_off_centre_are_put_right(write: Any, simulated: ScanData, centre: Any) -> None:
    rolled = np.roll(simulated.diffraction, (3, -2), (1, 2))
    assert misfit(read_scan(write(diff3d=rolled)), simulated) > 0.3
    scan = read_scan(write(diff3d=rolled), centre=centre)
    assert misfit(scan, simulated) < 0.02
    # What comes in from beyond the detector was not measured.
    assert scan.bad_pixels is not None
    assert np.count_nonzero(scan.bad_pixels) == 32 * 32 - 29 * 30


def test_a_hot_pixel_does_not_draw_the_centre(write: Any, simulated: ScanData) -> None:
    hot = simulated.diffraction.copy()
    hot[:, 2, 29] = hot.max() * 30
    notes = read_scan(write(diff3d=hot), centre="auto").notes
    assert any("found at pixel (16, 16)" in note for note in notes)


def test_a_gap_does_not_draw_the_centre(write: Any, simulated: ScanData) -> None:
    counts = np.rint(simulated.diffraction**2).astype("u4")
    counts[:, :, 24:28] = 2**16 - 1
    notes = read_scan(write(diff3d=counts), centre="auto", measurement="counts").notes
    assert any("found at pixel (16, 16)" in note for note in notes)


def test_a_crop_keeps_the_field_of_view_in_larger_pixels(write: Any, simulated: ScanData) -> None:
    scan = read_scan(write(), crop=24, pixel_size_m=1e-8)
    np.testing.assert_array_equal(scan.diffraction, simulated.diffraction[:, 4:28, 4:28])
    np.testing.assert_allclose(scan.positions, simulated.positions * 24 / 32)
    assert scan.pixel_size_m == pytest.approx((1e-8 * 32 / 24,) * 2)
    # What is lost is light beyond the crop.
    kept = np.square(np.abs(scan.probe)).sum() / np.square(np.abs(simulated.probe)).sum()
    assert 0.9 < kept <= 1.0


def test_bins_keep_the_pixels_of_a_smaller_field_of_view(write: Any, simulated: ScanData) -> None:
    scan = read_scan(write(), bin=2)
    counts = np.square(simulated.diffraction, dtype=np.float64)
    binned = counts.reshape(len(counts), 16, 2, 16, 2).sum(axis=(2, 4))
    np.testing.assert_allclose(scan.diffraction, np.sqrt(binned), rtol=1e-5)
    np.testing.assert_array_equal(scan.positions, simulated.positions)
    np.testing.assert_allclose(scan.probe[0], simulated.probe[0, 8:24, 8:24], atol=1e-3)


MARKS = {
    "largest": ("u2", 65535, {}),
    "in a wider type": ("u4", 65535, {}),
    "in floats": ("f4", 4294967295, {}),
    "-1": ("i4", -1, {}),
    "NaN": ("f8", np.nan, {}),
    "saturated": ("u4", 300, {"saturated": 300.0}),
    "negative": ("f4", -7, {"negative_counts": "mask"}),
}


@pytest.mark.parametrize(("dtype", "mark", "settings"), MARKS.values(), ids=MARKS)
def test_a_bad_pixel_marks_its_bin(
    tmp_path: Path, simulated: ScanData, dtype: str, mark: float, settings: dict[str, Any]
) -> None:
    counts = np.minimum(np.rint(simulated.diffraction**2), 250)
    binned = np.sqrt(counts.reshape(len(counts), 16, 2, 16, 2).sum(axis=(2, 4)))
    counts[:, 3, 4] = mark
    counts[5, 20, 9] = mark
    write_scan(tmp_path / "s.npz", simulated)
    arrays = dict(np.load(tmp_path / "s.npz")) | {"diff3d": counts.astype(dtype)}
    path = save(tmp_path, arrays, "counts.npz")
    scan = read_scan(path, bin=2, measurement="counts", **settings)
    binned[:, 1, 2] = binned[5, 10, 4] = np.nan
    np.testing.assert_allclose(scan.diffraction, binned, rtol=1e-6)
    assert scan.bad_pixels is not None
    assert np.argwhere(scan.bad_pixels).tolist() == [[1, 2]]


def test_negative_counts_in_bins(tmp_path: Path, simulated: ScanData) -> None:
    counts = np.rint(simulated.diffraction**2)
    counts[:, 3, 4] = -3
    write_scan(tmp_path / "s.npz", simulated)
    arrays = dict(np.load(tmp_path / "s.npz")) | {"diff3d": counts.astype("i4")}
    path = save(tmp_path, arrays, "counts.npz")
    with pytest.raises(ScanError, match="negative values, down to -3"):
        read_scan(path, bin=2, measurement="counts")
    scan = read_scan(path, bin=2, measurement="counts", negative_counts="clip")
    counts = np.maximum(counts, 0).reshape(len(counts), 16, 2, 16, 2).sum(axis=(2, 4))
    np.testing.assert_allclose(scan.diffraction, np.sqrt(counts), rtol=1e-6)


def test_frames_last_are_shaped_too(write: Any, simulated: ScanData) -> None:
    same = read_scan(write(), crop=24, bin=2)
    last = np.moveaxis(simulated.diffraction, 0, -1).copy()
    scan = read_scan(write(diff3d=last), frame_axis="last", crop=24, bin=2)
    np.testing.assert_array_equal(scan.diffraction, same.diffraction)


def test_metres_are_converted_to_the_pixels_of_the_crop(tmp_path: Path) -> None:
    whole = read_scan(save_hdf5(tmp_path, cxi()))
    scan = read_scan(save_hdf5(tmp_path, cxi()), crop=4)
    assert scan.pixel_size_m == pytest.approx(
        [WAVELENGTH_M * DISTANCE_M / (4 * pitch) for pitch in DETECTOR_PIXEL_M]
    )
    np.testing.assert_allclose(np.ptp(scan.positions, 0), np.ptp(whole.positions, 0) / 2)


@pytest.mark.parametrize(
    ("frames", "said"),
    [(COUNTS[:, 1:, 1:], "set source.crop to 6 or less"), (COUNTS[:, :, 2:], "source.crop to 6")],
)
def test_frames_of_other_shapes_are_cropped_or_refused(
    tmp_path: Path, frames: np.ndarray, said: str
) -> None:
    path = save(tmp_path, canonical() | {"diff3d": np.sqrt(frames).astype("f4")})
    assert said in message(path)
    assert read_scan(path, crop=6).size == 6


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"crop": 10}, "fewer than 10 pixels along a side, as source.crop asks for"),
        ({"centre": [9, 4]}, "no pixel (9, 4), as source.centre says"),
        ({"bin": 3}, "which source.bin 3 does not divide"),
        ({"bin": 8}, "which source.bin 8 does not divide"),
    ],
)
def test_what_the_detector_does_not_have_is_one_line(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    assert said in message(save(tmp_path, canonical()), **settings)


@pytest.mark.parametrize("single_frames", [False, True])
@pytest.mark.parametrize(
    ("settings", "places"), [({}, [[1, 1]]), ({"crop": 4}, []), ({"bin": 2}, [[0, 0]])]
)
def test_bad_pixels_are_cut_with_the_frames(
    tmp_path: Path, settings: dict[str, Any], places: list[list[int]], single_frames: bool
) -> None:
    bad = np.zeros((M, N, N) if single_frames else (N, N), bool)
    bad[..., 1, 1] = True
    path = save(tmp_path, canonical() | {"bad_pixels": bad})
    found = read_scan(path, bad_pixels="marked", **settings).bad_pixels
    count = N // 2 if settings else N
    found = np.zeros((count, count), bool) if found is None else found
    np.testing.assert_array_equal(np.argwhere(found), np.reshape(places, (-1, 2)))


def test_a_mask_in_a_file_of_its_own_is_of_the_whole_detector(tmp_path: Path) -> None:
    bad = np.zeros((N, N), bool)
    bad[3, 5] = True
    np.save(tmp_path / "mask.npy", bad)
    path = save(tmp_path, canonical())
    found = read_scan(path, bad_pixels=str(tmp_path / "mask.npy"), crop=4).bad_pixels
    np.testing.assert_array_equal(np.argwhere(found), [[1, 3]])


HEAD = ("enc_x", "enc_y", "set_y", "x")
POSITIONS = [
    ("{x!r} {y!r}\n", "# x y of the beam\n", "pixels"),
    ("{x!r},{y!r}\n", "x,y\n", "auto"),
    ("{y!r}; 3; {x!r}\n", "ycoords; n; XCOORDS\n", "auto"),
    ("{x!r}\t{y!r}  # a comment\n", "\ufeff", "auto"),
    ("{y!r} {x!r}\n", "# made by a beamline\n# y x\n", "auto"),
    ("{y!r} 1 {x!r}\n", "samy time samx\n", "auto"),
    ("{y!r} {x!r} 7\n", "% samy samx det\n% in two rounds\n", "pixels"),
    ("{y!r};{x!r};\n", ";made\n;y;x\n", "auto"),
    ("{y!r} {x!r}\n", "#S 1 mesh\n#L y (px)  x (px)\n", "auto"),
    ("{y!r}\t7\t{x!r}\n", '"y (px)"\tn of it\t"x (px)"\n', "auto"),
    ("{y!r}, {x!r}, 7\n", "Y Position [px], X Position [px], max\n", "auto"),
]


@pytest.mark.parametrize(("line", "head", "units"), POSITIONS)
def test_positions_from_a_text_file(tmp_path: Path, line: str, head: str, units: str) -> None:
    arrays = canonical()
    pairs = zip(arrays["xcoords"].tolist(), arrays["ycoords"].tolist(), strict=True)
    text = head + "".join(line.format(x=x, y=y) for x, y in pairs)
    (tmp_path / "places.txt").write_text(text, encoding="utf-8")
    path = save(tmp_path, arrays | {"xcoords": None, "ycoords": None})
    scan = read_scan(path, positions=tmp_path / "places.txt", units=units)
    wanted = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    np.testing.assert_array_equal(scan.positions, wanted)


@pytest.mark.parametrize("names", [("enc_x", "enc_y"), ("ENC_X", "set_y"), ("x", "enc_y")])
def test_columns_of_any_name(tmp_path: Path, names: tuple[str, str]) -> None:
    arrays = canonical()
    columns = {"x": "xcoords", "enc_y": "ycoords", "set_y": "ycoords"}
    table = np.stack([arrays[columns.get(name, "xcoords")] for name in HEAD], axis=1)
    np.savetxt(tmp_path / "p.csv", table, header=",".join(HEAD), delimiter=",", comments="")
    path = save(tmp_path, arrays | {"xcoords": None, "ycoords": None})
    columns = dict(zip(("xcoords", "ycoords"), names, strict=True))
    scan = read_scan(path, positions=tmp_path / "p.csv", datasets=columns)
    wanted = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    np.testing.assert_allclose(scan.positions, wanted)
    with pytest.raises(ScanError, match=r"no columns called nox \(enc_x, enc_y, set_y, x\)"):
        read_scan(path, positions=tmp_path / "p.csv", datasets=columns | {"xcoords": "nox"})


def write_table(path: Path, table: np.ndarray) -> None:
    """A dataset of two columns, y first, in micrometres in HDF5."""
    if path.suffix == ".npz":
        np.savez(path, encoders=table)
        return
    with h5py.File(path, "w") as file:
        file["enc/yx"] = table
        file["enc/yx"].attrs["units"] = "um"


@pytest.mark.parametrize(("name", "key"), [("places.h5", "enc/yx"), ("places.npz", "encoders")])
def test_positions_from_another_file_of_arrays(tmp_path: Path, name: str, key: str) -> None:
    arrays, places = canonical(), tmp_path / name
    wanted = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    write_table(places, wanted)
    path = save(tmp_path, arrays | {"xcoords": None, "ycoords": None})
    columns = {"xcoords": f"{key}[:, 1]", "ycoords": f"{key}[:, 0]"}
    pixel_size_m = 1e-6 if name == "places.h5" else None
    scan = read_scan(path, positions=places, datasets=columns, pixel_size_m=pixel_size_m)
    np.testing.assert_allclose(scan.positions, wanted)
    with pytest.raises(ScanError, match=rf"{name}: xcoords is not in .*`xcoords: {key}\[:, 0\]`"):
        read_scan(path, positions=places)
    with pytest.raises(ScanError, match=rf"{name}: key '{key}' has shape \(6, 2\)"):
        read_scan(path, positions=places, datasets={"xcoords": key, "ycoords": key})


def test_a_single_number_is_no_positions(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "places.h5", "w") as file:
        file["xcoords"], file["ycoords"] = 1.0, 2.0
    path = save(tmp_path, canonical() | {"xcoords": None, "ycoords": None})
    with pytest.raises(ScanError, match=r"places\.h5: key 'ycoords' is float64 of shape \(\)"):
        read_scan(path, positions=tmp_path / "places.h5")


@pytest.mark.parametrize("first", [0, 1])
def test_positions_follow_their_frame_numbers(tmp_path: Path, first: int) -> None:
    arrays = canonical()
    rows = [*enumerate(zip(arrays["xcoords"], arrays["ycoords"], strict=True), first)][::-1]
    lines = [f"{frame}, {float(x)!r}, {float(y)!r}" for frame, (x, y) in rows]
    (tmp_path / "places.csv").write_text("\n".join(["frame, x [nm], y (nm)", *lines]))
    path = save(tmp_path, arrays | {"xcoords": None, "ycoords": None})
    scan = read_scan(path, positions=tmp_path / "places.csv", pixel_size_m=1e-9)
    wanted = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    np.testing.assert_allclose(scan.positions, wanted)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no positions"),
        ("1 2\n3 four\n", "places.txt:2: '3 four' holds no positions"),
        ("a b\n1 2\n", "places.txt:1: no columns called x (a, b)"),
        ("x x y\n1 2 3\n", "2 columns called x"),
        ("ax ay bx by\n1 2 3 4\n", "no columns called x (ax, ay, bx, by); name the columns"),
        ("1 2 3\n", "3 columns without names"),
        ("# x y of z\n1 2 3\n", "3 columns without names"),
        ("1,5;2,5\n", "write points and not commas"),
        ("x [um], y [mm]\n1,2\n", "units of x and y that differ"),
        ("x [ell], y [ell]\n1,2\n", "are unknown (x [ell], y [ell])"),
        ("frame x y\n0 1 2\n0 3 4\n", "frame 0, which is there twice"),
        ("frame x y\n0.5 1 2\n", "frame has fractions"),
        ("1 2\n3 4\n", "6 frames"),
        ("x y\nnan 2\n" + "1 2\n" * 5, "NaN or Inf"),
    ],
)
def test_a_wrong_file_of_positions_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "places.txt").write_text(text)
    path = save(tmp_path, canonical())
    with pytest.raises(Exception, match=r"\A.*\Z") as caught:
        read_scan(path, positions=tmp_path / "places.txt")
    assert said in str(caught.value)


def test_positions_of_another_unit_are_converted_for_cxi(tmp_path: Path) -> None:
    whole = read_scan(save_hdf5(tmp_path, cxi()))
    places = cxi()["entry_1/data_1/translation"][:, :2] * 1e6
    np.savetxt(tmp_path / "places.csv", places, delimiter=",")
    arrays = cxi() | {"entry_1/data_1/translation": None}
    path = save_hdf5(tmp_path, arrays)
    np.savetxt(tmp_path / "few.csv", places[:-2], delimiter=",")
    few = rf"'x' of .*few\.csv has {len(places) - 2}; .*correct that file"
    with pytest.raises(ScanError, match=few):
        read_scan(path, positions=tmp_path / "few.csv", units="um")
    scan = read_scan(path, positions=tmp_path / "places.csv", units="um")
    np.testing.assert_allclose(np.ptp(scan.positions, 0), np.ptp(whole.positions, 0))


@pytest.mark.parametrize("name", ["probe.npz", "probe.npy", "probe.h5", "probe.csv"])
def test_a_probe_from_another_file(tmp_path: Path, name: str) -> None:
    probe = 2 * canonical()["probeGuess"][None, None]
    if name.endswith("npz"):
        np.savez(tmp_path / name, probe=probe)
    elif name.endswith("npy"):
        np.save(tmp_path / name, probe)
    elif name.endswith("csv"):
        np.savetxt(tmp_path / name, probe.reshape(-1, probe.shape[-1]), delimiter=",")
    else:
        save_hdf5(tmp_path, {"probe": probe}, name)
    path = save(tmp_path, canonical() | {"probeGuess": None})
    scan = read_scan(path, probe=str(tmp_path / name))
    np.testing.assert_array_equal(scan.probe, probe[0])
    assert scan.frame_count == M


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"probe": "no.npz"}, "no.npz: no such file; check source.probe"),
        ({"positions": "no.csv"}, "no.csv: no such file; check source.positions"),
        ({"measurement": "count"}, "source.measurement: expected auto or amplitude or counts"),
        ({"centre": "middle"}, "source.centre: expected auto or corner, got 'middle'"),
    ],
)
def test_a_setting_of_no_use_is_one_line(
    tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    with pytest.raises(ScanError, match=r"\A.*\Z") as caught:
        read_scan(save(tmp_path, canonical()), **settings)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "neither NPZ, NPY, CSV nor HDF5"), (None, "no such file"), (b"PK\x03\x04", "probe")],
)
def test_a_file_without_a_probe_is_one_line(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = save(tmp_path, canonical())
    if content is not None:
        (tmp_path / "probe").write_bytes(content)
    with pytest.raises(Exception, match=r"\A.*\Z") as caught:
        read_scan(path, probe=tmp_path / "probe")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"), [("a, b\n", "no table of complex numbers"), ("1, 2\n" * 3, "3 lines of 2")]
)
def test_a_table_without_a_probe_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    path = save(tmp_path, canonical())
    with pytest.raises(ScanError, match=said):
        read_scan(path, probe=tmp_path / "p.csv")

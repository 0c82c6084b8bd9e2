"""Pixels that were not measured: how they are told, and what reading makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.options import FixtureOptions, SimulationOptions
from ptycho_tasks.physics.metrics import data_misfit
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.bad_pixels import MAXIMA
from ptycho_tasks.scans.cutting import write_fixture
from ptycho_tasks.scans.doctor.examine import examine
from ptycho_tasks.scans.fixture import read_fixture
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.scans.plausibility import doubts
from ptycho_tasks.scans.readers import read_scan

SCAN = simulate(SimulationOptions(size=32, grid=6, step=4.0, jitter=1.0, seed=2))
M, N = SCAN.frame_count, SCAN.size
COUNTS = np.rint(SCAN.diffraction.astype(np.float64) ** 2).astype(np.int32)
GAP = np.zeros((N, N), bool)
GAP[:, 9:11] = True


def save(folder: Path, frames: NDArray[Any] | None = None, **more: Any) -> Path:
    """An NPZ of the scan with other frames; whole numbers go as counts in `patterns`."""
    arrays = {
        "diff3d": SCAN.diffraction if frames is None else frames,
        "xcoords": SCAN.positions[:, 1],
        "ycoords": SCAN.positions[:, 0],
        "probeGuess": SCAN.probe,
    }
    path = folder / "scan.npz"
    np.savez(path, **arrays, **more)
    return path


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(ScanError) as caught:
        read_scan(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_bad(scan: ScanData, everywhere: NDArray[np.bool_]) -> None:
    """Check which pixels are bad, in every frame, and that the others are as measured."""
    assert scan.bad_pixels is not None
    np.testing.assert_array_equal(scan.bad_pixels, everywhere)
    np.testing.assert_array_equal(
        np.isnan(scan.diffraction), np.broadcast_to(everywhere, (M, N, N))
    )
    np.testing.assert_allclose(
        scan.diffraction[:, ~everywhere], SCAN.diffraction[:, ~everywhere], rtol=1e-6
    )


def in_gap(value: Any, dtype: str) -> NDArray[Any]:
    return np.where(GAP, np.array(value).astype(dtype), COUNTS.astype(dtype))


MARKED = [
    *((in_gap(np.iinfo(kind).max, kind), kind) for kind in ("u2", "u4", "u8")),
    *((in_gap(2**32 - 1, kind), f"2^32 - 1 in {kind}") for kind in ("f4", "f8", "u8", "i8")),
    *((in_gap(count, "f8"), f"{count} in f8") for count in MAXIMA),
    (in_gap(65535, "i4"), "65535 in i4"),
    *((in_gap(-1, kind), f"-1 in {kind}") for kind in ("i4", "f4", "f8")),
    (in_gap(-2, "i4"), "-2 in i4"),
    (in_gap(np.nan, "f4"), "NaN"),
]


@pytest.mark.parametrize("frames", [one for one, _ in MARKED], ids=[name for _, name in MARKED])
def test_marks_by_type(tmp_path: Path, frames: NDArray[Any]) -> None:
    scan = read_scan(save(tmp_path, frames), measurement="counts")
    check_bad(scan, GAP)
    assert any(f"{GAP.sum()} in every frame, rows 0-31, columns 9-10" in n for n in scan.notes)


def test_a_mark_whose_root_was_taken(tmp_path: Path) -> None:
    frames = np.where(GAP, np.sqrt(np.float32(2**32 - 1)), SCAN.diffraction)
    check_bad(read_scan(save(tmp_path, frames)), GAP)


def test_whole_frames_are_left_as_they_are(tmp_path: Path) -> None:
    scan = read_scan(save(tmp_path))
    assert isinstance(scan.diffraction, np.memmap)
    assert scan.bad_pixels is None
    assert scan.notes == scan.doubts == ()


def test_a_clipped_type_is_saturated(tmp_path: Path) -> None:
    """Where the largest value of a type stands, no more than that is known."""
    clipped = np.clip(COUNTS, 0, 255).astype(np.uint8)
    scan = read_scan(save(tmp_path, clipped), measurement="counts")
    np.testing.assert_array_equal(np.isnan(scan.diffraction), COUNTS >= 255)
    assert any("at 255, the largest uint8: dead or saturated" in note for note in scan.notes)


@pytest.mark.parametrize("measurement", ["counts", "amplitude"])
def test_counts_from_which_on_a_pixel_is_saturated(tmp_path: Path, measurement: str) -> None:
    frames = COUNTS if measurement == "counts" else np.sqrt(COUNTS).astype(np.float32)
    limit = int(np.sort(COUNTS, axis=None)[-500])
    scan = read_scan(save(tmp_path, frames), measurement=measurement, saturated=float(limit))
    np.testing.assert_array_equal(np.isnan(scan.diffraction), limit <= COUNTS)
    assert any(f"saturated from {limit} counts on" in note for note in scan.notes)


def test_a_pixel_that_is_bad_in_one_frame_is_bad_in_no_other(tmp_path: Path) -> None:
    frames = np.array(SCAN.diffraction)
    frames[3, 4, 5] = np.nan
    scan = read_scan(save(tmp_path, frames))
    assert isinstance(scan.diffraction, np.memmap)  # it is NaN already
    assert scan.bad_pixels is not None
    assert not scan.bad_pixels.any()
    assert np.argwhere(np.isnan(scan.diffraction)).tolist() == [[3, 4, 5]]


def test_counts_below_zero_are_taken_as_a_setting_says(tmp_path: Path) -> None:
    path = save(tmp_path, (COUNTS - 3).astype(np.float32))
    text = refusal(path, measurement="counts")
    assert "down to -3" in text
    assert "source.negative_counts to clip (to zero), if a dark image was" in text
    clipped = read_scan(path, measurement="counts", negative_counts="clip")
    assert clipped.bad_pixels is None
    np.testing.assert_allclose(clipped.diffraction**2, np.maximum(COUNTS - 3, 0), atol=1e-2)
    masked = read_scan(path, measurement="counts", negative_counts="mask")
    np.testing.assert_array_equal(np.isnan(masked.diffraction), COUNTS < 3)


def test_a_mask_that_is_true_where_pixels_are_good_is_not_believed(tmp_path: Path) -> None:
    good = np.ones((SCAN.size, SCAN.size), bool)
    middle = SCAN.size // 2
    good[:, middle - 3 : middle + 3] = False
    path = save(tmp_path, COUNTS, bad_pixels=good)
    assert "set source.mask_marks to good if it is true where pixels are good" in refusal(
        path, measurement="counts"
    )
    scan = read_scan(path, measurement="counts", mask_marks="good")
    np.testing.assert_array_equal(scan.bad_pixels, ~good)
    assert scan.doubts == ()
    few = read_scan(path, measurement="counts", mask_marks="bad")
    np.testing.assert_array_equal(few.bad_pixels, good)


@pytest.mark.parametrize("in_each_frame", [False, True])
def test_a_mask_on_which_the_light_falls_is_doubted(tmp_path: Path, in_each_frame: bool) -> None:
    bad = np.zeros((SCAN.size, SCAN.size), bool)
    bad[:, 4:6] = True
    masks = np.broadcast_to(bad, COUNTS.shape) if in_each_frame else bad
    path = save(tmp_path, COUNTS, bad_pixels=masks)
    settings = {"measurement": "counts", "dark_frames": "drop"}
    assert read_scan(path, **settings).doubts == ()
    (doubt,) = read_scan(path, mask_marks="good", **settings).doubts
    assert "marks 93.8 % of the pixels as bad, and on these falls" in doubt
    assert "set source.mask_marks to bad if it is true where pixels are bad" in doubt
    report = examine(path, {"mask_marks": "good", **settings})
    assert report.settings["source.mask_marks"] == "bad"
    path = save(tmp_path, np.where(bad, 0, COUNTS), bad_pixels=masks)
    assert "falls 100 % of the light" in refusal(path, mask_marks="good", **settings)


def write_mask(path: Path, mask: NDArray[Any]) -> Path:
    if path.suffix == ".npy":
        np.save(path, mask)
    elif path.suffix == ".npz":
        np.savez(path, bad_pixels=mask, other=np.zeros(3))
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["entry/mask"] = mask
    else:
        from tifffile import imwrite

        imwrite(path, mask.astype(np.uint8))
    return path


@pytest.mark.parametrize("ending", ["npy", "npz", "h5", "tif"])
def test_a_mask_in_a_file_of_its_own_is_an_input(tmp_path: Path, ending: str) -> None:
    mask = write_mask(tmp_path / f"mask.{ending}", GAP)
    scan = read_scan(save(tmp_path, bad_pixels=GAP.T), bad_pixels=str(mask))
    check_bad(scan, GAP)
    assert mask in scan.files


def test_another_key_of_the_file(tmp_path: Path) -> None:
    path = save(tmp_path, bad_pixels=GAP.T, mine=GAP)
    check_bad(read_scan(path, bad_pixels="mine"), GAP)
    check_bad(read_scan(path), GAP.T)


def test_a_mask_may_be_ignored(tmp_path: Path) -> None:
    scan = read_scan(save(tmp_path, bad_pixels=GAP), bad_pixels="ignore")
    assert scan.bad_pixels is None
    assert any("bad_pixels: ignored" in note for note in scan.notes)


def test_a_mask_of_each_frame(tmp_path: Path) -> None:
    masks = np.zeros((M, N, N), bool)
    masks[::2, 3] = True
    scan = read_scan(save(tmp_path, bad_pixels=masks))
    np.testing.assert_array_equal(np.isnan(scan.diffraction), masks)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"bad_pixels": np.ones((N, N), bool)}, {}, "marks all 1024 pixels as bad"),
    ({"bad_pixels": GAP[1:]}, {}, "(32, 32) bool"),
    ({"bad_pixels": np.array("none")}, {}, "(32, 32) bool"),
    ({"frames": np.full((M, N, N), np.nan, np.float32)}, {}, "no good pixel"),
    ({}, {"bad_pixels": "nosuch"}, "'nosuch' is missing"),
    ({}, {"bad_pixels": "nosuch.npy"}, "there is no nosuch.npy"),
]


@pytest.mark.parametrize(("arrays", "settings", "text"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refused(tmp_path: Path, arrays: Any, settings: Any, text: str) -> None:
    found = refusal(save(tmp_path, **arrays), **settings)
    assert text in found
    assert "; " in found


def test_a_file_that_holds_no_mask(tmp_path: Path) -> None:
    (tmp_path / "mask.npy").write_bytes(b"none")
    assert "mask.npy cannot be read" in refusal(save(tmp_path), bad_pixels=f"{tmp_path}/mask.npy")
    np.savez(tmp_path / "two.npz", a=GAP, b=GAP)
    assert "holds a, b" in refusal(save(tmp_path), bad_pixels=f"{tmp_path}/two.npz")


def test_a_frame_without_a_good_pixel(tmp_path: Path) -> None:
    frames = np.array(SCAN.diffraction)
    frames[7] = np.nan
    path = save(tmp_path, frames)
    text = refusal(path)
    assert "1 of 36 frames have no good pixel (7)" in text
    assert "source.dark_frames" in text
    assert read_scan(path, dark_frames="drop").frame_count == M - 1


def test_a_glaring_pixel_is_left_out_and_said(tmp_path: Path) -> None:
    frames = COUNTS.copy()
    frames[:, 20, 22] = 10**6
    scan = read_scan(save(tmp_path, frames), measurement="counts")
    hot = np.zeros((N, N), bool)
    hot[20, 22] = True
    check_bad(scan, hot)
    assert any("hot: 1 in every frame, at (row, column) (20, 22)" in n for n in scan.notes)
    assert any("source.bad_pixels to marked" in doubt for doubt in doubts(scan))
    marked = read_scan(save(tmp_path, frames), measurement="counts", bad_pixels="marked")
    assert marked.bad_pixels is None


def test_auto_finds_what_is_less_glaring(tmp_path: Path) -> None:
    frames = COUNTS.copy()
    bad = np.zeros((N, N), bool)
    bad[20:22, 22] = True
    frames[:, bad] = 20 * frames[:, 18:24, 20:25].max()
    frames[::3, bad] = 0
    dead = np.zeros((N, N), bool)
    dead[13:15, 16] = True
    frames[:, dead] = 0
    scan = read_scan(save(tmp_path, frames), measurement="counts", bad_pixels="auto")
    assert scan.bad_pixels is not None
    np.testing.assert_array_equal(scan.bad_pixels, bad | dead)


def test_auto_finds_a_warm_pixel_as_the_doctor_does(tmp_path: Path) -> None:
    frames, warm = COUNTS.copy(), np.zeros((N, N), bool)
    warm[20, 12] = True
    frames[:, warm] = 4 * frames[:, 19:22, 11:14].mean(axis=0).max()
    frames[3, 9, 9] = 10**6  # a ray
    frames[::5, warm] += 100  # that it never changes is another sign
    path = save(tmp_path, frames)
    assert read_scan(path, measurement="counts").bad_pixels is None
    report = examine(path, {"measurement": "counts"})
    hot, hit = [one.text for one in report.findings if one.is_wrong]
    assert hot == "pixel (20, 12) hot"
    assert hit.startswith("pixel (9, 9) of frame 3 holds 1e+06 counts: ")
    scan = read_scan(path, measurement="counts", bad_pixels="auto")
    np.testing.assert_array_equal(scan.bad_pixels, warm)
    assert np.argwhere(np.isnan(scan.diffraction[:, ~warm]).any(axis=1)).tolist() == [[3]]


def test_auto_finds_a_dead_pixel_among_little_light_as_the_doctor_does(tmp_path: Path) -> None:
    frames, dead = COUNTS.copy(), np.zeros((N, N), bool)
    dead[2, 16] = True
    assert frames[:, dead].mean() < 3
    frames[:, dead] = 0
    path = save(tmp_path, frames)
    found = [one.text for one in examine(path, {"measurement": "counts"}).findings if one.is_wrong]
    assert found == ["pixel (2, 16) dead"]
    scan = read_scan(path, measurement="counts", bad_pixels="auto")
    assert scan.bad_pixels is not None
    np.testing.assert_array_equal(scan.bad_pixels, dead)


def test_auto_finds_what_never_changes_and_whole_lines(tmp_path: Path) -> None:
    frames = COUNTS.copy()
    bad = np.zeros((N, N), bool)
    bad[:, 15], bad[N // 2 + 1, N // 2 + 1] = True, True
    frames[:, bad] = 0
    frames[:, N // 2 + 1, N // 2 + 1] = np.rint(COUNTS[:, N // 2, N // 2].mean())
    scan = read_scan(save(tmp_path, frames), measurement="counts", bad_pixels="auto")
    assert scan.bad_pixels is not None
    np.testing.assert_array_equal(scan.bad_pixels, bad)


SIMULATED = [
    {"probe": "disc"},
    {"probe": "disc", "photons": 1e3},
    {"photons": 1e9},
    {"photons": 1e4, "phase_range": 4.0},
    {"probe": "disc", "probe_aperture": 0.0},
    {"object": "siemens", "probe_aperture": 0.05},
    {"phase_range": 0.0, "amplitude_min": 1.0, "probe": "disc", "probe_aperture": 0.0},
]


@pytest.mark.parametrize("setting", ["file", "auto"])
@pytest.mark.parametrize("options", SIMULATED, ids=str)
def test_no_false_alarm(tmp_path: Path, options: dict[str, Any], setting: str) -> None:
    scan = simulate(SimulationOptions(size=32, grid=5, step=4.0, **options))
    write_scan(tmp_path / "scan.npz", scan)
    found = read_scan(tmp_path / "scan.npz", bad_pixels=setting)
    assert found.bad_pixels is None
    assert np.isfinite(found.diffraction).all()


def test_a_fixture_keeps_them(tmp_path: Path) -> None:
    frames = np.array(SCAN.diffraction)
    frames[:, GAP], frames[4, 1, 1] = np.nan, np.nan
    scan = read_scan(save(tmp_path, frames))
    write_fixture(
        scan,
        FixtureOptions(subset_size=20, strategy="first"),
        npz_path=tmp_path / "f.npz",
        sidecar_path=tmp_path / "f.json",
        source_name="scan.npz",
        source_sha256="0" * 64,
    )
    fixture = read_fixture(tmp_path / "f.npz")
    assert isinstance(fixture.diffraction, np.memmap)
    assert fixture.bad_pixels is not None
    np.testing.assert_array_equal(fixture.bad_pixels, GAP)
    assert np.isnan(fixture.diffraction).sum() == 20 * GAP.sum() + 1


def test_an_estimated_probe_is_bridged_over_a_gap(tmp_path: Path) -> None:
    probes = [
        read_scan(save(tmp_path, np.where(gap, np.nan, SCAN.diffraction)), probe="estimate").probe
        for gap in (np.zeros_like(GAP), GAP)
    ]
    whole, bridged = (np.abs(np.fft.fft2(probe)) for probe in probes)
    assert np.isfinite(bridged).all()
    assert np.abs(bridged - whole).sum() < 0.1 * whole.sum()


def test_misfits_are_of_good_pixels_alone() -> None:
    """As if the others were not there: the truth's, a flat object's and the noise's."""
    assert SCAN.object is not None
    model = SCAN.object, (0, 0), SCAN.probe, SCAN.positions
    frames = np.where(GAP, np.nan, SCAN.diffraction)
    frames[::2, 3:5] = np.nan
    whole, ours = data_misfit(*model, SCAN.diffraction), data_misfit(*model, frames)
    for one, other in ((ours, whole), (ours.flat, whole.flat), (ours.noise, whole.noise)):
        assert one.r_factor == pytest.approx(other.r_factor, rel=0.1)
        assert one.poisson_deviance == pytest.approx(other.poisson_deviance, rel=0.1)
    assert ours.noise_ratio == pytest.approx(1.0, abs=0.05)


def test_a_simulated_detector_has_bad_pixels() -> None:
    options = SimulationOptions(size=32, grid=3, bad_pixels=0.1)
    bad = simulate(options)
    assert bad.bad_pixels is not None
    assert bad.bad_pixels.mean() == pytest.approx(0.1, abs=0.03)
    whole = simulate(SimulationOptions(size=32, grid=3))
    good = ~bad.bad_pixels
    np.testing.assert_array_equal(bad.diffraction[:, good], whole.diffraction[:, good])

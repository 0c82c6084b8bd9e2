"""The doctor, without a backend: what frames and positions alone tell."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_tasks.backend import Trial
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.forward import propagate
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.doctor.case import Case
from ptycho_tasks.scans.doctor.examination import Examination
from ptycho_tasks.scans.doctor.examine import Report, examine
from ptycho_tasks.scans.doctor.findings import Finding
from ptycho_tasks.scans.doctor.geometry import check_axes
from ptycho_tasks.scans.doctor.notes import check_coherence, check_displacement, check_rest
from ptycho_tasks.scans.doctor.reading import read_case
from ptycho_tasks.scans.doctor.trials import Trials, TryScan
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.scans.plausibility import doubts
from ptycho_tasks.scans.readers import read_scan

SCAN = simulate(SimulationOptions(size=32, grid=8, step=4.0, photons=1e6, seed=5))


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return replace(SCAN, object=None)


def look(folder: Path, scan: ScanData) -> Report:
    write_scan(folder / "scan.npz", scan)
    return examine(folder / "scan.npz")


def wrong(report: Report) -> dict[str, str]:
    return {one.kind: one.text for one in report.findings if one.is_wrong and one.kind != "refused"}


def change(frames: np.ndarray, item: object, value: float) -> np.ndarray:
    changed = frames.copy()
    changed[item] = value
    return changed


def test_a_right_scan_has_nothing_wrong(tmp_path: Path, scan: ScanData) -> None:
    report = look(tmp_path, scan)
    assert not report.is_wrong
    assert report.settings == {}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("probe", ["disc", "defocused"])
@pytest.mark.parametrize("photons", [1e4, 1e8])
def test_no_false_alarms(tmp_path: Path, seed: int, probe: str, photons: float) -> None:
    options = SimulationOptions(
        size=32, grid=7, step=4.0, jitter=seed, photons=photons, probe=probe, seed=seed
    )
    report = look(tmp_path, simulate(options))
    assert wrong(report) == {}
    assert "light" not in {one.kind for one in report.findings}


def test_dark_frames(tmp_path: Path, scan: ScanData) -> None:
    report = look(tmp_path, replace(scan, diffraction=change(scan.diffraction, slice(7, 10), 0)))
    assert "3 of 64 frames hold no light (7-9)" in wrong(report)["dark frames"]
    assert report.settings == {"source.dark_frames": "drop"}
    assert report.findings[0].kind == "refused"  # as doit would


@pytest.mark.parametrize("times", [0.1, 8.0])
def test_a_frame_of_other_light_than_those_around_it(
    tmp_path: Path, scan: ScanData, times: float
) -> None:
    frames = change(scan.diffraction, 7, scan.diffraction[7] * math.sqrt(times))
    report = look(tmp_path, replace(scan, diffraction=frames))
    (note,) = [one for one in report.findings if one.kind == "light"]
    assert re.search(
        r"^1 of 64 frames \(7\) .*, frame 7 (0\.\d+|7\.\d+|8\.\d+) times as", note.text
    )
    assert not wrong(report)


def hide(scan: ScanData, bad: np.ndarray) -> ScanData:
    """The scan without pixels that are bad, (N, N), or (M, N, N) in single frames."""
    frames = np.where(bad, np.nan, scan.diffraction).astype(np.float32)
    return replace(scan, diffraction=frames, bad_pixels=bad if bad.ndim == 2 else None)


RADIUS = np.hypot(*np.mgrid[-16:16, -16:16])
SPECKS = np.random.default_rng(1).random((32, 32)) < 0.03


def write_mask(folder: Path, scan: ScanData, mask: np.ndarray, dark: np.ndarray | bool) -> Path:
    """The scan with a mask in its file, whatever it marks, and pixels without light."""
    write_scan(folder / "scan.npz", scan)
    with np.load(folder / "scan.npz") as file:
        arrays = {key: file[key] for key in file.files} | {"bad_pixels": mask}
    np.savez(folder / "scan.npz", **arrays | {"diff3d": np.where(dark, 0, arrays["diff3d"])})
    return folder / "scan.npz"


@pytest.mark.parametrize(
    ("mask", "dark", "settings", "marks"),
    [
        (~SPECKS, False, {}, "good"),
        (np.ones((32, 32), bool), False, {}, "good"),
        (SPECKS, False, {"mask_marks": "good"}, "bad"),
        (RADIUS > 8, RADIUS > 8, {}, "bad"),
    ],
    ids=["of good pixels", "all", "of bad pixels", "most are bad"],
)
def test_what_a_mask_marks_that_is_refused_or_doubted(
    tmp_path: Path, scan: ScanData, mask: np.ndarray, dark: Any, settings: Any, marks: str
) -> None:
    report = examine(write_mask(tmp_path, scan, mask, dark), settings)
    assert report.settings == {"source.mask_marks": marks}


def test_a_frame_that_its_mask_hides_is_dark(tmp_path: Path, scan: ScanData) -> None:
    masks = np.zeros(scan.diffraction.shape, bool)
    masks[7] = True
    report = examine(write_mask(tmp_path, scan, masks, False))
    assert report.settings == {"source.dark_frames": "drop"}


def test_nothing_mends_a_scan_without_a_good_pixel(tmp_path: Path, scan: ScanData) -> None:
    write_scan(tmp_path / "scan.npz", scan)
    with np.load(tmp_path / "scan.npz") as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(tmp_path / "scan.npz", **arrays | {"diff3d": np.full_like(arrays["diff3d"], np.nan)})
    report = examine(tmp_path / "scan.npz")
    assert "no good pixel" in report.findings[0].text
    assert report.settings == {}


@pytest.mark.parametrize("radius", [9, 12])
def test_a_beam_stop_larger_than_the_spot(tmp_path: Path, scan: ScanData, radius: int) -> None:
    hidden = hide(scan, radius > RADIUS)
    assert "0.00 % of the probe's light" in wrong(look(tmp_path, hidden))["bad pixels"]
    assert any("of the probe's light" in one for one in doubts(hidden))


def test_saturated_pixels_that_hide_the_light_are_a_note(tmp_path: Path, scan: ScanData) -> None:
    light = np.square(np.abs(propagate(scan.probe))).sum(axis=0)
    counts = np.rint(scan.diffraction.astype(float) ** 2)
    counts[:, light > np.quantile(light, 0.2)] += 255
    frames = np.clip(counts, 0, 255).astype(np.uint8)
    arrays = {"diff3d": frames, "probeGuess": scan.probe}
    y, x = scan.positions.T
    np.savez(tmp_path / "scan.npz", xcoords=x, ycoords=y, **arrays)
    report = examine(tmp_path / "scan.npz", {"measurement": "counts"})
    (found,) = (one for one in report.findings if "the probe's light" in one.text)
    assert "saturated pixels" in found.text
    assert not found.is_wrong
    assert found.text in doubts(read_scan(tmp_path / "scan.npz", measurement="counts"))


def test_a_beam_stop_that_leaves_a_part_of_the_light(tmp_path: Path, scan: ScanData) -> None:
    hidden = hide(scan, RADIUS < 6)
    assert wrong(look(tmp_path, hidden)) == {}
    assert doubts(hidden) == []


def test_frames_that_show_one_pixel_are_not_dark(tmp_path: Path, scan: ScanData) -> None:
    bad = np.zeros(scan.diffraction.shape, bool)
    bad[10:14] = RADIUS > 0
    report = look(tmp_path, hide(scan, bad))
    assert not report.is_wrong
    assert any("hide nearly all light of 4 of 64 frames (10-13)" in x.text for x in report.findings)


def test_a_ray_in_one_frame_makes_no_others_dark(tmp_path: Path, scan: ScanData) -> None:
    report = look(tmp_path, replace(scan, diffraction=change(scan.diffraction, (0, 3, 3), 1e5)))
    assert "dark frames" not in wrong(report)


def test_counts(tmp_path: Path, scan: ScanData) -> None:
    report = look(tmp_path, replace(scan, diffraction=scan.diffraction**2))
    assert set(wrong(report)) == {"counts or amplitudes"}
    assert report.settings == {"source.measurement": "counts"}


def test_scaled_counts(tmp_path: Path, scan: ScanData) -> None:
    counts = (scan.diffraction**2 * np.float32(0.037)).astype(np.float32)
    assert set(wrong(look(tmp_path, replace(scan, diffraction=counts)))) == {"counts or amplitudes"}


def test_a_background(tmp_path: Path, scan: ScanData) -> None:
    counts = np.square(scan.diffraction, dtype=np.float64)
    counts = np.random.default_rng(3).poisson(counts + 0.3 * counts.mean())
    report = look(tmp_path, replace(scan, diffraction=np.sqrt(counts).astype(np.float32)))
    assert wrong(report)["background"].startswith("23 % of the light is the same in all pixels")


def test_even_scatter_of_an_object_is_no_background(tmp_path: Path, scan: ScanData) -> None:
    """Speckles are others in each frame."""
    generator, counts = np.random.default_rng(3), np.square(scan.diffraction, dtype=np.float64)
    speckles = generator.exponential(0.5 * counts.mean(), counts.shape)
    frames = np.sqrt(generator.poisson(counts + speckles)).astype(np.float32)
    assert "background" not in wrong(look(tmp_path, replace(scan, diffraction=frames)))


def test_frames_that_repeat_at_other_places(tmp_path: Path, scan: ScanData) -> None:
    frames = scan.diffraction.copy()
    frames[21:25] = frames[20]
    assert (
        "4 frames are copies"
        in wrong(look(tmp_path, replace(scan, diffraction=frames)))["repeated frames"]
    )


def test_frames_of_many_places_that_are_said_to_be_at_one(tmp_path: Path, scan: ScanData) -> None:
    positions = scan.positions.copy()
    positions[9:16] = positions[8]
    report = look(tmp_path, replace(scan, positions=positions))
    assert wrong(report)["positions"].startswith("8 frames (8-15) share places, and differ")
    assert report.mended is not None
    assert report.mended.keep.tolist() == [*range(8), *range(16, 64)]
    # Exposures of one place, of which each has its own noise, and its own light.
    counts = np.square(scan.diffraction, dtype=np.float64)
    light = np.linspace(0.3, 1, 4)[:, None, None, None]
    bursts = np.random.default_rng(0).poisson(counts[::4] * light).reshape(-1, 32, 32)
    frames, places = np.sqrt(bursts).astype(np.float32), np.tile(scan.positions[::4], (4, 1))
    report = look(tmp_path, replace(scan, diffraction=frames, positions=places))
    assert not wrong(report)


def test_frames_that_repeat_at_one_place_are_a_burst(tmp_path: Path, scan: ScanData) -> None:
    twice = replace(
        scan,
        diffraction=np.repeat(scan.diffraction, 2, 0),
        positions=np.repeat(scan.positions, 2, 0),
    )
    report = look(tmp_path, twice)
    assert not report.is_wrong
    assert any(one.kind == "repeated frames" for one in report.findings)


def test_dead_rows(tmp_path: Path, scan: ScanData) -> None:
    frames = change(scan.diffraction, np.s_[:, 18:20], 0)
    report = look(tmp_path, replace(scan, diffraction=frames))
    assert "64 pixels (rows 18-19) dead" in wrong(report)["bad pixels"]
    assert report.mended is not None
    assert report.mended.bad.sum() == 64


def test_a_hot_pixel_of_three_frames(tmp_path: Path, scan: ScanData) -> None:
    frames = scan.diffraction[:3].copy()
    frames[0, 9, 9] = 1e3  # a ray
    frames[:, 5, 25] = 900 + np.arange(3)
    report = look(tmp_path, replace(scan, diffraction=frames, positions=scan.positions[:3]))
    assert wrong(report)["bad pixels"] == "pixel (5, 25) hot"
    assert wrong(report)["hit pixels"].startswith("pixel (9, 9) of frame 0 holds 1e+06 counts: ")
    mended = read_scan(tmp_path / "scan.npz", bad_pixels="auto")
    np.testing.assert_array_equal(np.argwhere(mended.bad_pixels), [[5, 25]])
    np.testing.assert_array_equal(np.argwhere(np.isnan(mended.diffraction[0])), [[5, 25], [9, 9]])


def test_pixels_that_a_ray_hit(tmp_path: Path, scan: ScanData) -> None:
    """Not where the direct beam falls."""
    frames = np.square(scan.diffraction.astype(np.float64))
    for pixel in ((7, 20, 5), (7, 21, 5), (9, 25, 25), (3, 16, 17)):
        frames[pixel] = 1e6
    path = tmp_path / "scan.npz"
    report = look(tmp_path, replace(scan, diffraction=np.sqrt(frames).astype(np.float32)))
    (finding,) = (one for one in report.findings if one.is_wrong)
    assert all(
        f"({y}, {x}) of frame {frame} " in finding.text
        for frame, y, x in ((7, 20, 5), (7, 21, 5), (9, 25, 25))
    )
    assert "frame 3" not in finding.text
    assert report.settings == {"source.bad_pixels": "auto"}
    assert report.mended is not None
    mended = read_scan(path, bad_pixels="auto")
    expected = np.argwhere(np.isnan(mended.diffraction)).tolist()
    assert expected == [[7, 20, 5], [7, 21, 5], [9, 25, 25]]
    assert np.argwhere(np.isnan(report.mended.values(slice(None)))).tolist() == expected
    assert any(
        "hit by a ray: 3 in single frames, at (row, column) (20, 5), (21, 5), (25, 25)" in note
        for note in mended.notes
    )
    again = examine(path, {"bad_pixels": "auto"})
    assert not again.is_wrong


def test_pixels_that_few_photons_reach_are_not_dead(tmp_path: Path) -> None:
    options = SimulationOptions(size=32, grid=7, step=4.0, photons=1e5, probe="disc", seed=5)
    few = simulate(options)
    report = look(tmp_path, replace(few, diffraction=few.diffraction * np.float32(np.sqrt(10))))
    assert "bad pixels" not in wrong(report)


def test_it_says_what_it_looks_at(tmp_path: Path, scan: ScanData) -> None:
    write_scan(tmp_path / "scan.npz", scan)
    said: list[str] = []
    examine(tmp_path / "scan.npz", say=said.append)
    assert said[:2] == ["positions", "pixels"]
    assert len(said) == len(set(said))


def test_saturated_pixels(tmp_path: Path, scan: ScanData) -> None:
    top = np.float32(np.sqrt(np.square(scan.diffraction).max() // 4))
    report = look(tmp_path, replace(scan, diffraction=np.minimum(scan.diffraction, top)))
    assert report.settings == {"source.saturated": round(float(top) ** 2)}


def test_positions_of_one_place(tmp_path: Path, scan: ScanData) -> None:
    report = look(tmp_path, replace(scan, positions=0 * scan.positions + (80, 90)))
    assert "all 64 frames are at one place" in wrong(report)["positions"]


def test_a_stray_position(tmp_path: Path, scan: ScanData) -> None:
    positions = scan.positions.copy()
    positions[17, 1] = 5000
    report = look(tmp_path, replace(scan, positions=positions))
    assert "frame 17 " in wrong(report)["stray positions"]
    assert report.settings == {"source.stray_frames": "drop"}


def test_two_scans_in_one(tmp_path: Path, scan: ScanData) -> None:
    report = look(tmp_path, replace(scan, scan_index=np.repeat([4, 7], 32)))
    assert report.settings == {"source.scan_index": 4}


@pytest.mark.parametrize(("metres", "unit"), [(1.0, "m"), (1e6, "um"), (1e9, "nm")])
def test_positions_in_metres_where_the_pixel_is_known(
    tmp_path: Path, scan: ScanData, metres: float, unit: str
) -> None:
    positions = scan.positions * 3e-8 * metres
    report = look(tmp_path, replace(scan, positions=positions, pixel_size_m=(3e-8, 3e-8)))
    assert report.settings["source.units"] == unit


def test_the_zero_frequency_in_the_corner_needs_no_trial(tmp_path: Path, scan: ScanData) -> None:
    frames = np.fft.ifftshift(scan.diffraction, axes=(1, 2))
    report = look(tmp_path, replace(scan, diffraction=frames))
    assert "in the corner, at (0, 0)" in wrong(report)["centre"]


def test_a_centre_that_is_off_by_a_pixel_is_a_note(tmp_path: Path, scan: ScanData) -> None:
    report = look(tmp_path, replace(scan, diffraction=np.roll(scan.diffraction, 1, axis=2)))
    (found,) = (one for one in report.findings if one.kind == "centre")
    assert not found.is_wrong
    assert "by (0, 1) pixels" in found.text
    assert "source.centre to [16, 17]" in found.advice


def plan(folder: Path, scan: ScanData, try_scan: TryScan) -> tuple[Trials, Case]:
    write_scan(folder / "scan.npz", scan)
    case, _ = read_case(folder / "scan.npz", {}, None)
    assert case is not None
    return Trials.plan(try_scan, case), case


def test_nothing_is_tried_twice(tmp_path: Path, scan: ScanData) -> None:
    tried = []

    def try_scan(cut: ScanData, steps: int, modes: int, held_back: int, **more: bool) -> Trial:
        tried.append(cut)
        return Trial(float(len(tried)), np.ones(1))

    trials, case = plan(tmp_path, scan, try_scan)
    moved, dimmed = case.with_positions(2 * case.positions), replace(case, power=0.5)
    takes = [case, moved, case.with_positions(case.positions.copy()), dimmed, case]
    assert [trials.run(take).r_factor for take in takes] == [1, 2, 1, 3, 1]
    assert trials.run_small(case).r_factor == 4
    np.testing.assert_array_equal(tried[0].diffraction, tried[1].diffraction)
    np.testing.assert_allclose(tried[2].diffraction ** 2, tried[0].diffraction, rtol=1e-6)


@pytest.mark.parametrize(("given", "kept"), [(0.05, ["better"]), (0.3, ["better", "worse"])])
def test_what_is_tried_in_full(
    tmp_path: Path, scan: ScanData, given: float, kept: list[str]
) -> None:
    """Where the scan as given is poor, a small patch rules nothing out."""

    def try_scan(cut: ScanData, steps: int, modes: int, held_back: int, **more: bool) -> Trial:
        spans.append(float(np.ptp(cut.positions)))
        return Trial(given * spans[-1] / spans[0], np.ones(1))

    spans: list[float] = []
    trials, case = plan(tmp_path, scan, try_scan)
    takes = {"better": case.with_positions(0.9 * case.positions)}
    takes["worse"] = case.with_positions(2 * case.positions)
    assert [*trials.keep_likely(takes, case)] == kept


def test_positions_far_apart_are_not_tried(tmp_path: Path, scan: ScanData) -> None:
    def try_scan(cut: ScanData, steps: int, modes: int, held_back: int, **more: bool) -> Trial:
        assert np.ptp(cut.positions, axis=0).max() < 2000
        return Trial(0.1, np.full(cut.frame_count, 0.01))

    write_scan(tmp_path / "scan.npz", replace(scan, positions=1000 * scan.positions))
    report = examine(tmp_path / "scan.npz", try_scan=try_scan)
    assert "too little overlap to be solved, or another unit" in wrong(report)["overlap"]


@pytest.mark.parametrize(
    ("left", "turned", "kind"),
    [(0.0, 0.1, "units"), (0.2, 0.1, "overlap"), (0.0, 0.0, "overlap")],
)
def test_another_unit_must_explain_frames_that_share_nothing(
    tmp_path: Path, left: float, turned: float, kind: str
) -> None:
    """And in one orientation."""
    sparse = simulate(SimulationOptions(size=32, grid=6, step=30.0, jitter=0, probe_radius=4))

    def try_scan(cut: ScanData, steps: int, modes: int, held_back: int, **more: bool) -> Trial:
        away = abs(float(np.log(np.ptp(cut.positions[:, 1]) / np.ptp(sparse.positions[:, 1]) * 9)))
        y, x = np.median(np.diff(cut.positions, axis=0), axis=0)
        r_factor = left + 0.03 + 0.1 * min(away, 1.0) + (0.0 if x > abs(y) else turned)
        return Trial(r_factor, np.full(cut.frame_count, 0.1 + away))

    write_scan(tmp_path / "scan.npz", sparse)
    found = wrong(examine(tmp_path / "scan.npz", try_scan=try_scan))
    assert found.keys() & {"units", "overlap"} == {kind}


def test_steps_that_leave_a_gap_between_spots(tmp_path: Path) -> None:
    options = SimulationOptions(size=32, grid=6, step=30.0, jitter=0, probe_radius=4)
    assert "too little overlap" in wrong(look(tmp_path, simulate(options)))["overlap"]


def test_frames_that_are_no_squares(tmp_path: Path, scan: ScanData) -> None:
    write_scan(tmp_path / "scan.npz", scan)
    with np.load(tmp_path / "scan.npz") as file:
        arrays = {key: file[key] for key in file.files if key != "frame_axis"}
    np.savez(tmp_path / "scan.npz", **arrays | {"diff3d": arrays["diff3d"][:, :, 4:28]})
    report = examine(tmp_path / "scan.npz")
    assert report.settings["source.crop"] == 24


def test_what_cannot_be_read_is_the_only_finding(tmp_path: Path) -> None:
    (tmp_path / "scan.npz").write_bytes(b"no scan")
    report = examine(tmp_path / "scan.npz")
    assert [one.kind for one in report.findings] == ["refused"]
    assert report.given is None


@pytest.mark.parametrize(
    ("many", "fitted", "shares", "told"),
    [
        (0.50, 0.90, (0.8, 0.12, 0.05, 0.02, 0.01), "4 incoherent modes pay"),
        (0.50, 0.90, (0.95, 0.03, 0.01, 0.005, 0.005), "2 incoherent modes pay"),
        (0.50, 0.90, (0.99, 0.004, 0.003, 0.002, 0.001), "2 incoherent modes pay"),
        (0.50, 0.52, (0.8, 0.12, 0.05, 0.02, 0.01), "a fitted probe pays"),
        (0.32, 0.32, (0.8, 0.12, 0.05, 0.02, 0.01), "a fitted probe pays"),
        (0.85, 0.91, (0.8, 0.12, 0.05, 0.02, 0.01), ""),
        (0.95, 0.80, (0.8, 0.12, 0.05, 0.02, 0.01), ""),
    ],
)
def test_how_many_modes_pay(
    tmp_path: Path, scan: ScanData, many: float, fitted: float, shares: tuple[float], told: str
) -> None:
    r_factors = {0: 1.0, 1: fitted, 5: many}

    def try_scan(cut: ScanData, steps: int, modes: int, held_back: int, **more: bool) -> Trial:
        return Trial(r_factors[modes], np.ones(1), shares if modes == 5 else (1.0,))

    write_scan(tmp_path / "scan.npz", scan)
    case, _ = read_case(tmp_path / "scan.npz", {}, None)
    assert case is not None
    found = [*check_coherence(Examination(case, try_scan))]
    assert [one.text.partition(":")[0] for one in found] == ([told] if told else [])
    assert [one.is_wrong for one in found] == ([many < 1 / 3] if told else [])


@pytest.mark.parametrize(("closer", "wrong"), [(1, True), (8, False)])
def test_a_patch_that_hardly_moves_makes_no_probe_wrong(
    tmp_path: Path, scan: ScanData, closer: int, wrong: bool
) -> None:
    """There a part of the object may belong to the probe as well."""

    def try_scan(cut: ScanData, steps: int, modes: int, held_back: int, **more: bool) -> Trial:
        return Trial(0.2 if modes else 1.0, np.ones(1))

    write_scan(tmp_path / "scan.npz", replace(scan, positions=scan.positions / closer))
    case, _ = read_case(tmp_path / "scan.npz", {}, None)
    assert case is not None
    assert [one.is_wrong for one in check_coherence(Examination(case, try_scan))] == [wrong]


@pytest.mark.parametrize(
    ("own", "fitted", "told"),
    [(0.1, 0.1, []), (0.2, 0.2, [False]), (0.5, 0.4, [True]), (0.5, 0.2, [False]), (0.5, 0.0, [])],
)
def test_what_a_fitted_probe_mends_are_no_positions(
    tmp_path: Path, scan: ScanData, own: float, fitted: float, told: list[bool]
) -> None:
    def try_scan(cut: ScanData, steps: int, modes: int, held_back: int, **more: bool) -> Trial:
        return Trial(0.1, np.ones(1), displacement=fitted if modes else own)

    write_scan(tmp_path / "scan.npz", scan)
    case, _ = read_case(tmp_path / "scan.npz", {}, None)
    assert case is not None
    pays = Finding("probe", "a fitted probe pays", is_wrong=False)
    exam = Examination(case, try_scan, findings=[pays] if fitted < own else [])
    assert [one.is_wrong for one in check_displacement(exam)] == told
    exam.take(Finding("positions", "they drift"))
    assert not [*check_displacement(exam)]


@pytest.mark.parametrize(("fitted", "is_wrong"), [(0.05, False), (0.2, True)])
def test_a_stretch_is_a_note_where_a_fitted_probe_explains_more(
    tmp_path: Path, scan: ScanData, fitted: float, is_wrong: bool
) -> None:
    def try_scan(cut: ScanData, steps: int, modes: int, held_back: int, **more: bool) -> Trial:
        y, x = cut.positions.std(axis=0)
        r_factor = fitted if modes else 0.1 + abs(float(np.log(x / y)) - 0.1)
        return Trial(r_factor, np.full(cut.frame_count, r_factor**2))

    order = np.random.default_rng(0).permutation(scan.frame_count)
    frames, positions = scan.diffraction[order], scan.positions[order]
    write_scan(tmp_path / "scan.npz", replace(scan, diffraction=frames, positions=positions))
    case, _ = read_case(tmp_path / "scan.npz", {}, None)
    assert case is not None
    (found,) = check_axes(Examination(case, try_scan))
    assert (found.kind, found.is_wrong, bool(found.settings)) == ("axes", is_wrong, is_wrong)


@pytest.mark.parametrize(
    ("r_factor", "fitted", "told"), [(0.3, 0.3, 1), (0.3, 0.05, 0), (0.1, 0.1, 1), (0.05, 0.05, 0)]
)
def test_what_nothing_explains_is_not_called_right(
    tmp_path: Path, scan: ScanData, r_factor: float, fitted: float, told: int
) -> None:
    def try_scan(cut: ScanData, steps: int, modes: int, held_back: int, **more: bool) -> Trial:
        return Trial(fitted if modes else r_factor, np.ones(1))

    write_scan(tmp_path / "scan.npz", scan)
    case, _ = read_case(tmp_path / "scan.npz", {}, None)
    assert case is not None
    found = [*check_rest(Examination(case, try_scan))]
    assert [one.is_wrong for one in found] == [True] * told

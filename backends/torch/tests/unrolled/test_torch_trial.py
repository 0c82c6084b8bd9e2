"""Trials of `unrolled`, and what the doctor finds by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptycho_tasks.commands.scan_check import find_project_scan, list_lines
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import measure, simulate
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.doctor.case import Case
from ptycho_tasks.scans.doctor.examination import Examination
from ptycho_tasks.scans.doctor.examine import Report, examine
from ptycho_tasks.scans.doctor.geometry import check_orientation, is_own_image, is_own_twin
from ptycho_tasks.scans.doctor.notes import check_displacement
from ptycho_tasks.scans.doctor.order import check_order
from ptycho_tasks.scans.doctor.orientation import ORIENTATIONS
from ptycho_tasks.scans.doctor.positions import check_units
from ptycho_tasks.scans.doctor.reading import read_case
from ptycho_tasks.scans.doctor.scatter import check_scatter
from ptycho_tasks.scans.doctor.trials import Trials
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.scans.readers import read_scan
from ptycho_tasks_torch.unrolled.backend import backend

SIDE = 6
"""Of a small scan, in frames."""


def make_scan(size: int, grid: int = 7) -> ScanData:
    options = SimulationOptions(size=size, grid=grid, step=size / 8, photons=1e6, seed=5)
    return replace(simulate(options), object=None)


SCAN = make_scan(32)
SMALL = make_scan(16, SIDE)
"""Of which an examination takes half the time; it tells a unit and a centre less well."""


def look(folder: Path, scan: ScanData = SMALL, **changes: object) -> Report:
    write_scan(folder / "scan.npz", replace(scan, **changes))
    return examine(folder / "scan.npz", try_scan=backend.try_scan)


def rotate(positions: np.ndarray, degrees: float) -> np.ndarray:
    (y, x), angle = (positions - positions.mean(axis=0)).T, np.deg2rad(degrees)
    sine, cosine = np.sin(angle), np.cos(angle)
    return np.stack([x * sine + y * cosine, x * cosine - y * sine], axis=1)


def test_the_same_scan_gives_the_same_trial() -> None:
    one, other = (backend.try_scan(SCAN, 12) for _ in range(2))
    assert one.r_factor == other.r_factor
    np.testing.assert_array_equal(one.residuals, other.residuals)
    assert one.residuals.shape == (SCAN.frame_count,)


def test_a_trial_leaves_out_what_was_not_measured() -> None:
    frames = SCAN.diffraction.copy()
    frames[:, 10:12] = np.nan
    holed = replace(SCAN, diffraction=frames, bad_pixels=np.isnan(frames).all(axis=0))
    assert backend.try_scan(holed, 24).r_factor < 1.1 * backend.try_scan(SCAN, 24).r_factor


def test_frames_that_are_held_back_take_no_part() -> None:
    trial = backend.try_scan(SCAN, 12, held_back=6)
    frames = SCAN.diffraction.copy()
    frames[3::6] = 1.0
    other = backend.try_scan(replace(SCAN, diffraction=frames), 12, held_back=6)
    assert trial.residuals.shape == (8,)
    assert other.r_factor > 5 * trial.r_factor


def test_the_light_of_each_mode() -> None:
    modes = np.concatenate([SCAN.probe, 0.5 * SCAN.probe[:, ::-1]])
    shares = backend.try_scan(replace(SCAN, probe=modes), 6).shares
    assert shares == pytest.approx((0.8, 0.2), abs=1e-4)


def test_a_background_that_an_object_gives_way_to(tmp_path: Path) -> None:
    counts = np.square(SCAN.diffraction)
    light = 0.1 * counts.mean() * np.linspace(0.2, 1.8, SCAN.size)
    counts += np.random.default_rng(2).poisson(light, counts.shape)
    report = look(tmp_path, SCAN, diffraction=np.sqrt(counts, dtype=np.float32))
    (told,) = [finding for finding in report.findings if finding.kind == "background"]
    assert told.text.startswith("about 9")
    assert not report.is_wrong
    assert backend.try_scan(SCAN, 48).background == 0


def white_noise() -> ScanData:
    """Frames of a phase without structure, on which steps of the usual length diverge."""
    rows, columns = np.mgrid[0:8, 0:8].reshape(2, 64) * 3.0 + 20
    probe = np.outer(np.hanning(32), np.hanning(32)).astype("c8")[None] * 300
    surface = np.exp(1j * np.random.default_rng(1).uniform(0, 1, (64, 64)))
    corners = zip(rows.astype(int) - 16, columns.astype(int) - 16, strict=True)
    waves = np.stack([probe[0] * surface[r : r + 32, c : c + 32] for r, c in corners])
    frames = np.abs(np.fft.fftshift(np.fft.fft2(waves, norm="ortho"), axes=(1, 2)))
    return ScanData(frames.astype("f4"), np.stack([rows, columns], axis=1), probe)


def test_steps_that_diverge_are_shortened() -> None:
    assert backend.try_scan(white_noise(), 48).r_factor < 0.09


def test_a_right_scan_has_nothing_wrong(tmp_path: Path) -> None:
    report = look(tmp_path)
    assert not report.is_wrong
    assert report.r_given == report.r_mended


def test_both_axes_mirrored(tmp_path: Path) -> None:
    report = look(tmp_path, positions=-SMALL.positions)
    assert report.settings == {"source.orientation": {"flip_x": True, "flip_y": True}}


@pytest.mark.parametrize(("off", "told"), [(0.0, 0), (0.8, 1)])
def test_positions_that_are_off_frame_by_frame(tmp_path: Path, off: float, told: int) -> None:
    moved = SCAN.positions + np.random.default_rng(1).normal(0, off, SCAN.positions.shape)
    write_scan(tmp_path / "scan.npz", replace(SCAN, positions=moved))
    case, _ = read_case(tmp_path / "scan.npz", {}, None)
    assert case is not None
    exam = Examination(case, backend.try_scan)
    assert exam.trials is not None
    found = [one.text for one in check_scatter(exam)]
    assert len(found) == told
    if told:  # 1.1 pixels, less what rotated and stretched axes take of it
        assert 0.8 < float(found[0].split(" pixels")[0].split("about ")[1]) < 1.1
    rest = exam.trials.run_moved(case, exam.trials.order).moved + moved - SCAN.positions
    assert np.abs(rest - rest.mean(axis=0)).max() < 0.4


@pytest.mark.parametrize(("off", "told"), [(0.0, []), (0.8, [False]), (2.0, [True])])
def test_positions_to_which_an_object_gives_way(
    tmp_path: Path, off: float, told: list[bool]
) -> None:
    """A jump in the middle of a scan."""
    moved = SCAN.positions.copy()
    moved[len(moved) // 2 :, 1] += off
    write_scan(tmp_path / "scan.npz", replace(SCAN, positions=moved))
    case, _ = read_case(tmp_path / "scan.npz", {}, None)
    assert case is not None
    found = [*check_displacement(Examination(case, backend.try_scan))]
    assert [one.is_wrong for one in found] == told


def stretch(positions: np.ndarray, y: float, x: float) -> np.ndarray:
    middle = positions.mean(axis=0)
    return (positions - middle) * (y, x) + middle


TURNED = rotate(stretch(SMALL.positions, 1, 1.25), 6)
CORNER = np.fft.ifftshift(SCAN.diffraction, axes=(1, 2))
ROLLED = np.roll(SCAN.diffraction, (2, -3), axis=(1, 2))
SWAPPED = SCAN.positions[:, ::-1].copy()


@pytest.mark.parametrize(
    ("right", "changes", "settings"),
    [
        (SMALL, {"positions": TURNED}, {"orientation"}),
        (
            SCAN,
            {"positions": SCAN.positions * (1, -1), "diffraction": CORNER**2},
            {"orientation", "centre", "measurement"},
        ),
        (SCAN, {"positions": SWAPPED, "diffraction": ROLLED}, {"orientation", "centre"}),
        (SCAN, {"positions": SCAN.positions * 0.03}, {"units", "pixel_size_m"}),
    ],
    ids=["turned", "mirrored", "swapped", "unit"],
)
def test_what_is_written_makes_the_scan_right(
    tmp_path: Path, right: ScanData, changes: dict[str, np.ndarray], settings: set[str]
) -> None:
    report = look(tmp_path, right, **changes)
    assert {key.partition(".")[2] for key in report.settings} == settings
    lines = "\n".join(["source:", "  file: scan.npz", *list_lines(report.settings)[1:]])
    (tmp_path / "ptycho.yaml").write_text(f"name: x\n{lines}\nbackend: unrolled\n")
    project = find_project_scan(tmp_path, tmp_path / "scan.npz")
    assert project is not None
    scan = read_scan(tmp_path / "scan.npz", **project.settings(tmp_path).reading)
    assert backend.try_scan(scan, 24).r_factor < 1.3 * backend.try_scan(right, 24).r_factor


@pytest.fixture
def wide() -> ScanData:
    """Light all over the detector, from a spot of a quarter of the field of view."""
    made = simulate(SimulationOptions(size=32, grid=7, step=4.0, photons=1e8, seed=5))
    assert made.object is not None
    probe = np.zeros((1, 128, 128), np.complex64)
    rough = np.exp(1j * np.random.default_rng(2).uniform(-2, 2, (32, 32)))
    probe[0, 48:80, 48:80] = made.probe[0] * rough
    noise = np.random.default_rng(1)
    surface = np.pad(made.object, 64, constant_values=1.0)
    return measure(surface, probe, made.positions + 64, 1e9, noise, "wide")


def test_a_small_spot_needs_every_second_pixel_alone(tmp_path: Path, wide: ScanData) -> None:
    write_scan(tmp_path / "scan.npz", replace(wide, object=None))
    case, _ = read_case(tmp_path / "scan.npz", {}, None)
    assert case is not None
    trials = Trials.plan(backend.try_scan, case)
    assert (trials.size, trials.every) == (128, 2)
    frames = np.arange(49)
    whole, half = (
        backend.try_scan(
            case.place(frames, case.cut_amplitudes(frames, 128, every), 128, every), 24
        )
        for every in (1, 2)
    )
    assert half.r_factor < 1.1 * whole.r_factor


def test_frames_whose_own_axes_are_swapped(tmp_path: Path) -> None:
    report = look(tmp_path, diffraction=SMALL.diffraction.swapaxes(1, 2).copy())
    wrong = [one for one in report.findings if one.is_wrong]
    assert [one.kind for one in wrong] == ["orientation"]
    assert "the axes of the frames are swapped" in wrong[0].text


def find_kinds(report: Report) -> dict[str, bool]:
    """Kinds of findings, and whether each makes results wrong."""
    kinds = ("orientation", "axes", "drift", "unexplained")
    return {one.kind: one.is_wrong for one in report.findings if one.kind in kinds}


def test_positions_that_drift(tmp_path: Path) -> None:
    time = np.linspace(0, 1, SMALL.frame_count)[:, None]
    order = np.arange(SMALL.frame_count).reshape(SIDE, SIDE)
    order[1::2] = order[1::2, ::-1]
    order = order.ravel()
    drifted = SMALL.positions[order] + time * (0, 3.0)
    report = look(tmp_path, diffraction=SMALL.diffraction[order], positions=drifted)
    assert find_kinds(report) == {"drift": True}
    assert report.settings == {}


def test_orientation_without_a_probe(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan.npz", replace(SMALL, positions=SMALL.positions[:, ::-1].copy()))
    settings = {"probe": "estimate"}
    report = examine(tmp_path / "scan.npz", settings, try_scan=backend.try_scan)
    assert report.settings["source.orientation"]["swap"]


def test_a_flat_probe_hides_what_both_mirrored_is() -> None:
    options = SimulationOptions(size=32, grid=4, probe="disc", probe_aperture=0.0)
    flat, curved = simulate(options), SCAN
    assert is_own_twin(flat.probe)
    assert not is_own_twin(curved.probe)


def test_a_probe_that_is_its_own_image_does_not_tell_frames_from_positions() -> None:
    (swap,) = (one for one in ORIENTATIONS if one.swap and one.changes == 1)
    disc = simulate(SimulationOptions(size=32, grid=4, probe="disc", probe_aperture=0.2))
    assert is_own_image(disc.probe, swap)
    assert is_own_image(np.roll(disc.probe, 1, axis=2), swap)
    assert not is_own_image(SMALL.probe, swap)


ORDERED = make_scan(16, grid=10)


def look_at_order(folder: Path, frames: np.ndarray, positions: np.ndarray) -> tuple[str, Case]:
    """What is wrong with the frames and positions of `ORDERED` in another order."""
    scan = replace(ORDERED, diffraction=frames, positions=positions)
    write_scan(folder / "scan.npz", scan)
    case, _ = read_case(folder / "scan.npz", {}, None)
    assert case is not None
    exam = Examination(case, backend.try_scan)
    for check in (check_orientation, check_order):
        for finding in check(exam):
            exam.take(finding)
    assert {one.kind for one in exam.findings if one.is_wrong} <= {"order"}
    return "; ".join(one.text for one in exam.findings if one.is_wrong), exam.case


@pytest.mark.parametrize("shift", [1, -2, 3])
def test_frames_shifted_against_positions(tmp_path: Path, shift: int) -> None:
    rolled = np.roll(ORDERED.positions, shift, axis=0)
    told, mended = look_at_order(tmp_path, ORDERED.diffraction, rolled)
    assert f"position i{shift:+d} in all" in told
    np.testing.assert_array_equal(mended.places, ORDERED.positions[mended.keep])
    assert len(mended.keep) == 100 - abs(shift)


def test_frames_in_reverse_order(tmp_path: Path) -> None:
    told, mended = look_at_order(tmp_path, ORDERED.diffraction, ORDERED.positions[::-1].copy())
    assert "reverse order" in told
    np.testing.assert_array_equal(mended.positions, ORDERED.positions)


@pytest.mark.parametrize("is_of_positions", [True, False])
def test_lines_that_go_forth_and_back(tmp_path: Path, is_of_positions: bool) -> None:
    order = np.arange(100).reshape(10, 10)
    order[1::2] = order[1::2, ::-1]
    frames, positions, turned = ORDERED.diffraction, ORDERED.positions, order.ravel()
    if is_of_positions:
        told, mended = look_at_order(tmp_path, frames, positions[turned])
        right = positions
    else:
        told, mended = look_at_order(tmp_path, frames[turned], positions)
        right = positions[turned]
    assert "every second line of the frames runs the other way" in told
    np.testing.assert_array_equal(mended.positions, right)


def test_a_lost_frame(tmp_path: Path) -> None:
    frames = np.delete(ORDERED.diffraction, 47, axis=0)
    told, mended = look_at_order(tmp_path, frames, ORDERED.positions[:-1])
    assert "frame i belongs to position i+1" in told
    assert "a frame is missing" in told
    right = np.delete(ORDERED.positions, 47, axis=0)[mended.keep]
    assert (mended.places == right).all(axis=1).mean() > 0.9


def test_frames_in_order(tmp_path: Path) -> None:
    told, _ = look_at_order(tmp_path, ORDERED.diffraction, ORDERED.positions)
    assert told == ""


def test_the_unit_shows_where_the_orientation_is_wrong_too(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan.npz", replace(SCAN, positions=SWAPPED * 0.03))
    case, _ = read_case(tmp_path / "scan.npz", {}, None)
    assert case is not None
    (found,) = check_units(Examination(case, backend.try_scan))
    assert found.settings["source.pixel_size_m"] == pytest.approx(0.03e-6, rel=0.02)


def test_an_object_that_is_hard_to_find_makes_no_scan_wrong(half_turns):
    short, whole = (backend.try_scan(half_turns, steps).r_factor for steps in (24, 48))
    assert whole < 0.5 * short

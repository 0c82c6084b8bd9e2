"""Going on from another backend's reconstruction: no worse, soon better, in the scan's frame."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ptycho_tasks.backend import Reconstruction, RefineRequest, TrainRequest, checked_reconstruction
from ptycho_tasks.errors import ConfigError, ScanError, TrainingError
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks.physics.metrics import data_misfit, score
from ptycho_tasks.scan import Canvas, canvas_of, take_frames

pytest.importorskip("ptychi", reason="the library pty-chi is not installed")
backend = pytest.importorskip("ptycho_tasks_ptychi.backend").backend
options_module = pytest.importorskip("ptycho_tasks_ptychi.options")
reconstruct = pytest.importorskip("ptycho_tasks_ptychi.reconstruct")
cut_window = pytest.importorskip("ptycho_tasks_ptychi.evaluate").cut_window
PtychiOptions = options_module.PtychiOptions

CPU = ExecutionOptions(accelerator="cpu", threads=1)
FEW = PtychiOptions(epochs=3, refine_probe=False)


def refine(scan, start, options=FEW, execution=CPU, **hooks):
    measured = replace(scan, object=None)
    made = backend.refine(RefineRequest(measured, start, options, execution, **hooks))
    return checked_reconstruction(made, scan, "ptychi", "refine")


def r_factor(scan, made) -> float:
    return data_misfit(
        made.object, made.origin, made.probe, made.positions, scan.diffraction
    ).r_factor


def scores(scan, made):
    return score(made.object, made.origin, scan.object, made.positions, scan.size)


def start_of(scan, image) -> Reconstruction:
    """A start with read-only arrays, zero beside what its canvas needs, as a network may give."""
    canvas = canvas_of(scan.positions, scan.size)
    shown = cut_window(image.astype(np.complex64), (0, 0), canvas)
    made = Reconstruction(shown, canvas.origin, scan.probe.copy(), scan.positions.copy())
    made.object[~made.seen] = 0
    for array in (made.object, made.probe, made.positions):
        array.flags.writeable = False
    return made


@pytest.fixture(scope="module")
def truth(scan):
    return start_of(scan, scan.object)


@pytest.fixture(scope="module")
def start(scan):
    """Blurred and noisy: what a network that has not learnt enough may give."""
    smooth = gaussian_filter(scan.object.real, 1.2) + 1j * gaussian_filter(scan.object.imag, 1.2)
    noise = np.random.default_rng(0).standard_normal((2, *smooth.shape))
    return start_of(scan, smooth + 0.02 * (noise[0] + 1j * noise[1]))


@pytest.fixture(scope="module")
def refined(scan, start):
    return refine(scan, start)


def test_the_truth_stays(scan, truth):
    made = refine(scan, truth)
    assert r_factor(scan, made) < 1.05 * r_factor(scan, truth)
    assert scores(scan, made)["amplitude_ssim"] > 0.99
    np.testing.assert_allclose(made.probe, truth.probe, atol=1e-5 * np.abs(truth.probe).max())
    np.testing.assert_array_equal(made.positions, truth.positions)


@pytest.mark.parametrize(
    ("algorithm", "share"), [("LSQML", 0.6), ("rPIE", 0.75), ("ePIE", 0.75), ("DM", 0.95)]
)
def test_a_few_epochs_beat_the_start_and_as_many_from_flat(scan, start, algorithm, share):
    options = PtychiOptions(algorithm=algorithm, epochs=3, refine_probe=False)
    made = refine(scan, start, options)
    model = backend.train(TrainRequest([scan], options, CPU)).models["reconstruction"]
    canvas = reconstruct.add_rim(scan.positions, scan.size, options)
    from_flat = Reconstruction(model["object"], canvas.origin, model["probe"], model["positions"])
    assert r_factor(scan, made) < share * r_factor(scan, start)
    assert r_factor(scan, made) < 0.9 * r_factor(scan, from_flat)
    assert len(made.losses) == 3
    for name in ("amplitude_ssim", "phase_ssim"):
        assert scores(scan, made)[name] > scores(scan, from_flat)[name], name


def test_the_result_lies_on_the_canvas_of_the_scan(scan, refined):
    canvas = canvas_of(scan.positions, scan.size)
    assert (refined.origin, refined.object.shape) == (canvas.origin, canvas.shape)


@pytest.mark.parametrize("rows", [-7, 3])
def test_the_canvas_of_the_start_means_nothing(scan, start, refined, rows):
    """Larger than the scan's on all sides; rows=3: not centred, and its rim is no result."""
    origin = start.origin[0] + min(rows, 0) - 4, start.origin[1] - 9
    shape = start.object.shape[0] + 15, start.object.shape[1] + 11
    larger = cut_window(start.object, start.origin, Canvas(origin, shape))
    there = replace(start, object=larger, origin=origin)
    there.object[~there.seen] = 50j
    made = refine(scan, there)
    assert made.origin == refined.origin
    np.testing.assert_array_equal(made.object, refined.object)


def test_a_shifted_scan_and_start_give_a_shifted_object(scan, start, refined):
    by = np.array([5, -3])
    moved = replace(scan, positions=scan.positions + by)
    there = replace(
        start,
        origin=(start.origin[0] + 5, start.origin[1] - 3),
        positions=start.positions + by,
    )
    made = refine(moved, there)
    assert made.origin == (refined.origin[0] + 5, refined.origin[1] - 3)
    np.testing.assert_allclose(made.object, refined.object, atol=1e-3)


def test_where_nothing_was_seen_the_mean_level_stands(scan, start):
    begun = reconstruct.take_start(start, scan, FEW)
    seen = cut_window(start.seen, start.origin, Canvas(begun.origin, begun.object.shape))
    known = cut_window(start.object, start.origin, Canvas(begun.origin, begun.object.shape))
    np.testing.assert_array_equal(begun.object[seen], known[seen])
    (level,) = set(begun.object[~seen].tolist())
    assert abs(level) == pytest.approx(np.sqrt(np.mean(np.abs(known[seen]) ** 2)))
    assert np.angle(level) == pytest.approx(np.angle(known[seen].sum()))


def test_the_start_is_not_changed_and_equal_requests_give_equal_bytes(scan, start, refined):
    before = [np.array(a) for a in (start.object, start.probe, start.positions)]
    again = refine(scan, start)
    for was, array in zip(before, (start.object, start.probe, start.positions), strict=True):
        np.testing.assert_array_equal(array, was)
    for name in ("object", "probe", "positions"):
        assert getattr(again, name).tobytes() == getattr(refined, name).tobytes()
    other = refine(scan, start, msgspec.structs.replace(FEW, seed=1))
    assert other.object.tobytes() != refined.object.tobytes()


def test_frames_in_another_order_are_explained_as_well(scan, start, refined):
    order = np.random.default_rng(1).permutation(scan.frame_count)
    there = replace(start, positions=start.positions[order])
    made = refine(take_frames(scan, order), there)
    np.testing.assert_array_equal(made.positions, scan.positions[order])
    unmixed = replace(made, positions=scan.positions)
    assert r_factor(scan, unmixed) == pytest.approx(r_factor(scan, refined), rel=0.1)


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_defaults_do_with_few_epochs(scan, start, epochs):
    made = refine(scan, start, PtychiOptions(epochs=epochs))
    assert r_factor(scan, made) < r_factor(scan, start)
    assert not np.array_equal(made.probe, start.probe)


def test_a_wrong_probe_is_refined(scan, start):
    curved = np.exp(0.6j * np.hypot(*np.ogrid[-1:1:32j, -1:1:32j]))
    wrong = replace(start, probe=(scan.probe * curved).astype(np.complex64))
    kept, found = (
        refine(scan, wrong, PtychiOptions(epochs=8, refine_probe=probe)) for probe in (False, True)
    )
    assert r_factor(scan, found) < 0.7 * r_factor(scan, kept)


def test_more_modes_than_the_start_has_may_be_asked_for(scan, start):
    made = refine(scan, start, PtychiOptions(epochs=4, probe_modes=2))
    assert made.probe.shape == (2, 32, 32)
    assert r_factor(scan, made) < r_factor(scan, start)


def test_positions_are_gone_on_from_and_refined(scan, truth):
    error = np.random.default_rng(0).uniform(-0.5, 0.5, scan.positions.shape)
    there = replace(truth, positions=scan.positions + error)
    options = PtychiOptions(
        epochs=40, refine_probe=False, refine_positions=True, refine_positions_from=0
    )
    made = refine(scan, there, options)
    assert r_factor(scan, made) < 0.5 * r_factor(scan, there)
    left = made.positions - scan.positions
    left -= left.mean(axis=0)
    assert np.abs(left).mean() < 0.6 * np.abs(error - error.mean(axis=0)).mean()
    kept = refine(scan, there)
    np.testing.assert_array_equal(kept.positions, there.positions)


def test_progress_is_told_and_stops_the_work(scan, start):
    told = []

    def tell(done, total, metrics):
        told.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine(scan, start, progress=tell)
    assert told == [(0, 3), (1, 3), (2, 3)]


def test_a_start_of_another_scan_is_refused_in_one_line(scan, start):
    smaller = replace(start, probe=start.probe[:, 8:24, 8:24])
    fewer = replace(start, positions=start.positions[:-1])
    for wrong, said in ((smaller, "81 frames of 16 x 16"), (fewer, "80 frames of 32 x 32")):
        with pytest.raises(ScanError, match=said) as error:
            refine(scan, wrong)
        assert "\n" not in str(error.value)


def test_what_cannot_be_refined_is_refused(scan, start):
    with pytest.raises(ScanError, match="every frame is dark"):
        refine(replace(scan, diffraction=np.zeros_like(scan.diffraction)), start)
    with pytest.raises(TrainingError, match=r"LSQML: .* lower object_step"):
        refine(scan, start, PtychiOptions(epochs=30, object_step=1e30, refine_probe=False))
    with pytest.raises(ConfigError, match=r"execution.accelerator: .* no `mps`"):
        refine(scan, start, execution=ExecutionOptions(accelerator="mps"))

"""The iterative engines: better than what they started from, deterministic, honest on positions."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from ptycho_tasks.backend import (
    Backend,
    InferRequest,
    Reconstruction,
    TrainRequest,
    checked_model,
    checked_reconstruction,
)
from ptycho_tasks.errors import ConfigError, ScanError, TrainingError
from ptycho_tasks.options import ExecutionOptions, SimulationOptions
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.physics.metrics import data_misfit, scanned_box, score
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.results.bundle import bundle_bytes
from ptycho_tasks.scan import canvas_of

pytest.importorskip("ptychi", reason="the library pty-chi is not installed")
backend = pytest.importorskip("ptycho_tasks_ptychi.backend").backend
options_module = pytest.importorskip("ptycho_tasks_ptychi.options")
library = pytest.importorskip("ptycho_tasks_ptychi.library")
reconstruct = pytest.importorskip("ptycho_tasks_ptychi.reconstruct")
KNOBS, PtychiOptions = options_module.KNOBS, options_module.PtychiOptions
cut_window = pytest.importorskip("ptycho_tasks_ptychi.evaluate").cut_window
sum_flux, change_mode_count = reconstruct.sum_flux, reconstruct.change_mode_count

CPU = ExecutionOptions(accelerator="cpu", threads=1)
KNOWN = PtychiOptions(epochs=8, refine_probe=False)


def train(scan, options=KNOWN, **hooks):
    return checked_model(backend.train(TrainRequest([scan], options, CPU, **hooks)), "ptychi")


def infer(scan, model, options=KNOWN):
    made = backend.infer(InferRequest(scan, model, options, CPU))
    return checked_reconstruction(made, scan, "ptychi")


def r_factor(scan, made) -> float:
    return data_misfit(
        made.object, made.origin, made.probe, made.positions, scan.diffraction
    ).r_factor


def scores(scan, made):
    return score(made.object, made.origin, scan.object, made.positions, scan.size)


def flat(made):
    return replace(made, object=np.full_like(made.object, 0.7))


def as_bytes(model) -> bytes:
    return bundle_bytes(model, backend="ptychi", backend_version="1", size=32, params={})


@pytest.fixture(scope="module")
def model(scan):
    return train(scan)


def test_it_is_a_backend():
    assert isinstance(backend, Backend)
    assert (backend.name, backend.options_type) == ("ptychi", PtychiOptions)
    assert "ptychi 2." in backend.version


@pytest.mark.parametrize(
    ("algorithm", "epochs", "r"),
    [("LSQML", 8, 0.06), ("rPIE", 8, 0.08), ("ePIE", 8, 0.1), ("DM", 30, 0.08)],
)
def test_each_algorithm_reconstructs(scan, algorithm, epochs, r):
    options = PtychiOptions(algorithm=algorithm, epochs=epochs, refine_probe=False)
    model = train(scan, options)
    made = infer(scan, model, options)
    start = r_factor(scan, flat(made))
    assert r_factor(scan, made) < r < start / 2
    ours, none = scores(scan, made), scores(scan, flat(made))
    assert ours["amplitude_ssim"] > 0.9 > none["amplitude_ssim"] + 0.2
    assert ours["phase_ssim"] > 0.75 > none["phase_ssim"] + 0.2
    assert len(model.history) == len(made.losses) == epochs
    assert model.history[-1]["loss"] < model.history[0]["loss"]


def test_a_known_probe_stays_as_it_is(scan, model):
    found = model.models["reconstruction"]["probe"]
    np.testing.assert_allclose(found, scan.probe, atol=1e-5 * np.abs(scan.probe).max())


def test_the_same_seed_gives_the_same_bytes_and_another_others(scan, model):
    assert as_bytes(train(scan)) == as_bytes(model)
    other = train(scan, msgspec.structs.replace(KNOWN, seed=1))
    assert as_bytes(other) != as_bytes(model)


def test_the_process_is_left_as_it_was(scan):
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    train(scan, msgspec.structs.replace(KNOWN, epochs=1))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])
    assert torch.utils._device.CURRENT_DEVICE is None
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("algorithm", list(KNOBS))
def test_threads_in_parallel_give_the_same_bytes(scan, algorithm):
    options = PtychiOptions(
        algorithm=algorithm, epochs=3, refine_positions=True, refine_positions_from=1
    )
    parallel = ExecutionOptions(accelerator="cpu", threads=4)
    one, two = (backend.train(TrainRequest([scan], options, parallel)) for _ in range(2))
    assert as_bytes(one) == as_bytes(two)


def test_progress_is_told_and_stops_the_work(scan):
    told = []

    def tell(done, total, metrics):
        told.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(scan, progress=tell)
    assert told == [(0, 8), (1, 8), (2, 8)]


def test_a_shifted_scan_gives_a_shifted_object(scan, model):
    moved = replace(scan, positions=scan.positions + np.array([5, -3]))
    there, here = infer(moved, train(moved)), infer(scan, model)
    assert there.origin == (here.origin[0] + 5, here.origin[1] - 3)
    np.testing.assert_allclose(there.object, here.object, atol=1e-3)


def test_the_object_lies_where_the_truth_does_though_it_is_not_square(scan):
    upper = scan.positions[:, 0] < np.median(scan.positions[:, 0])
    part = replace(
        scan, positions=scan.positions[upper], diffraction=scan.diffraction[upper], name="upper"
    )
    made = infer(part, train(part))
    assert made.object.shape == canvas_of(part.positions, 32).shape
    assert made.object.shape[0] < made.object.shape[1]
    box = scanned_box(part.positions, 32)
    row, column = (side.start - first for side, first in zip(box, made.origin, strict=True))
    truth = scan.object[box]
    H, W = truth.shape

    def error(y: int, x: int) -> float:
        seen = made.object[row + y : row + y + H, column + x : column + x + W]
        scale = np.vdot(seen, truth) / np.vdot(seen, seen)
        return float(np.linalg.norm(seen * scale - truth))

    errors = {(y, x): error(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    assert min(errors, key=errors.__getitem__) == (0, 0)


@pytest.mark.parametrize("size", [32, 30])
def test_the_forward_model_of_the_library_is_ours(size):
    """Scale of the probe, order of axes, origin, rounding and sub-pixel shifts, all at once."""
    scan = simulate(SimulationOptions(size=size, grid=5, step=3.5, jitter=1.0, seed=2))
    canvas = reconstruct.add_rim(scan.positions, size, KNOWN)
    image = cut_window(scan.object, (0, 0), canvas)
    start = Reconstruction(image, canvas.origin, scan.probe, scan.positions)
    with library.contain_library(CPU), torch.no_grad():
        api, task_type = library.import_library()
        task = reconstruct.make_task(api, task_type, KNOWN, scan, start, "cpu")
        counts = task.reconstructor.forward_model(torch.arange(25)).numpy()
    expected = np.concatenate(
        [i for _, i in expected_intensity(scan.object, scan.probe, scan.positions)]
    )
    found = np.sqrt(np.fft.fftshift(counts, axes=(1, 2)))
    assert np.abs(found - np.sqrt(expected)).max() < 1e-5 * np.sqrt(expected).max()


def test_refining_a_wrong_probe_explains_the_data_better(scan):
    curved = np.exp(0.6j * np.hypot(*np.ogrid[-1:1:32j, -1:1:32j]))
    wrong = (scan.probe * curved).astype(np.complex64)
    guess = replace(scan, probe=wrong)
    fixed = PtychiOptions(epochs=15, refine_probe=False)
    refined = PtychiOptions(epochs=15)
    kept = infer(guess, train(guess, fixed), fixed)
    found = infer(guess, train(guess, refined), refined)
    assert r_factor(scan, found) < 0.7 * r_factor(scan, kept)


def test_a_probe_of_unknown_scale_gets_the_flux_of_the_data(scan):
    unknown = replace(scan, probe=scan.probe * np.float32(1e-3))
    made = infer(unknown, train(unknown))
    assert r_factor(scan, made) < 0.06


@pytest.mark.parametrize("modes", [2, 4])
def test_new_modes_are_orthogonal_and_keep_the_flux(scan, modes):
    probe = change_mode_count(scan.probe, modes)
    assert probe.shape == (modes, 32, 32)
    assert sum_flux(probe) == pytest.approx(sum_flux(scan.probe))
    gram = np.einsum("pyx,qyx->pq", probe.conj(), probe)
    light = np.diag(gram).real
    assert (np.abs(gram - np.diag(light)) < 1e-4 * light[0]).all()
    assert (light[1:] < 0.03 * light[0]).all()


@pytest.fixture(scope="module")
def blurred(scan):
    """Without noise, lit by three modes, of which two hold a quarter of the light."""
    probe = change_mode_count(scan.probe, 3)
    probe[1:] *= 3
    frames = np.concatenate([i for _, i in expected_intensity(scan.object, probe, scan.positions)])
    return replace(scan, diffraction=np.sqrt(frames), probe=probe)


def test_the_modes_of_the_scan_are_used(blurred):
    all_, first = (msgspec.structs.replace(KNOWN, probe_modes=modes) for modes in (None, 1))
    three, one = (infer(blurred, train(blurred, o), o) for o in (all_, first))
    assert (three.probe.shape, one.probe.shape) == ((3, 32, 32), (1, 32, 32))
    assert r_factor(blurred, three) < 0.5 * r_factor(blurred, one)


@pytest.mark.parametrize("modes", [1, 2, 3])
def test_the_strongest_modes_are_taken_in_whatever_order_they_come(blurred, modes):
    strong = change_mode_count(blurred.probe, modes)
    weakest_first = np.concatenate([0 * blurred.probe[:1], blurred.probe[::-1]])
    np.testing.assert_allclose(change_mode_count(weakest_first, modes)[0], strong[0], atol=1e-3)


def test_more_modes_than_the_scan_has_are_found(blurred):
    guess = replace(blurred, probe=blurred.probe[:1])
    few, many = (
        PtychiOptions(algorithm="rPIE", epochs=15, probe_modes=modes) for modes in (None, 3)
    )
    one, three = (infer(guess, train(guess, o), o) for o in (few, many))
    assert three.probe.shape == (3, 32, 32)
    assert r_factor(guess, three) < 0.8 * r_factor(guess, one)


def test_refined_positions_come_closer(scan):
    error = np.random.default_rng(0).uniform(-0.7, 0.7, scan.positions.shape)
    measured = replace(scan, positions=scan.positions + error)
    options = PtychiOptions(
        epochs=40, refine_probe=False, refine_positions=True, refine_positions_from=5
    )
    model = train(measured, options)
    made = infer(measured, model, options)
    left = made.positions - scan.positions
    left -= left.mean(axis=0)
    assert np.abs(left).mean() < 0.6 * np.abs(error - error.mean(axis=0)).mean()
    none = infer(measured, train(measured, msgspec.structs.replace(KNOWN, epochs=40)))
    assert r_factor(scan, made) < 0.8 * r_factor(scan, none)


def test_batches_and_noise_model_are_passed_on(scan, model):
    for changed in (
        {"batching": "compact", "batch_size": 20, "momentum": 0.5},
        {"batching": "uniform"},
        {"noise_model": "poisson"},
        {"object_step": 0.5},
        {"batch_size": 81},
    ):
        other = train(scan, msgspec.structs.replace(KNOWN, **changed))
        assert as_bytes(other) != as_bytes(model), changed


def options_of(**given):
    return msgspec.convert(given, PtychiOptions)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"algorithm": "HIO"}, "Invalid enum value 'HIO'"),
        ({"algorithm": "DM", "batch_size": 16}, "batch_size is for LSQML, rPIE, ePIE"),
        ({"alpha": 0.5}, "alpha is for rPIE and means nothing to LSQML"),
        ({"algorithm": "rPIE", "noise_model": "poisson"}, "noise_model is for LSQML"),
        ({"epochs": 2, "refine_probe_from": 2}, "beyond the last of 2 epochs"),
        ({"refine_positions": True, "refine_positions_from": 50}, "refine_positions_from 50"),
        ({"refine_probe_from": -1}, ">= 0"),
        ({"object_step": 0.0}, "> 0"),
        ({"step": 1}, "unknown field `step`"),
    ],
)
def test_wrong_options_are_refused(given, said):
    with pytest.raises(msgspec.ValidationError, match=said):
        options_of(**given)


@pytest.mark.parametrize(
    ("epochs", "probe", "positions"), [(1, 0, 0), (2, 1, 1), (3, 1, 1), (10, 2, 5), (50, 2, 15)]
)
def test_few_epochs_leave_time_for_probe_and_positions(epochs, probe, positions):
    options = options_of(epochs=epochs, refine_positions=True)
    assert (options.first_epoch("probe"), options.first_epoch("positions")) == (probe, positions)


def test_every_knob_of_every_algorithm_is_an_option():
    for algorithm, knobs in KNOBS.items():
        for name, value in knobs.items():
            assert options_of(algorithm=algorithm, **{name: value}).knob(name) == value
            assert options_of(algorithm=algorithm).knob(name) == value


def test_a_device_that_is_not_there_is_refused(scan):
    with pytest.raises(ConfigError, match=r"execution.accelerator: .* no `mps`"):
        backend.train(TrainRequest([scan], KNOWN, ExecutionOptions(accelerator="mps")))


def test_what_cannot_be_reconstructed_is_refused(scan):
    with pytest.raises(ScanError, match="every frame is dark"):
        train(replace(scan, diffraction=np.zeros_like(scan.diffraction)))
    with pytest.raises(ScanError, match="zero everywhere"):
        train(replace(scan, probe=np.zeros_like(scan.probe)))
    with pytest.raises(TrainingError, match=r"LSQML: .* lower object_step"):
        train(scan, PtychiOptions(epochs=30, object_step=1e30, refine_probe=False))


def test_several_scans_are_refused_before_anything_is_computed(scan):
    request = TrainRequest([scan, scan], KNOWN, CPU)
    for act in (backend.memory, backend.train):
        with pytest.raises(ConfigError, match=r"^fixture\.scans: names 2 scans, but the backend"):
            act(request)


@pytest.mark.parametrize("algorithm", ["LSQML", "rPIE", "DM"])
def test_bad_pixels_are_left_out(scan, algorithm):
    """Of every frame or of one: the object explains whole frames as well, and the loss is of good
    pixels."""
    frames, middle = np.array(scan.diffraction), scan.size // 2
    frames[:, :, middle + 2] = np.nan
    frames[::3, middle - 3 : middle] = np.nan
    bad = np.isnan(frames).all(axis=0)
    options = PtychiOptions(epochs=5, algorithm=algorithm, refine_probe=False)
    results = []
    for one in (scan, replace(scan, diffraction=frames, bad_pixels=bad)):
        model = backend.train(TrainRequest([one], options, CPU))
        result = backend.infer(InferRequest(one, model, options, CPU))
        found = result.object, result.origin, result.probe, result.positions
        results.append((data_misfit(*found, scan.diffraction).r_factor, model.history[-1]["loss"]))
    (whole, loss), (ours, our_loss) = results
    assert ours < 1.25 * whole
    assert our_loss < 1.25 * loss

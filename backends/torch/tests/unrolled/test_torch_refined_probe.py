"""A probe that is refined with `unrolled`."""

from __future__ import annotations

import math
import re
import time
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ptycho_tasks.backend import InferRequest, TrainedModel, TrainRequest
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.physics.metrics import data_misfit
from ptycho_tasks.physics.simulate import make_object, measure, raster
from ptycho_tasks.scan import ScanData, take_frames
from ptycho_tasks.scans.illumination import estimate_probe
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.physics import calibration
from ptycho_tasks_torch.physics.calibration import Lens
from ptycho_tasks_torch.training.best import BestEpochs
from ptycho_tasks_torch.training.trainer import TrainingRun
from ptycho_tasks_torch.unrolled import probe_fit
from ptycho_tasks_torch.unrolled.backend import backend
from ptycho_tasks_torch.unrolled.objective import UnrolledObjective
from ptycho_tasks_torch.unrolled.options import UnrolledOptions

CPU = TorchExecution(accelerator="cpu", threads=1)
SMALL = UnrolledOptions(
    on="scan", start="nothing", epochs=4, channels=4, steps=4, batch_size=16, neighbours=16, seed=5
)


def with_options(**values) -> UnrolledOptions:
    return msgspec.structs.replace(SMALL, **values)


REFINING = with_options(probe="refined", epochs=3)


def train(scan, options, **more) -> TrainedModel:
    return backend.train(TrainRequest([scan], options, CPU, **more))


def infer(scan, model, options):
    return backend.infer(InferRequest(scan, model, options, CPU))


def r_factor(scan, made) -> float:
    return data_misfit(
        made.object, made.origin, made.probe, made.positions, scan.diffraction
    ).r_factor


@pytest.fixture(scope="module", autouse=True)
def _coarse_search():
    """Fewer probes are tried before a training, on fewer frames, and confirmed by fewer steps."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SIZES", (-2, 0, 2)), ("DEFOCI", (-2, 0, 2)), ("TRIALS", 50)):
            patch.setattr(calibration, name, value)
        patch.setattr(probe_fit, "CALIBRATING_PIXELS", 2**15)
        patch.setattr(probe_fit, "MOST_CONFIRMING", 96)
        yield


@pytest.fixture(scope="module")
def scan(large_scan) -> ScanData:
    """A probe is looked for where frames are many."""
    return large_scan


@pytest.fixture(scope="module")
def blurred(scan):
    """A scan whose probe guess is wrong."""
    parts = [gaussian_filter(part, 1.5) for part in (scan.probe[0].real, scan.probe[0].imag)]
    return replace(scan, probe=(parts[0] + 1j * parts[1]).astype(np.complex64)[None])


@pytest.fixture(scope="module")
def refined(blurred) -> TrainedModel:
    return train(blurred, REFINING)


def centres(waves: np.ndarray) -> np.ndarray:
    """(4,) where the light of (P, N, N) modes lies, in the object's plane and in the far field."""
    found = []
    for field in (waves, np.fft.fftshift(np.fft.fft2(waves), axes=(-2, -1))):
        light = (np.abs(field) ** 2).sum(axis=0, dtype=np.float64)
        index = np.arange(len(light))
        found += [(light.sum(axis=1 - axis) * index).sum() / light.sum() for axis in (0, 1)]
    return np.array(found)


def flux(waves: np.ndarray) -> float:
    return float((np.abs(waves) ** 2).sum(dtype=np.float64))


def unit(waves: np.ndarray) -> np.ndarray:
    return waves / math.sqrt(flux(waves))


def test_a_wrong_probe_is_refined(scan, blurred, refined):
    fixed = replace(refined, models={n: m for n, m in refined.models.items() if n != "probe"})
    ours, theirs = (infer(blurred, model, REFINING) for model in (refined, fixed))
    assert r_factor(blurred, ours) < 0.5 * r_factor(blurred, theirs)
    # A global phase is free.
    overlaps = [abs(np.vdot(unit(scan.probe), unit(p))) for p in (ours.probe, blurred.probe)]
    assert overlaps[0] > overlaps[1]
    np.testing.assert_array_equal(theirs.probe, blurred.probe)


def test_a_refined_probe_keeps_what_no_data_tell(blurred, refined):
    guess, modes = (refined.models["probe"][name] for name in ("guess", "modes"))
    np.testing.assert_array_equal(guess, blurred.probe)
    assert np.linalg.norm(unit(modes) - unit(guess)) > 0.1
    assert flux(modes) == pytest.approx(flux(guess), rel=1e-3)
    np.testing.assert_allclose(centres(modes), centres(guess), atol=0.05)


@pytest.mark.parametrize(
    "numbers", [(1.8, 0.0, 0.0, 0.0), (0.0, 2.0, 0.0, 0.0), (0.0, 0.0, 2.0, 0.0)]
)
def test_size_defocus_and_astigmatism_are_found_before_the_first_epoch(scan, numbers):
    right = torch.from_numpy(scan.probe)
    guess = Lens(right)(np.array(numbers)).numpy()
    objective, lines = UnrolledObjective(replace(scan, probe=guess), REFINING), []
    objective.prepare(lines.append)
    assert re.fullmatch(r"probe: .* radius [\d.]+ -> [\d.]+ pixels; misfit .* -> .*", lines[0])
    found = objective.export_further(objective.state_dict())["probe"]["modes"]
    before, after = (abs(np.vdot(unit(p), unit(scan.probe))) for p in (guess, found))
    assert 1 - after < 0.1 * (1 - before)
    assert flux(found) == pytest.approx(flux(guess), rel=1e-3)


def test_a_background_becomes_no_part_of_the_probe(scan, monkeypatch):
    counts = np.square(scan.diffraction)
    light = 0.1 * counts.mean() * np.linspace(0, 2, scan.size)
    counts += np.random.default_rng(2).poisson(light, counts.shape)
    guess = Lens(torch.from_numpy(scan.probe))(np.array((0.0, 1.0, 0.0, 0.0))).numpy()
    covered = replace(scan, probe=guess, diffraction=np.sqrt(counts, dtype=np.float32))

    def find_error() -> float:
        objective = UnrolledObjective(covered, with_options(probe="refined", probe_modes=2))
        objective.prepare(lambda line: None)
        found = objective.export_further(objective.state_dict())["probe"]["modes"]
        return 1 - abs(np.vdot(unit(found[:1]), unit(scan.probe)))

    beside = find_error()
    monkeypatch.setattr(probe_fit, "suspect_background", lambda *_: None)
    assert beside < 0.3 * find_error()


def test_a_guess_that_is_right_is_about_kept(scan):
    objective = UnrolledObjective(scan, REFINING)
    objective.prepare(lambda line: None)
    found = objective.export_further(objective.state_dict())["probe"]["modes"]
    assert abs(np.vdot(unit(found), unit(scan.probe))) > 0.99


def test_what_frames_held_back_do_not_confirm_is_not_taken(scan, monkeypatch):
    wrong = Lens(torch.from_numpy(scan.probe))(np.array([3.0, 0, 0, 0]))
    monkeypatch.setattr(probe_fit, "calibrate_probe", lambda guess, misfit: wrong)
    monkeypatch.setattr(probe_fit, "_fit_modes", lambda block, start: block.reconstruct(wrong))
    guess, lines = torch.from_numpy(scan.probe), []
    found = probe_fit.fit_probe(scan, guess, 3, lines.append)
    assert lines == [
        "probe: kept as it is; frames held back are explained no better by a fitted one"
    ]
    np.testing.assert_array_equal(found, guess)


def test_a_probe_is_confirmed_by_steps_that_converge(dense):
    """Those of the usual length diverge there, with the right probe too."""
    guess = torch.from_numpy(dense.probe)
    block = probe_fit._Block(dense, guess)
    before = block.reconstruct(guess).misfit.mean()
    after = block.settle(guess).misfit.mean()
    assert block.damping < 1
    assert after < 0.5 * before


def test_too_few_frames_tell_no_probe(scan):
    few, lines = take_frames(scan, np.arange(20)), []
    found = probe_fit.fit_probe(few, torch.from_numpy(scan.probe), 1, lines.append)
    assert lines == ["probe: kept as it is, 20 frames are too few to fit it"]
    np.testing.assert_array_equal(found, scan.probe)


@pytest.fixture(scope="module")
def coherence(scan) -> ScanData:
    """Two modes, the weak one first, and a dark one."""
    y = np.arange(scan.size) - scan.size // 2
    second = scan.probe * y[:, None]
    second *= np.float32(0.5 * np.linalg.norm(scan.probe) / np.linalg.norm(second))
    probe = np.concatenate([0 * scan.probe, second, scan.probe]).astype(np.complex64)
    frames = np.concatenate([i for _, i in expected_intensity(scan.object, probe, scan.positions)])
    return replace(scan, diffraction=np.sqrt(frames).astype(np.float32), probe=probe)


def test_modes_that_explain_something_are_not_dropped(coherence, monkeypatch):
    monkeypatch.setattr(probe_fit, "calibrate_probe", lambda guess, misfit: guess)
    monkeypatch.setattr(probe_fit, "MOST_LOOKS", 1)
    guess, lines = torch.from_numpy(coherence.probe), []
    found = probe_fit.fit_probe(coherence, guess, 1, lines.append)
    assert lines == ["probe: all its 2 modes are kept; frames held back are explained worse by 1"]
    np.testing.assert_array_equal(found, guess[1:])


def test_fewer_modes_are_compared_with_all_as_well_as_they_can_be(coherence, monkeypatch):
    """Of a guess that is fitted, too, one mode explains more than both of the guess."""
    monkeypatch.setattr(probe_fit, "calibrate_probe", lambda guess, misfit: guess)
    monkeypatch.setattr(probe_fit, "MOST_LOOKS", 8)
    guess = Lens(torch.from_numpy(coherence.probe[1:]))(np.array([0, 4.0, 0, 0]))
    lines = []
    found = probe_fit.fit_probe(coherence, guess, 1, lines.append)
    assert lines[0].endswith("2 modes are kept; frames held back are explained worse by 1")
    assert lines[1].startswith("probe: fitted to 81 frames (2 modes with ")
    assert len(found) == 2


def test_a_mode_that_explains_nothing_is_dropped_where_fewer_are_asked_for(scan, monkeypatch):
    monkeypatch.setattr(probe_fit, "calibrate_probe", lambda guess, misfit: guess)
    monkeypatch.setattr(probe_fit, "MOST_LOOKS", 1)
    right, lines = torch.from_numpy(scan.probe), []
    twice = torch.cat([right, right]) * 0.5**0.5
    found = probe_fit.fit_probe(scan, twice, 1, lines.append)
    assert re.match("probe: fitted to 81 frames, with 1 of its 2 modes; misfit", lines[0])
    assert abs(np.vdot(unit(found.numpy()), unit(scan.probe))) > 0.999
    assert flux(found.numpy()) == pytest.approx(flux(scan.probe), rel=1e-3)


def test_a_scan_too_small_to_train_on_keeps_its_probe_where_nothing_is_trained(scan):
    few, lines = take_frames(scan, np.arange(4)), []
    model = train(few, with_options(probe="refined", epochs=0), say=lines.append)
    assert lines == ["probe: kept as it is, 4 frames are too few to fit it"]
    assert "probe" not in model.models


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_a_probe_that_is_scaled_is_told(scan, refined, factor):
    """What the object's amplitudes are a multiple of is not known then."""
    lines, guess = [], scan.probe * np.float32(factor)
    told = InferRequest(replace(scan, probe=guess), refined, REFINING, CPU, say=lines.append)
    backend.infer(told)
    scaled = [line for line in lines if line.startswith("probe: scaled to the frames, its flux is")]
    assert len(scaled) == (factor != 1)


def test_a_probe_that_is_an_estimate_is_fitted_to_the_scan_at_hand(scan):
    """Without a training that knows it."""
    blind = replace(scan, probe=estimate_probe(scan.diffraction), is_probe_estimated=True)
    model, lines = train(scan, with_options(epochs=1, probe="fixed")), []
    enough = with_options(steps="auto")
    made = backend.infer(InferRequest(blind, model, enough, CPU, say=lines.append))
    overlaps = [abs(np.vdot(unit(scan.probe), unit(p))) for p in (made.probe, blind.probe)]
    assert overlaps[0] > 0.97 > 0.7 > overlaps[1]
    assert lines[0].startswith("probe: size, defocus and astigmatism fitted")
    known = backend.infer(InferRequest(scan, model, enough, CPU))
    assert r_factor(blind, made) < 1.5 * r_factor(scan, known)


def test_a_guess_that_is_far_off_gives_way_to_an_estimate(scan):
    """Of a defocused probe the modulus alone, as where its phase was lost."""
    guess, lines = torch.from_numpy(np.abs(scan.probe) + 0j).to(torch.complex64), []
    found = probe_fit.fit_probe(scan, guess, 1, lines.append)
    told = "probe: none near the guess explains the frames; one is estimated from them alone"
    assert told in lines
    assert abs(np.vdot(unit(found.numpy()), unit(scan.probe))) > 0.95


def gaussian(r):
    return np.exp(-((r / 3.2) ** 2) + 3j * (r / 6.4) ** 2)


def pinhole(r):
    """Some way behind it."""
    q = np.fft.fftfreq(len(r))
    turn = np.exp(60j * (q[:, None] ** 2 + q**2))
    return np.fft.ifft2(np.fft.fft2(np.clip(5.6 - r, 0, 1)) * turn)


@pytest.mark.parametrize(("wave", "seed"), [(gaussian, 2), (pinhole, 1)])
def test_an_estimate_is_fitted_until_nothing_is_gained(wave, seed, monkeypatch):
    """Of the first, steps on the object diverge; the second needs more rounds than a guess has."""
    options = SimulationOptions(size=32, grid=9, step=2, jitter=1, phase_range=1.5)
    generator = np.random.default_rng(seed)
    along = np.arange(options.size) - options.size // 2
    probe = wave(np.hypot(along[:, None], along))
    probe = (1e3 * probe / np.linalg.norm(probe)).astype(np.complex64)[None]
    positions = raster(options, generator)
    scan = measure(make_object(options, generator), probe, positions, 1e6, generator, "wave")
    guess = Lens(torch.from_numpy(scan.probe))(np.array([2.0, -3.0, 1.0, 0.0]))
    monkeypatch.setattr(
        probe_fit,
        "_calibrate",
        lambda block, before, scan, frames, say: before,
    )
    blind = replace(scan, is_probe_estimated=True)
    found = probe_fit.fit_probe(blind, guess, 1, lambda _: None).numpy()
    overlaps = [abs(np.vdot(unit(scan.probe), unit(p))) for p in (found, guess.numpy())]
    assert overlaps[0] > 0.999 > 0.98 > overlaps[1]


def test_a_training_that_goes_on_looks_for_no_probe(blurred, tmp_path, every_epoch, monkeypatch):
    for name, value in (("SIZES", (0,)), ("DEFOCI", (0,)), ("TRIALS", 2)):
        monkeypatch.setattr(calibration, name, value)
    wrong, options = blurred, REFINING
    lines = []
    first = train(wrong, options, work_dir=tmp_path, say=lines.append)
    assert lines[0].startswith("probe: ")
    lines.clear()
    again = train(wrong, options, work_dir=tmp_path, say=lines.append)
    assert lines == ["takes the finished training: all 3 epochs are done"]
    assert again.history == first.history
    for name, arrays in first.models.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(again.models[name][key], array, err_msg=key)


def test_looking_for_the_probe_counts_as_time_of_the_training(scan):
    run = TrainingRun(
        REFINING, objective := UnrolledObjective(scan, REFINING), BestEpochs(REFINING, 0)
    )
    objective.prepare = lambda say: time.sleep(0.02)
    run.prepare(lambda line: None)
    assert run.seconds >= 0.02


def test_the_refined_probe_serves_scans_with_the_same_guess_only(scan, blurred, refined):
    """Whatever the guess's scale: the flux is the frames'."""
    here = infer(blurred, refined, REFINING)
    weak = replace(blurred, probe=blurred.probe / np.float32(1e3))
    made = infer(weak, refined, REFINING)
    np.testing.assert_allclose(unit(made.probe), unit(here.probe), atol=1e-5)
    counts = float((scan.diffraction.astype(np.float64) ** 2).sum() / scan.frame_count)
    assert flux(made.probe) == pytest.approx(counts, rel=1e-3)
    np.testing.assert_array_equal(infer(scan, refined, REFINING).probe, scan.probe)

"""Scan positions that are refined."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from ptycho_tasks.backend import InferRequest, TrainRequest
from ptycho_tasks.physics.simulate import measure
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.physics import mapped
from ptycho_tasks_torch.physics.mapped import expose_scan
from ptycho_tasks_torch.unrolled import positions
from ptycho_tasks_torch.unrolled.backend import backend
from ptycho_tasks_torch.unrolled.objective import UnrolledObjective
from ptycho_tasks_torch.unrolled.options import UnrolledOptions
from ptycho_tasks_torch.unrolled.positions import MOST, find_displacements, refine_positions

pytestmark = pytest.mark.usefixtures("few_objects")

CPU = TorchExecution(accelerator="cpu", threads=1)
OPTIONS = UnrolledOptions(
    on="scan",
    start="nothing",
    epochs=2,
    channels=4,
    steps=8,
    batch_size=16,
    neighbours=16,
    seed=5,
    positions="refined",
)


def with_errors(scan, size: float):
    errors = np.random.default_rng(3).normal(size=scan.positions.shape) * size
    return replace(scan, positions=scan.positions + errors)


def error(scan, positions) -> float:
    """Root mean square distance, pixels; where all lie together no data tell."""
    apart = positions - scan.positions
    return float(np.sqrt(np.square(apart - apart.mean(axis=0)).sum(axis=1).mean()))


def scale_of(scan) -> float:
    return float(np.sqrt(np.square(scan.diffraction, dtype=np.float64).mean()))


def modes_of(scan) -> torch.Tensor:
    return torch.from_numpy(scan.probe / np.float32(scale_of(scan)))


@pytest.fixture(scope="module")
def refined(scan) -> np.ndarray:
    """Positions that were wrong by 0.7 pixels."""
    return refine(with_errors(scan, 0.7), scan)


def refine(wrong, scan) -> np.ndarray:
    with torch.inference_mode():
        return refine_positions(wrong, modes_of(scan), scale_of(scan), 1.0).positions


@pytest.mark.parametrize("modes", [1, 2])
def test_a_frame_is_found_where_the_known_object_fits_it(scan, modes):
    """To first order, and with the sign that makes a position better."""
    two = np.concatenate([scan.probe, 0.3 * scan.probe[:, ::-1]])[:modes]
    apart = np.random.default_rng(0).uniform(-0.2, 0.2, scan.positions.shape)
    scale = scale_of(scan)
    probe = torch.from_numpy(two / np.float32(scale)).to(torch.complex64)
    with torch.inference_mode():
        exposure = expose_scan(scan, probe, scale, 1.0)
        y, x = (torch.arange(side) / 9 for side in exposure.shape)
        smooth = 1 + 0.3 * torch.sin(y)[:, None] * torch.cos(x)[None, :]
        canvas = torch.polar(smooth, 0.5 * torch.cos(y)[:, None] * torch.sin(x)[None, :])[None]
        amplitude = exposure.predict(canvas)
        elsewhere = expose_scan(replace(scan, positions=scan.positions + apart), probe, scale, 1.0)
        measured = replace(elsewhere, amplitude=amplitude)
        found = find_displacements(measured, canvas, np.zeros_like(apart))
    lit = np.abs(found + apart).max(axis=1)
    assert np.median(lit) < 0.02


def test_positions_come_back(scan, refined):
    wrong = with_errors(scan, 0.7)
    assert error(scan, refined) < 0.3 * error(scan, wrong.positions)
    np.testing.assert_allclose(refined.mean(axis=0), wrong.positions.mean(axis=0), atol=1e-9)


def test_positions_come_back_beside_a_background(scan, monkeypatch):
    y, x = np.mgrid[-1 : 1 : scan.size * 1j, -1 : 1 : scan.size * 1j]
    counts = np.square(scan.diffraction)
    light = 0.4 * counts.mean() * np.exp(-2 * (x**2 + y**2))
    counts += np.random.default_rng(2).poisson(light, counts.shape)
    wrong = with_errors(replace(scan, diffraction=np.sqrt(counts, dtype=np.float32)), 0.7)
    found = error(scan, refine(wrong, wrong))
    monkeypatch.setattr(positions, "suspect_background", lambda *_: None)
    assert found < 0.8 * error(scan, refine(wrong, wrong))
    assert found < 0.3 * error(scan, wrong.positions)


def test_right_positions_stay(scan):
    assert error(scan, refine(scan, scan)) < 0.2


def test_a_dark_frame_stays_where_it_is_and_none_goes_far(scan):
    frames = scan.diffraction.copy()
    frames[7] = 0
    wrong = with_errors(replace(scan, diffraction=frames), 4.0)
    refined = refine(wrong, scan)
    assert np.isfinite(refined).all()
    assert np.abs(refined - wrong.positions).max() <= MOST


def test_frames_that_are_read_from_disk_give_the_same(scan, refined, monkeypatch):
    monkeypatch.setattr(mapped, "HELD_BYTES", 0)
    again = refine(with_errors(scan, 0.7), scan)
    np.testing.assert_allclose(again, refined, atol=1e-3)


@pytest.mark.parametrize("more", [{}, {"model_type": "supervised"}, {"on": "simulated"}])
def test_training_and_inference_refine_each_scan(scan, more):
    wrong, lines = with_errors(scan, 0.7), []
    options = msgspec.structs.replace(OPTIONS, **more)
    model = backend.train(TrainRequest([wrong], options, CPU, say=lines.append))
    assert lines[0].startswith("positions: moved by ")
    made = backend.infer(InferRequest(wrong, model, options, CPU))
    assert error(scan, made.positions) < 0.4 * error(scan, wrong.positions)
    fixed = msgspec.structs.replace(options, positions="fixed")
    np.testing.assert_array_equal(
        backend.infer(InferRequest(wrong, model, fixed, CPU)).positions, wrong.positions
    )


@pytest.mark.parametrize("model_type", ["unsupervised", "supervised"])
def test_positions_that_are_right_are_learned_from_as_if_fixed(scan, model_type):
    """Canvases are larger, and labels lie on them where the frames do."""
    losses = []
    for kind in ("refined", "fixed"):
        options = msgspec.structs.replace(OPTIONS, positions=kind, model_type=model_type)
        objective = UnrolledObjective(scan, options)
        batch = objective.blocks.read(objective.blocks.training[:2])
        hidden = torch.arange(16).expand(2, 16) % 4 == 0
        turns = torch.zeros((2, 1), dtype=torch.int64)
        given = {**batch, "held_back": hidden, "turns": turns}
        losses.append(float(objective.loss(given).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_a_training_that_goes_on_keeps_the_positions(scan, tmp_path):
    wrong = with_errors(scan, 0.7)
    first = backend.train(TrainRequest([wrong], OPTIONS, CPU, work_dir=tmp_path))
    lines: list[str] = []
    again = backend.train(TrainRequest([wrong], OPTIONS, CPU, work_dir=tmp_path, say=lines.append))
    assert lines[0] == "takes the finished training: all 2 epochs are done"
    for name, array in first.models["diffraction_to_obj"].items():
        np.testing.assert_array_equal(again.models["diffraction_to_obj"][name], array)


def test_positions_that_explain_frames_no_better_are_not_taken():
    """Of an object of noise, few photons tell nothing of positions, which are right."""
    generator, N = np.random.default_rng(0), 32
    places = np.stack(np.divmod(np.arange(100), 10), axis=1) * 2.5
    places = np.round(places + generator.uniform(-0.5, 0.5, places.shape) + N // 2 + 2)
    y, x = np.mgrid[:N, :N] - N // 2
    probe = np.exp(-((np.hypot(y, x) / (0.1 * N)) ** 2) * (1 - 0.75j)).astype(np.complex64)
    side = int(places.max()) + N // 2 + 4
    amplitude, phase = generator.integers(0, 2, (2, side, side))
    truth = ((1 + amplitude) / 2 * np.exp(1j * phase)).astype(np.complex64)
    scan, lines = measure(truth, probe[None], places, 1e4, generator, "noise"), list[str]()
    found = refine_positions(scan, modes_of(scan), scale_of(scan), 1.0, say=lines.append)
    np.testing.assert_array_equal(found.positions, places)
    assert lines == ["positions: kept as they are; frames are explained no better at others"]

"""Inference: what was reconstructed, in the frame of the scan that is asked for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from ptycho_tasks.backend import InferRequest, TrainedModel, TrainRequest, checked_reconstruction
from ptycho_tasks.errors import BundleError, ConfigError, TrainingError
from ptycho_tasks.options import ExecutionOptions, SimulationOptions
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.physics.metrics import data_misfit
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scan import Canvas, canvas_of, take_frames

pytest.importorskip("ptychi", reason="the library pty-chi is not installed")
backend = pytest.importorskip("ptycho_tasks_ptychi.backend").backend
options_module = pytest.importorskip("ptycho_tasks_ptychi.options")
cut_window = pytest.importorskip("ptycho_tasks_ptychi.evaluate").cut_window
PtychiOptions = options_module.PtychiOptions

CPU = ExecutionOptions(accelerator="cpu", threads=1)
OPTIONS = PtychiOptions(
    epochs=12, refine_probe=False, refine_positions=True, refine_positions_from=4
)


@pytest.fixture(scope="module")
def model(scan) -> TrainedModel:
    return backend.train(TrainRequest([scan], OPTIONS, CPU))


def infer(scan, model):
    made = backend.infer(InferRequest(scan, model, OPTIONS, CPU))
    return checked_reconstruction(made, scan, "ptychi")


def r_factor(scan, made) -> float:
    return data_misfit(
        made.object, made.origin, made.probe, made.positions, scan.diffraction
    ).r_factor


def test_the_frames_it_was_made_from_get_the_refined_positions(scan, model):
    made = infer(scan, model)
    arrays = model.models["reconstruction"]
    np.testing.assert_array_equal(made.positions, arrays["positions"])
    assert not np.array_equal(made.positions, scan.positions)
    assert made.origin == canvas_of(made.positions, 32).origin


def test_the_order_of_the_frames_means_nothing(scan, model):
    order = np.random.default_rng(1).permutation(scan.frame_count)
    straight, mixed = infer(scan, model), infer(take_frames(scan, order), model)
    np.testing.assert_array_equal(mixed.object, straight.object)
    np.testing.assert_array_equal(mixed.positions, straight.positions[order])


def test_frames_at_one_place_keep_a_position_each(scan, model):
    arrays = dict(model.models["reconstruction"])
    arrays["scan_positions"] = np.repeat(scan.positions[:1], scan.frame_count, axis=0)
    doubled = replace(scan, positions=arrays["scan_positions"])
    made = infer(doubled, replace(model, models={"reconstruction": arrays}))
    np.testing.assert_array_equal(made.positions, arrays["positions"])


def test_other_frames_of_the_same_object_use_their_own_positions(scan, model):
    positions = scan.positions[::2] + np.random.default_rng(0).uniform(-1, 1, (41, 2))
    frames = np.concatenate([i for _, i in expected_intensity(scan.object, scan.probe, positions)])
    other = replace(scan, positions=positions, diffraction=np.sqrt(frames), name="other")
    made = infer(other, model)
    np.testing.assert_array_equal(made.positions, other.positions)
    assert made.object.shape == canvas_of(other.positions, 32).shape
    assert r_factor(other, made) < 0.1


def test_another_object_is_refused_in_one_line(scan, model):
    truth = simulate(SimulationOptions(size=32, grid=9, step=3.5, seed=7)).object
    frames = np.concatenate([i for _, i in expected_intensity(truth, scan.probe, scan.positions)])
    other = replace(scan, diffraction=np.sqrt(frames), name="stranger")
    with pytest.raises(TrainingError, match="stranger: 81 of 81 frames are new") as said:
        infer(other, model)
    assert "\n" not in str(said.value)


def test_half_of_the_frames_serve_for_the_whole_scan(scan):
    half = take_frames(scan, np.arange(0, scan.frame_count, 2))
    made = infer(scan, backend.train(TrainRequest([half], OPTIONS, CPU)))
    assert r_factor(scan, made) < 0.2


def test_a_scan_beside_the_object_is_refused_in_one_line(scan, model):
    beside = replace(scan, positions=scan.positions + np.array([0, 40]), name="elsewhere")
    with pytest.raises(TrainingError, match=r"elsewhere: \d+ of 81 frames, first frame \d") as said:
        infer(beside, model)
    assert "\n" not in str(said.value)
    far = replace(scan, positions=scan.positions + 1000)
    with pytest.raises(TrainingError, match="81 of 81 frames, first frame 0"):
        infer(far, model)


def test_frames_of_another_size_are_refused(scan, model):
    small = simulate(SimulationOptions(size=16, grid=4))
    with pytest.raises(ConfigError, match="16 x 16 pixels, but those of"):
        infer(small, model)


@pytest.mark.parametrize("lost", ["object", "probe", "positions", "scan_positions", "counts"])
def test_a_bundle_without_a_part_is_refused(scan, model, lost):
    arrays = {k: v for k, v in model.models["reconstruction"].items() if k != lost}
    with pytest.raises(BundleError, match=f"lacks a part .*{lost}"):
        infer(scan, replace(model, models={"reconstruction": arrays}))
    arrays[lost] = np.zeros((3, 1))
    with pytest.raises(BundleError, match="do not fit"):
        infer(scan, replace(model, models={"reconstruction": arrays}))


def test_a_foreign_bundle_is_refused(scan):
    with pytest.raises(BundleError, match="train again"):
        infer(scan, TrainedModel({}))


def test_a_window_shows_what_there_is():
    image = np.arange(1, 13).reshape(3, 4)
    np.testing.assert_array_equal(
        cut_window(image, (10, 20), Canvas((9, 22), (3, 4))),
        [[0, 0, 0, 0], [3, 4, 0, 0], [7, 8, 0, 0]],
    )
    for origin in [(0, 0), (30, 40), (0, 40)]:
        assert not cut_window(image, (10, 20), Canvas(origin, (3, 3))).any()


def test_neither_lookup_nor_inference_imports_torch(scan):
    code = (
        "import sys; from ptycho_tasks_ptychi.backend import backend; backend.version\n"
        "import ptycho_tasks_ptychi.evaluate\n"
        "print([m for m in ('torch', 'ptychi', 'pandas', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "[]"

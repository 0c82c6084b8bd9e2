"""Nothing waits for a GPU, or computes on the CPU, where it should not.

Tensors of torch's device `meta` have no values: what mixes them with those of a CPU, or needs a
value, fails.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ptycho_tasks_torch.device import settings
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.physics import canvas, exposure, mapped
from ptycho_tasks_torch.physics.canvas import INDEX
from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.physics.mapped import MappedExposure, expose_scan
from ptycho_tasks_torch.threads import chunks_on_threads
from ptycho_tasks_torch.unrolled.network import UnrolledNetwork
from ptycho_tasks_torch.unrolled.positions import find_displacements
from ptycho_tasks_torch.unrolled.steps import ALL, COARSE, FINE, Engine, Turns, run_steps


def expose(scan) -> Exposure:
    scale = float(np.sqrt(np.square(scan.diffraction, dtype=np.float64).mean()))
    return expose_scan(scan, torch.from_numpy(scan.probe / np.float32(scale)), scale, 1.0)


def without_values(made: Exposure) -> Exposure:
    parts = {"amplitude": made.amplitude, "probes": made.probes, "places": made.places}
    if isinstance(made, MappedExposure):
        parts |= {"frames": made.frames, "fractions": made.fractions, "held": made.held}
    return replace(made, **{name: values.to("meta") for name, values in parts.items()})


def hold(scan, monkeypatch) -> MappedExposure:
    """Frames in memory whose probes are moved in every step."""
    monkeypatch.setattr(mapped, "find_room", lambda device: (0, 2**40))
    made = expose(scan)
    assert isinstance(made, MappedExposure)
    return made


@pytest.mark.parametrize("is_held", [False, True])
def test_steps_and_correction_need_no_values(scan, is_held, monkeypatch):
    whole = hold(scan, monkeypatch) if is_held else expose(scan)
    parts = [without_values(part) for part in whole.split_in_turns(4)]
    made = without_values(whole)
    monkeypatch.setattr(Exposure, "split_in_turns", lambda self, count: parts)
    monkeypatch.setattr(Exposure, "step", 0.5)
    with torch.inference_mode():
        engine = Engine(made)
        turns = Turns(made, engine.filter)
        for turn in (*turns[COARSE], *turns[FINE], *turns[ALL]):
            engine.advance(turn)
        corrected = UnrolledNetwork(4).to("meta").correct(engine, made)
        misfit = (made.predict(corrected) - made.predict(engine.canvas)).square().mean()
    assert corrected.device == misfit.device == torch.device("meta")


def test_constants_are_sent_to_the_device_before_the_first_step(scan, monkeypatch):
    engine = Engine(made := expose(scan))
    turns = Turns(made, engine.filter)
    for name in ("new_tensor",):
        monkeypatch.setattr(torch.Tensor, name, None)
    for name in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, name, None)
    for turn in (*turns[COARSE], *turns[FINE], *turns[ALL]):
        engine.advance(turn)
    assert engine.steps == len([*turns[COARSE], *turns[FINE], *turns[ALL]])


def test_frames_held_in_memory_give_what_frames_and_probes_do(scan, monkeypatch):
    expected = expose(scan)
    made = hold(scan, monkeypatch)
    for some in ([3, 1, 8], range(scan.frame_count)):
        ours, theirs = made.take(some), expected.take(some)
        torch.testing.assert_close(ours.light, theirs.light)
        wave = torch.ones_like(expected.light) + 0.1j
        torch.testing.assert_close(ours.predict(wave), theirs.predict(wave))


def test_the_way_of_a_gpu_leads_to_the_same_object(scan, monkeypatch):
    """With all frames at once, and patches that are cut and added by an index."""
    made = expose(scan)
    *_, slices = (engine.canvas for engine in run_steps(made, 12))
    flat = np.zeros((scan.frame_count, 2))
    moved = find_displacements(made, slices, flat)
    monkeypatch.setattr(canvas, "choose_way", lambda tensor: INDEX)
    monkeypatch.setattr(exposure, "CHUNK_PIXELS", exposure.GPU_CHUNK_PIXELS)
    assert len(list(made.chunks())) == 1
    *_, index = (engine.canvas for engine in run_steps(made, 12))
    torch.testing.assert_close(index, slices, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(find_displacements(made, slices, flat), moved, atol=1e-3)


@pytest.mark.parametrize("is_mapped", [False, True])
def test_the_object_does_not_depend_on_the_number_of_threads(scan, is_mapped, monkeypatch):
    monkeypatch.setattr(exposure, "CHUNK_PIXELS", 8 * scan.size**2)
    if is_mapped:
        monkeypatch.setattr(mapped, "find_room", lambda device: (0, 0))
    objects = []
    for threads in (1, 3):
        with settings(TorchExecution(threads=threads)), chunks_on_threads():
            made = expose(scan)
            assert torch.get_num_threads() == 1
            assert len(made.parts()) > 3
            *_, canvases = (engine.canvas for engine in run_steps(made, 12))
            asked = made.joint_correction(canvases, torch.zeros(scan.frame_count, 2))
            objects.append((canvases, *asked, made.measure_misfit(canvases)))
    torch.testing.assert_close(*objects, rtol=0, atol=0)

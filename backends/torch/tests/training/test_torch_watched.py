"""A training that someone watches: what is shown, and that it changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_tasks.backend import InferRequest, TrainRequest
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.pinn.backend import backend as pinn
from ptycho_tasks_torch.training import mosaic as mosaic_module
from ptycho_tasks_torch.training.mosaic import Mosaic
from ptycho_tasks_torch.unrolled.backend import backend as unrolled

EXECUTION = TorchExecution(accelerator="cpu", threads=1)
BACKENDS = {
    "pinn": (pinn, pinn.options_type(epochs=3, gridsize=1, channels=4, n_groups=24)),
    "unrolled": (unrolled, unrolled.options_type(epochs=2, steps=4)),
}


@pytest.fixture(scope="module")
def scan():
    return simulate(SimulationOptions(size=32, grid=8, step=4.0, photons=1e6, seed=1))


def train(kind, scans, **more):
    backend, options = BACKENDS[kind]
    return backend.train(TrainRequest(scans, options, EXECUTION, **more))


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_watched_training_shows_its_object_and_gives_the_same(scan, kind):
    shown = []
    watched = train(kind, [scan], show=lambda make: shown.append(make()))
    alone = train(kind, [scan])
    assert len(shown) == BACKENDS[kind][1].epochs
    assert all(image.dtype == np.complex64 and image.any() for image in shown)
    assert (shown[0].shape != shown[1].shape) or (shown[0] != shown[1]).any()
    assert watched.history == alone.history
    for name, arrays in alone.models.items():
        for key, array in arrays.items():
            assert (watched.models[name][key] == array).all()


def test_of_several_scans_the_first_is_shown(scan):
    shown = []
    other = simulate(SimulationOptions(size=32, grid=8, step=4.0, photons=1e4, seed=2))
    train("pinn", [scan, other], show=lambda make: shown.append(make()))
    assert len(shown) == 3


def test_inference_shows_each_step(scan):
    model = train("unrolled", [scan])
    backend, options = BACKENDS["unrolled"]
    shown = []
    request = InferRequest(
        scan, model, options, EXECUTION, show=lambda make: shown.append(make().copy())
    )
    result = backend.infer(request)
    assert len(shown) >= 4
    lit = shown[-1] != 0
    assert (shown[-1][lit] == result.object[lit]).all()
    assert lit[result.seen].mean() > 0.9
    assert (shown[0] != shown[-1]).any()


def test_inference_by_patches_shows_what_it_has_and_gives_the_same(scan):
    model = train("pinn", [scan])
    backend, options = BACKENDS["pinn"]
    execution = TorchExecution(accelerator="cpu", threads=1, inference_batch_size=16)
    shown = []
    watched = backend.infer(
        InferRequest(scan, model, options, execution, show=lambda make: shown.append(make()))
    )
    alone = backend.infer(InferRequest(scan, model, options, execution))
    assert np.array_equal(watched.object, alone.object)
    assert [(image != 0).any() for image in shown] == [True] * 4
    assert (shown[0] != 0).sum() < (shown[-1] != 0).sum()
    assert np.array_equal(shown[-1], watched.object)


def test_a_mosaic_turns_blocks_to_agree():
    truth = np.exp(1j * np.linspace(0, 2, 20))[None] * np.ones((10, 1))
    mosaic = Mosaic()
    for left, turn in ((0, 1.0), (8, 2.0)):
        block = torch.from_numpy(truth[:, left : left + 12] * np.exp(1j * turn))[None]
        mosaic.add(torch.tensor([[5, 3 + left]]), block.to(torch.complex64), torch.ones(1, 10, 12))
    mosaic.finish()
    laid = mosaic.lay()
    assert laid.shape == (10, 20)
    assert np.abs(laid * np.exp(-1j) - truth).max() < 1e-5


def test_a_mosaic_begins_anew_and_keeps_what_memory_allows(monkeypatch):
    monkeypatch.setattr(mosaic_module, "_MOST_PIXELS", 1000)
    mosaic = Mosaic()
    for value in (1, 2):
        for row in range(40):
            block = torch.full((1, 10, 10), value, dtype=torch.complex64)
            mosaic.add(torch.tensor([[row, 0]]), block, torch.ones(1, 10, 10))
        mosaic.finish()
    assert sum(objects.numel() for _, objects, _ in mosaic._batches) <= 1000
    assert (mosaic.lay() == 2).all()

"""The backends keep what the core asks of every backend."""

from __future__ import annotations

import pytest

from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.testing import BackendConformance
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.pinn.backend import backend
from ptycho_tasks_torch.pinn.options import PinnOptions
from ptycho_tasks_torch.unrolled.backend import backend as unrolled
from ptycho_tasks_torch.unrolled.options import UnrolledOptions

FEW = SimulationOptions(size=32, grid=5, step=4.0, jitter=1.0, seed=4)
"""Frames that still make more than one batch."""


@pytest.mark.usefixtures("every_epoch")
class TestPinn(BackendConformance):
    """With groups of 2 x 2 frames; single frames are tried too."""

    backend = backend
    execution = TorchExecution(accelerator="cpu", threads=1, checkpoint_save_top_k=2)
    simulation = FEW
    options = PinnOptions(epochs=3, gridsize=2, channels=4, steps=1, batch_size=16, neighbours=16)


@pytest.mark.usefixtures("every_epoch", "few_trials", "few_objects")
class TestUnrolled(BackendConformance):
    """On what the frames say and on simulated objects, with a probe that is refined."""

    backend = unrolled
    execution = TorchExecution(accelerator="cpu", threads=1, checkpoint_save_top_k=2)
    simulation = FEW
    options = UnrolledOptions(
        start="nothing",
        steps=12,
        epochs=2,
        learning_rate=1e-3,
        channels=4,
        batch_size=16,
        neighbours=16,
        probe="refined",
        probe_modes=2,
    )


class TestUntrained(BackendConformance):
    """As it comes: the network of the package, and nothing learned."""

    backend = unrolled
    execution = TorchExecution(accelerator="cpu", threads=1)
    simulation = FEW
    options = UnrolledOptions()

"""The backends keep what the core asks of every backend."""

from __future__ import annotations

import math

import pytest

from ptycho_tasks.testing import BackendConformance
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.pinn.backend import backend
from ptycho_tasks_torch.pinn.options import PinnOptions
from ptycho_tasks_torch.training import checkpoints
from ptycho_tasks_torch.unrolled.backend import backend as unrolled
from ptycho_tasks_torch.unrolled.options import UnrolledOptions


class TestPinn(BackendConformance):
    """With groups of 2 x 2 frames; single frames are tried too."""

    backend = backend
    execution = TorchExecution(accelerator="cpu", threads=1, checkpoint_save_top_k=2)
    options = PinnOptions(epochs=4, gridsize=2, channels=4, steps=1, batch_size=16, neighbours=16)

    @pytest.fixture(autouse=True)
    def _checkpoint_after_every_epoch(self, monkeypatch):
        """However fast an epoch is: a training that starts anew resumes nothing."""
        monkeypatch.setattr(checkpoints, "LEAST_SECONDS", 0)
        monkeypatch.setattr(checkpoints, "SHARE", math.inf)


class TestUnrolled(BackendConformance):
    """On what the frames say and on simulated objects, with a probe that is refined."""

    backend = unrolled
    execution = TorchExecution(accelerator="cpu", threads=1, checkpoint_save_top_k=2)
    options = UnrolledOptions(
        epochs=5, channels=4, steps=4, batch_size=16, neighbours=16, probe="refined", probe_modes=2
    )

    @pytest.fixture(autouse=True)
    def _checkpoint_after_every_epoch(self, monkeypatch):
        """However fast an epoch is: a training that starts anew resumes nothing."""
        monkeypatch.setattr(checkpoints, "LEAST_SECONDS", 0)
        monkeypatch.setattr(checkpoints, "SHARE", math.inf)

    @pytest.fixture(autouse=True)
    def _few_trials(self, few_trials):
        """What a probe is like is looked for before every training; that has tests of its own."""

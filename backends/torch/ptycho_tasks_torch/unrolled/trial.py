"""A quick reconstruction that tells how well a scan explains itself."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ptycho_tasks.backend import Trial
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.device import settings
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.physics.mapped import expose_scan
from ptycho_tasks_torch.physics.scale import find_photon, read_intensity, scale_probe
from ptycho_tasks_torch.unrolled.steps import run_steps

EVERY = 4
"""Steps from one look at the frames to the next; of all looks the best counts, since steps may
diverge."""


def try_on_canvas(scan: ScanData, steps: int) -> Trial:
    """Take steps on the CPU, where few frames are done before a GPU has started; see
    `Unrolled.try_scan`."""
    execution = TorchExecution.from_execution(ExecutionOptions(threads=1, accelerator="cpu"))
    with settings(execution), torch.inference_mode():
        intensity = read_intensity(scan, np.arange(scan.frame_count))
        scale = math.sqrt(intensity)
        probe = scale_probe(scan.probe, intensity * scan.size**2)
        modes = torch.from_numpy(probe / np.float32(scale))
        exposure = expose_scan(scan, modes, scale, find_photon(scan.diffraction))
        best, r_factor = None, math.inf
        for engine in run_steps(exposure, steps):
            if engine.steps % EVERY and engine.steps < steps:
                continue
            difference = exposure.predict(engine.canvas) - exposure.amplitude
            found = _find_r_factor(difference, exposure)
            if best is None or found < r_factor:
                best, r_factor = difference, found
        assert best is not None
        return Trial(r_factor, best.square().sum(dim=(1, 2)).double().numpy())


def _find_r_factor(difference: Tensor, exposure: Exposure) -> float:
    found = float(difference.abs().sum() / exposure.amplitude.sum())
    return found if math.isfinite(found) else math.inf

"""A quick reconstruction that tells how well a scan explains itself."""

from __future__ import annotations

import math

import numpy as np
import torch

from ptycho_tasks.backend import Trial, say_nothing
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.device import settings
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.physics.mapped import expose_scan
from ptycho_tasks_torch.physics.scale import find_photon, read_intensity, scale_probe
from ptycho_tasks_torch.unrolled.probe_fit import fit_probe
from ptycho_tasks_torch.unrolled.steps import run_steps

EVERY = 6
"""Steps from one look at the frames to the next; of all looks the best counts, since steps may
diverge."""


def try_on_canvas(scan: ScanData, steps: int, modes: int = 0) -> Trial:
    """Take steps on the CPU, where few frames are done before a GPU has started; see
    `Unrolled.try_scan`."""
    execution = TorchExecution.from_execution(ExecutionOptions(threads=1, accelerator="cpu"))
    with settings(execution), torch.inference_mode():
        intensity = read_intensity(scan, np.arange(scan.frame_count))
        scale = math.sqrt(intensity)
        probe = torch.from_numpy(np.array(scale_probe(scan.probe, intensity * scan.size**2)))
        if modes:
            probe = fit_probe(scan, probe, modes, say_nothing)
        exposure = expose_scan(scan, probe / scale, scale, find_photon(scan.diffraction))
        looks = [
            (exposure.predict(engine.canvas) - exposure.amplitude).nan_to_num(nan=0.0)
            for engine in run_steps(exposure, steps)
            if engine.steps % EVERY == 0 or engine.steps == steps
        ]
        misfits = [float(look.square().sum()) for look in looks]
        best = looks[min(range(len(looks)), key=lambda k: _or_inf(misfits[k]))]
        r_factor = float(best.abs().sum() / exposure.amplitude.nansum())
        return Trial(_or_inf(r_factor), best.square().sum(dim=(1, 2)).double().numpy())


def _or_inf(number: float) -> float:
    return number if math.isfinite(number) else math.inf

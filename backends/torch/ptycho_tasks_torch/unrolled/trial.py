"""A quick reconstruction that tells how well a scan explains itself."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks.backend import Trial, say_nothing
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks.physics.displacement import measure_displacement
from ptycho_tasks.scan import ScanData, canvas_of
from ptycho_tasks_torch.device import settings
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.physics.mapped import expose_scan
from ptycho_tasks_torch.physics.scale import find_photon, read_intensity, scale_probe
from ptycho_tasks_torch.unrolled.background import suspect_background
from ptycho_tasks_torch.unrolled.depth import Depth
from ptycho_tasks_torch.unrolled.positions import refine_positions
from ptycho_tasks_torch.unrolled.probe_fit import fit_probe
from ptycho_tasks_torch.unrolled.steps import run_steps

EVERY = 6
"""Steps from one look at the frames to the next; of all looks the best counts."""
LONG = 48
"""Steps of a trial from which on one that explains little goes on as an inference would, before a
right scan is called wrong whose object is hard to find, or whose light was not steady; and from
which on the object tells where frames fit it."""
POOR = 4.0
"""Misfit over that of photon noise from which on it explains little."""
DIVERGES, DAMPING = 1.1, 0.5
"""Misfit of the last look, over the least, from which on the steps were too long; and what they are
then multiplied by. How long is too long depends on the positions: without this, those would seem
right for which steps happen to converge."""


def try_on_canvas(
    scan: ScanData, steps: int, modes: int = 0, held_back: int = 0, *, moves: bool = False
) -> Trial:
    """Take steps on the CPU, where few frames are done before a GPU has started; see
    `Unrolled.try_scan`."""
    execution = TorchExecution.from_execution(ExecutionOptions(threads=1, accelerator="cpu"))
    with settings(execution), torch.inference_mode():
        frames = range(scan.frame_count)
        seen = [k for k in frames if not held_back or k % held_back != held_back // 2]
        exposure, moved, intensity = _expose(scan, modes, seen, moves=moves)
        taken = exposure.take(seen) if held_back else exposure
        counted = exposure.take(sorted({*frames} - {*seen})) if held_back else exposure
        best, diverges = _reconstruct(taken, counted, steps)
        if diverges:
            calmer, _ = _reconstruct(taken, counted, steps, DAMPING)
            best = min(best, calmer, key=_sum_squares)
        noise = best.missed.numel() * exposure.least_misfit
        is_unexplained = diverges or _sum_squares(best) > POOR * noise
        flux, background = None, None
        if (
            steps >= LONG
            and not held_back
            and (is_unexplained or suspect_background(exposure, best.canvas) is not None)
        ):
            depth = Depth(exposure)
            deque(depth.run(), maxlen=0)
            found = _Look(_miss(depth.frames.exposure, depth.best), depth.best)
            if _sum_squares(found) < _sum_squares(best):
                best = found
                flux, background = depth.flux, depth.scale_background(intensity)
        missed = best.missed
        r_factor = float(missed.abs().sum() / counted.amplitude.nansum())
        power = exposure.probes[0].abs().square().sum(dim=(1, 2))
        shares = tuple((power / power.sum()).tolist())
        residuals = missed.square().sum(dim=(1, 2)).double().numpy()
        return Trial(
            _or_inf(r_factor),
            residuals,
            shares,
            moved.positions - scan.positions if moves else None,
            _measure_displacement(moved, best.canvas, flux, background)
            if modes or steps >= LONG
            else 0.0,
            0.0 if background is None else float(background.mean()) / intensity,
        )


def _expose(
    scan: ScanData, modes: int, seen: list[int], *, moves: bool
) -> tuple[Exposure, ScanData, float]:
    """The frames of a scan, and the scan, both with probe and positions as they are fitted; and the
    counts that are 1 in the frames."""
    intensity = read_intensity(scan, np.arange(scan.frame_count))
    scale = math.sqrt(intensity)
    probe = torch.from_numpy(np.array(scale_probe(scan.probe, intensity * scan.size**2)))
    if modes:
        probe = fit_probe(scan, probe, modes, say_nothing, frames=np.array(seen))
    photon = find_photon(scan.diffraction)
    if moves:
        scan = refine_positions(scan, probe / scale, scale, photon)
    fitted = replace(scan, probe=probe.numpy())
    return expose_scan(scan, probe / scale, scale, photon), fitted, intensity


def _measure_displacement(
    scan: ScanData,
    canvas: Tensor,
    flux: NDArray[np.float32] | None,
    background: NDArray[np.float32] | None,
) -> float:
    place = canvas_of(scan.positions, scan.size)
    rows, columns = place.shape
    fields = canvas[0, :rows, :columns].numpy(), place.origin, scan.probe, scan.positions
    return _or_inf(measure_displacement(*fields, scan.diffraction, flux, background))


class _Look(NamedTuple):
    """At the frames, after a step."""

    missed: Tensor
    """(K, N, N) what those that count are missed by."""
    canvas: Tensor


def _reconstruct(
    taken: Exposure, counted: Exposure, steps: int, damping: float = 1.0
) -> tuple[_Look, bool]:
    """The best look, and whether steps on the frames taken diverge."""
    looks = [
        _Look(_miss(counted, engine.canvas), engine.canvas)
        for engine in run_steps(taken, steps, damping=damping)
        if engine.steps % EVERY == 0 or engine.steps == steps
    ]
    misfits = [*map(_sum_squares, looks)]
    least = min(misfits)
    return looks[misfits.index(least)], not misfits[-1] <= DIVERGES * least


def _miss(exposure: Exposure, canvas: Tensor) -> Tensor:
    """(K, N, N) what the frames are missed by."""
    return (exposure.predict(canvas) - exposure.amplitude).nan_to_num(nan=0.0)


def _sum_squares(look: _Look) -> float:
    return _or_inf(float(look.missed.square().sum()))


def _or_inf(number: float) -> float:
    return number if math.isfinite(number) else math.inf

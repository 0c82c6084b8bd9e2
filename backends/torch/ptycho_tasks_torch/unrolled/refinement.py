"""Go on from another reconstruction with physics steps, as many as frames held back ask for."""

from __future__ import annotations

import functools
import math
from collections import deque
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks.backend import SEEN_LEVEL, Reconstruction, RefineRequest
from ptycho_tasks.scan import Canvas, canvas_of
from ptycho_tasks_torch.device import find_device
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.physics.scale import find_photon, read_intensity
from ptycho_tasks_torch.physics.tiles import settle, spread_frames
from ptycho_tasks_torch.unrolled.depth import Depth


def refine_on_canvas(request: RefineRequest) -> Reconstruction:
    """Take steps from a start's object, with its probe and positions; see `Unrolled.refine`."""
    if idle := request.options.idle_in_refinement:
        names = ", ".join(f"refine.{name}" for name in idle)
        request.say(
            f"a refinement takes physics steps alone: {names} without effect; of the options, "
            "refine.steps counts; leave the others out"
        )
    execution, start = TorchExecution.from_execution(request.execution), request.start
    scan = replace(request.scan, probe=start.probe, positions=start.positions)
    with settle(scan, execution), spread_frames(scan, execution, request.say) as expose:
        intensity = read_intensity(scan, np.arange(scan.frame_count))
        scale = math.sqrt(intensity)
        modes = torch.from_numpy(start.probe / np.float32(scale)).to(
            find_device(execution.accelerator)
        )
        exposure = expose(scan, modes, scale, find_photon(scan.diffraction))
        if start.background is not None:
            background = np.fft.ifftshift(start.background / np.float32(intensity))
            exposure = exposure.cover(torch.from_numpy(background).to(modes.device))
        return _go_on(request, exposure, intensity)


def _go_on(request: RefineRequest, exposure: Exposure, intensity: float) -> Reconstruction:
    start, steps = request.start, request.options.steps
    place = canvas_of(start.positions, request.scan.size)
    # What little light falls on where an object counts as no result may tell it all the same.
    laid = [_lay(start, lit, place, exposure) for lit in (start.seen, start.illumination > 0)]
    begun = min(laid, key=exposure.measure_misfit)
    flux = None if start.flux is None else torch.from_numpy(start.flux).to(exposure.light.device)
    depth = Depth(exposure, None if steps == "auto" else steps, begun, flux)
    rows, columns = place.shape
    light = exposure.light[0, :rows, :columns].cpu().numpy()

    def cut(canvas: Tensor, least_light: float = 0) -> NDArray[np.complex64]:
        image = canvas[0, :rows, :columns].cpu().numpy()
        return np.asarray(image * ((light > 0) & (light >= least_light)))

    request.progress(0, depth.steps, {})
    for done, canvas in enumerate(depth.run(), start=1):
        request.progress(done, depth.steps, {"misfit": depth.misfits[-1]})
        request.show(functools.partial(cut, canvas, SEEN_LEVEL * light.max()))
    canvas = deque(depth.finish(depth.best), maxlen=1).pop().canvas
    line = depth.describe()
    told = depth.misfits, depth.taken, depth.flux, depth.scale_background(intensity)
    request.progress(depth.taken, depth.taken, {})
    compare = depth.frames.exposure.measure_misfit
    if depth.best_step == 0 or compare(canvas) > compare(begun):
        line = f"the start is kept: {depth.taken} steps explain the frames no better"
        canvas, told = begun, (depth.misfits[:1], 0, start.flux, start.background)
    request.say(line)
    return Reconstruction(cut(canvas), place.origin, start.probe, start.positions, *told)


def _lay(
    start: Reconstruction, where: NDArray[np.bool_], place: Canvas, exposure: Exposure
) -> Tensor:
    """(1, S, T) canvas with the object of a start at some of its pixels, and 1 elsewhere."""
    canvas = np.ones(exposure.shape, np.complex64)
    seen = np.where(where, start.object, np.complex64(1))
    row, column = (here - there for here, there in zip(start.origin, place.origin, strict=True))
    top, left = max(row, 0), max(column, 0)
    part = seen[top - row :, left - column :][: canvas.shape[0] - top, : canvas.shape[1] - left]
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
    return torch.from_numpy(canvas)[None].to(exposure.light.device)

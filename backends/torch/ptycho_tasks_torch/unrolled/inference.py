"""Reconstruct a scan: physics steps, as many as it needs, and what the network corrects."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks.backend import SEEN_LEVEL, InferRequest, Reconstruction
from ptycho_tasks.errors import BundleError
from ptycho_tasks.scan import ScanData, canvas_of
from ptycho_tasks_torch.device import find_device
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.physics.probe import is_same_probe, probe_distance
from ptycho_tasks_torch.physics.scale import (
    describe_scaling,
    find_photon,
    read_intensity,
    scale_probe,
)
from ptycho_tasks_torch.physics.tiles import settle, spread_frames
from ptycho_tasks_torch.training.weights import PROBE, load_networks, refuse_other_size
from ptycho_tasks_torch.unrolled.course import Course
from ptycho_tasks_torch.unrolled.network import UnrolledNetwork, make_unrolled_networks
from ptycho_tasks_torch.unrolled.positions import refine_positions
from ptycho_tasks_torch.unrolled.probe_fit import fit_probe


def reconstruct_on_canvas(request: InferRequest) -> Reconstruction:
    """Reconstruct the object of all frames on one canvas; see `Unrolled.infer`."""
    execution = TorchExecution.from_execution(request.execution)
    with settle(request.scan, execution):
        return deque(_run_steps(request), maxlen=1).pop()()


def reconstruct_stepwise(request: InferRequest) -> Iterator[Reconstruction]:
    """Yield the object after each step; the last is the result of `Unrolled.infer`, which see.

    Call it in `torch.inference_mode`.
    """
    for show in _run_steps(request):
        yield show()


def _run_steps(request: InferRequest) -> Iterator[Callable[[], Reconstruction]]:
    """Yield after each step what makes a result of the object: on a GPU it waits for the step, and
    brings the object from there."""
    scan, N, options = request.scan, request.scan.size, request.options
    refuse_other_size(request.model, scan)
    execution = TorchExecution.from_execution(request.execution)
    device = find_device(execution.accelerator)
    network, autoencoder = make_unrolled_networks(options)
    load_networks(request.model, network, autoencoder)
    network.to(device)
    intensity = read_intensity(scan, np.arange(scan.frame_count))
    photon = find_photon(scan.diffraction)
    scale = math.sqrt(intensity)
    guess = scale_probe(scan.probe, intensity * N**2)
    if guess is not scan.probe:
        request.say(describe_scaling(scan.probe, intensity * N**2))
    probe = _choose_probe(request, guess, device)
    modes = torch.from_numpy(probe / np.float32(scale)).to(device)
    with spread_frames(scan, execution, request.say) as expose:
        if options.positions == "refined":
            scan = refine_positions(scan, modes, scale, photon, expose, request.say)
        exposure = expose(scan, modes, scale, photon)
        yield from _follow_course(request, scan, probe, exposure, intensity, network)


def _follow_course(
    request: InferRequest,
    scan: ScanData,
    probe: NDArray[np.complex64],
    exposure: Exposure,
    intensity: float,
    network: UnrolledNetwork,
) -> Iterator[Callable[[], Reconstruction]]:
    place, steps = canvas_of(scan.positions, scan.size), request.options.steps
    rows, columns = place.shape
    light = exposure.light[0, :rows, :columns].cpu().numpy()
    lit, seen = light > 0, light >= SEEN_LEVEL * light.max()
    course = Course(exposure, network, None if steps == "auto" else steps)
    depth = course.depth

    def show(canvas: Tensor) -> Reconstruction:
        image = canvas[0, :rows, :columns].cpu().numpy() * lit
        told = depth.misfits, depth.taken, depth.flux, depth.scale_background(intensity)
        return Reconstruction(image, place.origin, probe, scan.positions, *told)

    request.progress(0, depth.steps, {})
    for done, canvas in enumerate(course.run(), start=1):
        # The correction after the last step is none; until it is there, neither is the end.
        if done < depth.taken:
            is_measured = done < len(depth.misfits)
            metrics = {"misfit": depth.misfits[-1]} if is_measured else {}
            request.progress(done, depth.steps, metrics)
        make = functools.partial(show, canvas)
        request.show(lambda make=make: make().object * seen)  # type: ignore[misc]
        yield make
    request.say(course.describe())
    request.progress(depth.taken, depth.taken, {})


def _choose_probe(
    request: InferRequest, guess: NDArray[np.complex64], device: torch.device
) -> NDArray[np.complex64]:
    """The probe that the training fitted, if from this guess; else the guess, which is fitted where
    it is an estimate."""
    refined = [
        _check_probe(name, arrays)
        for name, arrays in request.model.models.items()
        if name.partition("_")[0] == PROBE
    ]
    same = [probe for probe in refined if is_same_probe(guess, probe["guess"])]
    if not same and request.scan.is_probe_estimated:
        if refined:
            request.say("probe: the bundle's is of another estimate; this scan's is fitted anew")
        modes = request.options.probe_modes or len(guess)
        start = torch.from_numpy(guess).to(device)
        return fit_probe(request.scan, start, modes, request.say).cpu().numpy()
    if not same:
        return guess
    nearest = min(same, key=lambda probe: probe_distance(guess, probe["guess"]))
    norm, trained = np.linalg.norm(guess), np.linalg.norm(nearest["guess"])
    return np.asarray(nearest["modes"] * (norm / trained), dtype=np.complex64)


def _check_probe(name: str, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    lacking = sorted({"guess", "modes"} - arrays.keys())
    if lacking:
        raise BundleError(
            f"wts.h5.zip: wts.h5: the model `{name}` lacks {' and '.join(lacking)}; train again"
        )
    return arrays

"""Reconstruct a scan with the unrolled network. Lightning is not needed here."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_tasks.backend import InferRequest, Reconstruction
from ptycho_tasks.errors import BundleError
from ptycho_tasks.scan import canvas_of
from ptycho_tasks_torch.device import find_device, settings
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.physics.mapped import expose_scan
from ptycho_tasks_torch.physics.probe import is_same_probe, probe_distance
from ptycho_tasks_torch.physics.scale import read_intensity, scale_probe
from ptycho_tasks_torch.training.weights import (
    PROBE,
    load_networks,
    read_intensity_scale,
    read_losses,
)
from ptycho_tasks_torch.unrolled.network import MULTIPLE, make_unrolled_networks
from ptycho_tasks_torch.unrolled.positions import refine_positions


def reconstruct_on_canvas(request: InferRequest) -> Reconstruction:
    """Reconstruct the object of all frames on one canvas; see `Unrolled.infer`."""
    with settings(TorchExecution.from_execution(request.execution)), torch.inference_mode():
        return deque(reconstruct_stepwise(request), maxlen=1).pop()


def reconstruct_stepwise(request: InferRequest) -> Iterator[Reconstruction]:
    """Yield the object after each step; the last is the result of `Unrolled.infer`, which see.

    Call it in `torch.inference_mode`.
    """
    scan, N = request.scan, request.scan.size
    scale = read_intensity_scale(request.model, scan)
    device = find_device(TorchExecution.from_execution(request.execution).accelerator)
    network, autoencoder = make_unrolled_networks(request.options)
    load_networks(request.model, network, autoencoder)
    network.to(device)
    intensity = read_intensity(scan, np.arange(scan.frame_count))
    intensity_scale = intensity if scale is None else scale
    probe = _choose_probe(request, scale_probe(scan.probe, intensity * N**2))
    modes = torch.from_numpy(probe / np.float32(math.sqrt(intensity_scale))).to(device)
    if request.options.positions == "refined":
        scan = refine_positions(scan, network, modes, math.sqrt(intensity_scale))
    exposure = expose_scan(scan, modes, math.sqrt(intensity_scale), MULTIPLE)
    place = canvas_of(scan.positions, N)
    rows, columns = place.shape
    lit = exposure.light[0, :rows, :columns].cpu().numpy() > 0
    losses = read_losses(request.model)
    request.progress(0, network.steps, {})
    for done, canvas in enumerate(network.objects(exposure), start=1):
        image = canvas[0, :rows, :columns].cpu().numpy() * lit
        yield Reconstruction(image, place.origin, probe, scan.positions, losses)
        request.progress(done, network.steps, {})


def _choose_probe(request: InferRequest, guess: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """The probe that the training refined, if from this guess; else the guess."""
    refined = [
        _check_probe(name, arrays)
        for name, arrays in request.model.models.items()
        if name.partition("_")[0] == PROBE
    ]
    same = [probe for probe in refined if is_same_probe(guess, probe["guess"])]
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

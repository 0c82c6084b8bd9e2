"""Reconstruct a scan with the unrolled network. Lightning is not needed here."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_tasks.backend import InferRequest, Reconstruction
from ptycho_tasks.errors import BundleError
from ptycho_tasks.scan import canvas_of
from ptycho_tasks_torch.device import find_device, settings
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.physics.mapped import expose_scan
from ptycho_tasks_torch.physics.scale import read_intensity, scale_probe
from ptycho_tasks_torch.training.weights import (
    PROBE,
    load_networks,
    read_intensity_scale,
    read_losses,
)
from ptycho_tasks_torch.unrolled.network import MULTIPLE, make_unrolled_networks
from ptycho_tasks_torch.unrolled.positions import refine_positions

SAME_PROBE = 0.02
"""Largest difference between two guesses of the same probe, over their norm."""


def reconstruct_on_canvas(request: InferRequest) -> Reconstruction:
    """Reconstruct the object of all frames on one canvas; see `Unrolled.infer`."""
    with settings(TorchExecution.from_execution(request.execution)), torch.inference_mode():
        return deque(reconstruct_stepwise(request), maxlen=1).pop()


def reconstruct_stepwise(request: InferRequest) -> Iterator[Reconstruction]:
    """Yield the object after each step; the last is the result of `Unrolled.infer`, which see.

    Call it in `torch.inference_mode`.
    """
    scan, N = request.scan, request.scan.size
    intensity_scale = read_intensity_scale(request.model, scan)
    device = find_device(TorchExecution.from_execution(request.execution).accelerator)
    network, autoencoder = make_unrolled_networks(request.options)
    load_networks(request.model, network, autoencoder)
    network.to(device)
    counts = read_intensity(scan, np.arange(scan.frame_count)) * N**2
    probe = _choose_probe(request, scale_probe(scan.probe, counts))
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
    refined = request.model.models.get(PROBE)
    if refined is None:
        return guess
    lacking = sorted({"guess", "modes"} - refined.keys())
    if lacking:
        raise BundleError(
            f"wts.h5.zip: wts.h5: the model `{PROBE}` lacks {' and '.join(lacking)}; train again"
        )
    if refined["guess"].shape != guess.shape:
        return guess
    norm, trained = np.linalg.norm(guess), np.linalg.norm(refined["guess"])
    if np.linalg.norm(guess / norm - refined["guess"] / trained) > SAME_PROBE:
        return guess
    return np.asarray(refined["modes"] * (norm / trained), dtype=np.complex64)

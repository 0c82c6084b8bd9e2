"""Reconstruct a scan with a trained network. Lightning is not needed here."""

from __future__ import annotations

import math

import numpy as np
import torch

from ptycho_tasks.backend import ROUGH_PROBE, InferRequest, Reconstruction
from ptycho_tasks.scan import canvas_of
from ptycho_tasks_torch.device import find_device, settings
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.frames.groups import Groups, cover_frames
from ptycho_tasks_torch.physics.scale import read_intensity, scale_probe
from ptycho_tasks_torch.pinn.network import expose_groups, make_pinn_networks
from ptycho_tasks_torch.pinn.stitching import Stitcher
from ptycho_tasks_torch.threads import work_ahead
from ptycho_tasks_torch.training.weights import load_networks, read_intensity_scale, read_losses


def reconstruct_from_patches(request: InferRequest) -> Reconstruction:
    """Predict the object patches of every frame, then stitch them; see `Pinn.infer`."""
    scan, options = request.scan, request.options
    if scan.is_probe_estimated:
        request.say(ROUGH_PROBE)
    N, known = scan.size, read_intensity_scale(request.model, scan)
    execution = TorchExecution.from_execution(request.execution)
    device = find_device(execution.accelerator)
    network, autoencoder = make_pinn_networks(options)
    load_networks(request.model, network, autoencoder)
    network.to(device)
    intensity = read_intensity(scan, np.arange(scan.frame_count))
    probe = scale_probe(scan.probe, intensity * N**2)
    groups = cover_frames(scan, options.gridsize)
    stitcher = Stitcher(canvas_of(scan.positions, N))
    scale = math.sqrt(intensity if known is None else known)
    batch = execution.inference_batch_size
    batches = [
        groups.take(np.arange(first, min(first + batch, len(groups))))
        for first in range(0, len(groups), batch)
    ]

    def read(some: Groups) -> tuple[Groups, torch.Tensor]:
        return some, torch.from_numpy(np.asarray(scan.diffraction[some.frames]))

    with settings(execution), torch.inference_mode():
        modes, done = torch.from_numpy(probe).to(device), 0
        request.progress(0, len(groups), {})
        for some, frames in work_ahead(read, batches, execution.num_workers):
            exposure = expose_groups(
                frames.to(device),
                torch.from_numpy(some.relative).to(device),
                modes,
                torch.full((len(some),), scale, device=device),
                network.multiple,
            )
            patches = network.reconstruct(exposure).reshape(frames.shape)
            light = exposure.probes.abs().square().sum(dim=1).reshape(frames.shape)
            stitcher.add(patches.cpu().numpy(), light.cpu().numpy(), some.corners)
            done += len(some)
            request.progress(done, len(groups), {})
    return Reconstruction(
        object=stitcher.object(),
        origin=stitcher.canvas.origin,
        probe=probe,
        positions=scan.positions,
        losses=read_losses(request.model),
    )

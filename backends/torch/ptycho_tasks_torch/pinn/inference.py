"""Reconstruct a scan with a trained network. Lightning is not needed here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_tasks.backend import ROUGH_PROBE, InferRequest, Reconstruction
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.physics.metrics import data_misfit
from ptycho_tasks.scan import Canvas, ScanData, canvas_of
from ptycho_tasks_torch.device import find_device, settings
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.frames.groups import Groups, cover_frames
from ptycho_tasks_torch.physics.mapped import expose_scan
from ptycho_tasks_torch.physics.scale import find_photon, read_intensity, scale_probe
from ptycho_tasks_torch.pinn.network import (
    expose_groups,
    find_weight,
    make_pinn_networks,
    take_steps,
)
from ptycho_tasks_torch.pinn.stitching import Stitcher
from ptycho_tasks_torch.threads import work_ahead
from ptycho_tasks_torch.training.weights import load_networks, read_intensity_scale, read_losses

FILLING_STEPS = 5
"""Physics steps before an image says what bad pixels would have measured."""


@dataclass(frozen=True)
class Frames:
    """The frames of a scan. What was not measured, the network does without; or an object says
    what would have been, which knows more of it than a group's frames do."""

    scan: ScanData
    probe: NDArray[np.complex64]
    """(P, N, N) in counts."""
    object: NDArray[np.complex64] | None = None
    """(H, W) on the canvas of the scan."""

    def read(self, some: Groups) -> tuple[Groups, torch.Tensor]:
        """Groups, and (G, C, N, N) amplitudes of their frames."""
        x = np.asarray(self.scan.diffraction[some.frames])
        bad = np.isnan(x)
        if self.object is not None and bad.any():
            positions = self.scan.positions[some.frames.ravel()]
            origin = canvas_of(self.scan.positions, self.scan.size).origin
            predicted = expected_intensity(self.object, self.probe, positions, origin)
            filling = np.concatenate([np.sqrt(counts) for _, counts in predicted])
            x = np.where(bad, filling.reshape(x.shape), x)
        return some, torch.from_numpy(x)


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
    scale = math.sqrt(intensity if known is None else known)
    passes = 1 if scan.bad_pixels is None else 2
    total, done = passes * len(groups), 0
    batch = execution.inference_batch_size
    batches = [
        groups.take(np.arange(first, min(first + batch, len(groups))))
        for first in range(0, len(groups), batch)
    ]
    with settings(execution), torch.inference_mode():
        modes = torch.from_numpy(probe).to(device)
        request.progress(0, total, {})
        images: list[NDArray[np.complex64]] = []
        for _ in range(passes):
            frames = Frames(scan, probe, *(follow_frames(image, scan, modes) for image in images))
            stitcher = Stitcher(canvas_of(scan.positions, N))
            for some, x in work_ahead(frames.read, batches, execution.num_workers):
                exposure = expose_groups(
                    x.to(device),
                    torch.from_numpy(some.relative).to(device),
                    modes,
                    torch.full((len(some),), scale, device=device),
                    network.multiple,
                )
                patches = network.reconstruct(exposure).reshape(x.shape)
                light = exposure.probes.abs().square().sum(dim=1).reshape(x.shape)
                stitcher.add(patches.cpu().numpy(), light.cpu().numpy(), some.corners)
                done += len(some)
                request.progress(done, total, {})
                request.show(stitcher.object)
            images.append(stitcher.object())
    return Reconstruction(
        object=_choose(images, scan, probe, stitcher.canvas),
        origin=stitcher.canvas.origin,
        probe=probe,
        positions=scan.positions,
        losses=read_losses(request.model),
    )


def follow_frames(
    image: NDArray[np.complex64], scan: ScanData, modes: torch.Tensor
) -> NDArray[np.complex64]:
    """(H, W) image after physics steps of all frames together. What it then predicts of a pixel
    that was not measured is nearer to the truth than the network's own image is."""
    scale = math.sqrt(read_intensity(scan, np.arange(scan.frame_count)))
    exposure = expose_scan(scan, modes / scale, scale, find_photon(scan.diffraction))
    rows, columns = image.shape
    canvas = torch.ones((1, *exposure.shape), dtype=torch.complex64)
    canvas[0, :rows, :columns] = torch.from_numpy(image)
    canvas = take_steps(exposure, canvas.to(modes.device), find_weight(exposure), FILLING_STEPS)
    return canvas[0, :rows, :columns].cpu().numpy()


def _choose(
    images: list[NDArray[np.complex64]],
    scan: ScanData,
    probe: NDArray[np.complex64],
    canvas: Canvas,
) -> NDArray[np.complex64]:
    """The image that explains what was measured best: what fills a gap may mislead the network."""
    if len(images) == 1:
        return images[0]

    def misfit(image: NDArray[np.complex64]) -> float:
        given = canvas.origin, probe, scan.positions, scan.diffraction
        return data_misfit(image, *given).r_factor

    return min(images, key=misfit)

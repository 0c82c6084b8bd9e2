"""Reconstruct a scan with a trained network. Lightning is not needed here."""

from __future__ import annotations

import math

import numpy as np
import torch

from ptycho_tasks.backend import InferRequest, Reconstruction, TrainedModel
from ptycho_tasks.errors import BundleError, ConfigError
from ptycho_tasks.scan import ScanData, canvas_of
from ptycho_tasks_torch.device import find_device, settings
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.groups import Groups, covering_groups
from ptycho_tasks_torch.load import OBJECT_NETWORK, modules_from
from ptycho_tasks_torch.network import ObjectNetwork
from ptycho_tasks_torch.physics import LEAST_COUNTS, MOST_COUNTS, measured_intensity, scale_probe
from ptycho_tasks_torch.reading import read_ahead
from ptycho_tasks_torch.stitching import Stitcher


def infer(request: InferRequest) -> Reconstruction:
    """Predict the object patches of every frame and stitch them; see `Pinn.infer`."""
    scan, options = request.scan, request.options
    N, intensity_scale = scan.size, trained_for(request.model, scan)
    execution = TorchExecution.of(request.execution)
    device = find_device(execution.accelerator)
    network = modules_from(request.model, options)[OBJECT_NETWORK].to(device)
    assert isinstance(network, ObjectNetwork)
    everything = np.arange(scan.frame_count)
    counts = measured_intensity(scan, everything) * N**2
    probe = scale_probe(scan.probe, counts)
    groups = covering_groups(scan, options.gridsize)
    stitcher = Stitcher(canvas_of(scan.positions, N))
    scale = math.sqrt(intensity_scale)
    batch = execution.inference_batch_size
    batches = [
        groups.take(np.arange(first, min(first + batch, len(groups))))
        for first in range(0, len(groups), batch)
    ]

    def read(some: Groups) -> tuple[Groups, torch.Tensor]:
        return some, torch.from_numpy(np.asarray(scan.diffraction[some.frames]))

    with settings(execution), torch.inference_mode():
        light_from, done = torch.from_numpy(probe).to(device), 0
        request.progress(0, len(groups), {})
        for some, frames in read_ahead(read, batches, execution.num_workers):
            exposure = network.expose(
                frames.to(device),
                torch.from_numpy(some.relative).to(device),
                light_from,
                torch.full((len(some),), scale, device=device),
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
        losses=losses_of(request.model),
    )


def losses_of(model: TrainedModel) -> list[float]:
    """The loss of each epoch of the training.

    Raises:
        BundleError: an epoch has none.
    """
    losses = [epoch.get("loss") for epoch in model.history]
    if None in losses:
        raise BundleError(
            f"wts.h5.zip: history.json: epoch {losses.index(None) + 1} has no `loss`: the bundle "
            "is not as its training left it; train again"
        )
    return [loss for loss in losses if loss is not None]


def trained_for(model: TrainedModel, scan: ScanData) -> float:
    """The intensity scale of the training, without which its weights mean nothing.

    Raises:
        BundleError: the model does not say what its training found.
        ConfigError: the scan's N is not the model's.
    """
    N, scale = (model.metadata.get(name) for name in ("N", "intensity_scale"))
    is_known = isinstance(N, int) and isinstance(scale, (int, float))
    if not is_known or not LEAST_COUNTS <= (scale or 0) <= MOST_COUNTS:
        raise BundleError(
            f"wts.h5.zip: params.json: metadata: N is {N!r} and intensity_scale is {scale!r}; "
            f"expected an integer, and a number of {LEAST_COUNTS:g} to {MOST_COUNTS:g}: the bundle "
            "is not as its training left it; train again"
        )
    if scan.size != N:
        raise ConfigError(
            f"{scan.name}: its frames have {scan.size} x {scan.size} pixels, but the model was "
            f"trained on {N} x {N}; infer a scan of that size, or train on this one"
        )
    return float(scale or 0)

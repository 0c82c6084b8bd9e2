"""A model of which nothing is learned: the network as it starts, and the probe that fits the scan.

Lightning is not needed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ptycho_tasks.backend import TrainedModel, TrainRequest
from ptycho_tasks_torch.device import settings
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.physics.scale import read_intensity
from ptycho_tasks_torch.threads import chunks_on_threads
from ptycho_tasks_torch.training.weights import describe_scales, name_networks
from ptycho_tasks_torch.unrolled.network import make_unrolled_networks


def take_start(request: TrainRequest, load: Callable[[nn.Module], None]) -> TrainedModel:
    """Take the network as it starts; errors are those of `Unrolled.train`.

    Args:
        request: as the backend gets it.
        load: puts the weights that a training starts from into a fresh network.
    """
    scans, options = request.scans, request.options
    if options.idle:
        names = ", ".join(f"training.{name}" for name in options.idle)
        request.say(
            f"training.epochs is 0, and nothing is learned: {names} without effect; set "
            "training.epochs, 16 say, or leave them out"
        )
    request.progress(0, 1, {})
    execution = TorchExecution.from_execution(request.execution)
    with settings(execution, options.seed), chunks_on_threads():
        network, _ = make_unrolled_networks(options)
        load(network)
        models = name_networks(network.state_dict())
        if options.probe == "refined":
            models |= _refine_probes(request, network)
    scales = [read_intensity(scan, np.arange(scan.frame_count)) for scan in scans]
    metadata = {"N": scans[0].size, **describe_scales(scales), "gridsize": options.gridsize}
    request.progress(1, 1, {})
    return TrainedModel(models, metadata)


def _refine_probes(request: TrainRequest, network: nn.Module) -> dict[str, dict[str, NDArray[Any]]]:
    """The models of the probes that fit the scans, as a training with this network begins."""
    from ptycho_tasks_torch.training.joined import make_joint_objective
    from ptycho_tasks_torch.unrolled.objective import UnrolledObjective
    from ptycho_tasks_torch.unrolled.probe_fit import LEAST_FRAMES, describe_few

    # Nothing is learned: what is too small for a training is no reason to fail.
    scans = []
    for scan in request.scans:
        if scan.frame_count >= LEAST_FRAMES:
            scans.append(scan)
        else:
            of = f"{scan.name}: " if len(request.scans) > 1 else ""
            request.say(f"{of}{describe_few(scan.frame_count)}")
    if not scans:
        return {}
    objective = make_joint_objective(scans, request.options, UnrolledObjective)
    objective.network.load_state_dict(network.state_dict())
    objective.prepare(request.say)
    return objective.export_further(objective.state_dict())

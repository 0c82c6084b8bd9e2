"""The bundle of a network that was learned from simulated scans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ptycho_tasks.backend import TrainedModel
from ptycho_tasks.results.bundle import bundle_bytes
from ptycho_tasks_torch.prior.family import SIZE
from ptycho_tasks_torch.training.weights import describe_scales, name_networks
from ptycho_tasks_torch.unrolled.backend import backend
from ptycho_tasks_torch.unrolled.correction import Correction
from ptycho_tasks_torch.unrolled.network import UnrolledNetwork
from ptycho_tasks_torch.unrolled.options import NOTHING, UnrolledOptions


def bundle_prior(correction: Correction, recipe: Mapping[str, Any]) -> bytes:
    """A bundle as bytes, such as a training of `unrolled` gives.

    Args:
        correction: the network.
        recipe: what it was learned from, JSON-able; `metadata.learned_from` of params.json.
    """
    channels = correction.network.last.in_channels
    network = UnrolledNetwork(channels)
    network.correction.load_state_dict(correction.state_dict())
    metadata = {"N": SIZE, **describe_scales([1.0]), "gridsize": 1, "learned_from": dict(recipe)}
    options = UnrolledOptions(start=NOTHING, channels=channels)
    return bundle_bytes(
        TrainedModel(name_networks(network.state_dict()), metadata),
        backend=backend.name,
        backend_version=backend.version,
        size=SIZE,
        params={
            "backend": backend.name,
            "flat": {"N": SIZE, "gridsize": 1, "model_type": options.model_type},
            "training": msgspec.to_builtins(options),
        },
    )

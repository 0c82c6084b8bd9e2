"""Read from a bundle what its training learned. Lightning is not needed here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ptycho_tasks.backend import TrainedModel
from ptycho_tasks.errors import BundleError, ConfigError
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.physics.scale import LEAST_COUNTS, MOST_COUNTS

OBJECT_NETWORK, AUTOENCODER, PROBE = "diffraction_to_obj", "autoencoder", "probe"
"""Names of a bundle's models."""
SCALES = "intensity_scales"
"""In a bundle's metadata, the intensity scale of each scan, where there were several."""


def load_networks(
    model: TrainedModel, network: nn.Module, autoencoder: nn.Module
) -> dict[str, nn.Module]:
    """Put the weights of a bundle into a backend's networks.

    Args:
        model: what the bundle holds.
        network: gets the weights.
        autoencoder: shares them.

    Returns:
        The modules `diffraction_to_obj` and `autoencoder`, in eval mode.

    Raises:
        BundleError: the arrays are not those of this network.
    """
    load_weights(model, network)
    return {OBJECT_NETWORK: network.eval(), AUTOENCODER: autoencoder.eval()}


def load_weights(model: TrainedModel, network: nn.Module) -> None:
    """Put the weights of a bundle into a backend's network.

    Raises:
        BundleError: the arrays are not those of this network.
    """
    try:
        arrays = model.models[OBJECT_NETWORK]
        network.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    except KeyError:
        names = ", ".join(model.models) or "none"
        raise BundleError(
            f"wts.h5.zip: wts.h5: holds no model `{OBJECT_NETWORK}`, only {names}; train again"
        ) from None
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise BundleError(
            f"wts.h5.zip: wts.h5: the weights do not fit the network that params.json asks for; "
            f"train again: {reason[:300]}"
        ) from error


def name_networks(weights: Mapping[str, Tensor]) -> dict[str, dict[str, NDArray[Any]]]:
    """The models of a bundle that hold the weights of a network, from its `state_dict`."""
    # The same array objects under both names, so that the bundle stores each once.
    arrays = {name: value.detach().cpu().numpy().copy() for name, value in weights.items()}
    return {
        OBJECT_NETWORK: arrays,
        AUTOENCODER: {f"network.{name}": array for name, array in arrays.items()},
    }


def describe_scales(scales: Sequence[float]) -> dict[str, Any]:
    """A bundle's metadata of the intensity scales of its scans: of several, the geometric mean,
    and each."""
    if len(scales) == 1:
        return {"intensity_scale": scales[0]}
    mean = math.exp(sum(map(math.log, scales)) / len(scales))
    return {"intensity_scale": mean, SCALES: list(scales)}


def read_losses(model: TrainedModel) -> list[float]:
    """Read the loss of each epoch of the training.

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


def read_intensity_scale(model: TrainedModel, scan: ScanData) -> float | None:
    """Read the intensity scale of the training, mean counts a pixel; weights are good for it only.

    Returns:
        None where the training saw several scans, each in units of its own mean: so is any other.

    Raises:
        BundleError: the model lacks N or the intensity scale.
        ConfigError: the scan's N is not the model's.
    """
    scale = model.metadata.get("intensity_scale")
    if not isinstance(scale, (int, float)) or not LEAST_COUNTS <= scale <= MOST_COUNTS:
        raise BundleError(
            f"wts.h5.zip: params.json: metadata: intensity_scale is {scale!r}; expected a number "
            f"of {LEAST_COUNTS:g} to {MOST_COUNTS:g}: the bundle is not as its training left it; "
            "train again"
        )
    refuse_other_size(model, scan)
    return None if SCALES in model.metadata else float(scale)


def refuse_other_size(model: TrainedModel, scan: ScanData) -> None:
    """Refuse a scan of other frames than those that a model was trained on.

    Raises:
        BundleError: the model lacks N.
        ConfigError: the scan's N is not the model's.
    """
    N = model.metadata.get("N")
    if not isinstance(N, int):
        raise BundleError(
            f"wts.h5.zip: params.json: metadata: N is {N!r}; expected an integer: the bundle is "
            "not as its training left it; train again"
        )
    if scan.size != N:
        raise ConfigError(
            f"{scan.name}: its frames have {scan.size} x {scan.size} pixels, but the model was "
            f"trained on {N} x {N}; infer a scan of that size, or train on this one"
        )

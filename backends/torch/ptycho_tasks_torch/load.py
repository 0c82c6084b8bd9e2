"""From a bundle's arrays to modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch

from ptycho_tasks.backend import TrainedModel
from ptycho_tasks.errors import BundleError
from ptycho_tasks.results.bundle import load_bundle
from ptycho_tasks_torch.network import Autoencoder, ObjectNetwork
from ptycho_tasks_torch.options import NetworkOptions
from ptycho_tasks_torch.pinn import PinnOptions
from ptycho_tasks_torch.unrolled import UnrolledOptions
from ptycho_tasks_torch.unrolled_network import UnrolledAutoencoder, UnrolledNetwork

OBJECT_NETWORK, AUTOENCODER, PROBE = "diffraction_to_obj", "autoencoder", "probe"
_OPTIONS: dict[str, type[NetworkOptions]] = {"pinn": PinnOptions, "unrolled": UnrolledOptions}


def load_inference_bundle(
    model_dir: Path | str,
) -> tuple[dict[str, torch.nn.Module], dict[str, Any]]:
    """Load the bundle in a model directory.

    Args:
        model_dir: the folder that holds `wts.h5.zip`.

    Returns:
        The modules `diffraction_to_obj` and `autoencoder` in eval mode, and the parameters: flat
        under the names that PtychoPINN uses (`N`, `gridsize`, `object.big`, ...), with
        `intensity_scale`; call a module as `module(x, positions, probe, scale)` with
        `scale` = sqrt(intensity_scale) for each sample.

    Raises:
        BundleError: the bundle is missing, damaged, or of another backend.
    """
    bundle = load_bundle(Path(model_dir))
    if bundle.backend not in _OPTIONS:
        raise BundleError(
            f"{model_dir}: this bundle was made by the backend `{bundle.backend}`, not by "
            f"{' or '.join(f'`{name}`' for name in _OPTIONS)}"
        )
    try:
        options = msgspec.convert(bundle.params["training"], _OPTIONS[bundle.backend])
        params = {**bundle.params["flat"], "intensity_scale": bundle.params["intensity_scale"]}
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise BundleError(f"{model_dir}: params.json is not of this version: {error}") from error
    return modules_from(bundle.model, options), params


def modules_from(model: TrainedModel, options: NetworkOptions) -> dict[str, torch.nn.Module]:
    """The modules `diffraction_to_obj` and `autoencoder` in eval mode, sharing their weights.

    Raises:
        BundleError: the arrays are not those of this network.
    """
    network, autoencoder = _fresh(options)
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
    return {OBJECT_NETWORK: network.eval(), AUTOENCODER: autoencoder.eval()}


def _fresh(options: NetworkOptions) -> tuple[torch.nn.Module, torch.nn.Module]:
    if isinstance(options, UnrolledOptions):
        unrolled = UnrolledNetwork(options.steps, options.subsets, options.channels)
        return unrolled, UnrolledAutoencoder(unrolled)
    assert isinstance(options, PinnOptions)
    network = ObjectNetwork(options.channels, options.steps, options.halvings)
    return network, Autoencoder(network)

"""From a bundle on disk to modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch

from ptycho_tasks.errors import BundleError
from ptycho_tasks.results.bundle import load_bundle
from ptycho_tasks_torch.pinn.network import make_pinn_networks
from ptycho_tasks_torch.pinn.options import PinnOptions
from ptycho_tasks_torch.training.weights import load_networks
from ptycho_tasks_torch.unrolled.network import make_unrolled_networks
from ptycho_tasks_torch.unrolled.options import UnrolledOptions

_BACKENDS: dict[str, tuple[type[Any], Any]] = {
    "pinn": (PinnOptions, make_pinn_networks),
    "unrolled": (UnrolledOptions, make_unrolled_networks),
}
"""By name: the options of a training, and what makes its networks from them."""


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
    if bundle.backend not in _BACKENDS:
        raise BundleError(
            f"{model_dir}: this bundle was made by the backend `{bundle.backend}`, not by "
            f"{' or '.join(f'`{name}`' for name in _BACKENDS)}"
        )
    options_type, make_networks = _BACKENDS[bundle.backend]
    try:
        options = msgspec.convert(bundle.params["training"], options_type)
        params = {**bundle.params["flat"], "intensity_scale": bundle.params["intensity_scale"]}
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise BundleError(f"{model_dir}: params.json is not of this version: {error}") from error
    return load_networks(bundle.model, *make_networks(options)), params

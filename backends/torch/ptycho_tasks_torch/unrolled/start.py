"""The network that a training starts from: the one that comes with this package, or one of a file.

Nothing heavy is imported to say which file that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho_tasks.backend import TrainedModel, TrainRequest
from ptycho_tasks.errors import BundleError
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks_torch.unrolled.options import NOTHING, PRETRAINED, UnrolledOptions

if TYPE_CHECKING:
    from torch import nn

    from ptycho_tasks.results.bundle import Bundle

START = "start"
"""The option that decides the file."""
PRIOR = Path(__file__).parents[1] / "prior" / BUNDLE_NAME
"""What comes with this package."""


def list_files(options: UnrolledOptions) -> Mapping[str, Path]:
    """See `Unrolled.files`."""
    if options.start == NOTHING:
        return {}
    if options.start == PRETRAINED:
        return {START: PRIOR}
    path = Path(options.start)
    return {START: path if path.name == BUNDLE_NAME else path / BUNDLE_NAME}


def load_start(request: TrainRequest, version: str, network: nn.Module) -> None:
    """Put the weights that a training starts from into its network, which has fresh ones.

    Args:
        request: of the training.
        version: of the backend.
        network: gets the weights.

    Raises:
        BundleError: the file is no bundle, or one of another backend, version or network.
    """
    path = {**list_files(request.options), **request.files}.get(START)
    if path is None:
        return
    from ptycho_tasks.results.bundle import load_bundle
    from ptycho_tasks_torch.training.weights import load_weights

    try:
        bundle = load_bundle(path)
        load_weights(_refuse_others(path, bundle, request.options.channels, version), network)
    except BundleError as error:
        raise BundleError(f"training.start: {error}") from error


def _refuse_others(path: Path, bundle: Bundle, channels: int, version: str) -> TrainedModel:
    """The model of a bundle that was made by this version of this backend, of so many channels."""
    made_by = bundle.manifest["backend"]
    if (made_by["name"], made_by.get("version")) != ("unrolled", version):
        raise BundleError(
            f"{path}: was made by the backend `{made_by['name']}`, version "
            f"{made_by.get('version')}, not by `unrolled`, version {version}; train it again, or "
            f"take {PRETRAINED} or {NOTHING}"
        )
    training = bundle.params.get("training")
    theirs = training.get("channels") if isinstance(training, Mapping) else None
    if theirs is None:
        raise BundleError(
            f"{path}: params.json does not say how many channels its network has; train it again, "
            f"or take {PRETRAINED} or {NOTHING}"
        )
    if theirs != channels:
        raise BundleError(
            f"{path}: its network has {theirs} channels, and training.channels is {channels}; set "
            f"training.channels: {theirs}, or take start: {NOTHING}"
        )
    return bundle.model

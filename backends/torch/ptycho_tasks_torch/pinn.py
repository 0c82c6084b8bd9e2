"""The backend `pinn`: a physics-informed network that learns from diffraction patterns alone."""

from __future__ import annotations

from typing import Annotated, Literal

from ptycho_tasks.backend import InferRequest, Reconstruction, TrainedModel, TrainRequest
from ptycho_tasks.options import TrainingOptions, doc, limits


class PinnOptions(TrainingOptions, frozen=True, kw_only=True):
    """What can be set under `training:`."""

    epochs: Annotated[int, doc("passes over the training frames", ge=1)] = 20
    gridsize: Annotated[
        Literal[1, 2],
        doc("1: the network sees one frame; 2: groups of 2 x 2 neighbouring frames"),
    ] = 2
    n_groups: Annotated[
        Annotated[int, limits(ge=16)] | None,
        doc("groups to train on, chosen at random; null takes one around every frame"),
    ] = None
    batch_size: Annotated[int, doc("frames a training step, a multiple of neighbours", ge=1)] = 32
    neighbours: Annotated[
        int,
        doc("neighbouring frames that must agree on one object: the overlap constraint", ge=4),
    ] = 32
    learning_rate: Annotated[float, doc("highest learning rate of Adam", gt=0.0, le=1.0)] = 4e-3
    scheduler: Annotated[
        Literal["cosine", "constant"],
        doc("cosine: the rate falls to zero; constant: more epochs continue a finished training"),
    ] = "cosine"
    loss: Annotated[
        Literal["poisson", "mae"],
        doc("Poisson likelihood of the counts, or mean absolute error of the amplitudes"),
    ] = "poisson"
    channels: Annotated[int, doc("feature maps of the network at full size", ge=4, le=256)] = 16
    steps: Annotated[int, doc("physics steps that a network of its own corrects", ge=1, le=8)] = 2
    validation_fraction: Annotated[
        float, doc("share of the frames that is held back to validate", gt=0.0, le=0.5)
    ] = 0.03

    def __post_init__(self) -> None:
        """Refuse values that do not fit each other."""
        if self.neighbours % self.gridsize**2:
            raise ValueError(
                f"neighbours {self.neighbours} is no multiple of a group's "
                f"{self.gridsize**2} frames"
            )
        if self.batch_size % self.neighbours:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of neighbours {self.neighbours}: "
                f"take {self.neighbours} or {2 * self.neighbours}"
            )


class Pinn:
    """See the module; torch is imported by its methods only."""

    name = "pinn"
    version = "1"
    options_type = PinnOptions

    def train(self, request: TrainRequest) -> TrainedModel:
        """Train on a scan without labels, going on from the checkpoint in the work folder.

        Raises:
            TrainingError: the loss became NaN, or the network is no better than a flat object.
            ScanError: too few frames.
            ConfigError: the accelerator is not there, or more groups are asked for than exist.
        """
        from ptycho_tasks_torch.training import train

        return train(request)

    def infer(self, request: InferRequest) -> Reconstruction:
        """Reconstruct a scan.

        Raises:
            BundleError: the model's arrays are not those of this network.
            ConfigError: the accelerator is not there, or the scan's N is not the model's.
        """
        from ptycho_tasks_torch.inference import infer

        return infer(request)


backend = Pinn()

"""The backend `pinn`: a physics-informed network that learns from diffraction patterns alone, or
from labels."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from ptycho_tasks.backend import InferRequest, Reconstruction, TrainedModel, TrainRequest
from ptycho_tasks.options import ExecutionOptions, doc
from ptycho_tasks_torch.execution import TorchExecution, check
from ptycho_tasks_torch.options import NetworkOptions


class PinnOptions(NetworkOptions, frozen=True, kw_only=True):
    """What can be set under `training:`."""

    unlabelled: ClassVar[str] = "pinn"

    model_type: Annotated[
        Literal["pinn", "supervised"],
        doc("pinn: learn from the diffraction alone; supervised: from the scan's objectGuess"),
    ] = "pinn"
    gridsize: Annotated[  # type: ignore[misc]
        Literal[1, 2],
        doc("1: the network sees one frame; 2: groups of 2 x 2 neighbouring frames"),
    ] = 2
    loss: Annotated[
        Literal["poisson", "mae"],
        doc("of pinn: Poisson likelihood of the counts, or mean absolute error of the amplitudes"),
    ] = "poisson"
    channels: Annotated[int, doc("feature maps of the network at full size", ge=4, le=256)] = 16
    halvings: Annotated[
        int,
        doc(
            "how often the network halves what it sees, with twice the feature maps each time but "
            "the last: most weights lie where there are few pixels",
            ge=2,
            le=6,
        ),
    ] = 2
    steps: Annotated[int, doc("physics steps that a network of its own corrects", ge=1, le=8)] = 2

    def __post_init__(self) -> None:
        """Refuse values that do not fit each other."""
        NetworkOptions.__post_init__(self)
        if self.model_type == "supervised" and self.loss != "poisson":
            raise ValueError(
                f"loss {self.loss} compares diffraction, but model_type supervised compares "
                "objects: leave loss out"
            )


class Pinn:
    """See the module; torch is imported by its methods only."""

    name = "pinn"
    version = "2"
    options_type = PinnOptions
    execution_type = TorchExecution

    def check(self, options: PinnOptions, execution: ExecutionOptions) -> None:
        """Refuse options that do not fit each other, before torch is imported; see `check`."""
        check(options, TorchExecution.of(execution))

    def memory(self, request: TrainRequest | InferRequest) -> float:
        """Bytes: patches lie in a file, and of the canvas there are sums, weights and a result."""
        from ptycho_tasks.builds.cost import canvas_sides

        rows, columns = canvas_sides(request.scan)
        return 10 * 8.0 * rows * columns + 6e8

    def train(self, request: TrainRequest) -> TrainedModel:
        """Train on a scan, going on from the checkpoint in the work folder.

        Raises:
            TrainingError: the loss became NaN, or the network is no better than a flat object.
            ScanError: too few frames, or a label that is of no use.
            ConfigError: accelerator, devices, deterministic kernels or logger are not there, the
                scan has no label to learn from, or more groups are asked for than exist.
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

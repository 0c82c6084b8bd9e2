"""The backend `unrolled`: physics steps on the object's whole canvas, and a network that corrects
what they lead to."""

from __future__ import annotations

from ptycho_tasks.backend import (
    InferRequest,
    Reconstruction,
    RefineRequest,
    TrainedModel,
    TrainRequest,
)
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks_torch.execution import TorchExecution, check_options
from ptycho_tasks_torch.unrolled.options import UnrolledOptions


class Unrolled:
    """See the module; torch is imported by its methods only."""

    name = "unrolled"
    version = "4"
    options_type = UnrolledOptions
    execution_type = TorchExecution
    api_version = 2

    def check(self, options: UnrolledOptions, execution: ExecutionOptions) -> None:
        """Refuse options that do not fit each other; torch is not imported."""
        check_options(options, TorchExecution.from_execution(execution))

    def uses_gpu(self, execution: ExecutionOptions) -> bool:
        """Whether a training works on a GPU."""
        from ptycho_tasks_torch.device import find_device

        return find_device(execution.accelerator).type != "cpu"

    def train(self, request: TrainRequest) -> TrainedModel:
        """Train on one scan or several, going on from the checkpoint in the work folder.

        Raises:
            TrainingError: the loss became NaN, the object is flat, or the network is no better than
                the untrained steps.
            ScanError: too few frames, or a label that is of no use.
            ConfigError: accelerator, devices, deterministic kernels or logger are not there, or the
                scan has no label to learn from.
        """
        from ptycho_tasks_torch.training.trainer import train_network
        from ptycho_tasks_torch.unrolled.objective import UnrolledObjective

        return train_network(request, UnrolledObjective)

    def infer(self, request: InferRequest) -> Reconstruction:
        """Reconstruct a scan.

        Raises:
            BundleError: the model's arrays are not those of this network.
            ConfigError: the accelerator is not there, or the scan's N is not the model's.
            ScanError: every frame is dark.
        """
        from ptycho_tasks_torch.unrolled.inference import reconstruct_on_canvas

        return reconstruct_on_canvas(request)

    def refine(self, request: RefineRequest) -> Reconstruction:
        """Go on from a reconstruction with physics steps; of the options, `steps` counts.

        Raises:
            ConfigError: the accelerator is not there.
            ScanError: every frame is dark.
        """
        from ptycho_tasks_torch.unrolled.refinement import refine_on_canvas

        return refine_on_canvas(request)


backend = Unrolled()

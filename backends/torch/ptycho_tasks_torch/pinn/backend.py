"""The backend `pinn`: a physics-informed network that learns from diffraction patterns alone, or
from labels."""

from __future__ import annotations

from ptycho_tasks.backend import InferRequest, Reconstruction, TrainedModel, TrainRequest
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks_torch.execution import TorchExecution, check_options
from ptycho_tasks_torch.lean import import_torch
from ptycho_tasks_torch.pinn.options import PinnOptions


class Pinn:
    """See the module; torch is imported by its methods only."""

    name = "pinn"
    version = "4"
    options_type = PinnOptions
    execution_type = TorchExecution
    api_version = 2

    def check(self, options: PinnOptions, execution: ExecutionOptions) -> None:
        """Refuse options that do not fit each other; torch is not imported."""
        check_options(options, TorchExecution.from_execution(execution))

    def memory(self, request: TrainRequest | InferRequest) -> float:
        """Bytes: patches lie in a file, and of the canvas there are sums, weights and a result."""
        import math

        from ptycho_tasks.scan import canvas_sides

        scans = request.scans if isinstance(request, TrainRequest) else [request.scan]
        pixels = max(math.prod(canvas_sides(scan)) for scan in scans)
        return 10 * 8.0 * pixels + 6e8

    def uses_gpu(self, execution: ExecutionOptions) -> bool:
        """Whether a training works on a GPU."""
        from ptycho_tasks_torch.device import find_device

        return find_device(execution.accelerator).type != "cpu"

    def train(self, request: TrainRequest) -> TrainedModel:
        """Train on one scan or several, going on from the checkpoint in the work folder.

        Raises:
            TrainingError: the loss became NaN, or the network is no better than a flat object.
            ScanError: too few frames, or a label that is of no use.
            ConfigError: accelerator, devices, deterministic kernels or logger are not there, the
                scan has no label to learn from, or more groups are asked for than exist.
        """
        from ptycho_tasks_torch.pinn.objective import PinnObjective
        from ptycho_tasks_torch.training.trainer import train_network

        return train_network(request, PinnObjective)

    def infer(self, request: InferRequest) -> Reconstruction:
        """Reconstruct a scan.

        Raises:
            BundleError: the model's arrays are not those of this network.
            ConfigError: the accelerator is not there, or the scan's N is not the model's.
        """
        import_torch()
        from ptycho_tasks_torch.pinn.inference import reconstruct_from_patches

        return reconstruct_from_patches(request)


backend = Pinn()

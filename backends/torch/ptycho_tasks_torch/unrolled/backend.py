"""The backend `unrolled`: physics steps on the object's whole canvas, and a network that corrects
what they lead to."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho_tasks.backend import (
    InferRequest,
    Reconstruction,
    RefineRequest,
    TrainedModel,
    TrainRequest,
    Trial,
)
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks_torch.execution import TorchExecution, check_options
from ptycho_tasks_torch.lean import import_torch
from ptycho_tasks_torch.unrolled.options import UnrolledOptions
from ptycho_tasks_torch.unrolled.start import list_files, load_start

if TYPE_CHECKING:
    from ptycho_tasks.scan import ScanData


class Unrolled:
    """See the module; torch is imported by its methods only."""

    name = "unrolled"
    version = "5"
    options_type = UnrolledOptions
    execution_type = TorchExecution
    api_version = 2

    def check(self, options: UnrolledOptions, execution: ExecutionOptions) -> None:
        """Refuse options that do not fit each other; torch is not imported."""
        check_options(options, TorchExecution.from_execution(execution))

    def files(self, options: UnrolledOptions) -> Mapping[str, Path]:
        """The bundle that a training starts from; torch is not imported, nothing opened."""
        return list_files(options)

    def uses_gpu(self, execution: ExecutionOptions) -> bool:
        """Whether a training works on a GPU."""
        from ptycho_tasks_torch.device import find_device

        return find_device(execution.accelerator).type != "cpu"

    def train(self, request: TrainRequest) -> TrainedModel:
        """Train on one scan or several, going on from the checkpoint in the work folder.

        With no epochs, nothing is learned: the network is that of the start, and what is made to
        fit the frames is the probe, where that is to be refined.

        Raises:
            TrainingError: the loss became NaN, or the object is flat.
            BundleError: the file to start from is damaged, or of another backend or network.
            ScanError: too few frames, or a label that is of no use.
            ConfigError: accelerator, devices, deterministic kernels or logger are not there, or the
                scan has no label to learn from.
        """
        load = functools.partial(load_start, request, self.version)
        if not request.options.epochs:
            import_torch()
            from ptycho_tasks_torch.unrolled.untrained import take_start

            return take_start(request, load)
        from ptycho_tasks_torch.training.trainer import train_network
        from ptycho_tasks_torch.unrolled.objective import UnrolledObjective

        return train_network(request, UnrolledObjective, load)

    def infer(self, request: InferRequest) -> Reconstruction:
        """Reconstruct a scan.

        Raises:
            BundleError: the model's arrays are not those of this network.
            ConfigError: the accelerator is not there, or the scan's N is not the model's.
            ScanError: every frame is dark.
        """
        import_torch()
        from ptycho_tasks_torch.unrolled.inference import reconstruct_on_canvas

        return reconstruct_on_canvas(request)

    def refine(self, request: RefineRequest) -> Reconstruction:
        """Go on from a reconstruction with physics steps; of the options, `steps` counts.

        Raises:
            ConfigError: the accelerator is not there.
            ScanError: every frame is dark.
        """
        import_torch()
        from ptycho_tasks_torch.unrolled.refinement import refine_on_canvas

        return refine_on_canvas(request)

    def try_scan(
        self,
        scan: ScanData,
        steps: int,
        modes: int = 0,
        held_back: int = 0,
        *,
        moves: bool = False,
    ) -> Trial:
        """Take physics steps with the scan's own probe, or one that is fitted to its frames where
        `modes` is above 0; nothing is learned. See `Backend` for `held_back` and `moves`.

        Raises:
            ScanError: every frame is dark.
        """
        from ptycho_tasks_torch.unrolled.trial import try_on_canvas

        return try_on_canvas(scan, steps, modes, held_back, moves=moves)


backend = Unrolled()

"""The backend `ptychi`: the iterative engines of the library pty-chi.

An iterative engine does not generalise. To train is to reconstruct one scan; to infer is to look
the reconstruction up, in the frame of the scan to infer; to refine is to go on from the result of
another backend.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from ptycho_tasks.backend import (
    InferRequest,
    Reconstruction,
    RefineRequest,
    TrainedModel,
    TrainRequest,
)
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks_ptychi.options import PtychiOptions

if TYPE_CHECKING:
    from ptycho_tasks.scan import ScanData


class Ptychi:
    """See the module; torch and pty-chi are imported by `train` and `refine` only."""

    name = "ptychi"
    options_type = PtychiOptions
    execution_type = ExecutionOptions
    api_version = 2

    @property
    def version(self) -> str:
        """Ours and the library's: either may change results."""
        return f"1 with ptychi {version('ptychi')}"

    def memory(self, request: TrainRequest | InferRequest | RefineRequest) -> float:
        """Bytes: pty-chi holds all frames as counts, and a copy of them, beside its canvases."""
        from ptycho_tasks.scan import canvas_sides

        scan = choose_scan(request) if isinstance(request, TrainRequest) else request.scan
        rows, columns = canvas_sides(scan)
        return 20 * 8.0 * rows * columns + 3.0 * scan.diffraction.nbytes + 6e8

    def train(self, request: TrainRequest) -> TrainedModel:
        """Reconstruct a scan.

        Raises:
            TrainingError: the iterations diverged.
            ScanError: every frame is dark.
            ConfigError: the accelerator is not there, or there are several scans.
        """
        from ptycho_tasks_ptychi.reconstruct import reconstruct_scan

        choose_scan(request)
        return reconstruct_scan(request)

    def infer(self, request: InferRequest) -> Reconstruction:
        """Look the reconstruction up for a scan: the same, or another of the same object.

        Raises:
            BundleError: the model holds no reconstruction.
            ConfigError: the scan's N is not that of the reconstruction.
            TrainingError: the scan lies beside what was reconstructed, or shows another object.
        """
        from ptycho_tasks_ptychi.evaluate import look_up_scan

        return look_up_scan(request)

    def refine(self, request: RefineRequest) -> Reconstruction:
        """Go on from another backend's reconstruction of the scan.

        Object, probe and positions are those of the reconstruction. Where it saw nothing, the
        object starts at the mean level. The result lies on the smallest canvas of the
        positions.

        Raises:
            TrainingError: the iterations diverged.
            ScanError: every frame is dark, or the reconstruction is of another scan.
            ConfigError: the accelerator is not there.
        """
        from ptycho_tasks_ptychi.reconstruct import refine_start

        return refine_start(request)


def choose_scan(request: TrainRequest) -> ScanData:
    """The scan to reconstruct.

    Raises:
        ConfigError: there are several.
    """
    if len(request.scans) > 1:
        raise ConfigError(
            f"fixture.scans: names {len(request.scans)} scans, but the backend `ptychi` "
            "reconstructs one and learns nothing for others; name one, or take a backend that "
            "learns (unrolled, pinn)"
        )
    return request.scan


backend = Ptychi()

"""What a backend is: pure compute. It gets arrays and options and gives back arrays; the core
owns every file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ptycho_tasks.options import ExecutionOptions, TrainingOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ptycho_tasks.scan import ScanData


SEEN_LEVEL = 0.01
"""A pixel counts as seen where the illumination is at least this share of its maximum."""


class Progress(Protocol):
    """Called by a backend after each epoch or batch of work."""

    def __call__(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Say that `done` of `total` steps are done, and the metrics at this point.

        The first call, before the first step, tells where the work begins: at 0, or further on.
        """


def no_progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
    """A `Progress` that shows nothing."""


def say_nothing(text: str) -> None:
    """A `say` that shows nothing."""


@dataclass(frozen=True)
class TrainRequest:
    """All that a backend needs in order to train."""

    scan: ScanData
    options: Any
    """An instance of the backend's `options_type`, fully resolved."""
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    progress: Progress = no_progress
    work_dir: Path | None = None
    """An existing folder for checkpoints; None where nothing may be written. A later training on
    the same data with the same code and options, `epochs` aside, is given the same folder with
    all that is in it: after a kill, or to go on for more epochs."""
    say: Callable[[str], None] = say_nothing
    """Shows the user one line, such as where a training resumes."""


@dataclass(frozen=True)
class TrainedModel:
    """What training gives, ready to be written as a bundle.

    `models` maps a model's name to its named arrays (float or complex). One array object under
    several names is stored once. `metadata` holds JSON-able values that inference needs again
    (`intensity_scale`, say). `history` has one mapping of metric to value an epoch.
    """

    models: Mapping[str, Mapping[str, NDArray[Any]]]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class InferRequest:
    """All that a backend needs in order to reconstruct a scan with a trained model."""

    scan: ScanData
    model: TrainedModel
    options: Any
    """The training options that the model was trained with."""
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    progress: Progress = no_progress


@dataclass(frozen=True)
class Reconstruction:
    """What inference gives."""

    object: NDArray[np.complex64]
    """(H, W) complex64 object."""
    origin: tuple[int, int]
    """(row, column) on the scan's object grid of the pixel object[0, 0]."""
    probe: NDArray[np.complex64]
    """(P, N, N) complex64, scaled such that |FFT(probe * patch)|^2 is in counts."""
    positions: NDArray[np.float64]
    """(M, 2) float64 (y, x) on the scan's object grid, as used."""
    losses: Sequence[float] = ()
    """Loss an epoch, of training or of the iterations."""

    @cached_property
    def illumination(self) -> NDArray[np.float32]:
        """(H, W) float32 sum of |probe|^2 over modes and frames; zero where nothing was seen.

        Raises:
            ScanError: a patch reaches outside the object.
        """
        from ptycho_tasks.forward import illumination_of

        return illumination_of(self.probe, self.positions, self.origin, self.object.shape)

    @property
    def seen(self) -> NDArray[np.bool_]:
        """(H, W) bool: where the illumination reaches 1 % of its maximum; elsewhere the object
        is no result."""
        import numpy as np

        light = self.illumination
        return np.asarray((light > 0) & (light >= SEEN_LEVEL * light.max()))


@runtime_checkable
class Backend(Protocol):
    """A training and inference engine.

    Importing the module that holds a backend must be cheap: import torch and the like inside
    `train` and `infer`.
    """

    name: str
    version: str
    """Changes when results change; part of the identity of what was trained."""
    options_type: type[TrainingOptions]

    def train(self, request: TrainRequest) -> TrainedModel:
        """Learn from a scan.

        Raises:
            TrainingError: the training cannot give a meaningful model.
            ConfigError: an option that this machine or scan cannot honour.
        """

    def infer(self, request: InferRequest) -> Reconstruction:
        """Reconstruct a scan with a trained model.

        Raises:
            BundleError: the model does not hold what this backend's models hold.
            ConfigError: an option that this machine cannot honour.
        """

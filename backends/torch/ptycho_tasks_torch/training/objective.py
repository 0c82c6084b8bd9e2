"""What a network learns, and from what: all that differs between the backends of this package."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ptycho_tasks.errors import TrainingError
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.frames.blocks import Batch, Blocks, Epoch
from ptycho_tasks_torch.frames.labels import LEAST_SPREAD, label_of
from ptycho_tasks_torch.options import NetworkOptions
from ptycho_tasks_torch.physics.scale import measured_intensity, scale_probe
from ptycho_tasks_torch.training.weights import AUTOENCODER, OBJECT_NETWORK


@dataclass(frozen=True)
class Material:
    """What a scan gives to learn from."""

    probe: NDArray[np.complex64]
    """(P, N, N) in counts."""
    intensity_scale: float
    """Mean measured counts a pixel; the unit of the misfit."""
    label: Tensor | None
    """(H, W) complex64 that explains the measured counts; None where training takes none."""

    @classmethod
    def of(cls, scan: ScanData, options: NetworkOptions, training: NDArray[np.int64]) -> Material:
        """From a scan and the frames to train on.

        Raises:
            ScanError: frames that are all dark, or a label that is of no use.
            ConfigError: there is no label.
        """
        intensity = measured_intensity(scan, training)
        mean_counts = intensity * scan.size**2
        probe = scale_probe(scan.probe, mean_counts)
        label = label_of(scan, options, probe, mean_counts)
        return cls(probe, intensity, None if label is None else torch.from_numpy(label))


class Lesson(nn.Module):
    """A network and what it is to make small. Its parameters are what is trained, its state is what
    a checkpoint keeps."""

    network: nn.Module
    blocks: Blocks
    intensity_scale: float
    clip: float | None = None
    """Largest norm of a training step's gradients; None clips nothing."""

    def begin(self, say: Callable[[str], None]) -> None:
        """What is done once, before the first epoch.

        Args:
            say: shows the user one line.
        """

    @abstractmethod
    def loaders(
        self, epoch: Epoch, order: torch.Generator, workers: int
    ) -> tuple[Iterable[Batch], Iterable[Batch]]:
        """Batches to train on, drawn by `order`, and batches to validate with."""

    @abstractmethod
    def misfit(self, batch: Batch) -> Tensor:
        """Of a batch to train on."""

    @abstractmethod
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """At least `val_loss` of frames held back, `flat_loss` that a flat object would have there,
        and `spread` of the predicted object."""

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """For the optimizer."""
        return [{"params": list(self.parameters()), "lr": rate}]

    def models(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, NDArray[Any]]]:
        """What a bundle is to hold of a `state_dict` of this lesson."""
        # One array object under both names, so that the bundle stores it once.
        arrays = {
            name.removeprefix("network."): value.detach().cpu().numpy().copy()
            for name, value in state.items()
            if name.startswith("network.")
        }
        return {
            OBJECT_NETWORK: arrays,
            AUTOENCODER: {f"network.{name}": array for name, array in arrays.items()},
        }

    def refuse(self, metrics: Mapping[str, float]) -> None:
        """Fail loudly where a falling loss hides a collapsed network; see `refuse_flat`."""
        refuse_flat(metrics)


LessonFactory = Callable[[ScanData, Any], Lesson]
"""From a scan and the options of a training: what is to be learned, its network's weights fresh.

Raises `ScanError` where the scan has nothing to learn from, `ConfigError` where the options ask for
what it does not have.
"""


def refuse_flat(metrics: Mapping[str, float]) -> None:
    """Fail where the network is of no use.

    Args:
        metrics: of the epoch whose weights are taken.

    Raises:
        TrainingError: the predicted object is flat, or a flat object of the right mean explains the
            frames held back as well.
    """
    if not (metrics["val_loss"] < metrics["flat_loss"] and metrics["spread"] > LEAST_SPREAD):
        raise TrainingError(
            f"the network is no better than a flat object: misfit of the frames held back "
            f"{metrics['val_loss']:.4g}, of a flat object {metrics['flat_loss']:.4g}, spread "
            f"of the predicted object {metrics['spread']:.2g}; check probe and positions, or "
            "lower training.learning_rate"
        )

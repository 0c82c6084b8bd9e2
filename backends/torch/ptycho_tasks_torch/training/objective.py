"""What a network learns: all in which the trainings of this package's backends differ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ptycho_tasks.errors import TrainingError
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.frames.blocks import Batch, Batches, Blocks, EpochPlan
from ptycho_tasks_torch.frames.labels import LEAST_SPREAD, make_label
from ptycho_tasks_torch.options import NetworkOptions
from ptycho_tasks_torch.physics.scale import read_intensity, scale_probe
from ptycho_tasks_torch.training.mosaic import Mosaic
from ptycho_tasks_torch.training.weights import name_networks


@dataclass(frozen=True)
class TrainingInputs:
    """What a training takes from a scan, beside its frames."""

    probe: NDArray[np.complex64]
    """(P, N, N) in counts."""
    intensity_scale: float
    """Mean measured counts a pixel; the unit of the loss."""
    label: Tensor | None
    """(H, W) complex64 that explains the measured counts; None where there is no label to learn."""

    @classmethod
    def from_scan(
        cls, scan: ScanData, options: NetworkOptions, training: NDArray[np.int64]
    ) -> TrainingInputs:
        """Take them from a scan and the (K,) frames to train on.

        Raises:
            ScanError: the frames are all dark, or the label is useless.
            ConfigError: the scan has no label.
        """
        intensity = read_intensity(scan, training)
        mean_counts = intensity * scan.size**2
        probe = scale_probe(scan.probe, mean_counts)
        label = make_label(scan, options, probe, mean_counts)
        return cls(probe, intensity, None if label is None else torch.from_numpy(label))


class Objective(nn.Module):
    """A network and the loss that its training makes small.

    Its parameters are trained. A checkpoint keeps its state.
    """

    network: nn.Module
    blocks: Blocks
    intensity_scale: float
    """Mean measured counts a pixel; the unit of the loss."""
    clip: float | None = None
    """Largest norm of a training step's gradients; None clips nothing."""
    mosaic: Mosaic | None = None
    """Keeps the objects of the blocks to validate with, where someone watches."""
    keeps_start = False
    """Whether the network is of use before it is trained: a training that ends no better for the
    frames held back then gives it as it was."""

    def plan_epoch(self, options: NetworkOptions) -> EpochPlan:
        """How an epoch divides the blocks."""
        return EpochPlan.from_blocks(self.blocks, options)

    def follow(self, others: Sequence[Objective]) -> None:
        """Learn with the network of the first of other objectives, whose state it belongs to."""
        del self.network
        # A module of this one would be a part of its state, too.
        object.__setattr__(self, "network", others[0].network)

    def prepare(self, say: Callable[[str], None]) -> None:
        """Do what is done once, before the first epoch.

        Args:
            say: shows the user one line.
        """

    @abstractmethod
    def make_loaders(
        self, epoch: EpochPlan, order: torch.Generator, workers: int
    ) -> tuple[Batches, Batches]:
        """Batches to train on, drawn with `order`, and batches to validate with.

        Args:
            epoch: how an epoch divides the blocks.
            order: draws the order of the blocks.
            workers: threads that read ahead.
        """

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The loss of a batch to train on, a scalar."""

    @abstractmethod
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Scores of a batch to validate with.

        Returns:
            At least `val_loss`, the loss of the frames held back; `flat_loss`, that of a flat
            object; and `spread` of the predicted object.
        """

    def watch(self) -> Mosaic:
        """Keep the objects of the blocks to validate with from now on; gives what keeps them."""
        self.mosaic = Mosaic()
        return self.mosaic

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """The parameters for the optimizer, at a learning rate of `rate`."""
        return [{"params": list(self.network.parameters()), "lr": rate}]

    def describe(self) -> dict[str, Any]:
        """The metadata of a bundle that inference needs."""
        return {"intensity_scale": self.intensity_scale}

    def export_models(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, NDArray[Any]]]:
        """The models of a bundle, from a `state_dict` of this objective."""
        return {**name_networks(take_part(state, "network.")), **self.export_further(state)}

    def export_further(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, NDArray[Any]]]:
        """Models beside the network, from a `state_dict` of this objective."""
        return {}

    def refuse_useless(self, metrics: Mapping[str, float], say: Callable[[str], None]) -> None:
        """Fail where a falling loss hides a useless network; see `refuse_flat`.

        Args:
            metrics: of the epoch whose weights the bundle gets.
            say: shows the user one line.
        """
        refuse_flat(metrics)


def take_part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The values of a `state_dict` whose names begin with a prefix, which is taken off."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


ObjectiveFactory = Callable[[ScanData, Any], Objective]
"""Makes an objective from a scan and the options of a training; its network has fresh weights.

Raises `ScanError` where the scan has nothing to learn from, and `ConfigError` where the options ask
for what the scan does not have.
"""


def refuse_flat(metrics: Mapping[str, float]) -> None:
    """Fail where the predicted object is flat, or no better than a flat one.

    Args:
        metrics: of the epoch whose weights the bundle gets.

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

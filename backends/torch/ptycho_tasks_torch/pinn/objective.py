"""What the network of `pinn` learns.

Many patches explain one frame, or one group of frames. The right one agrees with its neighbours,
which are predicted on their own. A training sample is therefore a block of neighbouring groups:
their patches are averaged with the light as weight, and the loss compares this stitched object with
every frame of the block or, supervised, with the label. Phases of patches are aligned in inference
only: aligning them in training changed no score.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ptycho_tasks.backend import ROUGH_PROBE
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.frames.blocks import (
    Batch,
    Batches,
    EpochPlan,
    make_group_blocks,
    make_loaders,
    split_frames,
)
from ptycho_tasks_torch.pinn.losses import DiffractionLoss, LabelLoss, Loss, StitchedBlocks
from ptycho_tasks_torch.pinn.network import ObjectNetwork, make_pinn_networks
from ptycho_tasks_torch.pinn.options import PinnOptions
from ptycho_tasks_torch.training.objective import Objective, TrainingInputs


class PinnObjective(Objective):
    """See the module."""

    probe: Tensor
    network: ObjectNetwork

    def __init__(self, scan: ScanData, options: PinnOptions) -> None:
        """A network with fresh weights.

        Raises:
            ScanError: too few frames, frames that are all dark, or a label that is of no use.
            ConfigError: there is no label, or more groups are asked for than there are.
        """
        super().__init__()
        training, validation = split_frames(scan, options)
        inputs = TrainingInputs.from_scan(scan, options, training)
        self.blocks = make_group_blocks(scan, options, training, validation)
        self.intensity_scale = inputs.intensity_scale
        self._is_probe_estimated = scan.is_probe_estimated
        self.register_buffer("probe", torch.from_numpy(inputs.probe), persistent=False)
        self.network, _ = make_pinn_networks(options)
        self._loss: Loss = (
            DiffractionLoss(options.loss, self.intensity_scale)
            if inputs.label is None
            else LabelLoss(inputs.label)
        )

    def prepare(self, say: Callable[[str], None]) -> None:
        """See `Objective`."""
        if self._is_probe_estimated:
            say(ROUGH_PROBE)

    def make_loaders(
        self, epoch: EpochPlan, order: torch.Generator, workers: int
    ) -> tuple[Batches, Batches]:
        """See `Objective`."""
        return make_loaders(self.blocks, epoch, order, workers)

    def loss(self, batch: Batch) -> Tensor:
        """The loss of all frames of the blocks."""
        return self._loss.over_all(self._stitch(batch))

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        stitched = self._stitch(batch)
        if self.mosaic is not None:
            self.mosaic.add(stitched.origin, stitched.objects, stitched.light)
        loss, flat = self._loss.over_held_back(stitched, batch["held_back"])
        return {"val_loss": loss, "flat_loss": flat, "spread": stitched.spread()}

    def _stitch(self, batch: Batch) -> StitchedBlocks:
        return StitchedBlocks.predict(self.network, self.probe, self.intensity_scale, batch)

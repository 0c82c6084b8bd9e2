"""What the network of `pinn` learns.

A network that sees one frame (or group) could explain it in many ways. What makes the patch
right is that its neighbours, predicted on their own, agree with it: a training sample is a block
of neighbouring groups, whose patches are stitched by light, and the misfit is that of the stitched
object, with every frame of the block or, supervised, with the label. The phases of the patches are
aligned in inference only: to do so here as well changed no score.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.frames.blocks import Batch, Epoch, loaders, make_blocks, split_frames
from ptycho_tasks_torch.pinn.losses import DiffractionMisfit, LabelMisfit, Misfit, Stitched
from ptycho_tasks_torch.pinn.network import ObjectNetwork
from ptycho_tasks_torch.pinn.options import PinnOptions
from ptycho_tasks_torch.training.objective import Lesson, Material


class PinnLesson(Lesson):
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
        material = Material.of(scan, options, training)
        self.blocks = make_blocks(scan, options, training, validation)
        self.intensity_scale = material.intensity_scale
        self.register_buffer("probe", torch.from_numpy(material.probe), persistent=False)
        self.network = ObjectNetwork(options.channels, options.steps, options.halvings)
        self._misfit: Misfit = (
            DiffractionMisfit(options.loss, self.intensity_scale)
            if material.label is None
            else LabelMisfit(material.label)
        )

    def loaders(
        self, epoch: Epoch, order: torch.Generator, workers: int
    ) -> tuple[Iterable[Batch], Iterable[Batch]]:
        """See `Lesson`."""
        return loaders(self.blocks, epoch, order, workers)

    def misfit(self, batch: Batch) -> Tensor:
        """Of all frames of the blocks with the stitched objects."""
        return self._misfit.all(self._stitched(batch))

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """See `Lesson`."""
        stitched = self._stitched(batch)
        misfit, flat = self._misfit.held(stitched, batch["held"])
        return {"val_loss": misfit, "flat_loss": flat, "spread": stitched.spread()}

    def _stitched(self, batch: Batch) -> Stitched:
        return Stitched.of(self.network, self.probe, self.intensity_scale, batch)

"""What a network is trained on: blocks of neighbouring groups of frames, dealt out to steps.

Axis letters: B blocks, K groups in a block, C frames in a group, N detector pixels along one side,
D = K * C frames in a block.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler

from ptycho_tasks.errors import ConfigError, ScanError
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.frames.groups import Groups, group_neighbours, make_groups
from ptycho_tasks_torch.frames.read_ahead import read_ahead
from ptycho_tasks_torch.options import NetworkOptions

LEAST_FRAMES = 16
Batch = Mapping[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Blocks:
    """Blocks of neighbouring groups to train on, and to validate with."""

    diffraction: NDArray[np.float32]
    groups: Groups
    training: NDArray[np.int64]
    """(G, K) groups of each block."""
    validation: NDArray[np.int64]
    """(V, K) groups of each block; the first one is that of a frame held back."""
    held: NDArray[np.int64]
    """Frames held back; the other frames of their groups are frames to train on."""

    def read(self, members: NDArray[np.int64]) -> dict[str, Tensor]:
        """What there is to learn from some blocks.

        Args:
            members: (B, K) groups of each block.

        Returns:
            `x` (B, K, C, N, N) float32 amplitude; `positions` (B, K, C, 1, 2) float32, as in
            `Groups.relative`; `corners` (B, D, 2) int64 on the canvas of the block, which lies at
            `origin` (B, 2) int64 on the object grid; `frames` (B, D) int64; `held` (B, D) bool,
            frames held back.
        """
        groups = self.groups.take(members)
        corners = groups.corners.reshape(len(members), -1, 2)
        origin = corners.min(axis=1)
        return {
            "x": torch.from_numpy(np.asarray(self.diffraction[groups.frames])),
            "positions": torch.from_numpy(groups.relative),
            "corners": torch.from_numpy(corners - origin[:, None]),
            "origin": torch.from_numpy(origin),
            "frames": torch.from_numpy(groups.frames.reshape(len(members), -1)),
            "held": torch.from_numpy(np.isin(groups.frames, self.held).reshape(len(members), -1)),
        }


def split_frames(
    scan: ScanData, options: NetworkOptions
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Frames to train on and frames held back, sorted.

    Raises:
        ScanError: the scan has too few frames.
    """
    M = scan.frame_count
    if M < LEAST_FRAMES:
        raise ScanError(
            f"{scan.name}: has {M} frames; training needs at least {LEAST_FRAMES}: "
            "take more frames into the fixture"
        )
    mixed = np.random.default_rng(options.seed).permutation(M)
    held = max(1, round(options.validation_fraction * M))
    return np.sort(mixed[held:]), np.sort(mixed[:held])


def make_blocks(
    scan: ScanData,
    options: NetworkOptions,
    training: NDArray[np.int64],
    validation: NDArray[np.int64],
) -> Blocks:
    """Groups, and blocks of them; no frame that is held back is in a block to train on.

    Raises:
        ConfigError: more groups are asked for than there are.
    """
    anchors = training
    if options.n_groups is not None:
        if options.n_groups > len(training):
            raise ConfigError(
                f"training.n_groups: {options.n_groups} groups are asked for, but the "
                f"{len(training)} training frames of {scan.name} give {len(training)}; "
                f"ask for at most {len(training)}"
            )
        mixed = np.random.default_rng(options.seed).permutation(training)
        anchors = np.sort(mixed[: options.n_groups])
    K = options.block_frames // options.gridsize**2
    learned = make_groups(scan, anchors, training, options.gridsize)
    held = make_groups(scan, validation, np.arange(scan.frame_count), options.gridsize)
    around = group_neighbours(scan, held, learned, max(K - 1, 1))
    first = len(learned) + np.arange(len(held))[:, None]
    return Blocks(
        diffraction=scan.diffraction,
        groups=Groups(
            np.concatenate([learned.frames, held.frames]),
            np.concatenate([learned.relative, held.relative]),
            np.concatenate([learned.corners, held.corners]),
        ),
        training=group_neighbours(scan, learned, learned, K),
        validation=np.concatenate([first, around], axis=1),
        held=validation,
    )


@dataclass(frozen=True)
class Epoch:
    """How the blocks of an epoch are dealt out to batches, training steps and devices."""

    blocks: int
    batch: int
    """Blocks of a batch, of all devices together; the last batch may be smaller."""
    accumulated: int = 1
    """Batches of a training step; the last step may be smaller."""
    rank: int = 0
    """Which of the devices this is."""
    devices: int = 1

    @classmethod
    def of(cls, blocks: Blocks, options: NetworkOptions) -> Epoch:
        """Groups share frames: an epoch shows each frame once, or those that the chosen groups can
        hold."""
        groups, in_block = blocks.training.shape
        frames = len(blocks.diffraction) - len(blocks.held)
        shown = min(frames, groups * options.gridsize**2)
        return cls(
            blocks=math.ceil(shown / (in_block * options.gridsize**2)),
            batch=options.batch_size // options.block_frames,
            accumulated=options.accumulate_grad_batches,
        )

    @property
    def batches(self) -> int:
        """Number of batches."""
        return math.ceil(self.blocks / self.batch)

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return math.ceil(self.batches / self.accumulated)

    def begins_step(self, batch: int) -> bool:
        """Whether the batch of this index is the first one of a training step."""
        return batch % self.accumulated == 0

    def mine(self, drawn: list[T]) -> list[T]:
        """What of a batch this device takes: where there is nothing left for it, one of the others'
        blocks, which then counts nothing."""
        return drawn[self.rank :: self.devices] or drawn[:1]

    def share(self, batch: int) -> float:
        """This device's part of the batch of this index, as a share of the blocks of its training
        step."""
        begun = batch * self.batch
        step = batch // self.accumulated * self.accumulated * self.batch
        blocks = range(self.blocks)
        mine = blocks[begun : begun + self.batch][self.rank :: self.devices]
        return len(mine) / len(blocks[step : step + self.accumulated * self.batch])


class Loader:
    """Batches of blocks, drawn anew each time it is gone through, or always the same."""

    def __init__(
        self,
        blocks: Blocks,
        members: NDArray[np.int64],
        batches: Collection[list[int]] | BatchSampler,
        workers: int,
        epoch: Epoch | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            blocks: the frames.
            members: (G, K) groups of each block.
            batches: gives lists of blocks.
            workers: threads that read ahead.
            epoch: which of a batch's blocks are this device's; None takes all.
        """
        self._blocks, self._members, self._batches = blocks, members, batches
        self._workers, self._epoch = workers, epoch

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Each as `Blocks.read` gives it."""
        drawn: Iterable[list[int]] = self._batches
        if self._epoch is not None:
            drawn = map(self._epoch.mine, drawn)
        return read_ahead(self._read, drawn, self._workers)

    def _read(self, batch: list[int]) -> dict[str, Tensor]:
        return self._blocks.read(self._members[batch])


def loaders(
    blocks: Blocks, epoch: Epoch, order: torch.Generator, workers: int
) -> tuple[Loader, Loader]:
    """What to train on, in an order that is drawn for every epoch, and what to validate with."""
    # Without replacement as long as there are enough: blocks around different frames.
    learned, held = range(len(blocks.training)), range(len(blocks.validation))
    drawn = RandomSampler(learned, num_samples=epoch.blocks, generator=order)
    # As many blocks as make a training step: without gradients they need less memory.
    step = epoch.batch * epoch.accumulated
    return (
        Loader(blocks, blocks.training, BatchSampler(drawn, epoch.batch, False), workers, epoch),
        Loader(blocks, blocks.validation, BatchSampler(held, step, False), workers),
    )

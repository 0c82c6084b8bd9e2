"""Blocks of neighbouring groups of frames, and how an epoch gives them to training steps.

Axis letters: B blocks, K groups in a block, C frames in a group, N detector pixels along one side,
D = K * C frames in a block.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler

from ptycho_tasks.errors import ConfigError, ScanError
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.frames.groups import Groups, find_nearest_groups, make_groups
from ptycho_tasks_torch.options import NetworkOptions
from ptycho_tasks_torch.threads import work_ahead

LEAST_FRAMES = 16
"""Frames that a scan must have at least."""
Batch = Mapping[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Blocks:
    """Blocks to train on, and blocks to validate with."""

    diffraction: NDArray[np.float32]
    groups: Groups
    training: NDArray[np.int64]
    """(G, K) groups of each block."""
    validation: NDArray[np.int64]
    """(V, K) groups of each block; the first group is that of a frame held back."""
    held_back: NDArray[np.int64]
    """Frames held back from training; the other frames of their groups are frames to train on."""

    def read(self, members: NDArray[np.int64]) -> dict[str, Tensor]:
        """Read the frames of some blocks.

        Args:
            members: (B, K) groups of each block.

        Returns:
            `x` (B, K, C, N, N) float32 amplitude; `positions` (B, K, C, 1, 2) float32, as in
            `Groups.relative`; `corners` (B, D, 2) int64 on the canvas of the block, which lies at
            `origin` (B, 2) int64 on the object grid; `frames` (B, D) int64; `held_back` (B, D)
            bool.
        """
        groups = self.groups.take(members)
        corners = groups.corners.reshape(len(members), -1, 2)
        origin = corners.min(axis=1)
        is_held_back = np.isin(groups.frames, self.held_back)
        return {
            "x": torch.from_numpy(np.asarray(self.diffraction[groups.frames])),
            "positions": torch.from_numpy(groups.relative),
            "corners": torch.from_numpy(corners - origin[:, None]),
            "origin": torch.from_numpy(origin),
            "frames": torch.from_numpy(groups.frames.reshape(len(members), -1)),
            "held_back": torch.from_numpy(is_held_back.reshape(len(members), -1)),
        }


def split_frames(
    scan: ScanData, options: NetworkOptions
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Frames to train on and frames held back, sorted.

    Raises:
        ScanError: the scan has too few frames.
    """
    require_frames(scan)
    M = scan.frame_count
    shuffled = np.random.default_rng(options.seed).permutation(M)
    count = max(1, round(options.validation_fraction * M))
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


def require_frames(scan: ScanData) -> None:
    """Refuse a scan that is too small to train on.

    Raises:
        ScanError: it has fewer than `LEAST_FRAMES` frames.
    """
    if scan.frame_count < LEAST_FRAMES:
        raise ScanError(
            f"{scan.name}: has {scan.frame_count} frames; training needs at least {LEAST_FRAMES}: "
            "take more frames into the fixture"
        )


def make_group_blocks(
    scan: ScanData,
    options: NetworkOptions,
    training: NDArray[np.int64],
    validation: NDArray[np.int64],
) -> Blocks:
    """Make a block around every group.

    No frame that is held back is in a block to train on.

    Args:
        scan: to learn from.
        options: of the training.
        training: (K,) frames to train on.
        validation: (L,) frames held back.

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
        shuffled = np.random.default_rng(options.seed).permutation(training)
        anchors = np.sort(shuffled[: options.n_groups])
    K = options.block_frames // options.gridsize**2
    trained = make_groups(scan, anchors, training, options.gridsize)
    held_back = make_groups(scan, validation, np.arange(scan.frame_count), options.gridsize)
    around = find_nearest_groups(scan, held_back, trained, max(K - 1, 1))
    first = len(trained) + np.arange(len(held_back))[:, None]
    return Blocks(
        diffraction=scan.diffraction,
        groups=Groups(
            np.concatenate([trained.frames, held_back.frames]),
            np.concatenate([trained.relative, held_back.relative]),
            np.concatenate([trained.corners, held_back.corners]),
        ),
        training=find_nearest_groups(scan, trained, trained, K),
        validation=np.concatenate([first, around], axis=1),
        held_back=validation,
    )


@dataclass(frozen=True)
class EpochPlan:
    """How an epoch divides its blocks among batches, training steps and devices."""

    blocks: int
    batch: int
    """Blocks of a batch, of all devices together; the last batch may be smaller."""
    accumulated: int = 1
    """Batches of a training step; the last step may be smaller."""
    rank: int = 0
    """Which of the devices this is."""
    devices: int = 1

    @classmethod
    def from_blocks(cls, blocks: Blocks, options: NetworkOptions) -> EpochPlan:
        """Groups share frames: an epoch shows as many frames as there are to train on, or as the
        chosen groups hold."""
        groups, in_block = blocks.training.shape
        frames = len(blocks.diffraction) - len(blocks.held_back)
        shown = min(frames, groups * options.gridsize**2)
        return cls(
            blocks=math.ceil(shown / (in_block * options.gridsize**2)),
            batch=options.batch_size // options.block_frames,
            accumulated=options.accumulate_grad_batches,
        )

    @cached_property
    def sizes(self) -> list[int]:
        """Blocks of each batch, of all devices together."""
        return [min(self.batch, self.blocks - first) for first in range(0, self.blocks, self.batch)]

    @property
    def batches(self) -> int:
        """Number of batches."""
        return len(self.sizes)

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return math.ceil(self.batches / self.accumulated)

    def is_first_of_step(self, batch: int) -> bool:
        """Whether the batch of this index is the first one of a training step."""
        return batch % self.accumulated == 0

    def own_blocks(self, batch: list[T]) -> list[T]:
        """The blocks of a batch that this device takes.

        A device that gets none takes one of another device, and `share` gives it no weight.
        """
        return batch[self.rank :: self.devices] or batch[:1]

    def share(self, batch: int) -> float:
        """The blocks of this device in the batch of this index, over those of the training step."""
        step = batch // self.accumulated * self.accumulated
        own = range(self.sizes[batch])[self.rank :: self.devices]
        return len(own) / sum(self.sizes[step : step + self.accumulated])


class Batches(ABC):
    """Batches that are read when they are needed, in the order in which they are drawn."""

    workers: int
    """Threads that read ahead."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches."""

    @abstractmethod
    def draw(self) -> Iterable[Any]:
        """Draw what to read, anew for every pass; only one thread iterates over it."""

    @abstractmethod
    def read(self, item: Any) -> Batch:
        """Read one of the items drawn; several threads may call it at once."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches of a pass."""
        yield from work_ahead(self.read, self.draw(), self.workers)


class Loader(Batches):
    """Reads batches of blocks, the same every time or, with a sampler, drawn anew every time."""

    def __init__(
        self,
        blocks: Blocks,
        members: NDArray[np.int64],
        batches: Collection[list[int]] | BatchSampler,
        workers: int,
        epoch: EpochPlan | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            blocks: the frames.
            members: (G, K) groups of each block.
            batches: lists of blocks.
            workers: threads that read ahead.
            epoch: says which blocks of a batch this device takes; None takes all.
        """
        self._blocks, self._members, self._batches = blocks, members, batches
        self.workers, self._epoch = workers, epoch

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def draw(self) -> Iterable[list[int]]:
        """The blocks of each batch."""
        return self._batches if self._epoch is None else map(self._epoch.own_blocks, self._batches)

    def read(self, item: list[int]) -> Batch:
        """See `Blocks.read`."""
        return self._blocks.read(self._members[item])


def make_loaders(
    blocks: Blocks, epoch: EpochPlan, order: torch.Generator, workers: int
) -> tuple[Loader, Loader]:
    """Batches to train on, drawn in another order every epoch, and batches to validate with."""
    trained, held_back = range(len(blocks.training)), range(len(blocks.validation))
    # Without replacement as long as there are enough: blocks around different frames.
    sampler = RandomSampler(trained, num_samples=epoch.blocks, generator=order)
    # A whole training step at once: without gradients the blocks need less memory.
    step = epoch.batch * epoch.accumulated
    return (
        Loader(blocks, blocks.training, BatchSampler(sampler, epoch.batch, False), workers, epoch),
        Loader(blocks, blocks.validation, BatchSampler(held_back, step, False), workers),
    )

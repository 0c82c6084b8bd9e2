"""What the unrolled network is trained on: blocks of neighbouring frames, measured or simulated.

Axis letters: V blocks, K frames in a block, B blocks of a batch, S, T rows and columns of their
canvases, N detector pixels along one side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import RandomSampler

from ptycho_tasks.errors import ConfigError, ScanError
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.frames.blocks import LEAST_FRAMES, Batch, Blocks, Epoch
from ptycho_tasks_torch.frames.groups import group_neighbours, place
from ptycho_tasks_torch.frames.objects import Objects
from ptycho_tasks_torch.frames.read_ahead import read_ahead
from ptycho_tasks_torch.physics.canvas import padded_shape
from ptycho_tasks_torch.physics.exposure import DARK, Exposure
from ptycho_tasks_torch.unrolled.network import MULTIPLE, expose_blocks
from ptycho_tasks_torch.unrolled.options import UnrolledOptions
from ptycho_tasks_torch.unrolled.positions import MOST

MARGIN = math.ceil(MOST)
"""Pixels that canvases are larger on each side where positions are refined."""
HIDDEN = 8
"""Of a block to validate with, one frame of so many is hidden from the network."""


def make_blocks(scan: ScanData, options: UnrolledOptions) -> tuple[Blocks, NDArray[np.int64]]:
    """Blocks around every frame to train on, and some in which frames are held back.

    Returns:
        The blocks, and the frames to train on.

    Raises:
        ScanError: the scan has too few frames.
        ConfigError: more groups are asked for than there are.
    """
    M = scan.frame_count
    if M < LEAST_FRAMES:
        raise ScanError(
            f"{scan.name}: has {M} frames; training needs at least {LEAST_FRAMES}: "
            "take more frames into the fixture"
        )
    singles = place(scan, np.arange(M)[:, None])
    K = min(options.block_frames, M)
    mixed = np.random.default_rng(options.seed).permutation(M)
    hidden = math.ceil(K / HIDDEN)
    anchors = mixed[: max(1, round(options.validation_fraction * M / hidden))]
    validation = group_neighbours(scan, singles.take(anchors), singles, K)
    held = np.unique(validation[:, ::HIDDEN])
    training = np.setdiff1d(mixed, held)
    if options.n_groups is not None:
        if options.n_groups > len(training):
            raise ConfigError(
                f"training.n_groups: {options.n_groups} frames are asked for, but {scan.name} has "
                f"{len(training)} to train on; ask for at most {len(training)}"
            )
        training = np.sort(mixed[np.isin(mixed, training)][: options.n_groups])
    K = min(K, len(training))
    members = group_neighbours(scan, singles.take(training), singles.take(training), K)
    return Blocks(scan.diffraction, singles, training[members], validation, held), training


@dataclass(frozen=True)
class Simulator:
    """Measures simulated objects in the place of a block's frames."""

    objects: Objects
    intensity_scale: float
    probe: Callable[[], Tensor]
    """(P, N, N) complex64 in counts, as the network is given it."""
    shape: tuple[int, int]
    """(S, T) of every block's canvas."""

    def measure(self, batch: Batch, probe: Tensor, seeds: Sequence[int]) -> Batch:
        """The batch with other frames `x`, the objects `truth` (B, S, T) complex64 that they show,
        and the `probe` that they were measured with.

        Args:
            batch: as `Blocks.read` gives it.
            probe: (P, N, N) complex64 in counts.
            seeds: B of them, of each block's object and noise.
        """
        generators = [np.random.default_rng(seed) for seed in seeds]
        exposure = expose(batch, probe, self.intensity_scale, self.shape)
        truth = [self.objects.draw(generator, self.shape) for generator in generators]
        canvas = torch.from_numpy(np.stack(truth))
        with torch.no_grad():
            expected = (exposure.predicted(canvas).square() - DARK) * self.intensity_scale
        each = np.array_split(expected.clamp(min=0).double().numpy(), len(generators))
        counts = [g.poisson(block) for g, block in zip(generators, each, strict=True)]
        x = np.sqrt(np.fft.fftshift(np.concatenate(counts), axes=(-2, -1))).astype(np.float32)
        frames = torch.from_numpy(x).reshape(batch["x"].shape)
        return {**batch, "x": frames, "truth": canvas, "probe": probe}


def expose(
    batch: Batch,
    probe: Tensor,
    intensity_scale: float,
    shape: tuple[int, int],
    moved: Tensor | None = None,
) -> Exposure:
    """What a batch measured; as `Blocks.read` gave it, with groups of one frame.

    Args:
        batch: see there.
        probe: (P, N, N) complex64 in counts.
        intensity_scale: mean measured counts a pixel.
        shape: (S, T) of the canvases: one for all batches, so that a block's result does not depend
            on which others it comes with.
        moved: (M, 2) float32 how far each frame of the scan is from where it was said to be,
            pixels. The canvases then begin `MARGIN` earlier along both axes.
    """
    relative = batch["corners"][:, :, None] + batch["positions"][:, :, 0]
    if moved is not None:
        relative = relative + MARGIN + moved[batch["frames"]][:, :, None]
    scale = torch.full((len(relative),), math.sqrt(intensity_scale), device=relative.device)
    return expose_blocks(batch["x"][:, :, 0], relative, probe, scale, shape)


HIDDEN_SHARE = 0.25
"""Of a block's frames in training."""


def _hide(frames: int, seeds: Sequence[int]) -> NDArray[np.bool_]:
    """(B, D) which of each block's D frames to hide."""
    hidden = np.zeros((len(seeds), frames), dtype=np.bool_)
    count = max(1, round(HIDDEN_SHARE * frames))
    for row, seed in zip(hidden, seeds, strict=True):
        row[np.random.default_rng(seed).permutation(frames)[:count]] = True
    return hidden


class Drawn:
    """Batches to train on, drawn anew in every epoch; measured and simulated ones in turn."""

    def __init__(
        self,
        blocks: Blocks,
        epoch: Epoch,
        order: torch.Generator,
        workers: int,
        simulator: Simulator | None,
        on: str,
    ) -> None:
        """Nothing is read yet.

        Args:
            blocks: the frames.
            epoch: how they are dealt out.
            order: draws blocks and seeds.
            workers: threads that read and simulate ahead.
            simulator: None where nothing is simulated.
            on: see `UnrolledOptions`.
        """
        self._blocks, self._epoch, self._order = blocks, epoch, order
        self._workers, self._simulator, self._on = workers, simulator, on

    def __len__(self) -> int:
        """Number of batches."""
        return self._epoch.batches

    def __iter__(self) -> Iterator[Batch]:
        """Each as `Blocks.read` or `Simulator.measure` gives it."""
        count, order = self._epoch.blocks, self._order
        # All is drawn here, in one thread, so that the readers' order decides nothing.
        begins = int(torch.randint(2, (1,), generator=order))
        seeds = torch.randint(2**62, (count,), generator=order).tolist()
        there = range(len(self._blocks.training))
        sampler = RandomSampler(there, num_samples=count, generator=order)
        # Each block has a seed of its own, whichever device it is dealt to.
        dealt = list(zip(sampler, seeds, strict=True))
        size = self._epoch.batch
        batches = [dealt[first : first + size] for first in range(0, count, size)]
        kinds = [self._on == "simulated" or (index + begins) % 2 == 1 for index in range(len(self))]
        # Of the beginning of the epoch: what is simulated ahead must not depend on how far ahead.
        probe = self._simulator.probe() if self._simulator is not None else None

        def read(item: tuple[list[tuple[int, int]], bool]) -> Batch:
            members, own = zip(*item[0], strict=True)
            batch = self._blocks.read(self._blocks.training[list(members)])
            if self._simulator is None or probe is None or not item[1]:
                hidden = torch.from_numpy(_hide(batch["held"].shape[1], own))
                return {**batch, "held": hidden}
            return self._simulator.measure(batch, probe, own)

        yield from read_ahead(
            read, list(zip(map(self._epoch.mine, batches), kinds, strict=True)), self._workers
        )


def largest_shape(blocks: Blocks, margin: int = 0) -> tuple[int, int]:
    """(S, T) that holds every block's canvas, with a margin around it."""
    size = blocks.diffraction.shape[-1] + 2 * margin
    # Of a small scan, blocks to train on may have fewer frames than those to validate with.
    (S, T), (U, V) = (
        shape_of(torch.from_numpy(blocks.groups.corners[members][:, :, 0]), size)
        for members in (blocks.training, blocks.validation)
    )
    return max(S, U), max(T, V)


def shape_of(corners: Tensor, size: int) -> tuple[int, int]:
    """(S, T) that holds the canvas of every block; `corners` (B, D, 2), `size` N."""
    reach = corners.amax(dim=1) - corners.amin(dim=1)
    return padded_shape(reach.amax(dim=0).tolist(), size, MULTIPLE)


def nearest(blocks: Blocks, count: int) -> NDArray[np.int64]:
    """(1, K) a block of the `count` frames to train on nearest to one of them, or of all."""
    there = np.unique(blocks.training)
    corners = blocks.groups.corners[there, 0]
    middle = blocks.groups.corners[blocks.training[0, 0], 0]
    order = np.argsort(np.square(corners - middle).sum(axis=1), kind="stable")
    return there[None, order[:count]]

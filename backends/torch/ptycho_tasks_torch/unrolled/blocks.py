"""What the unrolled network is trained on: blocks of neighbouring frames, measured or simulated.

Axis letters: V blocks, K frames in a block, B blocks of a batch, S, T rows and columns of their
canvases, N detector pixels along one side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import RandomSampler

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.physics.metrics import Box, scanned_box
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.frames.blocks import Batch, Batches, Blocks, EpochPlan, require_frames
from ptycho_tasks_torch.frames.groups import find_nearest_groups, locate_groups
from ptycho_tasks_torch.frames.textures import Random, TexturePool
from ptycho_tasks_torch.physics.canvas import padded_shape
from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.physics.mapped import MULTIPLE
from ptycho_tasks_torch.unrolled.correction import WAYS
from ptycho_tasks_torch.unrolled.network import expose_blocks
from ptycho_tasks_torch.unrolled.options import UnrolledOptions
from ptycho_tasks_torch.unrolled.positions import MOST

MARGIN = math.ceil(MOST)
"""Pixels that a canvas is larger on each side where positions are refined."""
HIDDEN = 8
"""In a block to validate with, every so many-th frame is hidden from the network."""


def make_frame_blocks(scan: ScanData, options: UnrolledOptions) -> tuple[Blocks, NDArray[np.int64]]:
    """Make a block around every frame to train on, and blocks in which frames are held back.

    Returns:
        The blocks, and the frames to train on.

    Raises:
        ScanError: the scan has too few frames.
        ConfigError: more groups are asked for than there are.
    """
    require_frames(scan)
    M = scan.frame_count
    singles = locate_groups(scan, np.arange(M)[:, None])
    K = min(options.block_frames, M)
    shuffled = np.random.default_rng(options.seed).permutation(M)
    hidden = math.ceil(K / HIDDEN)
    anchors = shuffled[: max(1, round(options.validation_fraction * M / hidden))]
    validation = find_nearest_groups(scan, singles.take(anchors), singles, K)
    held_back = np.unique(validation[:, ::HIDDEN])
    training = np.setdiff1d(shuffled, held_back)
    if options.n_groups is not None:
        if options.n_groups > len(training):
            raise ConfigError(
                f"training.n_groups: {options.n_groups} frames are asked for, but {scan.name} has "
                f"{len(training)} to train on; ask for at most {len(training)}"
            )
        training = np.sort(shuffled[np.isin(shuffled, training)][: options.n_groups])
    K = min(K, len(training))
    members = find_nearest_groups(scan, singles.take(training), singles.take(training), K)
    return Blocks(scan.diffraction, singles, training[members], validation, held_back), training


OWN_SHARE = 0.5
"""Share of the simulated objects that are cut from the scan's own reconstruction."""
TURNS = 3
"""Ways in which a block lies when it is learned from: its steps take longer than the network."""


@dataclass(frozen=True)
class Simulator:
    """Replaces the frames of blocks by frames of simulated objects."""

    pool: TexturePool
    intensity_scale: float
    photon: float
    probe: Callable[[], Tensor]
    """(P, N, N) complex64 in counts, as the network is given it."""
    shape: tuple[int, int]
    """(S, T) of every block's canvas."""
    own: Callable[[], Tensor]
    """(H, W) complex64, what the scan shows, as the network finds it at the start."""
    own_share: float = OWN_SHARE

    def measure(self, batch: Batch, probe: Tensor, seeds: Sequence[int]) -> Batch:
        """Simulate the frames of a batch.

        The result has other frames `x`, the objects `truth` (B, S, T) complex64 that they show, and
        the `probe` that they are measured with.

        Args:
            batch: as `Blocks.read` gives it.
            probe: (P, N, N) complex64 in counts.
            seeds: one for each of the B blocks, of its object and noise.
        """
        generators = [np.random.default_rng(seed) for seed in seeds]
        exposure = expose_batch(batch, probe, self.intensity_scale, self.photon, self.shape)
        canvas = torch.from_numpy(np.stack([self._draw(generator) for generator in generators]))
        with torch.no_grad():
            expected = (exposure.predict(canvas).square() - exposure.dark) * self.intensity_scale
        # Frames in unknown units are taken for counts.
        photon = self.photon or 1.0
        blocks = np.array_split(expected.clamp(min=0).double().numpy() / photon, len(generators))
        counts = [g.poisson(block) for g, block in zip(generators, blocks, strict=True)]
        measured = np.fft.fftshift(np.concatenate(counts), axes=(-2, -1)) * photon
        x = np.sqrt(measured).astype(np.float32)
        frames = torch.from_numpy(x).reshape(batch["x"].shape)
        # The detector is that of the scan.
        frames = frames.masked_fill(torch.isnan(batch["x"]), math.nan)
        return {**batch, "x": frames, "truth": canvas, "probe": probe}

    def _draw(self, generator: Random) -> NDArray[np.complex64]:
        """(S, T) object, of the scan's mean brightness: the dose is the scan's then."""
        own = self.own().numpy()
        if generator.random() < self.own_share:
            return cut_object(own, generator, self.shape)
        drawn = self.pool.draw(generator, self.shape, 0)
        level = np.square(np.abs(own)).mean() / np.square(np.abs(drawn)).mean()
        return np.asarray(drawn * np.sqrt(level), dtype=np.complex64)


def cut_object(
    image: NDArray[np.complex64], generator: Random, shape: tuple[int, int]
) -> NDArray[np.complex64]:
    """(S, T) part of an image, turned and mirrored at random; mirrored beyond its rim."""
    image = np.rot90(image, int(generator.integers(4)))
    if generator.random() < 0.5:
        image = image.T
    lacking = [(0, max(side - there, 0)) for side, there in zip(shape, image.shape, strict=True)]
    image = np.pad(image, lacking, mode="symmetric")
    y, x = (generator.integers(n - m + 1) for n, m in zip(image.shape, shape, strict=True))
    return np.ascontiguousarray(image[y : y + shape[0], x : x + shape[1]])


def expose_batch(
    batch: Batch,
    probe: Tensor,
    intensity_scale: float,
    photon: float,
    shape: tuple[int, int],
    displacement: Tensor | None = None,
) -> Exposure:
    """Place the frames of a batch on canvases, one for each block.

    Args:
        batch: as `Blocks.read` gives it, with groups of one frame.
        probe: (P, N, N) complex64 in counts.
        intensity_scale: mean measured counts a pixel.
        photon: see `find_photon`.
        shape: (S, T) of the canvases: one for all batches, so that a block's result does not depend
            on which others it comes with.
        displacement: (M, 2) float32 distance of each frame from its position in the scan, pixels.
            The canvases then begin `MARGIN` earlier along both axes.
    """
    relative = batch["corners"][:, :, None] + batch["positions"][:, :, 0]
    if displacement is not None:
        relative = relative + MARGIN + displacement[batch["frames"]][:, :, None]
    scale = torch.full((len(relative),), math.sqrt(intensity_scale), device=relative.device)
    return expose_blocks(batch["x"][:, :, 0], relative, probe, scale, shape, photon)


HIDDEN_SHARE = 1 / 8
"""Share of the frames of a block that are hidden from the network in training."""


def _draw_hidden(frames: int, seeds: Sequence[int]) -> NDArray[np.bool_]:
    """(B, D) mask of the frames to hide, drawn for every block."""
    hidden = np.zeros((len(seeds), frames), dtype=np.bool_)
    count = max(1, round(HIDDEN_SHARE * frames))
    for row, seed in zip(hidden, seeds, strict=True):
        row[np.random.default_rng(seed).permutation(frames)[:count]] = True
    return hidden


def _draw_turns(seeds: Sequence[int]) -> NDArray[np.int64]:
    """(B, TURNS) ways in which each block lies when it is learned from."""
    generators = (np.random.default_rng([seed, WAYS]) for seed in seeds)
    return np.stack([generator.permutation(WAYS)[:TURNS] for generator in generators])


class RandomBatches(Batches):
    """Batches to train on, drawn for every epoch; measured and simulated ones in turn."""

    def __init__(
        self,
        blocks: Blocks,
        epoch: EpochPlan,
        order: torch.Generator,
        workers: int,
        simulator: Simulator | None,
        on: str,
    ) -> None:
        """Nothing is read yet.

        Args:
            blocks: the frames.
            epoch: how an epoch divides the blocks.
            order: draws blocks and seeds.
            workers: threads that read and simulate ahead.
            simulator: None where nothing is simulated.
            on: see `UnrolledOptions`.
        """
        self._blocks, self._epoch, self._order = blocks, epoch, order
        self.workers, self._simulator, self._on = workers, simulator, on

    def __len__(self) -> int:
        """Number of batches."""
        return self._epoch.batches

    def draw(self) -> list[tuple[list[tuple[int, int]], Tensor | None]]:
        """The blocks of each batch, each with a seed, and the probe to simulate with, or None."""
        count, order = self._epoch.blocks, self._order
        phase = int(torch.randint(2, (1,), generator=order))
        seeds = torch.randint(2**62, (count,), generator=order).tolist()
        sampler = RandomSampler(
            range(len(self._blocks.training)), num_samples=count, generator=order
        )
        # Each block has a seed of its own, whichever device takes it.
        seeded = list(zip(sampler, seeds, strict=True))
        size = self._epoch.batch
        batches = [seeded[first : first + size] for first in range(0, count, size)]
        always = self._on == "simulated"
        is_simulated = [always or (index + phase) % 2 == 1 for index in range(len(self))]
        # The probe when the epoch begins: how far ahead frames are simulated must not matter.
        probe = self._simulator.probe() if self._simulator is not None else None
        own = map(self._epoch.own_blocks, batches)
        probes = [probe if simulates else None for simulates in is_simulated]
        return list(zip(own, probes, strict=True))

    def read(self, item: tuple[list[tuple[int, int]], Tensor | None]) -> Batch:
        """See `Blocks.read` and `Simulator.measure`."""
        seeded, probe = item
        members, seeds = zip(*seeded, strict=True)
        batch = self._blocks.read(self._blocks.training[list(members)])
        batch["turns"] = torch.from_numpy(_draw_turns(seeds))
        if self._simulator is None or probe is None:
            hidden = torch.from_numpy(_draw_hidden(batch["held_back"].shape[1], seeds))
            return {**batch, "held_back": hidden}
        return self._simulator.measure(batch, probe, seeds)


MOST_SHOWN = 2048
"""Frames of the part of a scan whose reconstruction objects are cut from."""


class Shown(NamedTuple):
    """A part of a scan."""

    frames: NDArray[np.int64]
    box: Box
    """Where their light is, on the scan's object grid."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the box."""
        rows, columns = self.box
        return rows.stop - rows.start, columns.stop - columns.start


def choose_shown(scan: ScanData, training: NDArray[np.int64]) -> Shown:
    """The frames to train on, those around the middle of the scan if there are many."""
    positions = scan.positions[training]
    distance = np.square(positions - np.median(positions, axis=0)).sum(axis=1)
    frames = np.sort(training[np.argsort(distance, kind="stable")[:MOST_SHOWN]])
    return Shown(frames, scanned_box(scan.positions[frames], scan.size))


def common_shape(blocks: Blocks, margin: int = 0) -> tuple[int, int]:
    """(S, T) of a canvas that holds any block, with a margin around it."""
    size = blocks.diffraction.shape[-1] + 2 * margin
    # In a small scan, a block to train on may have fewer frames than one to validate with.
    (S, T), (U, V) = (
        canvas_shape(torch.from_numpy(blocks.groups.corners[members][:, :, 0]), size)
        for members in (blocks.training, blocks.validation)
    )
    return max(S, U), max(T, V)


def canvas_shape(corners: Tensor, size: int) -> tuple[int, int]:
    """(S, T) of a canvas that holds each of the blocks with (B, D, 2) corners; `size` is N."""
    reach = corners.amax(dim=1) - corners.amin(dim=1)
    return padded_shape(reach.amax(dim=0).tolist(), size, MULTIPLE)

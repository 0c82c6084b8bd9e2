"""Unsupervised training through the forward model, with Lightning as the trainer.

A network that sees one frame (or group) could explain it in many ways. What makes the patch
right is that its neighbours, predicted on their own, agree with it: a training sample is a block
of neighbouring groups, whose patches are stitched by light, and the misfit is that of the stitched
object with every frame of the block. The phases of the patches are aligned in inference only: to
do so here as well changed no score.

Axis letters: B blocks, K groups in a block, C frames in a group, P probe modes, N detector pixels
along one side, D = K * C frames in a block.
"""

from __future__ import annotations

import logging
import math
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from ptycho_tasks.backend import Progress, TrainedModel, TrainRequest
from ptycho_tasks.errors import ConfigError, ScanError, TrainingError
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.canvas import add_patches, cut_patches
from ptycho_tasks_torch.checkpoints import Checkpoints
from ptycho_tasks_torch.device import find_device, settings
from ptycho_tasks_torch.groups import Groups, group_neighbours, make_groups
from ptycho_tasks_torch.load import AUTOENCODER, OBJECT_NETWORK
from ptycho_tasks_torch.network import Exposure, ObjectNetwork
from ptycho_tasks_torch.physics import (
    amplitude_misfit,
    intensities,
    mean_intensity,
    poisson_misfit,
    scale_probe,
)
from ptycho_tasks_torch.pinn import PinnOptions

LEAST_FRAMES = 16
WARM_UP = 0.1
"""Share of the training steps in which the learning rate rises, where it falls later."""
WARM_UP_STEPS = 32
"""Training steps in which it rises, where it is constant later: whatever the epochs."""
LEAST_SPREAD = 1e-3
"""A predicted object that varies less than this share of its mean is flat."""

with warnings.catch_warnings():
    # What its dependencies deprecate among themselves is nothing that a user could mend.
    warnings.simplefilter("ignore")
    import lightning.pytorch as lightning
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment


def train(request: TrainRequest) -> TrainedModel:
    """Train a network; see `Pinn.train`."""
    scan, options = request.scan, request.options
    device = find_device(request.execution.accelerator)
    training, validation = split_frames(scan, options)
    intensity = mean_intensity(scan.diffraction, training)
    if intensity == 0:
        raise ScanError(f"{scan.name}: every frame is dark; there is nothing to learn from")
    probe = scale_probe(scan.probe, intensity * scan.size**2)
    blocks = make_blocks(scan, options, training, validation)
    checkpoints = Checkpoints(request.work_dir, request.say)
    with settings(request.execution, options.seed), _silence():
        order = torch.Generator().manual_seed(options.seed)
        to_train, to_validate = _loaders(blocks, options, len(training), order)
        task = Task(
            options,
            torch.from_numpy(probe),
            intensity,
            order,
            len(to_train),
            checkpoints,
            request.progress,
        )
        state = checkpoints.read()
        if state is not None and goes_on(state, options, request.say):
            task.resume(state)
        trainer = lightning.Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=1,
            # One process, whatever a batch system's variables would make Lightning believe.
            plugins=[LightningEnvironment()],
            max_epochs=options.epochs - len(task.history),
            # Deterministic kernels exist for all operations on a CPU, but not on every GPU.
            deterministic=True if device.type == "cpu" else "warn",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        request.progress(len(task.history), options.epochs, {})
        try:
            if len(task.history) < options.epochs:
                with _plain_interrupts():
                    trainer.fit(task, to_train, to_validate)
                if trainer.interrupted:  # older versions of Lightning keep a Ctrl-C to themselves
                    raise KeyboardInterrupt
            refuse_flat(task.history)
        except TrainingError:
            # What led to this is not worth going on from: should a fault of the machine have
            # spoilt it, every later training would inherit that.
            checkpoints.remove()
            raise
    return _trained_model(task, {"N": scan.size, "intensity_scale": intensity})


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


def split_frames(
    scan: ScanData, options: PinnOptions
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
    options: PinnOptions,
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
    K = options.neighbours // options.gridsize**2
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


class _BlockData(Dataset[dict[str, Tensor]]):
    def __init__(self, blocks: Blocks, members: NDArray[np.int64]) -> None:
        self.blocks, self.members = blocks, members

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        groups = self.blocks.groups.take(self.members[index])
        corners = groups.corners.reshape(-1, 2)
        return {
            "x": torch.from_numpy(np.asarray(self.blocks.diffraction[groups.frames])),
            "positions": torch.from_numpy(groups.relative),
            "corners": torch.from_numpy(corners - corners.min(axis=0)),
            "held": torch.from_numpy(np.isin(groups.frames.reshape(-1), self.blocks.held)),
        }


def _loaders(
    blocks: Blocks, options: PinnOptions, frames: int, order: torch.Generator
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    size = options.batch_size // options.neighbours
    data = _BlockData(blocks, blocks.training)
    groups, in_block = blocks.training.shape
    # Groups share frames: an epoch shows each once, or those that the chosen groups can hold.
    shown = min(frames, groups * options.gridsize**2)
    per_epoch = math.ceil(shown / (in_block * options.gridsize**2))
    # Without replacement as long as there are enough: blocks around different frames.
    sampler = RandomSampler(data, num_samples=per_epoch, generator=order)
    return (
        DataLoader(data, batch_size=size, sampler=sampler),
        DataLoader(_BlockData(blocks, blocks.validation), batch_size=size),
    )


class Task(lightning.LightningModule):
    """The network, its misfit, and what was seen of it an epoch."""

    probe: Tensor

    def __init__(
        self,
        options: PinnOptions,
        probe: Tensor,
        intensity_scale: float,
        order: torch.Generator,
        epoch_steps: int,
        checkpoints: Checkpoints,
        progress: Progress,
    ) -> None:
        """A network with fresh weights.

        Args:
            options: of the training.
            probe: (P, N, N) complex64 in counts.
            intensity_scale: mean measured counts a pixel; the unit of the misfit.
            order: draws the blocks of every epoch.
            epoch_steps: training steps an epoch.
            checkpoints: keeps the state after an epoch.
            progress: is told of every epoch.
        """
        super().__init__()
        self.options, self.order, self.epoch_steps = options, order, epoch_steps
        self.checkpoints, self.tell = checkpoints, progress
        self.network = ObjectNetwork(options.channels, options.steps)
        self.intensity_scale = intensity_scale
        self.register_buffer("probe", probe, persistent=False)
        self.history: list[dict[str, float]] = []
        self._sums: dict[str, list[float]] = {}
        self._resumed: Mapping[str, Any] | None = None

    def configure_optimizers(self) -> Any:
        """Adam, its rate rising for a tenth of the steps while it falls along a cosine; or rising
        for a fixed number of steps and constant then."""
        self.adam = torch.optim.Adam(self.network.parameters(), lr=self.options.learning_rate)
        steps = self.options.epochs * self.epoch_steps

        def cosine(step: int) -> float:
            falling = 0.5 * (1 + math.cos(math.pi * step / steps))
            return falling * min(1.0, (step + 1) / (WARM_UP * steps))

        def constant(step: int) -> float:
            return min(1.0, (step + 1) / WARM_UP_STEPS)

        share = cosine if self.options.scheduler == "cosine" else constant
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, share)
        if self._resumed is not None:
            self.adam.load_state_dict(self._resumed["adam"])
            self.schedule.load_state_dict(self._resumed["schedule"])
        return {
            "optimizer": self.adam,
            "lr_scheduler": {"scheduler": self.schedule, "interval": "step"},
        }

    def state(self) -> dict[str, Any]:
        """All that the epochs to come depend on, and the history. The network draws no random
        numbers once it is made."""
        return {
            "epochs": self.options.epochs,
            "history": self.history,
            "network": self.network.state_dict(),
            "adam": self.adam.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order": self.order.get_state(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, instead of from fresh weights."""
        self.history = state["history"]
        self.network.load_state_dict(state["network"])
        self.order.set_state(state["order"])
        # Adam is made later, when the weights lie on their device.
        self._resumed = state

    def training_step(self, batch: Mapping[str, Tensor], index: int) -> Tensor:
        """The misfit of all frames of the blocks with the stitched objects."""
        stitched = Stitched.of(self, batch)
        loss = self._misfit(stitched.counts(stitched.objects), stitched.amplitude)
        self._note("loss", loss)
        if not math.isfinite(self._sums["loss"][-1]):
            raise TrainingError(
                f"the loss became NaN or Inf in epoch {len(self.history) + 1}; lower "
                f"training.learning_rate ({self.options.learning_rate:g})"
            )
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], index: int) -> None:
        """The misfit of the frames that were held back, and that of a flat object."""
        stitched = Stitched.of(self, batch)
        held = batch["held"]
        measured = stitched.amplitude[held]
        self._note("val_loss", self._misfit(stitched.counts(stitched.objects)[held], measured))
        flat = stitched.counts(torch.ones_like(stitched.objects))[held]
        flat = flat * (measured.square().sum() / flat.sum())
        self._note("flat_loss", self._misfit(flat, measured))
        self._note("spread", stitched.spread())

    def on_train_epoch_end(self) -> None:
        """Keep the epoch's means and the state, and tell of them. Lightning validates before."""
        epoch = {name: float(np.mean(values)) for name, values in self._sums.items()}
        self._sums.clear()
        self.history.append(epoch)
        done, epochs = len(self.history), self.options.epochs
        self.checkpoints.write(self.state, last=done == epochs)
        self.tell(done, epochs, {name: epoch[name] for name in ("loss", "val_loss")})

    def _misfit(self, counts: Tensor, amplitude: Tensor) -> Tensor:
        misfit = poisson_misfit if self.options.loss == "poisson" else amplitude_misfit
        return misfit(counts, amplitude, self.intensity_scale)

    def _note(self, name: str, value: Tensor) -> None:
        self._sums.setdefault(name, []).append(float(value.detach()))


@dataclass(frozen=True)
class Stitched:
    """Predicted patches of a batch of blocks, put together weighted by light."""

    objects: Tensor
    """(B, S, T) complex64."""
    light: Tensor
    """(B, S, T) float32."""
    amplitude: Tensor
    """(B, D, N, N) measured."""
    probes: Tensor
    """(B, D, P, N, N) complex64 in counts, shifted by the sub-pixel rest."""
    corners: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, task: Task, batch: Mapping[str, Tensor]) -> Stitched:
        """Predict and stitch."""
        x, positions = batch["x"], batch["positions"]
        B, K, C, N, _ = x.shape
        scale = x.new_full((B * K,), math.sqrt(task.intensity_scale))
        exposure = Exposure(x.flatten(0, 1), positions.flatten(0, 1), task.probe, scale)
        patches = task.network.reconstruct(exposure).reshape(B, K * C, N, N)
        probes = exposure.probes.reshape(B, K * C, -1, N, N) * scale[0]
        corners = [[(y, x) for y, x in block] for block in batch["corners"].tolist()]
        height, width = (int(side) + N for side in batch["corners"].amax(dim=(0, 1)))
        light = probes.abs().square().sum(dim=2)
        total = add_patches(light, corners, (height, width))
        # A pixel at the rim of all spots must not become a huge quotient.
        floor = 1e-3 * total.amax(dim=(-2, -1), keepdim=True)
        objects = add_patches(light * patches, corners, (height, width)) / (total + floor)
        return cls(objects, total, x.reshape(B, K * C, N, N), probes, corners)

    def counts(self, objects: Tensor) -> Tensor:
        """(B, D, N, N) expected counts of every frame from (B, S, T) objects."""
        patches = cut_patches(objects, self.corners, self.amplitude.shape[-1])
        return intensities(patches, self.probes)

    def spread(self) -> Tensor:
        """Standard deviation of the objects over their mean, weighted by light: 0 is flat."""
        weight = self.light / self.light.sum(dim=(-2, -1), keepdim=True)
        mean = (weight * self.objects).sum(dim=(-2, -1), keepdim=True)
        variance = (weight * (self.objects - mean).abs().square()).sum(dim=(-2, -1))
        return (variance.sqrt() / mean.abs()[:, 0, 0]).mean()


def goes_on(state: Mapping[str, Any], options: PinnOptions, say: Callable[[str], None]) -> bool:
    """Whether a training that stopped at `state` leads to what is asked for; say what happens.

    Args:
        state: as given by `Task.state`, of a training with the same options, `epochs` aside.
        options: what is asked for.
        say: shows the user one line.
    """
    done, planned, epochs = len(state["history"]), state["epochs"], options.epochs
    if options.scheduler == "cosine" and planned != epochs:
        say(
            f"starts anew: the last training was planned for {planned} epochs, and the cosine "
            "schedule depends on training.epochs"
        )
        return False
    if done > epochs:
        say(f"starts anew: the last training has {done} epochs already, more than {epochs}")
        return False
    if done == epochs:
        say(f"takes the finished training: all {epochs} epochs are done")
    elif done == planned:
        say(f"continues the finished training: epochs {done + 1} to {epochs}")
    else:
        say(f"resumes after epoch {done} of {epochs}")
    return True


def refuse_flat(history: list[dict[str, float]]) -> None:
    """Fail loudly where a falling loss hides a collapsed network.

    Raises:
        TrainingError: the predicted object is flat, or a flat object of the right mean explains
            the frames held back as well.
    """
    last = history[-1]
    if not (last["val_loss"] < last["flat_loss"] and last["spread"] > LEAST_SPREAD):
        raise TrainingError(
            f"the network is no better than a flat object: misfit of the frames held back "
            f"{last['val_loss']:.4g}, of a flat object {last['flat_loss']:.4g}, spread of the "
            f"predicted object {last['spread']:.2g}; check probe and positions, or lower "
            "training.learning_rate"
        )


def _trained_model(task: Task, metadata: dict[str, Any]) -> TrainedModel:
    # One array object under both names, so that the bundle stores it once.
    arrays = {
        name: value.detach().cpu().numpy().copy()
        for name, value in task.network.state_dict().items()
    }
    return TrainedModel(
        models={
            OBJECT_NETWORK: arrays,
            AUTOENCODER: {f"network.{name}": array for name, array in arrays.items()},
        },
        metadata={**metadata, "gridsize": task.options.gridsize},
        history=task.history,
    )


@contextmanager
def _plain_interrupts() -> Iterator[None]:
    """Let Ctrl-C come out as such. Lightning ends the program, and ignores the next ones."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _silence() -> Iterator[None]:
    """Without Lightning's chatter; what matters is an error or goes to `progress`."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

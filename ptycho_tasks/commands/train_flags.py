"""The flags of `ptycho-tasks train` and `infer`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from ptycho_tasks.commands.completion import complete_backends
from ptycho_tasks.commands.flags import Flag, FlagTable, OldName
from ptycho_tasks.commands.section_options import parse_yaml_value
from ptycho_tasks.config.fields import list_choices
from ptycho_tasks.config.sections import READING, SourceOptions
from ptycho_tasks.options import ExecutionOptions, text_of

_FIELDS = {field.name: field.type for field in msgspec.structs.fields(ExecutionOptions)}


class _NonEmptyPath(click.Path):
    """A path that is not empty. An unset shell variable gives an empty one, which click would take
    as the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("the path is empty; name one", param, ctx)
        return super().convert(value, param, ctx)


class _FileOrEstimate(_NonEmptyPath):
    """A file, or the word that asks for an estimate."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "estimate" else super().convert(value, param, ctx)


def mapping(text: str) -> Any:
    """A value as it would stand in ptycho.yaml; the help names it by this function's name."""
    return parse_yaml_value(text)


_FILE = _NonEmptyPath(dir_okay=False, path_type=Path)

_FOLDER = _NonEmptyPath(file_okay=False, writable=True, path_type=Path)


_ACCELERATOR = Flag(
    "--accelerator",
    "execution.accelerator",
    "The device to compute on.",
    words=list_choices(_FIELDS["accelerator"]),
    old=(OldName("--device"),),
)

_THREADS = Flag("--threads", "execution.threads", "CPU threads; 0 leaves it to the library.", int)

_WORKERS = Flag("--num-workers", "execution.num_workers", "Workers that read frames ahead.", int)


def _reading() -> Iterator[Flag]:
    """A flag for each setting that says how a scan is read."""
    kinds: dict[str, Any] = {
        **dict.fromkeys(("scan_index", "crop", "bin"), int),
        **dict.fromkeys(("pixel_size_m", "energy_ev", "distance_m", "saturated"), float),
        **dict.fromkeys(("datasets", "orientation", "centre"), mapping),
        "positions": _FILE,
        "probe": _FileOrEstimate(dir_okay=False, path_type=Path),
    }
    for field in msgspec.structs.fields(SourceOptions):
        if field.name in READING:
            text = text_of(field.type)
            yield Flag(
                f"--{field.name.replace('_', '-')}",
                f"source.{field.name}",
                f"{text[0].upper()}{text[1:]}.",
                kinds.get(field.name, str),
                words=() if field.name in kinds else list_choices(field.type),
            )


_READING = (
    Flag(
        "--product",
        "source.product",
        "A Ptychodus product that gives positions and probe to the frames of the scan.",
        _FILE,
    ),
    *_reading(),
)

_QUIET = Flag("--quiet", "execution.quiet", "Say nothing but warnings and errors.", bool)

_LIVE = Flag(
    "--live",
    "execution.live",
    "Show what is computed now on a page, live.html, in --output-dir.",
    bool,
)

_MEMORY = Flag(
    "--memory-gb",
    "execution.memory_gb",
    "Memory to use at most, GB; what the machine has left where it is not given.",
    float,
)

_FORCE = Flag("--force", "", "Replace files in --output-dir that ptycho-tasks did not make.", bool)

_DEBUG = Flag("--debug", "", "Show the traceback of an error.", bool)


TRAIN: FlagTable = {
    "Data": (
        Flag(
            "--train-data-file",
            "source.file",
            "The scan to train on: NPZ, CXI or another known format. Must be given unless --config "
            "has a source.file.",
            _FILE,
        ),
        Flag(
            "--test-data-file",
            "",
            "A scan to reconstruct after the training, into the folder inference of --output-dir.",
            _FILE,
        ),
        Flag(
            "--output-dir",
            "",
            "The folder that gets the bundle wts.h5.zip; made if it is not there.",
            _FOLDER,
            required=True,
        ),
        _FORCE,
        Flag("--config", "", "A ptycho.yaml to take settings from; flags win over it.", _FILE),
    ),
    "Reading the scan": _READING,
    "Backend and training": (
        Flag(
            "--backend",
            "backend",
            "What trains; pinn where nothing says else.",
            complete=complete_backends,
        ),
        Flag(
            "--model-type",
            "training.model_type",
            "Learn from the diffraction alone, or from a known object.",
            words=("pinn", "unsupervised", "supervised"),
        ),
        Flag(
            "--n-groups",
            "training.n_groups",
            "Groups of frames to train on.",
            int,
            old=(OldName("--n-images"),),
        ),
        Flag(
            "--gridsize",
            "training.gridsize",
            "Frames along a side of a group: 1 for single frames, 2 for groups of 2 x 2.",
            int,
        ),
        Flag("--batch-size", "training.batch_size", "Frames a training step.", int),
        Flag("--max-epochs", "training.epochs", "Epochs: passes over the training frames.", int),
        Flag("--learning-rate", "training.learning_rate", "The highest learning rate.", float),
        Flag(
            "--scheduler",
            "training.scheduler",
            "How the learning rate changes.",
            words=("cosine", "constant", "exponential", "multi_step", "plateau"),
        ),
        Flag(
            "--accumulate-grad-batches",
            "training.accumulate_grad_batches",
            "Batches whose gradients make one step.",
            int,
        ),
        Flag(
            "--torch-loss-mode",
            "training.loss",
            "Loss: Poisson likelihood of the counts, or mean absolute error of the amplitudes.",
            words=("poisson", "mae"),
        ),
        Flag(
            "--early-stop-patience",
            "training.early_stop_patience",
            "End after as many epochs in which --checkpoint-monitor does not improve.",
            int,
        ),
        Flag("--seed", "training.seed", "Seed of every random choice.", int),
    ),
    "Running": (
        _ACCELERATOR,
        Flag("--devices", "execution.devices", "How many devices to compute on.", int),
        _THREADS,
        _WORKERS,
        Flag(
            "--deterministic",
            "execution.deterministic",
            "Make equal data and settings give equal bytes, or do not, which can be faster.",
            bool,
            off="--no-deterministic",
        ),
        _MEMORY,
        _LIVE,
        _QUIET,
        _DEBUG,
    ),
    "Checkpoints and logs": (
        Flag(
            "--enable-checkpointing",
            "execution.checkpointing",
            "Keep the state of a training, to go on after a kill, or do not.",
            bool,
            off="--disable-checkpointing",
        ),
        Flag(
            "--checkpoint-save-top-k",
            "execution.checkpoint_save_top_k",
            "How many of the best epochs to keep, each a bundle, in the folder checkpoints of "
            "--output-dir.",
            int,
        ),
        Flag(
            "--checkpoint-monitor",
            "training.monitor",
            "What tells the better epoch: the misfit of frames held back, or of the others.",
            words=("val_loss", "loss"),
        ),
        Flag(
            "--checkpoint-mode",
            "training.monitor_mode",
            "Whether the least or the greatest --checkpoint-monitor is the best.",
            words=("min", "max"),
        ),
        Flag(
            "--logger",
            "execution.logger",
            "Log the training into the folder logs of --output-dir.",
            words=("none", "csv", "tensorboard", "mlflow"),
            old=(OldName("--disable-mlflow", "none"),),
        ),
    ),
}
"""The flags of `ptycho-tasks train`."""


INFER: FlagTable = {
    "Data": (
        Flag(
            "--model-path",
            "",
            "The folder that holds the bundle wts.h5.zip.",
            _NonEmptyPath(path_type=Path),
            required=True,
        ),
        Flag(
            "--test-data",
            "source.file",
            "The scan to reconstruct: NPZ, CXI or another known format.",
            _FILE,
            required=True,
        ),
        Flag(
            "--output-dir",
            "",
            "The folder that gets product, pictures and metrics; made if it is not there.",
            _FOLDER,
            required=True,
        ),
        _FORCE,
        Flag(
            "--n-groups",
            "inference.n_groups",
            "Frames of the scan to reconstruct from, evenly spaced; all where it is not given.",
            int,
            old=(OldName("--n-images"),),
        ),
    ),
    "Reading the scan": _READING,
    "Running": (
        _ACCELERATOR,
        _THREADS,
        _WORKERS,
        Flag(
            "--inference-batch-size",
            "execution.inference_batch_size",
            "Frames (or groups) a step.",
            int,
        ),
        _MEMORY,
        _LIVE,
        _QUIET,
        _DEBUG,
    ),
}
"""The flags of `ptycho-tasks infer`."""

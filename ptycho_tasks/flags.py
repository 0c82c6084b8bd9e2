"""The flags of `ptycho-tasks train` and `ptycho-tasks infer`, as PtychoPINN's users know them.

A flag is a row of a table: what it sets, and what stands in the help. From the table come click's
options, the values for the payload, and the reference in docs/commands.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
from click.shell_completion import CompletionItem

from ptycho_tasks.completion import Completer, complete_backends, completer_of
from ptycho_tasks.config import READING, SourceOptions, choices_of
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks.output import echo
from ptycho_tasks.state import spelled


@dataclass(frozen=True)
class Old:
    """Another name, which is still read, with a warning."""

    name: str
    stands_for: str | None = None
    """The value that it stands for; None where it takes one itself."""


@dataclass(frozen=True)
class Flag:
    """One flag of a command."""

    name: str
    """As the help spells it; `_` for any `-` inside will do too."""
    key: str
    """The dotted key path that it sets; empty where it is the command's own."""
    help: str
    type: Any = str
    """Click's type; bool for a switch."""
    words: tuple[str, ...] = ()
    """Offered as values; the backend decides which it knows."""
    complete: Completer | None = None
    """Gives the values to offer where they are not always the same."""
    off: str = ""
    """Of a switch: the name that turns it off."""
    old: tuple[Old, ...] = ()
    required: bool = False

    @property
    def field(self) -> str:
        """The name of its value in the command."""
        return field_of(self.name)

    def spelled(self, value: Any) -> str:
        """How it is spelled with a value."""
        return self.off if value is False and self.off else self.name


Table = Mapping[str, Sequence[Flag]]
"""The flags of a command by the group that the help shows them in."""


class Told(NamedTuple):
    """What a command line says."""

    values: dict[str, Any]
    """Dotted key path to value."""
    flags: dict[str, str]
    """Dotted key path to the flag that set it."""


def field_of(name: str) -> str:
    """`--batch-size` as the name of a variable."""
    return name.lstrip("-").replace("-", "_")


def told(table: Table, given: Mapping[str, Any], root: Path) -> Told:
    """What the flags of a table say, the command's own aside; warns of old names.

    Args:
        table: the command's flags.
        given: the command's values by field; None where a flag was not given.
        root: the folder that paths in the payload are relative to; those given are relative to the
            current one.

    Raises:
        click.UsageError: an old and a new name say different things.
    """
    values, names = {}, {}
    for flag in chain(*table.values()):
        said = dict(_said(flag, given))
        if not flag.key or not said:
            continue
        (name, value), *others = said.items()
        for other, another in others:
            if another != value:
                raise click.UsageError(f"{name} and {other} contradict each other; give one")
        values[flag.key] = seen_from(root, value) if isinstance(value, Path) else value
        names[flag.key] = name
    return Told(values, names)


def _said(flag: Flag, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The value under each name of a flag that was given."""
    value = given[flag.field]
    if value is not None:
        yield flag.spelled(value), value
    for old in flag.old:
        value = given[field_of(old.name)]
        if value is not None:
            remedy = f"{flag.name} {old.stands_for or ''}".rstrip()
            echo(f"warning: {old.name} is an old name; use {remedy}", err=True)
            yield old.name, old.stands_for or value


def seen_from(root: Path, path: Path) -> str:
    """A path that was given on the command line, as a payload's folder sees it: relative where it
    lies in it, absolute elsewhere."""
    return spelled(root, whole_path(path))


def whole_path(path: Path) -> Path:
    """A path that was given on the command line: absolute, `~` expanded."""
    # A shell leaves the `~` in `--output-dir=~/out` as it is; Path's own expansion may raise.
    return Path(os.path.normpath(Path.cwd() / os.path.expanduser(path)))  # noqa: PTH111


# ---------------------------------------------------------------------------------------------
# click


class _Names(list[str]):
    """Names of an option; either spelling is among them, also where completion asks whose value
    is wanted."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).replace("_", "-"))


class FlagOption(click.Option):
    """An option that a row of the table describes."""

    def __init__(self, *arguments: Any, group: str, key: str = "", **settings: Any) -> None:
        """As any option, with what the help says of its place."""
        super().__init__(*arguments, **settings)
        self.opts = _Names(self.opts)
        self.group = group
        self.key = key


class FlagCommand(click.Command):
    """A command whose help lists its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each group under its name."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, "group", "Help"), []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer flags in the spelling that was begun."""
        items = super().shell_complete(ctx, incomplete.replace("_", "-"))
        for item in items if "_" in incomplete else []:
            item.value = f"--{field_of(item.value)}"
        return items


def options(table: Table) -> list[click.Parameter]:
    """Click's options for a table of flags; without a value each is None."""
    return [
        option
        for group, flags in table.items()
        for flag in flags
        for option in _options_of(flag, group)
    ]


_SWITCH: dict[str, Any] = {"is_flag": True, "default": None}
"""Of an option without a value; the default tells one that is not given from one turned off."""


def _options_of(flag: Flag, group: str) -> Iterator[FlagOption]:
    yield FlagOption(
        [f"{flag.name}/{flag.off}" if flag.off else flag.name, flag.field],
        type=flag.type,
        metavar=f"[{'|'.join(flag.words)}]" if flag.words else None,
        shell_complete=flag.complete or (completer_of(flag.words) if flag.words else None),
        **_SWITCH if flag.type is bool else {},
        required=flag.required,
        help=flag.help + "".join(_formerly(old) for old in flag.old),
        group=group,
        key=flag.key,
    )
    for old in flag.old:
        yield FlagOption(
            [old.name, field_of(old.name)],
            type=bool if old.stands_for else flag.type,
            **_SWITCH if old.stands_for else {},
            hidden=True,
            group=group,
        )


def _formerly(old: Old) -> str:
    return f" Old: {old.name}" + (f" for `{old.stands_for}`." if old.stands_for else ".")


# ---------------------------------------------------------------------------------------------
# The tables


_FIELDS = {field.name: field.type for field in msgspec.structs.fields(ExecutionOptions)}


class _Place(click.Path):
    """A path; an empty one, as of a variable that is not set, is not the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("the path is empty; name one", param, ctx)
        return super().convert(value, param, ctx)


_FILE = _Place(dir_okay=False, path_type=Path)
_FOLDER = _Place(file_okay=False, writable=True, path_type=Path)

_ACCELERATOR = Flag(
    "--accelerator",
    "execution.accelerator",
    "The device to compute on.",
    words=choices_of(_FIELDS["accelerator"]),
    old=(Old("--device"),),
)
_THREADS = Flag("--threads", "execution.threads", "CPU threads; 0 leaves it to the library.", int)
_WORKERS = Flag("--num-workers", "execution.num_workers", "Workers that read frames ahead.", int)


def _reading() -> Iterator[Flag]:
    """A flag for each setting that says how a scan is read."""
    kinds = {"scan_index": int, "pixel_size_m": float, "energy_ev": float, "distance_m": float}
    for field in msgspec.structs.fields(SourceOptions):
        if field.name in READING:
            meta = next(m for m in field.type.__metadata__ if isinstance(m, msgspec.Meta))
            text = str(meta.description)
            yield Flag(
                f"--{field.name.replace('_', '-')}",
                f"source.{field.name}",
                f"{text[0].upper()}{text[1:]}.",
                kinds.get(field.name, str),
                words=choices_of(field.type),
            )


_READING = tuple(_reading())
_QUIET = Flag("--quiet", "execution.quiet", "Say nothing but warnings and errors.", bool)
_MEMORY = Flag(
    "--memory-gb",
    "execution.memory_gb",
    "Memory to use at most, GB; what the machine has left where it is not given.",
    float,
)
_FORCE = Flag("--force", "", "Replace files in --output-dir that ptycho-tasks did not make.", bool)
_DEBUG = Flag("--debug", "", "Show the traceback of an error.", bool)

TRAIN: Table = {
    "Data": (
        Flag(
            "--train-data-file",
            "source.file",
            "The scan to train on: NPZ or CXI. Must be given unless --config has a source.file.",
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
            old=(Old("--n-images"),),
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
            old=(Old("--disable-mlflow", "none"),),
        ),
    ),
}
"""The flags of `ptycho-tasks train`."""

INFER: Table = {
    "Data": (
        Flag(
            "--model-path",
            "",
            "The folder that holds the bundle wts.h5.zip.",
            _Place(path_type=Path),
            required=True,
        ),
        Flag(
            "--test-data",
            "source.file",
            "The scan to reconstruct: NPZ or CXI.",
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
            old=(Old("--n-images"),),
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
        _QUIET,
        _DEBUG,
    ),
}
"""The flags of `ptycho-tasks infer`."""

"""The log of a training: one of Lightning's loggers, below one folder."""

from __future__ import annotations

import functools
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.results.thumbnails import make_thumbnails

with warnings.catch_warnings():
    # Lightning's dependencies warn about each other, and no user can mend that.
    warnings.simplefilter("ignore")
    from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger
    from lightning.pytorch.loggers.logger import Logger


class Log:
    """Writes the epochs of a training; if that fails, the training goes on without a log."""

    def __init__(self, kind: str, folder: Path | None, say: Callable[[str], None]) -> None:
        """Write nothing yet.

        Args:
            kind: `none`, `csv`, `tensorboard` or `mlflow`.
            folder: where to write, in a folder of the log's kind; None writes nothing.
            say: shows the user one line.
        """
        self.kind, self._folder, self._say = kind, folder, say
        self._logger: Logger | None = None

    def start(self, options: Mapping[str, Any], epochs: Sequence[Mapping[str, float]]) -> None:
        """Begin a new log.

        Args:
            options: hyperparameters.
            epochs: metrics of the epochs that are done, where a training goes on.

        Raises:
            ConfigError: it cannot be written.
        """
        if self.kind == "none" or self._folder is None:
            return
        try:
            # A training that goes on writes all its epochs again: whatever a kill cut off, the log
            # holds each epoch once.
            self._logger = _MAKERS[self.kind](self._folder / self.kind)
            self._logger.log_hyperparams(dict(options))
            for number, metrics in enumerate(epochs, start=1):
                self._write(number, metrics)
        except Exception as error:  # a database, a server, a disk: whatever they raise
            raise ConfigError(
                f"execution.logger: {self.kind} cannot be written: {_join_lines(error)}"
            ) from error

    def write_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an epoch, counted from 1."""
        self._attempt(functools.partial(self._write, number, metrics))

    @property
    def takes_pictures(self) -> bool:
        """Whether it shows pictures."""
        return self.kind in _PICTURE_WRITERS and self._logger is not None

    def write_pictures(
        self, number: int, epochs: int, make: Callable[[], NDArray[np.complex64]]
    ) -> None:
        """Write pictures of the object after an epoch, for some epochs, evenly spread.

        Args:
            number: of the epoch, counted from 1.
            epochs: how many there are.
            make: gives the (H, W) complex64 object, zero where nothing was seen.
        """
        is_due = number * _PICTURES // epochs != (number - 1) * _PICTURES // epochs
        if self.takes_pictures and (is_due or number == 1):
            self._attempt(functools.partial(self._write_pictures, number, make))

    def _write_pictures(self, number: int, make: Callable[[], NDArray[np.complex64]]) -> None:
        image = make()
        for kind, picture in make_thumbnails(image, image != 0, _SIDE).items():
            write = _PICTURE_WRITERS[self.kind]
            write(self._logger, kind, picture.colours[picture.pixels], number)

    def end(self, status: str) -> None:
        """Close the log with the status `success` or `failed`."""
        if self._logger is not None:
            self._attempt(functools.partial(self._logger.finalize, status))

    def _write(self, number: int, metrics: Mapping[str, float]) -> None:
        if self._logger is not None:
            self._logger.log_metrics({"epoch": number, **metrics}, step=number)
            self._logger.save()

    def _attempt(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:  # as above
            self._logger = None
            self._say(f"goes on without the {self.kind} log: {_join_lines(error)}")


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Hide the traceback of tensorboard's thread: the next write reports why it ended."""
    previous = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            previous(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous


def _csv(folder: Path) -> Logger:
    _empty(folder)
    return CSVLogger(folder.parent, name=folder.name, version="")


def _tensorboard(folder: Path) -> Logger:
    _empty(folder)
    return TensorBoardLogger(folder.parent, name=folder.name, version="", default_hp_metric=False)


def _mlflow(folder: Path) -> Logger:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Without this, mlflow 3 refuses plain files; mlflow-skinny cannot write its database.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        _empty(folder)
    logger = MLFlowLogger(
        experiment_name="ptycho-tasks", tracking_uri=uri or folder.absolute().as_uri()
    )
    try:
        assert logger.run_id  # begins the run
    finally:
        # mlflow sets the variable, and the next training would take it for the user's.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if uri is not None:
            os.environ["MLFLOW_TRACKING_URI"] = uri
    return logger


def _write_to_tensorboard(logger: Any, kind: str, pixels: NDArray[np.uint8], number: int) -> None:
    logger.experiment.add_image(f"object/{kind}", pixels, number, dataformats="HWC")
    logger.experiment.flush()


def _write_to_mlflow(logger: Any, kind: str, pixels: NDArray[np.uint8], number: int) -> None:
    name = f"object/epoch_{number:04d}_{kind}.png"
    logger.experiment.log_image(logger.run_id, pixels, artifact_file=name)


_PICTURE_WRITERS = {"tensorboard": _write_to_tensorboard, "mlflow": _write_to_mlflow}
_PICTURES = 20
"""Of a training."""
_SIDE = 512
"""Most pixels of a picture's side."""

_FORMS = {
    "csv": r"metrics\.csv|hparams\.yaml",
    "tensorboard": r"events\.out\.tfevents\..+|hparams\.yaml",
    "mlflow": r"\d+/(meta\.yaml|tags/[^/]+"
    r"|[0-9a-f]{32}/(meta\.yaml|(metrics|params|tags|inputs|outputs|artifacts)/.+))",
}
"""The files that each logger writes, below the folder of its name."""


def _empty(folder: Path) -> None:
    """Make a folder, or remove the logs of earlier trainings from it."""
    folder.mkdir(parents=True, exist_ok=True)
    for root, _, names in os.walk(folder, topdown=False):
        for path in (Path(root, name) for name in names):
            if re.fullmatch(_FORMS[folder.name], path.relative_to(folder).as_posix()):
                path.unlink()
        # mlflow needs the hidden folder that it made earlier in this process.
        if Path(root) != folder and not Path(root).name.startswith("."):
            with suppress(OSError):  # not empty
                Path(root).rmdir()


_MAKERS: dict[str, Callable[[Path], Logger]] = {
    "csv": _csv,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
}


def _join_lines(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."

"""`ptycho-tasks train` and `ptycho-tasks infer`: one training, one reconstruction, no project.

Values from the flags become a payload, complete and checked, before torch or an array is loaded;
then the stage is called that doit calls too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from ptycho_tasks.commands.flag_command import FlagCommand, make_options
from ptycho_tasks.commands.flag_payloads import (
    create_inference,
    create_test,
    create_training,
    empty_config,
)
from ptycho_tasks.commands.flags import FlagTable, read_flags
from ptycho_tasks.commands.train_flags import INFER, TRAIN
from ptycho_tasks.config.document import ConfigFile, read_config
from ptycho_tasks.errors import DEBUG, ConfigError
from ptycho_tasks.layout import absolute_path

_EPILOG = (
    "Flags may be spelled with - or _ inside: --output-dir, --output_dir. A value that is not "
    "given is the backend's default; `ptycho-tasks backends NAME` shows them."
)


def _command(name: str, table: FlagTable) -> Callable[[Callable[..., None]], click.Command]:
    return click.command(name, cls=FlagCommand, params=make_options(table), epilog=_EPILOG)


@_command("train", TRAIN)
def train_command(**arguments: Any) -> None:
    """Train on one scan; write the bundle wts.h5.zip.

    Without a project: in one, `doit train` trains what is stale.
    """
    _show_tracebacks(arguments)
    file = _read_config(arguments["config"])
    flags = read_flags(TRAIN, arguments, file.root)
    output = absolute_path(arguments["output_dir"])
    training = create_training(file, flags, output, force=arguments["force"])
    test = arguments["test_data_file"] and create_test(
        file, flags, output, arguments["test_data_file"], force=arguments["force"]
    )

    with _lock_folder(output, "train"):
        from ptycho_tasks.builds import stages
        from ptycho_tasks.builds.inputs import check_scan_to_infer
        from ptycho_tasks.report.live_page import follow_command

        if test:
            check_scan_to_infer(test, training)
        tasks = ["train", *(["infer"] if test else [])]
        with follow_command(training, output, tasks) as follow:
            with follow("train"):
                stages.train(training)
            if test:
                with follow("infer"):
                    stages.infer(test)


@_command("infer", INFER)
def infer_command(**arguments: Any) -> None:
    """Reconstruct a scan with a trained bundle.

    Writes the product reconstruction.h5, pictures and metrics.json. The backend is the one that
    made the bundle.
    """
    _show_tracebacks(arguments)
    output = absolute_path(arguments["output_dir"])
    flags = read_flags(INFER, arguments, Path.cwd())
    payload = create_inference(flags, arguments["model_path"], output, force=arguments["force"])

    with _lock_folder(output, "infer"):
        from ptycho_tasks.builds import stages
        from ptycho_tasks.report.live_page import follow_command

        with follow_command(payload, output, ["infer"]) as follow, follow("infer"):
            stages.infer(payload)


def _show_tracebacks(arguments: Mapping[str, Any]) -> None:
    if arguments["debug"]:
        os.environ[DEBUG] = "1"


def _read_config(path: Path | None) -> ConfigFile:
    if path is None:
        return empty_config()
    if not absolute_path(path).is_file():
        raise ConfigError(f"--config: there is no file {path}; correct the path")
    return read_config(absolute_path(path))


@contextmanager
def _lock_folder(folder: Path, task: str) -> Iterator[None]:
    """Make a folder and lock it for the block. If the block fails and wrote nothing, the folder is
    removed again."""
    from ptycho_tasks.system.lock import LOCK_NAME, ProjectLock
    from ptycho_tasks.system.processes import exit_on_signals

    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output-dir: cannot make {folder}: {error.strerror}; choose another folder"
        ) from error
    lock = ProjectLock(folder / LOCK_NAME, place=str(folder))
    lock.acquire()
    try:
        with exit_on_signals():
            lock.note_task(task)
            yield
    finally:
        lock.release(remove=True)
        for empty in (lock.path.parent, *missing):
            with suppress(OSError):  # it holds something
                empty.rmdir()

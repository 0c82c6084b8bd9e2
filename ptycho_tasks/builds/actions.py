"""The actions of the tasks: run a stage, clean up after one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import (
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from doit.exceptions import TaskError, TaskFailed
from doit.globals import Globals
from doit.task import Task

from ptycho_tasks.builds.kept_output import keep_output
from ptycho_tasks.builds.live import note_task
from ptycho_tasks.builds.project import project_store, read_project_table
from ptycho_tasks.builds.results import make_result, refuse_foreign
from ptycho_tasks.builds.running import count_processes
from ptycho_tasks.builds.state import State, current_state
from ptycho_tasks.errors import ConfigError, PtychoTasksError
from ptycho_tasks.layout import CHECKPOINTS, LOGS
from ptycho_tasks.results.work_folders import list_work_folders, remove_work_folders
from ptycho_tasks.system.faults import exit_on_error, is_raised_by, show_error, show_fault
from ptycho_tasks.system.files import remove_leftovers
from ptycho_tasks.system.lock import STATE_DIR, build_beside, exit_if_held
from ptycho_tasks.system.processes import count_cores, is_worker, prefix_lines
from ptycho_tasks.system.terminal import echo

if TYPE_CHECKING:
    from ptycho_tasks.backend import Backend
    from ptycho_tasks.config.payload import Payload


_Payload = TypeVar("_Payload", bound="Payload")


class Submitted(TaskFailed):  # type: ignore[misc]
    """The task is a job that goes on, and that the run does not wait for."""


def run_stage(name: str, task: Task) -> TaskFailed | TaskError | dict[str, Any]:
    """The action of every task: run a stage; a user's error is one line and the right exit code.

    Gives what the task's record says of it.
    """
    with prefix_lines(name), note_task(Path.cwd(), name), keep_output(name) as kept:
        outcome = _run_stage(name, task.verbosity, kept.file)
        kept.is_failed = not isinstance(outcome, dict)
    return outcome


def _run_stage(
    name: str, verbosity: int, unseen: TextIO
) -> TaskFailed | TaskError | dict[str, Any]:
    from ptycho_tasks.builds.jobs import DetachedError, is_job, make_by_job
    from ptycho_tasks.builds.stages import find_stage

    table = read_project_table()
    row, state = table.row(name), current_state()
    assert state is not None  # `refuse_foreign_settings` saw to it
    backends: list[Backend] = []
    try:
        refuse_overwriting(row.inputs.values(), row.outputs)
        payload = table.payload(row)
        refuse_foreign(row, state)
        backends.append(payload.backend)
        remove_leftovers(map(Path, row.outputs))
        with silence(verbosity, unseen), build_beside() if is_worker() else nullcontext():
            store = project_store()
            if is_job(row, payload):
                built = make_by_job(row, state, store, payload, table)
            else:
                payload = divide_threads(payload, table.counts[row.stage])
                built = make_result(row, state, store, payload, find_stage(row.stage))
    except DetachedError as goes_on:
        return Submitted(str(goes_on), report=False)
    except Exception as error:
        failure = report_failure(error, backends)
        # Where the other scans go on, it is not true that nothing was started.
        return TaskFailed(failure.message, report=False) if row.scan else failure
    return built.to_values()


def divide_threads(payload: _Payload, alike: int) -> _Payload:
    """Give a stage its share of the cores, where others run beside it and the user said nothing of
    threads: libraries would take all of them for each.

    Args:
        payload: of the stage.
        alike: how many tasks of its stage the project has.
    """
    execution = payload.execution
    if not is_worker() or execution.threads or "OMP_NUM_THREADS" in os.environ:
        return payload
    together = min(count_processes(), alike, execution.at_once or alike)
    share = max(1, count_cores() // together)
    import msgspec  # a run with nothing to do needs none

    return replace(payload, execution=msgspec.structs.replace(execution, threads=share))


@contextmanager
def silence(verbosity: int, unseen: TextIO) -> Iterator[None]:
    """In the block, be as silent as doit's option -v asks for: at 1 without output, at 0 without
    what goes to stderr as well; `unseen` gets that."""
    with ExitStack() as streams:
        if verbosity < 2:
            streams.enter_context(redirect_stdout(unseen))
        if verbosity < 1:
            streams.enter_context(redirect_stderr(unseen))
        yield


def report_failure(error: Exception, backends: Iterable[Backend] = ()) -> TaskFailed | TaskError:
    """Say in one line why an action failed; gives what doit wants to know of it."""
    if isinstance(error, PtychoTasksError):
        show_error(error)
        failure = TaskError if error.exit_code == ConfigError.exit_code else TaskFailed
        return failure(str(error), report=False)
    culprits = (f"backend `{one.name}`" for one in backends if is_raised_by(error, one))
    # Left to doit, it would end with the exit code of a wrong configuration.
    return TaskFailed(show_fault(error, next(culprits, "")), report=False)


def refuse_overwriting(inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Refuse to write an output over an input, by whatever path both are reached.

    Raises:
        ConfigError: one line that names the file.
    """
    sources = [*map(Path, inputs)]
    for output in map(Path, outputs):
        for source in sources:
            if output.exists() and source.exists() and output.samefile(source):
                raise ConfigError(
                    f"{source} would be overwritten by what is made of it; set another `name` in "
                    "ptycho.yaml, or move the scan"
                )


@exit_on_error()
def clean(name: str, dryrun: bool) -> None:
    """Remove what a task built, its checkpoints and logs, and the folders that this leaves empty.

    A file that is not as the task left it is someone's own by now, and stays.

    Raises:
        SystemExit: a run is at work in the project, or a file cannot be removed.
    """
    if not dryrun:
        exit_if_held()
    row = read_project_table().row(name)
    if row.stage == "train":
        for folder in {Path(path).parent: None for path in row.outputs}:
            for beside in (folder / CHECKPOINTS, folder / LOGS):
                _remove_recorded(beside, dryrun)
        _remove_work(Path(STATE_DIR, "work", row.variant), dryrun)
    state: State = Globals.dep_manager.backend
    built = state.outputs(name) or {}
    for output in row.outputs:
        if not Path(output).exists():
            continue
        if built.get(output) is None or state.sha256(output) != built[output]:
            echo(f"keeping {output}: it is not as `doit {name}` left it")
        else:
            _remove(Path(output), dryrun)


def _remove_recorded(folder: Path, dryrun: bool) -> None:
    """Remove what runs wrote into a folder of logs or checkpoints; say what stays."""
    from ptycho_tasks.results.folder_record import list_recorded, remove_recorded

    if list_recorded(folder):
        echo(f"removing what was written into {folder}")
    if dryrun:
        return
    with exit_on_error():
        for path in remove_recorded(folder):
            echo(f"keeping {path}: no run wrote it, or not as it is")
    _remove_empty(folder.parent)


def _remove_work(folder: Path, dryrun: bool) -> None:
    if list_work_folders(folder):
        echo(f"removing {folder}")
    if not dryrun:
        remove_work_folders(folder)
        _remove_empty(folder.parent)


def _remove(path: Path, dryrun: bool) -> None:
    echo(f"removing {path}")
    if dryrun:
        return
    try:
        path.unlink()
    except OSError as error:
        echo(f"error: cannot remove {path}: {error.strerror or error}", err=True)
        raise SystemExit(1) from error
    _remove_empty(path.parent)


def _remove_empty(folder: Path) -> None:
    """Remove a folder that holds nothing, and those that this leaves empty."""
    keep = {Path(), Path("fixtures"), Path(STATE_DIR)}
    with suppress(OSError):  # it holds something, or is not there
        while folder not in keep and not folder.is_symlink():
            folder.rmdir()
            folder = folder.parent

"""The doit tasks, one an edge of the graph: source -> fixture -> train -> infer.

A dodo.py imports them:

    from ptycho_tasks.tasks import DOIT_CONFIG, task_fixture, task_infer, task_source, task_train

and `task_evidence`, which runs what proves the rows of a plan. They read the ptycho.yaml, or the
evidence.yaml, of the current folder, which doit makes the dodo.py's own.
"""

from __future__ import annotations

import functools
import gc
import io
import json
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doit import doit_cmd
from doit.exceptions import TaskError, TaskFailed
from doit.globals import Globals
from doit.task import Task

from ptycho_tasks import reporter
from ptycho_tasks.errors import DEBUG, ConfigError, PtychoTasksError
from ptycho_tasks.faults import DoitTraceback, owner_of, passes_through, show_fault
from ptycho_tasks.files import remove_leftovers, remove_work, work_folders
from ptycho_tasks.freshness import IGNORE_CODE, Recipe, UpToDate
from ptycho_tasks.lock import STATE_DIR, exit_if_held
from ptycho_tasks.output import echo, end_in_order
from ptycho_tasks.state import STATE_NAME, Checker, State, current, spelled
from ptycho_tasks.table import (
    CHECKPOINTS,
    CONFIG_NAME,
    EVIDENCE,
    LOGS,
    Row,
    Table,
    asks_for_evidence,
    stands_alone,
    table_of,
)

if TYPE_CHECKING:
    from ptycho_tasks.backend import Backend
    from ptycho_tasks.evidence import Evidence
    from ptycho_tasks.payload import Payload


__all__ = [
    "DOIT_CONFIG",
    "task_evidence",
    "task_fixture",
    "task_infer",
    "task_source",
    "task_train",
]

DOIT_CONFIG = {
    "backend": "ptycho",
    "dep_file": STATE_NAME,
    "check_file_uptodate": Checker,
    "reporter": reporter.Reporter,
    # The current folder is the dodo.py's when doit imports it.
    "default_tasks": [EVIDENCE if stands_alone(Path.cwd()) else "infer"],
    "verbosity": 2,
    "continue": reporter.GoesOn(),
}
# Thousands of tasks are made and all of them are kept: to look for garbage among them after every
# few hundred is a quarter of the time of a run with nothing to do.
gc.set_threshold(100_000)
# Nothing else of doit is asked before it shows the traceback of what ended a command.
doit_cmd.traceback = DoitTraceback()
end_in_order()

_FUNCTIONS = {
    "source": "check_source",
    "fixture": "make_fixture",
    "train": "train",
    "infer": "infer",
    "refine": "refine",
}
"""Of `ptycho_tasks.stages`, for each stage."""
_OPTIONS = [
    {
        "name": IGNORE_CODE,
        "long": "ignore-code",
        "type": bool,
        "default": False,
        "help": "take what was built as made by the code as it is now",
    }
]


def task_source() -> Iterator[Task] | None:
    """Simulate the source scan, or check the one that ptycho.yaml names."""
    return _tasks("source", "simulate or check the source scans")


def task_fixture() -> Iterator[Task] | None:
    """Cut the source to the frames to train on."""
    return _tasks("fixture", "cut the sources to the frames to train on")


def task_train() -> Iterator[Task] | None:
    """Train on the fixture."""
    return _tasks("train", "train every variant")


def task_infer() -> Iterator[Task] | None:
    """Reconstruct the scan, and go on from there where ptycho.yaml asks for that."""
    inferred = _tasks("infer", "reconstruct the scan with every variant", also="refine")
    refined = _tasks("refine", "go on from every reconstruction")
    return inferred if refined is None else _both(refined, inferred)


def task_evidence() -> Iterator[Task] | None:
    """Run what proves the rows of a plan, and bring plan and ledger up to date."""
    refuse_foreign_settings()
    evidence = project_evidence()
    if evidence is None:
        return None
    from ptycho_tasks.evidence_tasks import tasks_of

    return tasks_of(evidence)


def _tasks(stage: str, together: str, *, also: str = "") -> Iterator[Task] | None:
    """The tasks of a stage; None where the project has none.

    Args:
        stage: its name.
        together: what running them all does.
        also: a stage whose tasks run with all of these.
    """
    refuse_foreign_settings()
    with or_exit():
        rows = [row for row in project_table().rows if row["stage"] == stage]
    if not rows:
        return None
    names = [row["name"] for row in project_table().rows if row["stage"] in (stage, also)]
    return _made(
        rows, Task(stage, None, doc=together, has_subtask=True, task_dep=names, params=_OPTIONS)
    )


def _made(rows: list[Row], whole: Task) -> Iterator[Task]:
    if rows[0]["name"] != whole.name:
        yield whole
    for row in rows:
        yield _task(row)


def _both(first: Iterator[Task], second: Iterator[Task] | None) -> Iterator[Task]:
    yield from first
    yield from second or ()


def refuse_foreign_settings() -> None:
    """End a command of doit that does not keep what was built as these tasks need it.

    Raises:
        SystemExit: the user was told in one line.
    """
    manager = Globals.dep_manager
    if manager is None:  # the tasks are asked for by another program
        return
    with or_exit():
        for kind, given in ((State, manager.backend), (Checker, manager.checker)):
            if not isinstance(given, kind):
                raise ConfigError(
                    f"dodo.py: these tasks need doit's settings of ptycho-tasks, and got "
                    f"{type(given).__name__}; write `from ptycho_tasks.tasks import DOIT_CONFIG` "
                    "there, and leave out the options --backend and --check_file_uptodate"
                )


@contextmanager
def or_exit() -> Iterator[None]:
    """Where doit would show a traceback: a user's error in the block is one line, and the end; so
    is a fault of ours."""
    try:
        yield
    except PtychoTasksError as error:
        complain(error)
        raise SystemExit(error.exit_code) from error
    except Exception as error:
        if owner_of(error) != "us":
            raise
        show_fault(error)
        raise SystemExit(1) from error


def refuse_missing_scans(tasks: Mapping[str, Task], selected: Iterable[str]) -> None:
    """Refuse to train for the reconstruction of a scan that is not there.

    Raises:
        ConfigError: one line that names the key `inference.scan` and its line.
    """
    for name in [sub for task in selected for sub in [task, *tasks[task].task_dep]]:
        if name.partition(":")[0] not in ("infer", "refine") or not tasks[name].actions:
            continue
        _, scan, *_ = project_table().row(name)["inputs"]
        # A task would make it: the source, where that is simulated, or the fixture.
        made = any(
            before.partition(":")[0] not in ("train", "infer") for before in tasks[name].task_dep
        )
        if not made and not Path(scan).exists():
            missing = project_table().payload(project_table().row(name)).missing("inference.scan")
            if missing is not None:
                raise ConfigError(f"{missing}; correct the path")


def missing_setting(name: str, path: str) -> str | None:
    """What to say of a missing input of a stage, where a setting names it: the key and its line."""
    row = project_table().row(name)
    payload = project_table().payload(row)
    for key in ("source.file", "source.product", "inference.scan"):
        missing = payload.missing(key)
        if missing and spelled(payload.root, payload.path(payload.values[key])) == path:
            return missing
    return None


def project_table() -> Table:
    """The project's tasks; each command of doit reads them once."""
    return _table_at(Path.cwd(), current())


def project_evidence() -> Evidence | None:
    """The evidence that the project asks for, read likewise; None where it asks for none."""
    return _evidence_at(Path.cwd(), current())


@functools.lru_cache(maxsize=1)
def _evidence_at(root: Path, state: State | None) -> Evidence | None:
    with or_exit():
        if not asks_for_evidence(root):
            return None
        from ptycho_tasks.evidence import load_evidence

        return load_evidence(root, state)


@functools.lru_cache(maxsize=1)
def _table_at(root: Path, state: State | None) -> Table:
    if stands_alone(root):
        return Table([], root / CONFIG_NAME, b"")
    table = table_of(root, state)
    if state is not None:
        # Now, before anything of it runs: see `State.source_digest`.
        for path in {path for row in table.rows for path in row["sources"].values()}:
            state.source_digest(path)
    return table


def _task(row: Row) -> Task:
    # A missing scan is the action's to report: doit would not say which key names it.
    inputs = row["inputs"]
    if row["stage"] == "source":
        inputs = [path for path in inputs if Path(path).exists()]
    recipe = Recipe(row["settings"], tuple(row["at_default"]), row["versions"], row["sources"])
    stage, name = row["stage"], row["name"]
    said = functools.partial(said_by, row) if stage in ("train", "infer", "refine") else None
    task = Task(
        name,
        [(run_stage, [name])],
        file_dep=inputs,
        targets=row["outputs"],
        task_dep=[row["after"]] if row["after"] else [],
        uptodate=[UpToDate(recipe, row["inputs"], said)],
        clean=[(clean, [name])],
        io={"capture": False},
        params=_OPTIONS,
        doc=row["doc"],
    )
    if name != stage:
        task.subtask_of = stage
    return task


def run_stage(name: str, task: Task) -> TaskFailed | TaskError | dict[str, Any]:
    """The action of every task: run a stage; a user's error is one line and the right exit code.

    Gives what the task's record says besides: `read`, the further files that were read, to sha256.
    """
    from ptycho_tasks import stages

    table = project_table()
    row = table.row(name)
    backends: list[Backend] = []
    with reporter.lines_of(name):
        try:
            refuse_overwriting(row["inputs"], row["outputs"])
            payload = table.payload(row)
            refuse_foreign(row, payload)
            backends += [payload.backend, *filter(None, [getattr(payload, "refiner", None)])]
            remove_leftovers(map(Path, row["outputs"]))
            with muted(task.verbosity):
                getattr(stages, _FUNCTIONS[row["stage"]])(payload)
        except Exception as error:
            return failure_of(error, backends)
    return {"read": payload.files_read}


@contextmanager
def muted(verbosity: int) -> Iterator[None]:
    """In the block, be as silent as doit's option -v asks for: at 1 without output, at 0 without
    what goes to stderr as well."""
    with ExitStack() as streams:
        if verbosity < 2:
            streams.enter_context(redirect_stdout(io.StringIO()))
        if verbosity < 1:
            streams.enter_context(redirect_stderr(io.StringIO()))
        yield


def failure_of(error: Exception, backends: Iterable[Backend] = ()) -> TaskFailed | TaskError:
    """Say in one line why an action failed; gives what doit wants to know of it."""
    if isinstance(error, PtychoTasksError):
        complain(error)
        failure = TaskError if error.exit_code == ConfigError.exit_code else TaskFailed
        return failure(str(error), report=False)
    culprits = (f"backend `{one.name}`" for one in backends if passes_through(error, one))
    # Left to doit, it would end with the exit code of a wrong configuration.
    return TaskFailed(show_fault(error, next(culprits, "")), report=False)


def refuse_overwriting(inputs: list[str], outputs: list[str]) -> None:
    """Refuse to write an output over an input, by whatever path both are reached.

    Raises:
        ConfigError: one line that names the file.
    """
    for output in map(Path, outputs):
        for source in map(Path, inputs):
            if output.exists() and source.exists() and output.samefile(source):
                raise ConfigError(
                    f"{source} would be overwritten by what is made of it; set another `name` in "
                    "ptycho.yaml, or move the scan"
                )


def refuse_foreign(row: Row, payload: Payload) -> None:
    """Refuse to replace a file that no run of this project, nor another of ours, put there.

    Raises:
        ConfigError: one line that names the file.
    """
    state = current()
    built = {} if state is None else (state.built(row["name"]) or {"outputs": {}})["outputs"]
    unknown = [Path(path) for path in row["outputs"] if built.get(path) is None]
    if row["stage"] == "train":
        unknown += [*Path(row["outputs"][0]).parent.glob(f"{CHECKPOINTS}/*/*.zip")]
    if not any(path.is_file() for path in unknown):
        return
    from ptycho_tasks.made import check_ours
    from ptycho_tasks.stages import is_as_simulated

    if not (row["stage"] == "source" and is_as_simulated(payload)):
        check_ours(unknown, "")


def said_by(row: Row) -> dict[str, Any] | None:
    """What the present bundle or reconstruction says of what it was made from; None where it says
    nothing or is damaged."""
    folder = Path(row["outputs"][0]).parent
    if row["stage"] == "train":
        from ptycho_tasks.bundle import made_from

        said = made_from(folder)
        return {**said, "files": {}} if isinstance(said, dict) else None
    from ptycho_tasks.payload import METRICS

    try:
        said = json.loads((folder / METRICS).read_text())["made_from"]
        files = {str(folder / name): sha256 for name, sha256 in said["files"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return {**said, "files": files}


@or_exit()
def clean(name: str, dryrun: bool) -> None:
    """Remove what a task built, its checkpoints and logs, and the folders that this leaves empty.

    A file that is not as the task left it is someone's own by now, and stays.

    Raises:
        SystemExit: a run is at work in the project, or a file cannot be removed.
    """
    if not dryrun:
        exit_if_held()
    row = project_table().row(name)
    if row["stage"] == "train":
        folder = Path(row["outputs"][0]).parent
        for beside in (folder / CHECKPOINTS, folder / LOGS):
            _remove_recorded(beside, dryrun)
        _remove_work(Path(STATE_DIR, "work", row["variant"]), dryrun)
    state: State = Globals.dep_manager.backend
    built = (state.built(name) or {"outputs": {}})["outputs"]
    for output in row["outputs"]:
        if not Path(output).exists():
            continue
        if built.get(output) is None or state.sha256(output) != built[output]:
            echo(f"keeping {output}: it is not as `doit {name}` left it")
        else:
            _remove(Path(output), dryrun)


def _remove_recorded(folder: Path, dryrun: bool) -> None:
    """Remove what runs wrote into a folder of logs or checkpoints; say what stays."""
    from ptycho_tasks.made import recorded, remove_recorded

    if recorded(folder):
        echo(f"removing what was written into {folder}")
    if dryrun:
        return
    with or_exit():
        for path in remove_recorded(folder):
            echo(f"keeping {path}: no run wrote it, or not as it is")
    _remove_empty(folder.parent)


def _remove_work(folder: Path, dryrun: bool) -> None:
    if work_folders(folder):
        echo(f"removing {folder}")
    if not dryrun:
        remove_work(folder)
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


def complain(error: PtychoTasksError) -> None:
    """Say in one line what is wrong; with the traceback where that is asked for."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    echo(f"error: {error}", err=True)

"""The doit tasks, one an edge of the graph: source -> fixture -> train -> infer.

A dodo.py imports them:

    from ptycho_tasks.tasks import DOIT_CONFIG, task_fixture, task_infer, task_source, task_train

They read the ptycho.yaml of the current folder, which doit makes the dodo.py's own.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from doit.exceptions import TaskError, TaskFailed
from doit.globals import Globals
from doit.task import Task

from ptycho_tasks import reporter
from ptycho_tasks.errors import DEBUG, ConfigError, PtychoTasksError
from ptycho_tasks.freshness import IGNORE_CODE, Recipe, UpToDate
from ptycho_tasks.lock import STATE_DIR, exit_if_held
from ptycho_tasks.state import STATE_NAME, Checker, State, current
from ptycho_tasks.table import CHECKPOINTS, LOGS, Row, Table, table_of

__all__ = ["DOIT_CONFIG", "task_fixture", "task_infer", "task_source", "task_train"]

DOIT_CONFIG = {
    "backend": "ptycho",
    "dep_file": STATE_NAME,
    "check_file_uptodate": Checker,
    "reporter": reporter.Reporter,
    "default_tasks": ["infer"],
    "verbosity": 2,
}
# Thousands of tasks are made and all of them are kept: to look for garbage among them after every
# few hundred is a quarter of the time of a run with nothing to do.
gc.set_threshold(100_000)

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


def task_source() -> Iterator[Task]:
    """Simulate the source scan, or check the one that ptycho.yaml names."""
    return _tasks("source", "simulate or check the source scans")


def task_fixture() -> Iterator[Task]:
    """Cut the source to the frames to train on."""
    return _tasks("fixture", "cut the sources to the frames to train on")


def task_train() -> Iterator[Task]:
    """Train on the fixture."""
    return _tasks("train", "train every variant")


def task_infer() -> Iterator[Task]:
    """Reconstruct the scan, and go on from there where ptycho.yaml asks for that."""
    with or_exit():
        refined = any(row["stage"] == "refine" for row in _table().rows)
    if refined:
        yield from _tasks("refine", "go on from every reconstruction")
    together = "reconstruct the scan with every variant"
    yield from _tasks("infer", together, also="refine")


def _tasks(stage: str, together: str, *, also: str = "") -> Iterator[Task]:
    """The tasks of a stage.

    Args:
        stage: its name.
        together: what running them all does.
        also: a stage whose tasks run with all of these.
    """
    with or_exit():
        rows = [row for row in _table().rows if row["stage"] == stage]
    if rows[0]["name"] != stage:
        names = [row["name"] for row in _table().rows if row["stage"] in (stage, also)]
        yield Task(stage, None, doc=together, has_subtask=True, task_dep=names, params=_OPTIONS)
    for row in rows:
        yield _task(row)


@contextmanager
def or_exit() -> Iterator[None]:
    """Where doit would show a traceback: a user's error in the block is one line, and the end."""
    try:
        yield
    except PtychoTasksError as error:
        _complain(error)
        raise SystemExit(error.exit_code) from error


def refuse_missing_scans(tasks: Mapping[str, Task], selected: Iterable[str]) -> None:
    """Refuse to train for the reconstruction of a scan that is not there.

    Raises:
        ConfigError: one line that names the key `inference.scan` and its line.
    """
    for name in [sub for task in selected for sub in [task, *tasks[task].task_dep]]:
        if name.partition(":")[0] not in ("infer", "refine") or not tasks[name].actions:
            continue
        _, scan, *_ = _table().row(name)["inputs"]
        # A task would make it: the source, where that is simulated, or the fixture.
        made = any(
            before.partition(":")[0] not in ("train", "infer") for before in tasks[name].task_dep
        )
        if not made and not Path(scan).exists():
            missing = _table().payload(_table().row(name)).missing("inference.scan")
            if missing is not None:
                raise ConfigError(f"{missing}; correct the path")


def _table() -> Table:
    """The project's tasks; each command of doit reads them once."""
    return _table_at(Path.cwd(), current())


@functools.lru_cache(maxsize=1)
def _table_at(root: Path, state: State | None) -> Table:
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
        uptodate=[UpToDate(recipe, said)],
        clean=[(clean, [name])],
        io={"capture": False},
        params=_OPTIONS,
        doc=row["doc"],
    )
    if name != stage:
        task.subtask_of = stage
    return task


def run_stage(name: str) -> TaskFailed | TaskError | None:
    """The action of every task: run a stage; a user's error is one line and the right exit code."""
    from ptycho_tasks import stages

    table = _table()
    row = table.row(name)
    with reporter.lines_of(name):
        try:
            refuse_overwriting(row["inputs"], row["outputs"])
            payload = table.payload(row)
            remove_leftovers(row["outputs"])
            getattr(stages, _FUNCTIONS[row["stage"]])(payload)
        except PtychoTasksError as error:
            _complain(error)
            failure = TaskError if error.exit_code == ConfigError.exit_code else TaskFailed
            return failure(str(error), report=False)
        except Exception as error:
            # A defect, ours or a backend's: its traceback is what its author needs. Left to doit,
            # it would end with the exit code of a wrong configuration.
            traceback.print_exception(error)
            return TaskFailed(str(error), report=False)
    return None


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


def remove_leftovers(outputs: list[str]) -> None:
    """Remove what a killed run left of files that it was writing."""
    for output in outputs:
        path = Path(output)
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            left.unlink(missing_ok=True)


def said_by(row: Row) -> dict[str, Any] | None:
    """What the present bundle or reconstruction says of what it was made from; None where it says
    nothing or is damaged."""
    folder = Path(row["outputs"][0]).parent
    if row["stage"] == "train":
        from ptycho_tasks.bundle import made_from

        said = made_from(folder)
        return None if said is None else {**said, "files": {}}
    from ptycho_tasks.payload import METRICS

    try:
        said = json.loads((folder / METRICS).read_text())["made_from"]
        files = {str(folder / name): sha256 for name, sha256 in said["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return {**said, "files": files}


def clean(name: str, dryrun: bool) -> None:
    """Remove what a task built, its checkpoints and logs, and the folders that this leaves empty.

    A file that is not as the task left it is someone's own by now, and stays.

    Raises:
        SystemExit: a run is at work in the project, or a file cannot be removed.
    """
    if not dryrun:
        exit_if_held()
    row = _table().row(name)
    if row["stage"] == "train":
        folder = Path(row["outputs"][0]).parent
        for beside in (
            folder / CHECKPOINTS,
            folder / LOGS,
            Path(STATE_DIR, "work", row["variant"]),
        ):
            _remove(beside, dryrun)
    state: State = Globals.dep_manager.backend
    built = (state.built(name) or {"outputs": {}})["outputs"]
    for output in row["outputs"]:
        if not Path(output).exists():
            continue
        if built.get(output) is None or state.sha256(output) != built[output]:
            print(f"keeping {output}: it is not as `doit {name}` left it")
        else:
            _remove(Path(output), dryrun)


def _remove(path: Path, dryrun: bool) -> None:
    if not path.exists():
        return
    print(f"removing {path}")
    if dryrun:
        return
    keep = {Path(), Path("fixtures"), Path(STATE_DIR)}
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        folder = path.parent
        while folder not in keep and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent
    except OSError as error:
        print(f"error: cannot remove {path}: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from error


def _complain(error: PtychoTasksError) -> None:
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr, flush=True)

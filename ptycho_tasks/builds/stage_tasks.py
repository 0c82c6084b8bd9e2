"""The tasks of each stage, as doit takes them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator

from doit.globals import Globals
from doit.task import Task

from ptycho_tasks.builds.actions import clean, run_stage
from ptycho_tasks.builds.project import read_project_table
from ptycho_tasks.builds.results import may_be_absent
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.staleness import IGNORE_CODE, UpToDate
from ptycho_tasks.builds.state import Checker, State
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.system.faults import exit_on_error

_OPTIONS = [
    {
        "name": IGNORE_CODE,
        "long": "ignore-code",
        "type": bool,
        "default": False,
        "help": "take what was built as made by the code as it is now",
    }
]


_TOGETHER = {
    "source": "simulate or check the source scans",
    "fixture": "cut the sources to the frames to train on",
    "train": "train every variant",
    "infer": "reconstruct the scan with every variant",
    "refine": "go on from every reconstruction",
}
"""What it does to run all tasks of a stage."""


def create_tasks(stage: str) -> Iterator[Task] | None:
    """The tasks of a stage; None where the project has none. Those of `infer` hold those of
    `refine`: to infer is to refine as well, where that is asked for."""
    refuse_foreign_settings()
    with exit_on_error():
        rows = read_project_table().rows
    if all(row.stage != stage for row in rows):
        return None
    parts = ("refine", "infer") if stage == "infer" else (stage,)
    return (task for part in parts for task in _create(part, rows))


def create_all_tasks() -> list[Task]:
    """The tasks of all stages, in their order."""
    return [
        task
        for stage in ("source", "fixture", "train", "infer")
        for task in create_tasks(stage) or ()
    ]


def _create(stage: str, rows: Iterable[Row]) -> Iterator[Task]:
    """The tasks of one stage, and one that runs them all where they have other names."""
    own = [row for row in rows if row.stage == stage]
    if own and own[0].name != stage:
        together = (stage, "refine") if stage == "infer" else (stage,)
        yield Task(
            stage,
            None,
            doc=_TOGETHER[stage],
            has_subtask=True,
            task_dep=[row.name for row in rows if row.stage in together],
            params=_OPTIONS,
        )
    made = {path for row in rows if row.stage == "source" for path in row.outputs}
    for row in own:
        yield _task(row, made)
        yield from (_alias(row, name) for name in row.aliases)


def refuse_foreign_settings() -> None:
    """End a command of doit that does not keep what was built as these tasks need it.

    Raises:
        SystemExit: the user was told in one line.
    """
    manager = Globals.dep_manager
    if manager is None:  # the tasks are asked for by another program
        return
    with exit_on_error():
        for kind, given in ((State, manager.backend), (Checker, manager.checker)):
            if not isinstance(given, kind):
                raise ConfigError(
                    f"dodo.py: these tasks need doit's settings of ptycho-tasks, and got "
                    f"{type(given).__name__}; write `from ptycho_tasks.tasks import DOIT_CONFIG` "
                    "there, and leave out the options --backend and --check_file_uptodate"
                )


def _alias(row: Row, name: str) -> Task:
    """The task of a further name: to run it is to run the one."""
    task = Task(name, None, doc=f"the same as {row.name}", task_dep=[row.name], params=_OPTIONS)
    task.subtask_of = row.stage
    return task


def _task(row: Row, made: Collection[str]) -> Task:
    inputs = [*row.inputs.values()]
    if row.scan or row.stage in ("source", "fixture"):
        # A missing scan is the action's to report: doit would not say which key names it.
        inputs = [
            path
            for path in inputs
            if path in made or not may_be_absent(row, path) or os.path.exists(path)  # noqa: PTH110
        ]
    task = Task(
        row.name,
        [(run_stage, [row.name])],
        file_dep=inputs,
        targets=row.outputs,
        task_dep=[row.after] if row.after else [],
        uptodate=[UpToDate(row)],
        clean=[(clean, [row.name])],
        io={"capture": False},
        params=_OPTIONS,
        doc=row.doc,
    )
    if row.name != row.stage:
        task.subtask_of = row.stage
    return task

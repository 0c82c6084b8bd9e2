"""Questions about the project in the current folder from outside of doit's commands.

Nothing is written, not even to the database: who asks may do so in a clone, or beside a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from doit import doit_cmd
from doit.control import TaskControl
from doit.dependency import Dependency
from doit.globals import Globals

from ptycho_tasks.builds.project import list_tables
from ptycho_tasks.builds.stage_tasks import create_all_tasks
from ptycho_tasks.builds.state import Checker, State
from ptycho_tasks.builds.task_table import Table
from ptycho_tasks.layout import STATE_NAME
from ptycho_tasks.system.faults import exit_on_error


class _ReadOnly(State):
    """The database, of which nothing changes."""

    is_read_only = True


class _WithoutStrays(_ReadOnly):
    """That, for who looks at what is there, though a file came that cannot be a scan."""

    skips_strays = True


@contextmanager
def ask_project(
    changes: Mapping[str, str] | None = None, *, skips_strays: bool = False
) -> Iterator[tuple[TaskControl, Dependency]]:
    """The project's tasks, and its database, for the block.

    Args:
        changes: KEY=VALUE of a one-off variant: then its tasks.
        skips_strays: whether files that cannot be told from other scans are left out, see
            `Table.strays`, and not refused.

    Raises:
        SystemExit: something in ptycho.yaml is wrong, and the user was told.
    """
    with _open_database(skips_strays=skips_strays) as manager:
        before, doit_cmd._CMDLINE_VARS = doit_cmd._CMDLINE_VARS, dict(changes or {})
        try:
            yield TaskControl(create_all_tasks()), manager
        finally:
            doit_cmd._CMDLINE_VARS = before


def read_tables(*, skips_strays: bool = False) -> list[Table]:
    """The tables of the project's tasks, and of those of each one-off variant that was asked for.

    Args:
        skips_strays: as of `ask_project`.

    Raises:
        SystemExit: something in ptycho.yaml is wrong, and the user was told.
    """
    with _open_database(skips_strays=skips_strays) as manager, exit_on_error():
        return list_tables(manager.backend)


@contextmanager
def _open_database(*, skips_strays: bool) -> Iterator[Dependency]:
    state = _WithoutStrays if skips_strays else _ReadOnly
    manager = Dependency(state, STATE_NAME, checker_cls=Checker)
    before, Globals.dep_manager = Globals.dep_manager, manager
    try:
        yield manager
    finally:
        manager.close()
        Globals.dep_manager = before

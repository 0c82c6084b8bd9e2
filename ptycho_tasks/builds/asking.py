"""Questions about the project in the current folder from outside of doit's commands.

Nothing is written, not even to the database: who asks may do so in a clone, or beside a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from doit.control import TaskControl
from doit.dependency import Dependency
from doit.globals import Globals

from ptycho_tasks.builds.stage_tasks import create_all_tasks
from ptycho_tasks.builds.state import Checker, State
from ptycho_tasks.layout import STATE_NAME


class _ReadOnly(State):
    """The database, of which nothing changes."""

    is_read_only = True


@contextmanager
def ask_project() -> Iterator[tuple[TaskControl, Dependency]]:
    """The project's tasks, and its database, for the block.

    Raises:
        SystemExit: something in ptycho.yaml is wrong, and the user was told.
    """
    manager = Dependency(_ReadOnly, STATE_NAME, checker_cls=Checker)
    before, Globals.dep_manager = Globals.dep_manager, manager
    try:
        yield TaskControl(create_all_tasks()), manager
    finally:
        manager.close()
        Globals.dep_manager = before

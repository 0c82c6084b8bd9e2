"""Runs of tasks in this process, as `doit TASK ...` would do them, for a program that goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from doit.control import TaskControl
from doit.dependency import Dependency
from doit.exceptions import BaseFail, UnmetDependency
from doit.globals import Globals
from doit.reporter import ZeroReporter
from doit.runner import Runner
from doit.task import Stream, Task

from ptycho_tasks.builds.order import sort_tasks
from ptycho_tasks.builds.project import read_project_table, refuse_missing_inputs
from ptycho_tasks.builds.run import begin_run, begin_task, end_run
from ptycho_tasks.builds.stage_tasks import create_all_tasks
from ptycho_tasks.builds.state import Checker, State
from ptycho_tasks.builds.task_table import Table
from ptycho_tasks.layout import STATE_NAME
from ptycho_tasks.system.cache import forget_all


class Observer:
    """What is told of a run; does nothing with it."""

    def begin(self, control: TaskControl, manager: Dependency) -> None:
        """Learn what is about to run, before the project is locked; may raise."""

    def skip_task(self, name: str) -> None:
        """Learn that a task need not run."""

    def begin_task(self, name: str) -> None:
        """Learn that a task runs."""

    def end_task(self, name: str) -> None:
        """Learn that a task has run."""

    def fail_task(self, name: str, problem: str | None) -> None:
        """Learn that a task failed, and why; None where one before it failed, and it did not
        run."""


class _State(State):
    """The database, for a program that goes on while files come that cannot be scans."""

    skips_strays = True


def run_tasks(choose: Callable[[Table], Iterable[str]], observer: Observer) -> None:
    """Run tasks of the project in the current folder and what they need, as far as it is stale.
    A failure stops only what needs the failed task.

    Args:
        choose: names the tasks, of the project's table as it is now.
        observer: is told what happens.

    Raises:
        ConfigError: something in ptycho.yaml is wrong; nothing was started.
        SystemExit: another run is at work, or the database cannot be written, and the user was
            told; or a signal asked this process to end.
    """
    forget_all()  # files and ptycho.yaml may have changed
    manager = Dependency(_State, STATE_NAME, checker_cls=Checker)
    Globals.dep_manager = manager
    try:
        names = [*choose(read_project_table())]
        control = TaskControl(create_all_tasks())
        control.process(names)
        reporter = _Reporter(control, manager, observer)
        stream = Stream(verbosity=2)
        runner = Runner(manager, reporter, continue_=True, stream=stream)
        runner.run_all(control.task_dispatcher())
    finally:
        manager.close()
        Globals.dep_manager = None


class _Reporter(ZeroReporter):  # type: ignore[misc]
    """Frames the run, and passes on what doit reports."""

    def __init__(self, control: TaskControl, manager: Dependency, observer: Observer) -> None:
        self.control, self.manager, self.observer = control, manager, observer

    def initialize(self, tasks: Mapping[str, Task], selected_tasks: list[str]) -> None:
        selected_tasks[:] = sort_tasks(tasks, selected_tasks)
        self.observer.begin(self.control, self.manager)
        refuse_missing_inputs(tasks, selected_tasks)
        begin_run(self.manager.backend)

    def execute_task(self, task: Any) -> None:
        if task.actions:
            begin_task(task.name)
            self.observer.begin_task(task.name)

    def skip_uptodate(self, task: Any) -> None:
        if task.actions:
            self.observer.skip_task(task.name)

    def add_success(self, task: Any) -> None:
        if task.actions:
            self.observer.end_task(task.name)

    def add_failure(self, task: Any, fail: BaseFail) -> None:
        problem = None if isinstance(fail, UnmetDependency) else fail.message
        self.observer.fail_task(task.name, problem)

    def complete_run(self) -> None:
        end_run()

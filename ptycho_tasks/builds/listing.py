"""The doit command `list`, which tells more of our tasks than doit's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from os import stat_result
from pathlib import Path
from typing import Any

from doit.cmd_list import List as _List
from doit.task import Task

from ptycho_tasks.builds.orphans import has_stages, mention_orphans, mention_strays
from ptycho_tasks.builds.state import skip_strays
from ptycho_tasks.builds.store import format_age
from ptycho_tasks.system.clock import utc_now
from ptycho_tasks.system.terminal import WRITE_ERRORS, give_up_output
from ptycho_tasks.system.units import format_size


class List(_List):  # type: ignore[misc]
    """`doit list`; with --status also the size of what a task made, and when."""

    name = "list"

    def execute(self, opt_values: Any, pos_args: Any) -> Any:
        """Print the tasks, which files are left out, and which results no task has."""
        with skip_strays():
            return self._list(opt_values, pos_args)

    def _list(self, opt_values: Any, pos_args: Any) -> Any:
        try:
            code = super().execute(opt_values, pos_args)
        except OSError as error:
            if isinstance(error, BrokenPipeError) or error.errno not in WRITE_ERRORS:
                raise
            give_up_output(error)
            return 1
        if has_stages(self.task_list):
            mention_strays()
        mention_orphans(self.task_list)
        return code

    def _print_task(
        self, template: str, task: Task, status: bool, list_deps: bool, tasks: Any
    ) -> None:
        if status and has_stages(self.task_list):
            task.doc = f"{_describe_outputs(task):<26}{task.doc}"
        super()._print_task(template, task, status, list_deps, tasks)


def _describe_outputs(task: Task) -> str:
    """Size and age of the files of a task; empty where there are none."""
    # A task of several variants has equal files for each of them.
    files = {(file.st_size, target.rpartition("/")[2]): file for target, file in _stat(task)}
    if not files:
        return ""
    age = utc_now().timestamp() - max(file.st_mtime for file in files.values())
    return f"{format_size(sum(size for size, _ in files))}, {format_age(age)}"


def _stat(task: Task) -> Iterator[tuple[str, stat_result]]:
    for target in task.targets:
        with suppress(OSError):
            yield target, Path(target).stat()

"""The doit task that writes the report; imports nothing that takes time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from doit.exceptions import TaskError, TaskFailed
from doit.task import Task

from ptycho_tasks.builds.actions import report_failure
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.layout import METRICS, RECONSTRUCTION, REPORT
from ptycho_tasks.report.ownership import remove_report

NAME = "report"
_FORMAT = 1
"""Of the page; with another one it is written anew."""


def create_report_task(
    rows: Iterable[Row], list_evidence: Callable[[Path], list[dict[str, Any]]]
) -> Task | None:
    """The task `report`, stale when a result is, or when states or evidence are not what the page
    says; None where the project has no results.

    Args:
        rows: of the task table.
        list_evidence: gives the rows of the plan of a project, see `write_report`.
    """
    files = [p for row in rows for p in row.outputs if p.endswith((METRICS, RECONSTRUCTION))]
    if not files:
        return None

    def write() -> TaskFailed | TaskError | None:
        from ptycho_tasks.report.page import write_report

        try:
            write_report(Path.cwd() / REPORT, list_evidence(Path.cwd()))
        except Exception as error:
            return report_failure(error)
        return None

    def says_what_is(task: Task, values: dict[str, Any]) -> bool:
        from ptycho_tasks.report.states import digest_states

        try:
            states = digest_states(list_evidence(Path.cwd()))
        except PtychoTasksError:
            return False  # the action says why
        now = {"format": _FORMAT, "states": states}
        task.value_savers.append(lambda: now)
        return all(values.get(key) == value for key, value in now.items())

    return Task(
        NAME,
        [write],
        file_dep=files,
        targets=[REPORT],
        uptodate=[says_what_is],
        clean=[(remove_report, [Path(REPORT)])],
        io={"capture": False},
        doc="write all results as one page",
    )

"""The doit task that writes the report; imports nothing that takes time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from doit.exceptions import TaskError, TaskFailed
from doit.task import Task

from ptycho_tasks.builds.actions import report_failure
from ptycho_tasks.builds.orphans import mention_strays
from ptycho_tasks.builds.reasons import Reason
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.staleness import Answer
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.layout import METRICS, RECONSTRUCTION, REPORT
from ptycho_tasks.report.ownership import remove_report

NAME = "report"
EvidenceList = Callable[[Path], list[dict[str, Any]]]
"""Gives the rows of the plan of a project, see `write_report`."""
_FORMAT = 1
"""Of the page; with another one it is written anew."""


class _SaysWhatIs(Answer):
    """Whether the page says what the results, their states and the evidence are."""

    def __init__(self, list_evidence: EvidenceList) -> None:
        super().__init__()
        self.list_evidence = list_evidence

    def __call__(self, task: Task, values: Mapping[str, Any]) -> bool:
        """Compares the digest of all that with that of the page."""
        from ptycho_tasks.report.states import digest_states

        try:
            states = digest_states(self.list_evidence(Path.cwd()))
        except PtychoTasksError:
            states = ""  # the action says what is wrong
        now = {"format": _FORMAT, "states": states}
        task.value_savers.append(lambda: now)
        text = ""
        if not Path(REPORT).exists():
            text = f"there is no {REPORT} yet"
        elif not states or {key: values.get(key) for key in now} != now:
            text = "results, their states or the evidence are not what the page says"
        self.reasons = [Reason("output", REPORT, text)] if text else []
        return not text


class _Names(list[str]):
    """Names of tasks. doit asks before it adds one whether that is there already: a plain list of
    20,000 would be gone through as many times."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
        self._known = set(self)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def append(self, name: str) -> None:
        super().append(name)
        self._known.add(name)

    def extend(self, names: Iterable[str]) -> None:
        for name in names:
            self.append(name)


def create_report_task(rows: Iterable[Row], list_evidence: EvidenceList) -> Task | None:
    """The task `report`, stale when a result is, or when states or evidence are not what the page
    says; None where the project has no results.

    Args:
        rows: of the task table.
        list_evidence: see `EvidenceList`.
    """
    files = [p for row in rows for p in row.outputs if p.endswith((METRICS, RECONSTRUCTION))]
    if not files:
        return None

    def write() -> TaskFailed | TaskError | None:
        from ptycho_tasks.report.page import write_report

        try:
            write_report(Path.cwd() / REPORT, list_evidence(Path.cwd()))
            mention_strays()
        except Exception as error:
            return report_failure(error)
        return None

    task = Task(
        NAME,
        [write],
        file_dep=files,
        targets=[REPORT],
        uptodate=[_SaysWhatIs(list_evidence)],
        clean=[(remove_report, [Path(REPORT)])],
        io={"capture": False},
        doc="write all results as one page",
    )
    task.task_dep = _Names(task.task_dep)
    return task

"""The doit tasks, one an edge of the graph: source -> fixture -> train -> infer.

A dodo.py imports them:

    from ptycho_tasks.tasks import DOIT_CONFIG, task_fixture, task_infer, task_source, task_train

`task_report`, which shows their results, and `task_evidence`, which runs what proves the rows of a
plan. They read the ptycho.yaml, or the evidence.yaml, of the current folder, which doit makes the
dodo.py's own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doit import doit_cmd
from doit.exceptions import BaseFail, TaskFailed, UnmetDependency
from doit.globals import Globals
from doit.reporter import ConsoleReporter
from doit.task import Task

from ptycho_tasks.builds.actions import Submitted
from ptycho_tasks.builds.failures import forget_failure, note_failure
from ptycho_tasks.builds.live import LiveRun, is_followed
from ptycho_tasks.builds.order import sort_tasks
from ptycho_tasks.builds.project import read_project_table
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.run import begin_run, begin_task, end_run
from ptycho_tasks.builds.run_progress import RunProgress
from ptycho_tasks.builds.running import note_going_on
from ptycho_tasks.builds.stage_tasks import create_tasks, refuse_foreign_settings
from ptycho_tasks.builds.staleness import UpToDate
from ptycho_tasks.builds.state import Checker
from ptycho_tasks.layout import EVIDENCE, STATE_NAME, is_evidence_alone, may_have_evidence
from ptycho_tasks.report.task import create_report_task
from ptycho_tasks.system.faults import DoitTraceback, exit_on_error
from ptycho_tasks.system.program import begin_program
from ptycho_tasks.system.terminal import flush_at_exit, print_text

if TYPE_CHECKING:
    from ptycho_tasks.evidence.stage_failures import StageFailures


__all__ = [
    "DOIT_CONFIG",
    "task_evidence",
    "task_fixture",
    "task_infer",
    "task_report",
    "task_source",
    "task_train",
]


class DefaultContinue:
    """doit's option --continue, where the user gives none: whether a run goes on after a failure.

    One that gathers evidence does while all that failed only blocks items: others may be proved.
    So does one of several scans, while only tasks of single scans failed.
    """

    stage_failures: StageFailures | None = None
    """Of the run in this process, if it gathers evidence."""
    costs_one_scan = False
    """Whether all that failed is of single scans among several, or goes on as a job."""

    def __bool__(self) -> bool:
        """Asked after each failure."""
        if DefaultContinue.stage_failures is not None:
            return DefaultContinue.stage_failures.only_block_items
        return DefaultContinue.costs_one_scan

    def __repr__(self) -> str:
        """What `doit help run` shows."""
        return "only if what failed merely blocks evidence, or is of one scan among several"


_MOST_JOBS = 3
"""Jobs that a line names."""


class Reporter(ConsoleReporter):  # type: ignore[misc]
    """doit's console output, for one run at a time."""

    desc = "console output, one run at a time in a project"

    def __init__(self, outstream: Any, options: Any) -> None:
        """A run's report; see doit's."""
        super().__init__(outstream, options)
        self.failed: list[str] = []
        """Names of tasks that failed."""
        self.not_run: list[str] = []
        """Names of tasks that did not run, since one before them failed."""
        self.going_on: dict[str, str] = {}
        """Tasks that go on as jobs after the run, and as which."""
        self.progress = RunProgress()
        self.live = LiveRun()

    def initialize(self, tasks: Any, selected_tasks: Any) -> None:
        """Begin a run."""
        # doit has not looked at the list yet: with each task behind those that it needs, none
        # has to wait for another, and they run in the order that `dry-run` shows.
        selected_tasks[:] = sort_tasks(tasks, selected_tasks)
        from ptycho_tasks.builds.project import (
            keep_one_off,
            refuse_missing_inputs,
            refuse_one_off_evidence,
        )

        with exit_on_error():
            refuse_missing_inputs(tasks, selected_tasks)
        begin_run(Globals.dep_manager.backend)
        keep_one_off()
        self.live.begin(name for name in selected_tasks if tasks[name].actions)
        DefaultContinue.costs_one_scan = True
        if EVIDENCE in tasks:
            from ptycho_tasks.evidence.tasks import refuse_unready

            with exit_on_error():
                refuse_one_off_evidence(selected_tasks)
                refuse_unready(tasks, selected_tasks)
            from ptycho_tasks.evidence.stage_failures import StageFailures

            DefaultContinue.stage_failures = StageFailures(tasks, selected_tasks)

    def write(self, text: str) -> None:
        """Show a text, as long as someone reads."""
        try:
            super().write(text)
        except (AttributeError, OSError):  # closed, full, or without a reader
            print_text(text, self.outstream)

    def execute_task(self, task: Any) -> None:
        """Say that a task runs, also to who asks for the lock."""
        begin_task(task.name)
        self.progress.begin(task)
        if task.actions:
            self._show_live(task)
        super().execute_task(task)
        # A whole line at once, between those of worker processes.
        print_text("", self.outstream)

    def _show_live(self, task: Task) -> None:
        """Show that a task runs on the page, from the first one on that asks for it."""
        self.live.begin_task(task.name)
        if not self.live.has_page and any(map(is_followed, _list_rows(task))):
            from ptycho_tasks.report.live_page import open_live_page

            open_live_page(self.live, Path.cwd())

    def add_success(self, task: Any) -> None:
        """Note that a task ran."""
        self.progress.end(task)
        if task.actions:
            self.live.end_task(task.name)
        for row in _list_rows(task):
            forget_failure(Globals.dep_manager.backend, row)
        super().add_success(task)

    def skip_uptodate(self, task: Any) -> None:
        """Note that a task need not run."""
        self.progress.skip(task)
        if task.actions:
            self.live.skip_task(task.name)
        super().skip_uptodate(task)

    def add_failure(self, task: Any, fail: BaseFail) -> None:
        """Note that a task failed, or did not run since one before it failed."""
        if isinstance(fail, UnmetDependency):
            self.not_run.append(task.name)
            self.live.fail_task(task.name, None)
            # doit would end with the code of a wrong usage, of which nothing was started.
            fail.__class__ = _NotRun
            return
        if isinstance(fail, Submitted):
            self.going_on[task.name] = fail.message
            self.live.leave_task(task.name, fail.message)
            return
        self.failed.append(task.name)
        self.live.fail_task(task.name, str(fail.message))
        DefaultContinue.costs_one_scan &= any(row.scan for row in _list_rows(task))
        for row in _list_rows(task):
            note_failure(Globals.dep_manager.backend, row, str(fail.message))
        if DefaultContinue.stage_failures is not None:
            DefaultContinue.stage_failures.note(task.name, fail)
        super().add_failure(task, fail)

    def complete_run(self) -> None:
        """End a run."""
        is_stopped = sys.exc_info()[0] is not None
        self.live.close("stopped" if is_stopped else "failed" if self.failed else "finished")
        failures, DefaultContinue.stage_failures = DefaultContinue.stage_failures, None
        # A run that is stopped ends with an error that passes by here.
        if failures is not None and self.failed and sys.exc_info()[0] is None:
            settled = failures.publish_blocked_items()
            self.not_run = [name for name in self.not_run if name not in settled]
        super().complete_run()
        self.write("".join(f"{line}\n" for line in self._summary()))
        if self.going_on and not self.failed:
            note_going_on()
        print_text("", self.outstream)
        end_run()

    def _summary(self) -> Iterator[str]:
        """What was made, and what failed, where more than the last line says it."""
        yield from self.progress.summarize()
        if self.progress.has_made:  # to look at the store takes time
            from ptycho_tasks.builds.pruning import describe_large_store

            yield from describe_large_store()
        if self.going_on:
            jobs = [f"{name} ({job})" for name, job in self.going_on.items()]
            named = ", ".join(jobs[:_MOST_JOBS])
            more = f" and {len(jobs) - _MOST_JOBS} more" if len(jobs) > _MOST_JOBS else ""
            yield f"going on: {named}{more}; run again to wait for them, or to take what they made"
            if not self.failed:
                return
        if len(self.failed) + len(self.not_run) > 1:
            yield f"failed: {', '.join(self.failed)}"
            if self.not_run:
                yield f"not run because of that: {', '.join(self.not_run)}"


def _list_rows(task: Task) -> list[Row]:
    """The row of a task of ours; none of any other."""
    return [answer.row for answer, _, _ in task.uptodate if isinstance(answer, UpToDate)]


class _NotRun(TaskFailed, UnmetDependency):  # type: ignore[misc]
    """A task that did not run, since one before it failed: the work failed, with that one."""


DOIT_CONFIG = {
    "backend": "ptycho",
    "dep_file": STATE_NAME,
    "check_file_uptodate": Checker,
    "reporter": Reporter,
    # The current folder is the dodo.py's when doit imports it.
    "default_tasks": [EVIDENCE if is_evidence_alone(Path.cwd()) else "infer"],
    "verbosity": 2,
    "continue": DefaultContinue(),
}
begin_program(is_whole=False)
# Nothing else of doit is asked before it shows the traceback of what ended a command.
doit_cmd.traceback = DoitTraceback()
flush_at_exit()


def task_source() -> Iterator[Task] | None:
    """Simulate the source scan, or check the one that ptycho.yaml names."""
    return create_tasks("source")


def task_fixture() -> Iterator[Task] | None:
    """Cut the source to the frames to train on."""
    return create_tasks("fixture")


def task_train() -> Iterator[Task] | None:
    """Train on the fixture."""
    return create_tasks("train")


def task_infer() -> Iterator[Task] | None:
    """Reconstruct the scan, and go on from there where ptycho.yaml asks for that."""
    return create_tasks("infer")


def task_report() -> Task | None:
    """Write all results as one page, report.html."""
    refuse_foreign_settings()
    with exit_on_error():
        rows = read_project_table().rows
    return create_report_task(rows, _list_evidence)


def _list_evidence(root: Path) -> list[dict[str, Any]]:
    from ptycho_tasks.evidence.row_records import list_row_records

    return list_row_records(root)


def task_evidence() -> Iterator[Task] | None:
    """Run what proves the rows of a plan, and bring plan and ledger up to date."""
    refuse_foreign_settings()
    with exit_on_error():
        if not may_have_evidence(Path.cwd()):
            return None
    # A project without evidence is not to wait for these imports.
    from ptycho_tasks.evidence.loading import load_current_evidence
    from ptycho_tasks.evidence.tasks import create_evidence_tasks

    evidence = load_current_evidence()
    return None if evidence is None else create_evidence_tasks(evidence)

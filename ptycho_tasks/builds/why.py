"""The doit commands `why`, `dry-run` and `info`: what is stale, why, and what would run.

None runs or changes anything, and all work while a run is at work.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from doit.cmd_base import DoitCmdBase
from doit.cmd_info import Info as _Info
from doit.control import TaskControl
from doit.exceptions import InvalidCommand
from doit.task import Task

from ptycho_tasks.builds.order import sort_tasks
from ptycho_tasks.builds.orphans import mention_orphans
from ptycho_tasks.builds.reasons import Reason
from ptycho_tasks.builds.staleness import Answer, UpToDate
from ptycho_tasks.builds.state import State
from ptycho_tasks.errors import one_line
from ptycho_tasks.system.terminal import print_text

_JSON = {
    "name": "as_json",
    "long": "json",
    "type": bool,
    "default": False,
    "help": "print JSON, for programs",
}


@dataclass(frozen=True)
class Verdict:
    """What a run would do with one task."""

    task: str
    status: str
    """`up to date`; `stale`: it would run; `depends`: it would run if the tasks before it give
    something else than what is there; `stored`: the store has what it would make; `ignored`:
    `doit ignore` names it, or a task before it."""
    reasons: tuple[Reason, ...]


def judge(control: TaskControl, dep_manager: Any) -> list[Verdict]:
    """What a run would do with the selected tasks and all that they need, in the order in which
    they would run."""
    verdicts: dict[str, Verdict] = {}
    _judge(control.tasks, control.selected_tasks, verdicts, dep_manager)
    return [
        verdict
        for verdict in verdicts.values()
        if control.tasks[verdict.task].actions and not _is_part(verdict.task)
    ]


def _judge(
    tasks: Mapping[str, Task],
    selected: Iterable[str],
    verdicts: dict[str, Verdict],
    dep_manager: Any,
) -> None:
    for name in sort_tasks(tasks, selected, verdicts):
        verdict = _verdict(tasks[name], tasks, verdicts, dep_manager)
        if verdict.status in ("stale", "depends") and tasks[name].setup_tasks:
            _judge(tasks, tasks[name].setup_tasks, verdicts, dep_manager)
        verdicts[name] = verdict


def _verdict(
    task: Task, tasks: Mapping[str, Task], before: Mapping[str, Verdict], dep_manager: Any
) -> Verdict:
    if dep_manager.status_is_ignore(task):
        return Verdict(task.name, "ignored", ())
    status = dep_manager.get_status(task, tasks, get_log=True)
    own = [*_own_reasons(task, status)]
    # A stage that would not run misses nothing, also where its scan is not there any more.
    is_settled = not own and any(isinstance(u, UpToDate) for u, _, _ in task.uptodate)
    reasons = [*([] if is_settled else _obstacles(task, tasks)), *own]
    if any(before[name].status == "ignored" for name in task.task_dep):
        return Verdict(task.name, "ignored", ())
    settled = ("up to date", "stored")
    upstream = [name for name in task.task_dep if before[name].status not in settled]
    remade = {path for name in upstream for path in tasks[name].targets}
    # What another task will make is no reason of its own.
    reasons = [r for r in reasons if r.kind != "input" or r.subject not in remade]
    waits = [
        Reason("upstream", name, f"{name} would run before")
        for name in upstream
        if tasks[name].actions and not _is_part(name)
    ]
    parts = [before[name] for name in task.task_dep if _is_part(name)]
    if parts or not task.actions:
        texts = {r.text: r for r in [*reasons, *(r for part in parts for r in part.reasons)]}
        worst = {before[name].status for name in task.task_dep}
        worst |= {"stale"} if parts and reasons else set()
        kind = next((s for s in ("stale", "depends", "stored") if s in worst), "up to date")
        return Verdict(task.name, kind, tuple(texts.values()) if parts else ())
    stored = next((u.stored for u, _, _ in task.uptodate if isinstance(u, UpToDate)), None)
    if stored is not None and not reasons and not waits:
        text = f"the store has it, made {stored.age}"
        changed = next(u.changed for u, _, _ in task.uptodate if isinstance(u, UpToDate))
        made = stored.record.made if stored.folder != Path() else None  # else it is not in it yet
        reason = Reason("stored", task.name, text, new=made)
        return Verdict(task.name, "stored", (reason, *changed))
    kind = "stale" if reasons else "depends" if waits else "up to date"
    return Verdict(task.name, kind, (*reasons, *waits))


class _Ask(DoitCmdBase):  # type: ignore[misc]
    doc_usage = "[TASK/TARGET...]"
    doc_description = None
    # Delayed tasks are made like all others.
    execute_tasks = False
    cmd_options = (_JSON,)

    def _execute(self, as_json: bool = False) -> int:
        try:
            control = TaskControl(self.task_list)
            control.process(self.sel_tasks)
            verdicts = judge(control, self.dep_manager)
        finally:
            self.dep_manager.close()
        if as_json:
            text = json.dumps([asdict(verdict) for verdict in verdicts], indent=1) + "\n"
        else:
            text = "".join(f"{one_line(line)}\n" for line in self.lines(verdicts))
        print_text(text, self.outstream)
        self.end()
        return 0

    def lines(self, verdicts: list[Verdict]) -> Iterator[str]:
        """What is shown."""
        raise NotImplementedError

    def end(self) -> None:
        """Say what else the user should know."""


class Why(_Ask):
    """`doit why`."""

    doc_purpose = "say why tasks are stale"
    name = "why"

    def lines(self, verdicts: list[Verdict]) -> Iterator[str]:
        """Each task with its reasons."""
        width = max((len(verdict.task) for verdict in verdicts), default=0)
        for verdict in verdicts:
            texts = {
                "depends": "stale, if a task before it gives something new",
                "stored": "to be taken from the store",
            }
            yield f"{verdict.task:<{width}}  {texts.get(verdict.status, verdict.status)}"
            for reason in verdict.reasons:
                yield f"{'':<{width}}    {reason.text}"

    def end(self) -> None:
        """Results that no task has."""
        mention_orphans(self.task_list)


class DryRun(_Ask):
    """`doit dry-run`."""

    doc_purpose = "say what would run, in order; runs nothing"
    name = "dry-run"

    def lines(self, verdicts: list[Verdict]) -> Iterator[str]:
        """Each task that would run."""
        due = [verdict for verdict in verdicts if verdict.status in _MARKS]
        ignored = [verdict.task for verdict in verdicts if verdict.status == "ignored"]
        if not due and ignored:
            yield f"nothing would run: what is not up to date is ignored: {', '.join(ignored)}"
        elif not due:
            yield "nothing would run: all is up to date"
        for verdict in due:
            first = verdict.reasons[0].text
            more = f", and {len(verdict.reasons) - 1} more" if len(verdict.reasons) > 1 else ""
            yield f"{_MARKS[verdict.status]}  {verdict.task}  ({first}{more})"
        if any(verdict.status == "depends" for verdict in due):
            yield "?  runs only if a task before it gives something new"
        if any(verdict.status == "stored" for verdict in due):
            yield "=  does not run: what it would make is put in its places"


class Info(_Info):  # type: ignore[misc]
    """`doit info`, of which doit's own reasons are those of `doit why`."""

    name = "info"

    def _execute(self, pos_args: Any, hide_status: bool = False) -> Any:
        tasks = {task.name: task for task in self.task_list}
        is_ours = isinstance(self.dep_manager.backend, State)
        if len(pos_args) == 1 and pos_args[0] not in tasks:
            near = difflib.get_close_matches(pos_args[0], tasks, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "`doit list --all` shows all"
            raise InvalidCommand(f"no task is called `{pos_args[0]}`; {hint}")
        if not is_ours or hide_status or len(pos_args) != 1:
            return super()._execute(pos_args, hide_status)
        control = TaskControl(self.task_list)
        control.process(pos_args)
        # What a task only stands for is said of its parts, whose states decide.
        verdicts = {verdict.task: verdict for verdict in judge(control, self.dep_manager)}
        shown = pos_args if pos_args[0] in verdicts else tasks[pos_args[0]].task_dep
        own = [verdicts[name] for name in shown if name in verdicts]
        super()._execute(pos_args, hide_status=True)
        for verdict in own:
            name = "" if [verdict.task] == pos_args else f"{verdict.task} "
            texts = [f"\n - {one_line(reason.text)}" for reason in verdict.reasons]
            print_text(f"\n{'status':11}: {name}{verdict.status}{''.join(texts)}\n", self.outstream)
        return int(any(verdict.status != "up to date" for verdict in own))


_MARKS = {"stale": ".", "depends": "?", "stored": "="}
"""How the line of a task begins, by its status."""


def _is_part(name: str) -> bool:
    """Whether a task is hidden: a part of the one that needs it, which says its reasons."""
    return name.startswith("_")


def _obstacles(task: Task, tasks: Mapping[str, Task]) -> Iterator[Reason]:
    """Why a run of a task would fail: inputs that are not there, and that no task makes."""
    stage = next((utd for utd, _, _ in task.uptodate if isinstance(utd, UpToDate)), None)
    needed = stage.row.inputs.values() if stage else task.file_dep
    absent = [p for p in needed if not os.path.exists(p)]  # noqa: PTH110
    if not absent:
        return
    outputs = {path for name in task.task_dep for path in tasks[name].targets}
    for path in sorted({*absent} - outputs):
        text = f"there is no {path}"
        if stage:
            from ptycho_tasks.builds.project import describe_missing_input

            text = describe_missing_input(task.name, path) or text
        yield Reason("missing", path, f"it would fail: {text}")


def _own_reasons(task: Task, status: Any) -> Iterator[Reason]:
    ours = [utd for utd, _, _ in task.uptodate if isinstance(utd, Answer)]
    if ours:
        yield from ours[0].reasons
        return
    # A task of the user's own in the same dodo.py: doit's reasons.
    if status.status != "up-to-date":
        for kind, subjects in status.reasons.items():
            if kind == "missing_file_dep":  # an obstacle, or what a task before it makes
                continue
            for subject in subjects if isinstance(subjects, list) else [subjects]:
                yield Reason("input", str(subject), f"{kind.replace('_', ' ')}: {subject}")

"""The evidence as doit tasks.

Each item is a hidden task of its own, so that items run side by side; it never fails, so that
one that is red keeps no other from running. What they found out is published by the tasks that
need them: `evidence`, of all, and `evidence:ID`, of one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from doit.exceptions import TaskError, TaskFailed
from doit.task import Task

from ptycho_tasks.builds.actions import failure_of
from ptycho_tasks.builds.project import project_table
from ptycho_tasks.builds.reasons import Reason
from ptycho_tasks.builds.staleness import Answer
from ptycho_tasks.builds.state import State, current
from ptycho_tasks.errors import PtychoTasksError, one_line
from ptycho_tasks.evidence.inputs import Digest, digest_at, input_paths, outputs_in
from ptycho_tasks.evidence.item import RED, Evidence, Item
from ptycho_tasks.evidence.loading import project_evidence
from ptycho_tasks.evidence.records import latest, pending, reasons_of
from ptycho_tasks.layout import EVIDENCE
from ptycho_tasks.system.faults import or_exit
from ptycho_tasks.system.processes import lines_of
from ptycho_tasks.system.terminal import echo

NAME = EVIDENCE
HIDDEN = f"_{NAME}:"
"""How the names of the tasks begin that run an item each."""


def tasks_of(evidence: Evidence) -> Iterator[Task]:
    """The tasks that run the items, and those that publish."""
    for item in evidence.items:
        yield Task(
            f"{HIDDEN}{item.name}",
            [(prove, [item.name])],
            task_dep=_stage_tasks(item),
            uptodate=[_Fresh(item.name)],
            io={"capture": False},
            doc=one_line(f"run {item.command}"),
        )
    yield _publishing(evidence, NAME, list(evidence.items), "prove the rows of the plan")
    for id in evidence.ids:
        items = evidence.items_of(id)
        if items:
            doc = "; ".join(item.command for item in items)
            task = _publishing(evidence, f"{NAME}:{id}", items, one_line(" ".join(doc.split())))
            task.subtask_of = NAME
            yield task


def _publishing(evidence: Evidence, name: str, items: list[Item], doc: str) -> Task:
    names = [item.name for item in items]
    return Task(
        name,
        [(publish_action, [names])],
        task_dep=[f"{HIDDEN}{item}" for item in names],
        uptodate=[_NothingPending(names)],
        io={"capture": False},
        doc=doc,
    )


def _stage_tasks(item: Item) -> list[str]:
    with or_exit():
        for stage in item.stages:
            outputs_of(stage)
    rows = project_table().rows if item.stages else []
    return [r["name"] for s in item.stages for r in rows if s in (r["name"], r["stage"])]


def outputs_of(stage: str) -> list[str]:
    """The files that a stage makes.

    Raises:
        ConfigError: there is no such stage.
    """
    return outputs_in(project_table().rows, stage)


def refuse_unready(tasks: Mapping[str, Task], selected: Iterable[str]) -> None:
    """Refuse, before anything runs, evidence that cannot be gathered; note what the plan is.

    Args:
        tasks: all, by name.
        selected: names of those that run.

    Raises:
        PtychoTasksError: as `ready.check_ready` and `publish.begin`.
    """
    global _ready_for
    left, needed = list(selected), set()
    while left:
        name = left.pop()
        if name not in needed and name in tasks:
            needed.add(name)
            left += [*tasks[name].task_dep, *tasks[name].setup_tasks]
    names = [n.removeprefix(HIDDEN) for n in tasks if n in needed and n.startswith(HIDDEN)]
    evidence = project_evidence() if names else None
    if evidence is not None:
        from ptycho_tasks.evidence.preflight import check_ready
        from ptycho_tasks.evidence.publish import begin

        begin(evidence)
        check_ready(evidence, [evidence.item(name) for name in names])
    _ready_for = current()


_ready_for: State | None = None
"""The database of the run for which all is ready."""


class _Fresh(Answer):
    """Whether an item's last result is green and still holds."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __call__(self, task: Task, values: Mapping[str, Any]) -> bool:
        """Compares what the item was run on with what there is now."""
        if self.is_asked_by_a_run(task) and _ready_for is not self.state:
            # A reporter of doit's own begins no run.
            with or_exit():
                refuse_unready(self.tasks, self.tasks)
        evidence = project_evidence()
        assert evidence is not None
        item = evidence.item(self.name)
        record = latest(evidence, item)
        with or_exit():
            self.reasons = [*reasons_of(evidence, item, record, self.state.sha256, outputs_of)]
        return not self.reasons


class _NothingPending(Answer):
    """Whether all results are published; a run says in any case what there is."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __call__(self, task: Task, values: Mapping[str, Any]) -> bool:
        """Looks for results that are not, and for rows that do not say what is proved."""
        from ptycho_tasks.evidence.publish import unsaid

        if self.is_asked_by_a_run(task):
            return False
        evidence = project_evidence()
        assert evidence is not None
        items = [evidence.item(name) for name in self.names]
        self.reasons = [
            Reason("output", item.name, f"the result of {item.name} is not published yet")
            for item in items
            if pending(evidence, item) is not None
        ]
        with or_exit():
            for id in unsaid(evidence, items, self.state.sha256, outputs_of):
                text = f"{id} is proved, and {evidence.plan} or its manifest does not say so"
                self.reasons.append(Reason("output", id, text))
        return not self.reasons


def _digest(evidence: Evidence) -> Digest:
    state: State | None = current()
    return digest_at(evidence.root) if state is None else state.sha256


def inputs_of(evidence: Evidence, item: Item) -> dict[str, str | None]:
    """Path to sha256 of every file that an item's outcome may hang on, as they are now."""
    digest = _digest(evidence)
    return {path: digest(path) for path in input_paths(evidence, item, outputs_of)}


def prove(name: str) -> TaskFailed | TaskError | None:
    """The action of a hidden task: run an item, whatever its outcome."""
    from ptycho_tasks.evidence.runner import run_item

    evidence = project_evidence()
    assert evidence is not None
    item = evidence.item(name)
    with lines_of(name):
        try:
            run_item(evidence, item, inputs_of(evidence, item))
        except Exception as error:
            return failure_of(error)
    return None


def publish_action(names: list[str], whole: bool = True) -> TaskFailed | TaskError | None:
    """The action of `evidence`: publish what is pending, and say what each item came to.

    Args:
        names: of the items.
        whole: whether all of them ran, or still hold.
    """
    from ptycho_tasks.evidence.backup import put_back
    from ptycho_tasks.evidence.publish import publish
    from ptycho_tasks.evidence.summaries import BLOCKER

    evidence = project_evidence()
    assert evidence is not None
    items = [evidence.item(name) for name in names]
    try:
        put_back()
        ran = {item for item in items if pending(evidence, item) is not None}
        done = publish(evidence, items, _digest(evidence), outputs_of)
    except Exception as error:
        return failure_of(error)
    red: list[tuple[Item, str]] = []
    lost: list[str] = []
    for item in items:
        record = latest(evidence, item)
        if record is None:
            lost += [item.name] if whole else []
            continue
        again = "" if item in ran else f" (of {record['started']}, still good)"
        echo(one_line(f"{record['outcome']:<6} {', '.join(item.ids)}  {record['log']}{again}"))
        red += [(item, record["log"])] if record["outcome"] == RED else []
    if done is not None:
        folder = Path(done.folder).relative_to(evidence.root)
        echo(f"report {folder}; updated {evidence.plan} and {evidence.ledger}")
    if lost:
        text = f"the result of {', '.join(lost)} is gone or damaged; run again"
        return failure_of(PtychoTasksError(text))
    if red:
        rows = ", ".join(dict.fromkeys(id for item, _ in red for id in item.ids))
        blockers = ", ".join(dict.fromkeys(str(Path(log).with_name(BLOCKER)) for _, log in red))
        return failure_of(PtychoTasksError(f"red: {rows}; see {blockers}"))
    return None

"""The evidence as doit tasks.

Each item has a hidden task of its own, so that items run side by side. It never fails: an item that
is red keeps no other from running. The results are published by the tasks that need them:
`evidence`, of all items, and `evidence:ID`, of those of one row.

Every command of doit imports this module in a project with evidence. What a run needs besides is
imported when it runs: so that `doit` with nothing to do does not wait for msgspec.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from doit.exceptions import TaskError, TaskFailed
from doit.task import Task

from ptycho_tasks.builds.project import read_project_table
from ptycho_tasks.builds.reasons import Reason
from ptycho_tasks.builds.staleness import Answer
from ptycho_tasks.builds.state import State, current_state
from ptycho_tasks.errors import ConfigError, one_line
from ptycho_tasks.evidence.inputs import ProjectFiles, find_rows
from ptycho_tasks.evidence.item import Evidence, Item
from ptycho_tasks.evidence.loading import load_current_evidence
from ptycho_tasks.layout import EVIDENCE
from ptycho_tasks.system.faults import exit_on_error
from ptycho_tasks.system.lock import shares_lock

ITEM_PREFIX = f"_{EVIDENCE}:"
"""What the names of the hidden tasks begin with; doit does not list what begins with `_`."""


def create_evidence_tasks(evidence: Evidence) -> Iterator[Task]:
    """The tasks that run the items, and those that publish."""
    for item in evidence.items:
        yield Task(
            f"{ITEM_PREFIX}{item.name}",
            [(_prove, [item.name])],
            task_dep=_list_stage_tasks(item),
            uptodate=[_StillHolds(item.name)],
            io={"capture": False},
            doc=one_line(f"run {item.command}"),
        )
    yield _create_publishing_task(EVIDENCE, evidence.items, "prove the rows of the plan")
    for id in evidence.ids:
        items = evidence.items_for(id)
        if items:
            doc = one_line(" ".join("; ".join(item.command for item in items).split()))
            task = _create_publishing_task(f"{EVIDENCE}:{id}", items, doc)
            task.subtask_of = EVIDENCE
            yield task


def _create_publishing_task(name: str, items: Iterable[Item], doc: str) -> Task:
    names = [item.name for item in items]
    return Task(
        name,
        [(_publish, [names])],
        task_dep=[f"{ITEM_PREFIX}{item}" for item in names],
        uptodate=[_IsPublished(names)],
        io={"capture": False},
        doc=doc,
    )


def _list_stage_tasks(item: Item) -> list[str]:
    """The tasks of the stages that an item is about."""
    rows = read_project_table().rows if item.stages else []
    with exit_on_error():
        return [row.name for stage in item.stages for row in find_rows(rows, stage)]


def refuse_unready(tasks: Mapping[str, Task], selected: Iterable[str]) -> None:
    """Refuse, before anything runs, evidence that cannot be gathered; remember what the plan is.

    Args:
        tasks: all, by name.
        selected: names of those that run.

    Raises:
        PtychoTasksError: as `preflight.check_ready` and `publish.begin_evidence`.
    """
    global _ready_for
    left, needed = list(selected), set()
    while left:
        name = left.pop()
        if name not in needed and name in tasks:
            needed.add(name)
            left += [*tasks[name].task_dep, *tasks[name].setup_tasks]
    names = [name for name in tasks if name in needed and name.startswith(ITEM_PREFIX)]
    evidence = load_current_evidence() if names else None
    if evidence is not None:
        from ptycho_tasks.evidence.preflight import check_ready
        from ptycho_tasks.evidence.publish import begin_evidence

        if shares_lock():
            raise ConfigError(
                "a command of the evidence gathers evidence itself, which would never end; have it "
                "name the tasks that it needs, as `doit infer`"
            )
        begin_evidence(evidence)
        items = [evidence.find_item(name.removeprefix(ITEM_PREFIX)) for name in names]
        check_ready(evidence, items)
    _ready_for = current_state()


_ready_for: State | None = None
"""The database of the run for which `refuse_unready` found nothing."""


class _Answer(Answer):
    """An answer to whether a task of the evidence is up to date."""

    @property
    def files(self) -> ProjectFiles:
        """Where the inputs of items are looked up."""
        return ProjectFiles(self.state.sha256, lambda: read_project_table().rows)

    @property
    def evidence(self) -> Evidence:
        """The project's."""
        evidence = load_current_evidence()
        assert evidence is not None
        return evidence


class _StillHolds(_Answer):
    """Whether an item's last result is green and still holds."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __call__(self, task: Task, values: Mapping[str, Any]) -> bool:
        """Compares what the item was run on with what there is now."""
        from ptycho_tasks.evidence.records import find_record
        from ptycho_tasks.evidence.staleness import list_reasons

        if self.is_asked_by_a_run(task) and _ready_for is not self.state:
            # A reporter of doit's own begins no run.
            with exit_on_error():
                refuse_unready(self.tasks, self.tasks)
        evidence = self.evidence
        item = evidence.find_item(self.name)
        record = find_record(evidence, item)
        with exit_on_error():
            self.reasons = [*list_reasons(evidence, item, record, self.files)]
        return not self.reasons


class _IsPublished(_Answer):
    """Whether all results are published; a run says in any case what there is."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __call__(self, task: Task, values: Mapping[str, Any]) -> bool:
        """Looks for results that are not, and for rows that do not say what is proved."""
        if self.is_asked_by_a_run(task):
            return False
        from ptycho_tasks.evidence.publish import find_unmarked_rows
        from ptycho_tasks.evidence.records import find_unpublished

        evidence = self.evidence
        items = [evidence.find_item(name) for name in self.names]
        self.reasons = [
            Reason("output", item.name, f"the result of {item.name} is not published yet")
            for item in items
            if find_unpublished(evidence, item) is not None
        ]
        with exit_on_error():
            for id in find_unmarked_rows(evidence, items, self.files):
                text = f"{id} is proved, and {evidence.plan} or its manifest does not say so"
                self.reasons.append(Reason("output", id, text))
        return not self.reasons


def _prove(name: str) -> TaskFailed | TaskError | None:
    from ptycho_tasks.evidence.actions import prove_item

    return prove_item(name)


def _publish(names: list[str]) -> TaskFailed | TaskError | None:
    from ptycho_tasks.evidence.actions import publish_items

    return publish_items(names, are_complete=True)

"""Stages that failed in a run that gathers evidence, and the items that this keeps from running."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from doit.exceptions import BaseFail, TaskFailed
from doit.task import Task

from ptycho_tasks.builds.actions import report_failure
from ptycho_tasks.builds.kept_output import read_output
from ptycho_tasks.builds.order import sort_tasks
from ptycho_tasks.evidence.loading import load_current_evidence
from ptycho_tasks.evidence.tasks import ITEM_PREFIX


class StageFailures:
    """What failed in a run that gathers evidence, and which items cannot run because of it."""

    def __init__(self, tasks: Mapping[str, Task], selected: Sequence[str]) -> None:
        """Nothing failed yet.

        Args:
            tasks: all, by name.
            selected: names of those that run, with all that they need.
        """
        self._tasks = tasks
        self._selected = selected
        self._problems: dict[str, str] = {}
        """Of tasks that items need: the first line of what they failed with."""
        self._has_mistake = False
        """Whether a mistake of the user's ended a task."""
        self._has_other = False
        """Whether a task failed that no item needs."""

    @property
    def only_block_items(self) -> bool:
        """Whether nothing failed but what items need, and that not by a mistake of the user's."""
        return not (self._has_mistake or self._has_other)

    def note(self, name: str, fail: BaseFail) -> None:
        """Note that a task failed."""
        if not isinstance(fail, TaskFailed):
            # doit's TaskError, which `failure_of` gives for wrong usage or configuration.
            self._has_mistake = True
        elif any(name in needed for needed in self._needed_tasks.values()):
            text = (getattr(fail, "traceback", None) or [str(fail.message)])[-1].strip()
            self._problems[name] = text.partition("\n")[0]
        else:
            self._has_other = True

    @functools.cached_property
    def _needed_tasks(self) -> dict[str, list[str]]:
        """The items' tasks, to all tasks before each, in the order of the run."""
        items = [name for name in self._selected if name.startswith(ITEM_PREFIX)]
        return {name: sort_tasks(self._tasks, [name])[:-1] for name in items}

    def publish_blocked_items(self) -> set[str]:
        """Note the items that could not run as red, and publish them with the other results of
        their rows. Gives the tasks that are settled by that. A mistake leaves no trace."""
        evidence = load_current_evidence()
        if evidence is None or self._has_mistake or not self._problems:
            return set()
        from ptycho_tasks.evidence.actions import find_files, publish_items
        from ptycho_tasks.evidence.inputs import digest_inputs
        from ptycho_tasks.evidence.runner import note_item

        causes = {
            name: next(task for task in needed if task in self._problems)
            for name, needed in self._needed_tasks.items()
            if not self._problems.keys().isdisjoint(needed)
        }
        try:
            for name, cause in causes.items():
                item = evidence.find_item(name.removeprefix(ITEM_PREFIX))
                problem = f"{cause} failed: {self._problems[cause]}"
                inputs = digest_inputs(evidence, item, find_files(evidence))
                output = read_output(cause, is_failed=True)
                note_item(evidence, item, inputs, output, problem)
        except Exception as error:
            report_failure(error)
            return set()
        deps = {name: self._tasks[name].task_dep for name in self._selected}
        publishing = [name for name in deps if not causes.keys().isdisjoint(deps[name])]
        items = dict.fromkeys(item for name in publishing for item in deps[name])
        names = [item.removeprefix(ITEM_PREFIX) for item in items if item.startswith(ITEM_PREFIX)]
        publish_items(names, are_complete=False)
        return {*causes, *publishing}

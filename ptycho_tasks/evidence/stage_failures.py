"""Items of the evidence that cannot be run, since a stage that they need failed."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from doit.exceptions import BaseFail, TaskFailed
from doit.task import Task

from ptycho_tasks.builds.actions import failure_of
from ptycho_tasks.builds.order import in_run_order
from ptycho_tasks.evidence.loading import project_evidence
from ptycho_tasks.evidence.tasks import HIDDEN, inputs_of, publish_action


class Blocked:
    """What failed in a run that gathers evidence, and which items that keeps from being run."""

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
        self._has_other = False

    @property
    def only_blocks(self) -> bool:
        """Whether nothing failed but what items need, and that not by a mistake of the user's."""
        return not (self._has_mistake or self._has_other)

    def note(self, name: str, fail: BaseFail) -> None:
        """Note that a task failed."""
        if not isinstance(fail, TaskFailed):
            self._has_mistake = True
        elif any(name in needed for needed in self._needed.values()):
            text = (getattr(fail, "traceback", None) or [str(fail.message)])[-1].strip()
            self._problems[name] = text.partition("\n")[0]
        else:
            self._has_other = True

    @functools.cached_property
    def _needed(self) -> dict[str, list[str]]:
        """Hidden tasks of the items, to all tasks before each, in the order of the run."""
        items = [name for name in self._selected if name.startswith(HIDDEN)]
        return {name: in_run_order(self._tasks, [name])[:-1] for name in items}

    def publish(self) -> set[str]:
        """Note the items that were not run as red, and publish them with what else there is to
        their rows' tasks; gives the tasks that this was done for. A mistake leaves no trace."""
        evidence = project_evidence()
        if evidence is None or self._has_mistake or not self._problems:
            return set()
        from ptycho_tasks.evidence.runner import block_item

        causes = {
            name: next(task for task in needed if task in self._problems)
            for name, needed in self._needed.items()
            if not self._problems.keys().isdisjoint(needed)
        }
        try:
            for name, cause in causes.items():
                item = evidence.item(name.removeprefix(HIDDEN))
                problem = f"{cause} failed: {self._problems[cause]}"
                block_item(evidence, item, inputs_of(evidence, item), problem)
        except Exception as error:
            failure_of(error)
            return set()
        deps = {name: self._tasks[name].task_dep for name in self._selected}
        publishing = [name for name in deps if not causes.keys().isdisjoint(deps[name])]
        items = dict.fromkeys(item for name in publishing for item in deps[name])
        names = [item.removeprefix(HIDDEN) for item in items if item.startswith(HIDDEN)]
        publish_action(names, whole=False)
        return {*causes, *publishing}

"""The order in which tasks run: that of a list, each task after those that it needs.

doit keeps inputs, and tasks that wait for another, in sets, so that the order of its own run
changes from one process to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from doit.exceptions import InvalidCommand
from doit.task import Task


def sort_tasks(
    tasks: Mapping[str, Task], selected: Iterable[str], done: Iterable[str] = ()
) -> list[str]:
    """Names of the selected tasks and of all that they need, each after those that it needs.

    Setup tasks are left out: they run only if their task does.

    Args:
        tasks: all, by name, in the order of their definition.
        selected: names, in the order that was asked for.
        done: names that are left out, with what only they need.

    Raises:
        InvalidCommand: there is no such task.
    """
    rank = {name: number for number, name in enumerate(tasks)}
    seen, order = set(done), list[str]()
    for name in selected:
        if name not in tasks:
            raise InvalidCommand(f"'{name}' is not a task.")
        if name in seen:
            continue
        seen.add(name)
        # Of its own, not by recursion: a chain may be longer than Python's stack.
        left = [(name, _needed(tasks, name, rank))]
        while left:
            task, needed = left[-1]
            before = next((other for other in needed if other not in seen), None)
            if before is None:
                order.append(task)
                left.pop()
            else:
                seen.add(before)
                left.append((before, _needed(tasks, before, rank)))
    return order


def _needed(tasks: Mapping[str, Task], name: str, rank: Mapping[str, int]) -> Iterator[str]:
    """What a task needs: first what its author listed, in that order, then what makes its inputs,
    which doit took from a set, as they are defined."""
    task = tasks[name]
    needed = [other for other in task.task_dep if other in tasks]
    if len(needed) < 2 or not task.file_dep:
        return iter(needed)
    makers = {other for other in needed if not task.file_dep.isdisjoint(tasks[other].targets)}
    listed = [other for other in needed if other not in makers]
    return iter([*listed, *sorted(makers, key=rank.__getitem__)])

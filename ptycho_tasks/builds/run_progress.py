"""What a run has done so far, for the line at its end."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

from doit.task import Task

from ptycho_tasks.builds.staleness import UpToDate
from ptycho_tasks.system.units import format_seconds

_SHOWN = 5


class RunProgress:
    """The stages that a run made, took from the store, or found up to date."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._begun: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._taken = 0
        self._up_to_date = 0

    def begin(self, task: Task) -> None:
        """A task begins to run; one that doit's option -v0 makes silent is not spoken of."""
        if task.verbosity and _find_question(task) is not None:
            self._begun[task.name] = monotonic()

    def end(self, task: Task) -> None:
        """A task that began has succeeded."""
        if task.name in self._begun:
            self._seconds[task.name] = monotonic() - self._begun[task.name]

    def skip(self, task: Task) -> None:
        """A task need not run."""
        question = _find_question(task)
        if question is not None:
            self._taken += question.is_taken
            self._up_to_date += not question.is_taken

    @property
    def has_made(self) -> bool:
        """Whether a stage ran and succeeded."""
        return bool(self._seconds)

    def summarize(self) -> Iterator[str]:
        """One line, where more than one stage ran: how many were made, and which took longest."""
        if len(self._begun) < 2:
            return
        longest = sorted(self._seconds, key=lambda name: -self._seconds[name])
        shown = [f"{name} {format_seconds(self._seconds[name])}" for name in longest[:_SHOWN]]
        more = ["..."] if len(longest) > _SHOWN else []
        made = f"made {len(longest)}" + (f" ({', '.join([*shown, *more])})" if shown else "")
        counts = (("taken from the store", self._taken), ("up to date", self._up_to_date))
        yield ", ".join([made, *(f"{text} {count}" for text, count in counts if count)])


def _find_question(task: Task) -> UpToDate | None:
    """What answers whether a task is up to date; None where it is no stage."""
    return next((one for one, _, _ in task.uptodate if isinstance(one, UpToDate)), None)

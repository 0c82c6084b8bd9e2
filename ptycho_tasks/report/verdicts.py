"""What a task or its result is, and why: said alike in the table, below it, and in the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ptycho_tasks.builds.failures import find_failure
from ptycho_tasks.builds.reasons import Reason, shorten
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.state import State
from ptycho_tasks.builds.why import Verdict

_STATES = {"up to date": "fresh", "depends": "stale"}
_SETTLED = ("up to date", "stored")


class Described(NamedTuple):
    """What is said of a task."""

    state: str
    """`fresh`, `stale`, `stored`, `ignored`, `failed` or `not built`, see `Result.state`."""
    reasons: Sequence[str]
    """Why it is not fresh: what failed, which is in the way of all else; or changed settings, then
    all else; of what has to run before, its own reasons. That something was not built yet stands
    once, and not beside the state that says it."""


class Verdicts:
    """What `doit why` says of tasks, for a report, in which nothing depends on the time of day."""

    def __init__(self, verdicts: Mapping[str, Verdict], state: State, rows: Sequence[Row]) -> None:
        """Of tasks that were judged.

        Args:
            verdicts: of each, by name.
            state: the database, which knows what failed.
            rows: all tasks.
        """
        self._verdicts, self._state = verdicts, state
        self._makers = {path: row for row in rows for path in row.outputs}
        self._rows = {row.name: row for row in rows}
        self._failures: dict[str, str] = {}

    def find_status(self, row: Row) -> str:
        """See `Verdict.status`."""
        return self._find(row.name).status

    def is_known(self, row: Row) -> bool:
        """Whether a task was done before."""
        return all(reason.kind != "new" for reason in self._find(row.name).reasons)

    def describe(self, row: Row, *, is_there: bool) -> Described:
        """What is said of a task.

        Args:
            row: the task.
            is_there: whether what it makes lies in its place.
        """
        status, failure = self.find_status(row), self._find_failure(row)
        if failure:
            return Described("failed", [failure])
        if not (is_there or status in ("stored", "ignored")):
            return Described("not built", self._list_reasons(row, says_new=False))
        return Described(_STATES.get(status, status), self._list_reasons(row))

    def _list_reasons(self, row: Row, *, says_new: bool = True) -> list[str]:
        found = sorted(self._trace(row.name), key=lambda pair: pair[0].kind != "setting")
        is_known = self.is_known(row)
        texts = [
            describe_reason(reason) + (f" ({task})" if task != row.name else "")
            for reason, task in found
            if reason.kind != "new" or (says_new and (task == row.name or is_known))
        ]
        return [*dict.fromkeys(texts)]

    def _find(self, name: str) -> Verdict:
        return self._verdicts.get(name, Verdict(name, "stale", ()))

    def _trace(self, name: str) -> Iterator[tuple[Reason, str]]:
        """The reasons of a task, and of those that have to run before, each with its task."""
        for reason in self._find(name).reasons:
            before = reason.kind == "upstream" and [*self._trace(reason.subject)]
            yield from before or [(reason, name)]

    def _find_failure(self, row: Row) -> str:
        """What failed when it last ran: a task, or the first of those before it."""
        if row.name not in self._failures:
            self._failures[row.name] = self._search_failure(row)
        return self._failures[row.name]

    def _search_failure(self, row: Row) -> str:
        if self.find_status(row) in _SETTLED:
            return ""
        makers = [*map(self._makers.get, row.inputs.values()), self._rows.get(row.after)]
        before = filter(None, makers)
        for failure in map(self._find_failure, before):
            if failure:
                return failure
        failure = find_failure(self._state, row)
        return f"{row.name} failed: {failure}" if failure else ""


def describe_reason(reason: Reason) -> str:
    """A reason without how long ago something was."""
    if reason.kind == "stored":
        return "the store has it" + (f", made {reason.new}" if reason.new else "")
    if reason.kind == "output" and reason.old and reason.new:
        digests = f"sha256 {shorten(reason.old)} -> {shorten(reason.new)}"
        return f"{reason.subject} is damaged, or was changed by hand: {digests}"
    return reason.text

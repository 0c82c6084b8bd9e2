"""Why a stage must run: what it was built from, compared with what there is now."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from doit.dependency import UptodateCalculator
from doit.task import Task

from ptycho_tasks.builds.identity import Identity, list_differences
from ptycho_tasks.builds.reasons import Reason, describe_change
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.run import begin_run
from ptycho_tasks.builds.state import State, parse_built

IGNORE_CODE = "ignore_code"
"""The option of every task that takes the code as it is."""


class Built(NamedTuple):
    """A stage's outputs, and what they were made from."""

    identity: Identity
    outputs: Mapping[str, str | None]
    """Path to sha256, of those that are known."""


class Answer(UptodateCalculator):  # type: ignore[misc]
    """An answer to doit's question whether a task is up to date, with reasons."""

    # doit asks for the signature of each anew, which takes longer than the rest of its work.
    __signature__ = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            for name in ("task", "values")
        ]
    )

    def __init__(self) -> None:
        """Not asked yet."""
        super().__init__()
        self.reasons: list[Reason] = []

    def __repr__(self) -> str:
        """What `doit info` shows."""
        return "; ".join(reason.text for reason in self.reasons) or "up to date"

    def setup(self, dep_manager: Any, tasks_dict: Mapping[str, Task]) -> None:
        """Get the database and the other tasks."""
        self.state: State = dep_manager.backend
        self.tasks = tasks_dict

    def is_asked_by_a_run(self, task: Task) -> bool:
        """Whether the task is about to run, and not merely asked about; begins the run."""
        # doit settles this of tasks that it is about to run, not of those it is asked about.
        if task.verbosity is not None and not self.state.running:
            begin_run(self.state)
        return self.state.running


class UpToDate(Answer):
    """A stage's answer."""

    def __init__(self, row: Row, read_outputs: Callable[[Row], Built | None] | None = None) -> None:
        """Of one stage.

        Args:
            row: its task.
            read_outputs: reads what the present outputs hold of what they were made from; gives
                None where they hold nothing or are damaged.
        """
        super().__init__()
        self.row = row
        self._read_outputs = read_outputs
        self._now = _NOTHING

    def configure_task(self, task: Task) -> None:
        """Have doit keep what the outputs were built from."""
        task.value_savers.append(lambda: {"built": self._record_of_outputs()})

    def __call__(self, task: Task, values: Mapping[str, Any]) -> bool:
        """Whether the task's outputs are what its inputs, settings and code give."""
        state, row = self.state, self.row
        self.is_asked_by_a_run(task)
        state.snapshots[task.name] = {path: state.sha256(path) for path in task.file_dep}
        built = self._built(values)
        read = {} if built is None else built.identity.read
        self._now = Identity(
            row.settings,
            row.versions,
            {name: state.source_digest(path) for name, path in row.sources.items()},
            {role: state.sha256(path) for role, path in row.inputs.items()},
            {path: state.sha256(path) for path in read},
        )
        self.reasons = list(self._reasons(built))
        if self.reasons and (self._take_outputs(built) or self._ignore_code()):
            self.reasons = []
        elif not self.reasons and built and built.identity.sources != self._now.sources:
            # Installed code became code that is worked on, or the other way: from here on.
            self._adopt(read)
        return not self.reasons

    def _built(self, values: Mapping[str, Any]) -> Built | None:
        """What the database knows of how the outputs were built; None where it knows nothing."""
        record, read = parse_built(values.get("built")), values.get("read")
        if record is None:
            return None
        inputs = {role: self.state.get(self.row.name, p) for role, p in self.row.inputs.items()}
        identity = Identity(
            record["settings"],
            record["versions"],
            record["sources"],
            inputs,
            read if isinstance(read, dict) else {},
        )
        return Built(identity, record["outputs"])

    def _reasons(self, built: Built | None) -> Iterator[Reason]:
        row, state = self.row, self.state
        if built is None:
            yield Reason("new", row.name, "it was not built yet")
            return
        yield from list_differences(
            built.identity, self._now, paths=row.inputs, at_default=row.at_default
        )
        for path in sorted({*(state.get(row.name, "deps:") or ())} - {*row.inputs.values()}):
            yield Reason("input", path, f"{path} is no longer an input")
        for path in row.outputs:
            old, new = built.outputs.get(path), state.sha256(path)
            if old != new or new is None:
                text = describe_change(path, old, new, "was not made by this task")
                yield Reason("output", path, text, old, new)

    def _ignore_code(self) -> bool:
        """Take the outputs as made by the code as it is, where the user asks for that and nothing
        else is new."""
        is_requested = any((task.options or {}).get(IGNORE_CODE) for task in self.tasks.values())
        if not is_requested or any(reason.kind != "code" for reason in self.reasons):
            return False
        self._adopt(self._now.read)
        return True

    def _take_outputs(self, built: Built | None) -> bool:
        """Take the outputs, where they say, credibly, that they are what the task would make.

        So it is after a kill between their publication and the note of it in the database, and
        where the database was lost.
        """
        state, row = self.state, self.row
        if self._read_outputs is None or state.is_forgotten(row.name):
            return False
        # An output that alone is not as it was left was edited.
        if built is not None and all(reason.kind == "output" for reason in self.reasons):
            return False
        if not all(Path(path).is_file() for path in row.outputs):
            return False
        there = self._read_outputs(row)
        if there is None:
            return False
        read = {path: state.sha256(path) for path in there.identity.read}
        now = self._now._replace(read=read)
        if any(
            True
            for _ in list_differences(
                there.identity, now, paths=row.inputs, at_default=row.at_default
            )
        ) or any(state.sha256(path) != digest for path, digest in there.outputs.items()):
            return False
        self._adopt(read)
        return True

    def _adopt(self, read: Mapping[str, str | None]) -> None:
        """Have the database know the outputs as what the task makes now."""
        inputs = self.state.snapshots[self.row.name]
        self.state.adopt(
            self.row.name,
            {
                "_values_:": {"built": self._record_of_outputs(), "read": dict(read)},
                "checker:": "Checker",
                **inputs,
                "deps:": list(inputs),
            },
        )

    def _record_of_outputs(self) -> dict[str, Any]:
        """What the database keeps of the outputs that are there now; their inputs stand beside."""
        return {
            "settings": self._now.settings,
            "versions": dict(self._now.versions),
            "sources": dict(self._now.sources),
            "outputs": {path: self.state.sha256(path) for path in self.row.outputs},
        }


_NOTHING = Identity("{}", {}, {}, {})

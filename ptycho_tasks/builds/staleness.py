"""Why a stage must run: what it was built from, compared with what there is now."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from doit.dependency import UptodateCalculator
from doit.task import Task

from ptycho_tasks.builds.identity import Identity, list_differences
from ptycho_tasks.builds.project import project_store
from ptycho_tasks.builds.reasons import Reason, describe_change
from ptycho_tasks.builds.results import (
    describe_built,
    digest_of_input,
    find_result,
    identify,
    is_in_place,
    list_built,
    list_digests,
    take_result,
)
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.run import begin_run
from ptycho_tasks.builds.running import is_all_made
from ptycho_tasks.builds.state import Built, State, read_built
from ptycho_tasks.builds.store import Entry
from ptycho_tasks.layout import is_fixture
from ptycho_tasks.system.faults import exit_on_error
from ptycho_tasks.system.terminal import echo

IGNORE_CODE = "ignore_code"
"""The option of every task that takes the code as it is."""

_ACCEPTED = "accepted "
"""How the note begins of a key whose result the user took as made by the code as it is."""


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
    """A stage's answer. A run puts outputs in their places that the store has."""

    def __init__(self, row: Row) -> None:
        """Of one stage."""
        super().__init__()
        self.row = row
        self.stored: Entry | None = None
        """What the store has, where it is not in its place and nothing is run."""
        self.is_taken = False
        """Whether this run put the outputs in their places from the store."""
        self.changed: list[Reason] = []
        """Outputs that are not as they were left."""

    def __call__(self, task: Task, values: Mapping[str, Any]) -> bool:
        """Whether the task's outputs are what its inputs, settings and code give."""
        state, row = self.state, self.row
        is_run = self.is_asked_by_a_run(task)
        self.stored = None
        state.snapshots[row.name] = {path: state.sha256(path) for path in task.file_dep}
        built = read_built(values)
        now = identify(row, state, () if built is None else built.read)
        if built is not None and built.key == now.key():
            self.reasons = list(self._changed_outputs(built))
            if not self.reasons:
                if is_run and row.stage == "source":
                    self._tell_absent(task)
                if {*(state.get(row.name, "deps:") or ())} != task.file_dep:
                    self._adopt(built)
                return True
        with exit_on_error():
            self.reasons = self._find_reasons(built, now)
            self.changed = [r for r in self.reasons if r.kind == "output" and r.old]
            if self._take(built, now, is_run=is_run) or self._ignore_code(built, now):
                self.reasons = []
        return not self.reasons

    def _tell_absent(self, task: Task) -> None:
        for path in self.row.inputs.values():
            if path not in task.file_dep:
                echo(f"{self.row.name}: {path} is not there; what was made of it stays")

    def _changed_outputs(self, built: Built) -> Iterator[Reason]:
        for path in list_built(self.row, built):
            old, new = built.outputs.get(path), self.state.sha256(path)
            if old != new or new is None:
                text = describe_change(path, old, new, "was not made by this task")
                yield Reason("output", path, text, old, new)

    def _find_reasons(self, built: Built | None, now: Identity) -> list[Reason]:
        """Why the outputs are not what the task would make; empty where only the key is new."""
        row = self.row
        if built is None:
            is_there = any(self.state.sha256(path) for path in row.outputs)
            text = "how what is there was made is not known" if is_there else "it was not built yet"
            return [Reason("new", row.name, text)]
        changed = list(self._changed_outputs(built))
        if built.key == now.key():
            return changed
        old = self._old_entry(built)
        if old is None:
            text = "what it was built from is not known any more"
            return [Reason("new", row.name, text), *changed]
        differences = list(
            list_differences(old.record.identity, now, paths=row.inputs, at_default=row.at_default)
        )
        others = list(self._other_scans(old.record.identity, now))
        if others:  # fixtures are known by their number, which is another one now
            differences = [r for r in differences if r.kind != "input" or not is_fixture(r.subject)]
        return [*others, *differences, *changed]

    def _other_scans(self, old: Identity, new: Identity) -> Iterator[Reason]:
        """How the scans that are learned from are others than they were."""
        if self.row.stage != "train":
            return
        known = self.state.get(self.row.name, "deps:") or ()
        before, now = ({*filter(is_fixture, p)} for p in (known, self.row.inputs.values()))
        if len(before) + len(now) < 3:
            return
        for path in sorted(now - before):
            yield Reason("setting", "fixture.scans", f"{path} is new as an input")
        for path in sorted(before - now):
            yield Reason("setting", "fixture.scans", f"{path} is no longer an input")
        same = before == now and {*old.inputs.values()} == {*new.inputs.values()}
        if same and old.inputs != new.inputs:
            text = "fixture.scans: the scans are in another order"
            yield Reason("setting", "fixture.scans", text)

    def _old_entry(self, built: Built | None) -> Entry | None:
        """What the store has of the outputs as they were built."""
        if built is None or not built.entry:
            return None
        return project_store().read(self.row.stage, built.entry)

    def _accepted_entry(self, built: Built | None, now: Identity) -> Entry | None:
        """What the user took as made by the code as it is now, be it in its place or not."""
        if built is not None and built.key == now.key():
            return self._old_entry(built)
        key = self.state.note(_ACCEPTED + now.key())
        return project_store().read(self.row.stage, key) if key else None

    def _take(self, built: Built | None, now: Identity, *, is_run: bool) -> bool:
        """Whether what the task would make is there already; a run puts it in its places."""
        row, state, store = self.row, self.state, project_store()
        if state.is_forgotten(row.name) or is_all_made():
            return False
        accepted = self._accepted_entry(built, now)
        old = accepted or self._old_entry(built)
        is_accepted = accepted is not None
        entry = find_result(row, state, store, now, old, is_accepted=is_accepted, add=is_run)
        why = self.changed[0].text if self.changed else ""
        if entry is None:
            return False
        is_there = is_in_place(row, state, entry)
        if not (is_run or is_there or store.seems_whole(entry)):
            return False
        if is_run and not is_there and not take_result(row, state, store, entry, why):
            return False
        self.is_taken = is_run and not is_there
        if not is_run and not is_there:
            self.stored = entry
            state.expected |= list_digests(row, entry)
        self._adopt(describe_built(row, entry)._replace(key=now.key()))
        return True

    def _ignore_code(self, built: Built | None, now: Identity) -> bool:
        """Take the outputs as made by the code as it is, where the user asks for that and nothing
        else is new."""
        if any(reason.kind != "code" for reason in self.reasons) or not self._is_code_ignored():
            return False
        assert built is not None
        self.state.note(_ACCEPTED + now.key(), built.entry)
        self._adopt(built._replace(key=now.key()))
        return True

    def _is_code_ignored(self) -> bool:
        """Whether any task was given the option; looked for once a command."""
        if self.state.ignores_code is None:
            options = (task.options or {} for task in self.tasks.values())
            self.state.ignores_code = any(given.get(IGNORE_CODE) for given in options)
        return self.state.ignores_code

    def _adopt(self, built: Built) -> None:
        """Have the database know the outputs as what the task makes now."""
        row, state = self.row, self.state
        inputs = state.snapshots[row.name]
        absent = {
            path: digest_of_input(row, state, path)
            for path in row.inputs.values()
            if path not in inputs
        }
        state.adopt(
            row.name,
            {
                "_values_:": built.to_values(),
                "checker:": "Checker",
                **absent,
                **inputs,
                "deps:": list(inputs),
            },
        )

"""Why a stage must run: what it was built from, compared with what there is now."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doit.dependency import UptodateCalculator
from doit.task import Task

from ptycho_tasks.builds.notes import mapping_in
from ptycho_tasks.builds.reasons import Reason, _shown, _value, changed
from ptycho_tasks.builds.run import begin_run
from ptycho_tasks.builds.state import State, whole

IGNORE_CODE = "ignore_code"
"""The option of every task that takes the code as it is."""


@dataclass(frozen=True)
class Recipe:
    """What decides a stage's outputs besides the content of its inputs."""

    settings: str
    """Canonical JSON of dotted config key to value."""
    at_default: tuple[str, ...]
    """The keys among them whose value is the default."""
    versions: Mapping[str, Any]
    """Code by name, to the version that its author gave it."""
    sources: Mapping[str, str]
    """Source files whose content counts: name, which begins with its package, to path."""


_SAID = ("settings", "versions", "sources", "inputs", "files")
Found = Mapping[str, Any]
"""What an artefact says of itself: `settings`, `versions`, `sources`, `inputs` (each to sha256),
`files` (path to sha256 of what was published with it) and, where it was, `read` (likewise, of
further files that were read)."""


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

    def __init__(
        self,
        recipe: Recipe,
        inputs: Sequence[str] = (),
        said: Callable[[], Found | None] | None = None,
    ) -> None:
        """Of one stage.

        Args:
            recipe: what decides the outputs.
            inputs: the files that it reads, those that are missing too.
            said: reads what the present outputs say of themselves; None where they say nothing.
        """
        super().__init__()
        self.recipe = recipe
        self.inputs = inputs
        self.said = said
        self._sources: dict[str, str | None] = {}
        self._read: Mapping[str, str] = {}

    def configure_task(self, task: Task) -> None:
        """Have doit keep what the outputs were built from."""
        task.value_savers.append(lambda: {"built": self.built(task)})

    def __call__(self, task: Task, values: Mapping[str, Any]) -> bool:
        """Whether the task's outputs are what its inputs, settings and code give."""
        state = self.state
        self.is_asked_by_a_run(task)
        state.snapshots[task.name] = {path: state.sha256(path) for path in task.file_dep}
        self._sources = {
            name: state.source_digest(path) for name, path in self.recipe.sources.items()
        }
        built = whole(values.get("built"))
        read = values.get("read")
        self._read = read if isinstance(read, dict) else {}
        self.reasons = list(self._reasons(task, built))
        if self.reasons and self._take_what_is_said(task, built):
            self.reasons = []
        elif self.reasons and all(r.kind == "code" for r in self.reasons) and self._ignore_code():
            self._adopt(task)
            self.reasons = []
        elif not self.reasons and built is not None and built["sources"] != self._sources:
            # Installed code became code that is worked on, or the other way: from here on.
            self._adopt(task)
        return not self.reasons

    def built(self, task: Task) -> dict[str, Any]:
        """What the outputs that are there now were built from."""
        return {
            "settings": self.recipe.settings,
            "versions": dict(self.recipe.versions),
            "sources": self._sources,
            "outputs": {path: self.state.sha256(path) for path in task.targets},
        }

    def _reasons(self, task: Task, built: Mapping[str, Any] | None) -> Iterator[Reason]:
        if built is None:
            yield Reason("new", task.name, "it was not built yet")
            return
        if built["settings"] != self.recipe.settings:
            yield from self._changed_settings(mapping_in(built["settings"]))
        yield from self._changed_code(built)
        seen = self.state.snapshots[task.name]
        for path in sorted(seen):
            old, new = self.state.get(task.name, path), seen[path]
            if old != new:
                text = changed(path, old, new, "is new as an input")
                yield Reason("input", path, text, old, new)
        for path, old in sorted(self._read.items()):
            new = self.state.sha256(path)
            if old != new:
                yield Reason("input", path, changed(path, old, new, "is new as an input"), old, new)
        for path in sorted(set(self.state.get(task.name, "deps:") or ()) - set(seen)):
            yield Reason("input", path, f"{path} is no longer an input")
        for path in task.targets:
            old, new = built["outputs"].get(path), self.state.sha256(path)
            if old != new or new is None:
                text = changed(path, old, new, "was not made by this task")
                yield Reason("output", path, text, old, new)

    def _changed_settings(self, old: Mapping[str, Any]) -> Iterator[Reason]:
        new = json.loads(self.recipe.settings)
        for key in sorted({*old, *new}):
            # An option that is new in the program and not used makes nothing stale.
            if key not in old and key in self.recipe.at_default:
                continue
            if key not in old or key not in new or old[key] != new[key]:
                text = f"{key} {_value(old, key)} -> {_value(new, key)}"
                yield Reason("setting", key, text, old.get(key), new.get(key))

    def _changed_code(self, built: Mapping[str, Any]) -> Iterator[Reason]:
        old, new = built["versions"], self.recipe.versions
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                text = f"{name}: version {_shown(old.get(name))} -> {_shown(new.get(name))}"
                yield Reason("code", name, text, old.get(name), new.get(name))
        before, now = built["sources"], self._sources
        # Installed code has a version only: where a package comes or goes, the version decides.
        shared = {_package(name) for name in before} & {_package(name) for name in now}
        for name in sorted({*before, *now}):
            if _package(name) in shared and before.get(name) != now.get(name):
                shown = name.removeprefix(f"{LOCAL}/")
                text = changed(shown, before.get(name), now.get(name), "is new")
                yield Reason("code", shown, text, before.get(name), now.get(name))

    def _ignore_code(self) -> bool:
        return any((task.options or {}).get(IGNORE_CODE) for task in self.tasks.values())

    def _take_what_is_said(self, task: Task, built: Mapping[str, Any] | None) -> bool:
        """Whether the outputs say, credibly, that they are what the task would make.

        So it is after a kill between their publication and the note of it in the database, and
        where the database was lost.
        """
        state = self.state
        if self.said is None or state.is_forgotten(task.name):
            return False
        # An output that alone is not as it was left was edited.
        if built is not None and all(reason.kind == "output" for reason in self.reasons):
            return False
        if not all(Path(path).is_file() for path in task.targets):
            return False
        found = self.said()
        if found is None or not all(isinstance(found.get(key), dict) for key in _SAID):
            return False
        inputs = state.snapshots[task.name]
        same = (
            not any(True for _ in self._changed_settings(found["settings"]))
            and not any(True for _ in self._changed_code(found))
            and sorted(map(str, found["inputs"].values())) == sorted(map(str, inputs.values()))
            and all(state.sha256(path) == digest for path, digest in found["files"].items())
            and all(state.sha256(p) == digest for p, digest in found.get("read", {}).items())
        )
        if same:
            self._read = found.get("read", {})
            self._adopt(task)
        return same

    def _adopt(self, task: Task) -> None:
        inputs = self.state.snapshots[task.name]
        self.state.adopt(
            task.name,
            {
                "_values_:": {"built": self.built(task), "read": dict(self._read)},
                "checker:": "Checker",
                **inputs,
                "deps:": list(inputs),
            },
        )


LOCAL = "project"
"""The package, so to speak, of a project's own modules."""


def _package(name: str) -> str:
    return name.partition("/")[0]

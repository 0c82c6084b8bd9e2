"""The task table of the project in the current folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from doit import doit_cmd
from doit.task import Task

from ptycho_tasks.builds.state import State, current_state
from ptycho_tasks.builds.store import Store
from ptycho_tasks.builds.task_table import Table, read_table
from ptycho_tasks.errors import ConfigError, PtychoTasksError
from ptycho_tasks.layout import (
    BUNDLE_NAME,
    CONFIG_NAME,
    DODO_NAME,
    EVIDENCE,
    FILES_BESIDE,
    STORE_NAME,
    is_evidence_alone,
    project_path,
)
from ptycho_tasks.system.cache import cached
from ptycho_tasks.system.files import find_zip_problem


def refuse_missing_inputs(tasks: Mapping[str, Task], selected: Iterable[str]) -> None:
    """Refuse to begin what would end without a file that a setting names: the scan to reconstruct,
    or what a backend reads to train, which may also be no bundle.

    Args:
        tasks: all, by name.
        selected: names of those that run, with those that they need.

    Raises:
        ConfigError: one line that names the key and its line.
    """
    made: set[str] | None = None
    for name in selected:
        stage = name.partition(":")[0]
        if stage not in ("train", "infer", "refine") or not tasks[name].actions:
            continue
        row = read_project_table().row(name)
        # What a backend reads is called by the key that decides it.
        keyed = {key: path for key, path in row.inputs.items() if "." in key}
        named = keyed if stage == "train" else {"inference.scan": row.inputs["scan"]}
        for key, path in named.items():
            if _looks_right(path):
                continue
            made = made or {target for task in tasks.values() for target in task.targets}
            if path in made:
                continue
            missing = read_project_table().payload(row).describe_missing(key)
            if missing is not None:
                raise ConfigError(f"{missing}; correct the path")


def _looks_right(path: str) -> bool:
    """Whether a file is there, and if it is to be a bundle, is one at first sight."""
    if not os.path.isfile(path):  # noqa: PTH113 (asked for thousands of tasks)
        return False
    return os.path.basename(path) != BUNDLE_NAME or not find_zip_problem(path)  # noqa: PTH119


def describe_missing_input(name: str, path: str) -> str | None:
    """What to say of a missing input of a stage, where a setting names it: the key and its line."""
    row = read_project_table().row(name)
    payload = read_project_table().payload(row)
    for key, file in payload.backend_files.items():
        if project_path(payload.root, file) == path:
            return payload.describe_missing(key)
    for key in ("source.file", *(f"source.{name}" for name in FILES_BESIDE), "inference.scan"):
        missing = payload.describe_missing(key)
        if missing and project_path(payload.root, payload.path(payload.values[key])) == path:
            return missing
    return None


def read_project_table() -> Table:
    """The project's tasks; each command of doit reads them once."""
    return _table_at(Path.cwd(), current_state(), _read_changes())


def refuse_one_off_evidence(selected: Iterable[str]) -> None:
    """Refuse to gather evidence of a variant for once: it is of the project as it stands.

    Raises:
        ConfigError: names what was given.
    """
    changes = _read_changes()
    if changes and any(name.partition(":")[0] == EVIDENCE for name in selected):
        given = " ".join("=".join(change) for change in changes)
        raise ConfigError(f"{given}: evidence is of the project as it stands; leave it out")


_ONE_OFFS = "one-offs"


def keep_one_off() -> None:
    """Note the one-off variant that the command line asks for, if it does, in the database."""
    changes, state = _read_changes(), current_state()
    if not changes or state is None:
        return
    known = read_one_offs(state)
    if dict(changes) not in known and any(row.outputs for row in read_project_table().rows):
        state.note(_ONE_OFFS, json.dumps([*known, dict(changes)]))


def read_one_offs(state: State) -> list[dict[str, str]]:
    """KEY=VALUE of all one-off variants that were asked for, in order."""
    try:
        noted = json.loads(state.note(_ONE_OFFS) or "[]")
    except (ValueError, RecursionError):
        return []
    is_right = isinstance(noted, list) and all(isinstance(changes, dict) for changes in noted)
    return noted if is_right else []


def forget_one_offs(state: State) -> None:
    """Forget which one-off variants were asked for."""
    state.note(_ONE_OFFS, "[]")


def list_tables(state: State) -> list[Table]:
    """The project's tasks, and those of each one-off variant that was asked for and that still is
    right."""
    tables = [read_project_table()]
    for changes in read_one_offs(state):
        with suppress(PtychoTasksError):
            tables.append(read_table(Path.cwd(), state, changes))
    return tables


def project_store() -> Store:
    """The store of the project in the current folder."""
    table = read_project_table()
    state = current_state()
    mends = state is not None and state.running
    return Store(Path(STORE_NAME), Path(table.store) if table.store else None, mends=mends)


def _read_changes() -> tuple[tuple[str, str], ...]:
    """KEY=VALUE of doit's command line, but for what the dodo.py asks for itself."""
    given = doit_cmd._CMDLINE_VARS or {}
    if given and b"get_var" in Path(DODO_NAME).read_bytes():
        from ptycho_tasks.config.sections import Config

        known = {*Config.__struct_fields__}
        given = {k: v for k, v in given.items() if "." in k or k in known}
    return tuple(given.items())


@cached
def _table_at(root: Path, state: State | None, changes: tuple[tuple[str, str], ...]) -> Table:
    if is_evidence_alone(root):
        return Table([], root / CONFIG_NAME, b"", "")
    table = read_table(root, state, dict(changes))
    if state is not None:
        # Now, before anything of it runs: see `State.source_digest`.
        for path in {path for row in table.rows for path in row.sources.values()}:
            state.source_digest(path)
    return table

"""A ptycho.yaml as a table of tasks: plain data, which the database keeps for the next run.

As long as nothing changed that decides the table, the configuration is neither parsed nor
checked again and no backend is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_tasks.builds.notes import open_note, seal_note
from ptycho_tasks.builds.packing import pack_rows, unpack_rows
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.layout import CONFIG_NAME, read_config_bytes
from ptycho_tasks.system.clock import now_ns

if TYPE_CHECKING:
    from ptycho_tasks.builds.state import State
    from ptycho_tasks.config.document import ConfigFile
    from ptycho_tasks.config.layers import Variant
    from ptycho_tasks.config.payload import (
        InferencePayload,
        TrainingPayload,
    )
    from ptycho_tasks.config.scans import Stray

_FORMAT = 7
_NOTE = "tasks"
_SETTLED_NS = 100_000_000


@dataclass(frozen=True)
class Table:
    """A project's tasks, and the ptycho.yaml that they are of."""

    rows: list[Row]
    """In the order of the stages."""
    path: Path
    config: bytes
    """The file as it was read: a change while tasks run is a matter of the next run."""
    store: str
    """The folder of results that the project shares with others; empty where there is none."""
    changes: Mapping[str, str] = field(default_factory=dict)
    """KEY=VALUE of the command line, where it asks for a one-off variant."""
    strays: tuple[Stray, ...] = ()
    """Files that were left out, see `Scans.strays`."""

    def row(self, name: str) -> Row:
        """The task of a name."""
        return self._by_name[name]

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """How many tasks each stage has."""
        return Counter(row.stage for row in self.rows)

    @cached_property
    def _by_name(self) -> dict[str, Row]:
        return {row.name: row for row in self.rows}

    def payload(self, row: Row) -> TrainingPayload | InferencePayload:
        """All that the stage of a task needs."""
        from ptycho_tasks.config import factories

        file, variants = self._parsed
        create: Any = {
            "infer": factories.create_inference_payload,
            "refine": factories.create_refinement_payload,
        }.get(row.stage, factories.create_training_payload)
        scan = row.scan or None
        return create(file, variant=variants[row.variant], scan=scan)  # type: ignore[no-any-return]

    @cached_property
    def _parsed(self) -> tuple[ConfigFile, dict[str, Variant]]:
        from ptycho_tasks.config.document import parse_config
        from ptycho_tasks.config.factories import list_variants

        # A file that came since these tasks were planned is not in their way.
        file = parse_config(self.path, self.config, skips_strays=True)
        return file, {v.name: v for v in list_variants(file, self.changes)}


def read_table(root: Path, state: State | None, changes: Mapping[str, str] | None = None) -> Table:
    """The tasks of the project at `root`.

    Args:
        root: the project's folder.
        state: the database, which may hold the table, and knows whether files that cannot be told
            from other scans are left out.
        changes: KEY=VALUE of the command line; then the tasks are those of this one-off variant.

    Raises:
        ConfigError: something in ptycho.yaml is wrong.
    """
    path = root / CONFIG_NAME
    config = read_config_bytes(path)
    skips_strays = state is not None and state.skips_strays
    if changes:
        from ptycho_tasks.builds.planning import make_plan

        plan = make_plan(path, config, changes, skips_strays=skips_strays)
        return Table(plan.rows, path, config, plan.store, changes, plan.strays)
    note = open_note(state.note(_NOTE)) if state is not None else {}
    key = _key(root, config)
    if note and note["key"] == key and note["watched"] == _stamps(note["watched"]):
        return Table(unpack_rows(note), path, config, note["store"])
    # Only here, since this takes longer than all else of a run with nothing to do.
    from ptycho_tasks.builds.planning import make_plan

    begun = now_ns()
    plan = make_plan(path, config, skips_strays=skips_strays)
    stamps = _stamps(plan.watched)
    # Of a plan that left something out, no other program is to make use.
    if state is not None and not plan.strays and not _may_have_changed(stamps, begun):
        note = {"key": key, "watched": stamps, "store": plan.store, **pack_rows(plan.rows)}
        state.keep_note(_NOTE, seal_note(note))
    return Table(plan.rows, path, config, plan.store, strays=plan.strays)


def _may_have_changed(stamps: Mapping[str, Any], begun: int) -> bool:
    """Whether a file may have come to a folder since it was listed, or may come without a newer
    time.

    Args:
        stamps: of the folders, read after they were listed.
        begun: when listing them began, ns.
    """
    youngest = max((stamp[1] for stamp in stamps.values() if stamp), default=0)
    return youngest > begun - _SETTLED_NS


def _key(root: Path, config: bytes) -> str:
    parts = [str(_FORMAT), sys.version, sys.prefix, str(root), _own_stamp()]
    return hashlib.sha256(config + "\0".join(parts).encode()).hexdigest()


def _own_stamp() -> str:
    """Another one after an upgrade of the core, or a change of its source."""
    return json.dumps(_stamps(_own_files(str(Path(__file__).parents[1]))))


def _own_files(folder: str) -> list[str]:
    """A folder of Python modules, and all modules and folders of modules in it."""
    paths = [folder]
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.endswith(".py"):
                paths.append(entry.path)
            elif entry.is_dir() and entry.name != "__pycache__":
                paths += _own_files(entry.path)
    return paths


def _stamps(paths: Mapping[str, Any] | list[str]) -> dict[str, Any]:
    """Size, modification time and inode of each path; None for one that is not there."""
    stamps: dict[str, Any] = {}
    for path in paths:
        try:
            stat = os.stat(path)  # noqa: PTH116 (asked for thousands of paths)
        except OSError:
            stamps[path] = None
        else:
            stamps[path] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    return stamps

"""Which logs prove which rows of a plan, what each was made from, and whether that still holds.

What was found out lies in two places: `.ptycho/evidence/` has the result of an item until it is
published, and `reports/manifests/` has the last published one, by row. Whether an item is stale
is told from these and the files alone, so that a fresh clone of a project knows it too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptycho_tasks.system.files import real_path
from ptycho_tasks.system.lock import STATE_DIR

GREEN, RED = "green", "red"
MANIFESTS = "manifests"
STAMPED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{6}Z")
"""The name of the folder of a run."""
PENDING = f"{STATE_DIR}/evidence"
"""Holds results that are not published yet."""
Standing = Callable[[str], str]
"""Why a stage is not up to date; empty where it is."""


@dataclass(frozen=True, eq=False)
class Item:
    """One command, whose log proves one or several rows."""

    name: str
    """Of its log, without outcome and ending."""
    ids: tuple[str, ...]
    command: str
    """As it is shown, and as a shell reads it."""
    arguments: tuple[str, ...] = ()
    """For pytest, where it is not a command of the user's own wording."""
    counted: bool = False
    """Whether it is pytest, which must say how many tests it ran."""
    countable: bool = False
    """Whether pytest is somewhere in it, and may say so."""
    env: Mapping[str, str] = field(default_factory=dict)
    time_limit_s: float | None = None
    tests: tuple[str, ...] = ()
    """Test files and folders that it names."""
    scripts: tuple[str, ...] = ()
    """Files that its command may run."""
    stages: tuple[str, ...] = ()
    """Stages, or tasks of them, whose results it is about."""
    depends: tuple[str, ...] = ()
    """Files, folders and globs that it is about."""

    @property
    def settings(self) -> dict[str, Any]:
        """What of it decides the outcome, besides files."""
        env = {f"env.{name}": value for name, value in self.env.items()}
        return {"command": self.command, "ids": list(self.ids), **env}


@dataclass(frozen=True)
class Evidence:
    """What a project wants to prove, and where that is written."""

    root: Path
    file: str
    """The name of the file that says so."""
    initiative: str
    phase: str
    plan: str
    ledger: str
    reports: str
    items: tuple[Item, ...]
    by_hand: Mapping[str, str] = field(default_factory=dict)
    """Row to what a person does for it."""

    @property
    def ids(self) -> list[str]:
        """Every row that an item or a person proves."""
        return list(dict.fromkeys([id for item in self.items for id in item.ids] + [*self.by_hand]))

    @property
    def plan_file(self) -> Path:
        """The plan, where it really lies."""
        return real_path(self.root / self.plan)

    @property
    def ledger_file(self) -> Path:
        """The ledger, where it really lies."""
        return real_path(self.root / self.ledger)

    @property
    def reports_dir(self) -> Path:
        """The folder of the reports."""
        return self.root / self.reports

    def item(self, name: str) -> Item:
        """The item of a name."""
        return next(item for item in self.items if item.name == name)

    def items_of(self, id: str) -> list[Item]:
        """The items that a row needs."""
        return [item for item in self.items if id in item.ids]

    def manifest_file(self, id: str) -> Path:
        """The stable place of what is known of a row."""
        return self.reports_dir / MANIFESTS / f"{id}.json"

    def pending_file(self, item: Item) -> Path:
        """Where the result of an item lies until it is published."""
        return self.root / PENDING / f"{item.name}.json"

    def pending_log(self, item: Item) -> Path:
        """Likewise, its log."""
        return self.root / PENDING / f"{item.name}.log"

"""What a project wants to prove: rows of a plan, and the items whose logs prove them.

What is known of an item lies in two places. `.ptycho/evidence/` holds its result until it is
published; `reports/manifests/` holds the last published one, by row. Whether an item is stale
follows from these and the files alone, so that a fresh clone of a project knows it too.

Every command of doit imports this module: it must stay light.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ptycho_tasks.system.files import real_path
from ptycho_tasks.system.lock import STATE_DIR

GREEN: Final = "green"
RED: Final = "red"
RED_AS_EXPECTED: Final = "red as expected"
COLLECTED: Final = "collected"
MANIFESTS = "manifests"
"""The folder of the manifests, among the report folders."""
RUN_FOLDER = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{6}Z")
"""What the report folder of a run is called: its time."""
OUTBOX = f"{STATE_DIR}/evidence"
"""Holds results until they are published."""


# Equal by identity, so that items can be keys: `env` has no hash.
@dataclass(frozen=True, eq=False)
class Item:
    """One command, whose log proves rows."""

    name: str
    """Of its log, without outcome and ending."""
    ids: tuple[str, ...]
    """The rows; none where its log is only kept."""
    command: str
    """As it is shown, and as a shell reads it."""
    arguments: tuple[str, ...] = ()
    """For pytest, where the item has the key `pytest` and not `command`."""
    is_pytest: bool = False
    """Whether the command is one call of pytest, which must then say how many tests it ran."""
    has_pytest: bool = False
    """Whether pytest is called somewhere in the command, and may say how many tests it ran."""
    stage: str = ""
    """The stage, or task of one, whose output is the log, where the item runs nothing itself."""
    is_past: bool = False
    """Whether it expects to be red what another item expects to be green: it stays proved when its
    code is written."""
    has_red_twin: bool = False
    """Whether another item has its name with `_red`, and logs that are called so."""
    expect: str = GREEN
    """What proves the rows: `green`, `red`, `collected`, or an exit status, as `exit 3`."""
    env: Mapping[str, str] = field(default_factory=dict)
    time_limit_s: float | None = None
    tests: tuple[str, ...] = ()
    """Test files and folders that the command names."""
    scripts: tuple[str, ...] = ()
    """Files that the command may run."""
    stages: tuple[str, ...] = ()
    """Stages, or tasks of them, whose results it is about."""
    depends: tuple[str, ...] = ()
    """Files, folders and globs that it is about."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """What names its manifests: its rows; where it has none, itself, as no row is called."""
        return self.ids or (f"_{self.name}",)

    @property
    def label(self) -> str:
        """What it is about, as it is shown."""
        return ", ".join(self.ids) or self.name

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the outcome besides files."""
        env = {f"env.{name}": value for name, value in self.env.items()}
        expect = {} if self.expect == GREEN else {"expect": self.expect}
        return {"command": self.command, "ids": list(self.ids), **expect, **env}

    def name_log(self, outcome: str) -> str:
        """What the log is called in a report."""
        if self.expect == RED:  # its name says that
            is_so = outcome == GREEN
            return f"{self.name}.log" if is_so else f"{self.name.removesuffix('_red')}_not_red.log"
        still = "_still" if outcome == RED and self.has_red_twin else ""
        return f"{self.name}{still}_{outcome}.log"


@dataclass(frozen=True)
class Evidence:
    """What a project wants to prove, and where that is written."""

    root: Path
    """The project's folder."""
    file: str
    """The name of the file that asks for it: evidence.yaml or ptycho.yaml."""
    initiative: str
    phase: str
    plan: str
    ledger: str
    reports: str
    items: tuple[Item, ...]
    by_hand: Mapping[str, str] = field(default_factory=dict)
    """Row to what a person does for it."""
    states: Mapping[str, str] = field(default_factory=dict)
    """Markers of the plan besides `plan.STATES`, to those."""

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

    def find_item(self, name: str) -> Item:
        """The item with a name."""
        return next(item for item in self.items if item.name == name)

    def items_for(self, id: str) -> list[Item]:
        """The items that a row needs."""
        return [item for item in self.items if id in item.ids]

    def manifest_file(self, id: str) -> Path:
        """Where the last published results of a row, or of another of `Item.subjects`, lie; the
        path is always the same."""
        return self.reports_dir / MANIFESTS / f"{id}.json"

    def result_file(self, item: Item) -> Path:
        """Where the result of an item lies until it is published."""
        return self.root / OUTBOX / f"{item.name}.json"

    def log_file(self, item: Item) -> Path:
        """Where the log of an item lies until it is published."""
        return self.root / OUTBOX / f"{item.name}.log"

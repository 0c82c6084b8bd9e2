"""One run of a program that watches for scans: what it says, and what came of each scan."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

from doit.control import TaskControl
from doit.dependency import Dependency

from ptycho_tasks.builds.live import LiveRun
from ptycho_tasks.builds.one_run import Observer, run_tasks
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.task_table import Table
from ptycho_tasks.builds.why import judge
from ptycho_tasks.errors import ConfigError, one_line
from ptycho_tasks.layout import METRICS
from ptycho_tasks.system.lines import sift_output
from ptycho_tasks.system.terminal import print_text

_RESULTS = ("infer", "refine")


class WatchedRun(Observer):
    """Reconstructs scans, and says so in a line for each reconstruction."""

    def __init__(
        self,
        since: Mapping[str, float],
        *,
        variant: str | None = None,
        may_train: bool = True,
        verbose: bool = False,
        check: Callable[[Mapping[str, str | None]], None] = lambda code: None,
        live: LiveRun | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            since: the scans to reconstruct, by name, and when each had come (`time.monotonic`).
            variant: the only one whose reconstructions are wanted; None for all.
            may_train: whether a stale training is run; otherwise it is refused.
            verbose: whether all that the stages say is shown.
            check: is given the digests of the program's code, by path, before anything runs.
            live: is shown on a page.
        """
        self.since, self.variant, self.check = since, variant, check
        self.may_train, self.verbose = may_train, verbose
        self.live = live or LiveRun()
        self.reconstructed: set[str] = set()
        """Names of scans."""
        self.failed: dict[str, str] = {}
        """Names of scans, and why they failed."""
        self.obstacle: str | None = None
        """Why there is no network to reconstruct with; None where there is one."""
        self._table = Table([], Path(), b"", "")
        self._begun: dict[str, float] = {}
        self._stream: TextIO = sys.stdout
        self._last_error = self._label = ""

    @property
    def scans(self) -> set[str]:
        """The names of the scans that the project had when the run began."""
        return {row.scan for row in self._table.rows}

    def execute(self) -> None:
        """Run what is stale; see `one_run.run_tasks`.

        Raises:
            ConfigError: also where the training is stale and may not run.
        """
        self._stream = sys.stdout
        shown = nullcontext() if self.verbose else sift_output(self._show_line, self._stream)
        with shown:
            run_tasks(self._choose, self)

    def show_last_error(self) -> None:
        """Show the line that said why a run ended the program."""
        if not self.verbose and self._last_error:
            print_text(f"{self._last_error}\n", sys.stderr)

    def _show_line(self, line: str) -> str | None:
        """A line of a stage as it is shown; None where it is not."""
        if line.startswith("error: "):  # told again by the task's failure
            self._last_error = line
        if line.startswith("warning"):
            return f"{self._label}  warning: {line.removeprefix('warning').lstrip(' :')}"
        name, comes_from_store, age = line.partition(" from the store, made ")
        stage, _, label = name.partition(":")
        shown = label if stage in _RESULTS and label else name
        return f"{shown}  from the store, made {age}" if comes_from_store else None

    def _say(self, text: str) -> None:
        print_text(f"{one_line(text)}\n", self._stream)

    def _choose(self, table: Table) -> Iterator[str]:
        """The trainings, and the reconstructions of the scans."""
        self._table = table
        for row in table.rows:
            for name in (row.name, *row.aliases):
                variant, _, scan = name.partition(":")[2].rpartition("/")
                if row.stage == "train":
                    variant, scan = scan, ""
                if self.variant not in (None, variant):
                    continue
                if row.stage == "train" or (row.stage in _RESULTS and scan in self.since):
                    yield name
                    break

    # -------------------------------------------------------------------------------- the run

    def begin(self, control: TaskControl, manager: Dependency) -> None:
        """Refuse a training that may not run, and code that is not what runs."""
        self.live.begin(name for name in control.selected_tasks if control.tasks[name].actions)
        sources = {id(row.sources): row.sources for row in self._table.rows}
        paths = {path for some in sources.values() for path in some.values()}
        self.check({path: manager.backend.source_digest(path) for path in sorted(paths)})
        if self.may_train:
            return
        for verdict in judge(control, manager):
            if verdict.task.partition(":")[0] == "train" and verdict.reasons:
                if verdict.status not in ("stale", "depends"):
                    continue
                raise ConfigError(
                    f"{verdict.task} is stale ({verdict.reasons[0].text}); run `doit "
                    f"{verdict.task}`, or leave out --no-train"
                )

    def skip_task(self, name: str) -> None:
        """Show that a task need not run."""
        self.live.skip_task(name)

    def begin_task(self, name: str) -> None:
        """Say that a network is trained, which takes its time."""
        self._begun[name] = time.monotonic()
        self.live.begin_task(name)
        row = self._table.row(name)
        self._label = name.partition(":")[2] or name
        if row.stage == "train":
            self._say(f"{name} ...")

    def end_task(self, name: str) -> None:
        """Say what came of a training, or a scan."""
        row, now = self._table.row(name), time.monotonic()
        self.live.end_task(name)
        if row.stage == "train":
            self._say(f"{name}  {now - self._begun[name]:.1f} s")
        elif row.stage in _RESULTS and not self._goes_on(row):
            self.reconstructed.add(row.scan)
            metrics = json.loads(_find_metrics(row.outputs).read_text())
            self._say(
                f"{name.partition(':')[2]}  {now - self.since.get(row.scan, now):.1f} s  "
                f"R-factor {metrics['r_factor']:.3f}  {metrics['frames']} frames"
            )

    def _goes_on(self, row: Row) -> bool:
        """Whether a reconstruction is only the start of another one."""
        return row.stage == "infer" and any(
            other.stage == "refine" and set(row.outputs) & {*other.inputs.values()}
            for other in self._table.rows
        )

    def fail_task(self, name: str, problem: str | None) -> None:
        """Say what is wrong with a scan."""
        self.live.fail_task(name, problem)
        row = self._table.row(name)
        if problem is None and row.stage != "train":
            return
        if row.stage in ("fixture", "train"):
            reasons = [*self.failed.values(), problem or f"{name} could not run"]
            self.obstacle = self.obstacle or reasons[0]
        elif problem is not None and self.failed.get(row.scan) != problem:
            self.failed[row.scan] = problem
            self._say(f"{name.partition(':')[2]}  failed: {problem}")


def _find_metrics(paths: Collection[str]) -> Path:
    return next(Path(path) for path in paths if path.endswith(METRICS))

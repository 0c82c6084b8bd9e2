"""What the store and `runs/` hold that no variant of the project names now."""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from ptycho_tasks.builds.asking import ask_project, read_tables
from ptycho_tasks.builds.identity import read_identity
from ptycho_tasks.builds.jobs import list_done_jobs
from ptycho_tasks.builds.orphans import (
    find_orphans,
    find_variants,
    list_foreign_files,
    read_known_outputs,
)
from ptycho_tasks.builds.project import project_store, read_project_table
from ptycho_tasks.builds.results import identify
from ptycho_tasks.builds.state import State, read_built
from ptycho_tasks.builds.store import DAMAGED, LINKS, NEW, Entry, Store, remove_entry
from ptycho_tasks.builds.task_table import Table
from ptycho_tasks.builds.why import judge
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.results.work_folders import list_work_folders, remove_work_folders
from ptycho_tasks.system.clock import utc_now
from ptycho_tasks.system.files import report_write_errors
from ptycho_tasks.system.lock import STATE_DIR
from ptycho_tasks.system.units import format_size

RUNS, WORK, JOB = "runs", "work", "job"
_DAY_S = 86400


class Unused(NamedTuple):
    """What can be removed."""

    kind: str
    """A stage: a result of the store; `damaged`: one that was set aside; `unfinished`: what a run
    left that was killed; `links`: what belonged to results that are gone; `work`: from where a
    training would go on; `job`: what is known of one that ended well; `runs`: a folder of results.
    """
    label: str
    """Of a result, the task that made it."""
    path: Path
    bytes: int
    made: datetime
    foreign: Sequence[Path] = ()
    """Files in it that no run made; it stays then."""

    @property
    def is_in_store(self) -> bool:
        """Whether it is a part of the store."""
        return self.kind not in (RUNS, WORK, JOB)

    @property
    def age_s(self) -> float:
        """Seconds since it was made."""
        return max(0.0, (utc_now() - self.made).total_seconds())


class Inventory(NamedTuple):
    """What can be removed, oldest first, of how much."""

    unused: Sequence[Unused]
    store_bytes: int
    """Of all that the store holds."""
    shared: Path | None
    """A folder of results that the project shares with others, and that was not looked at."""


def list_unused(
    *, with_shared: bool = False, with_runs: bool = False, with_one_offs: bool = False
) -> Inventory:
    """What the store of the project in the current folder holds that no variant names now.

    What lies in its place in `runs/` counts as named, be it stale. Nothing is changed.

    Args:
        with_shared: whether the store that is shared with others is looked at too.
        with_runs: whether folders in `runs/` are listed that no variant or scan names.
        with_one_offs: whether one-off variants count as named no more.

    Raises:
        SystemExit: something in ptycho.yaml is wrong, and the user was told.
    """
    tables = read_tables()[: 1 if with_one_offs else None]
    used = {result for table in tables for result in _find_used(table)}
    with ask_project() as (_, manager):
        store = project_store()
        roots = store.roots if with_shared else [store.own]
        unused = [item for root in roots for item in _list_in_store(root, store, used)]
        rows = [row for table in tables for row in table.rows]
        unused += _list_work(find_variants(rows))
        unused += _list_jobs(store, manager.backend)
        runs = [*_list_runs(find_orphans(rows), manager.backend)] if with_runs else []
    shared = None if with_shared else store.shared
    every = sorted([*unused, *runs], key=lambda item: (item.made, item.path))
    return Inventory(every, sum(map(measure_size, roots)), shared)


def _find_used(table: Table) -> Iterator[tuple[str, str]]:
    """Stage and key of the results that tasks have, or would have."""
    with ask_project(table.changes) as (control, manager):
        control.process([row.name for row in table.rows])
        judge(control, manager)
        store, state = project_store(), manager.backend
        for row in table.rows:
            built = read_built(state.get(row.name, "_values_:"))
            if built is not None:
                yield row.stage, built.entry
            now = identify(row, state, () if built is None else built.read)
            entry = store.find(row.stage, now, state.sha256)
            if entry is not None:
                yield row.stage, entry.key


def _list_in_store(root: Path, store: Store, used: set[tuple[str, str]]) -> Iterator[Unused]:
    kept = set()
    for folder in store.list_folders([root]):
        entry = store.read(folder.parent.name, folder.name, root)
        if entry is None:
            yield _describe("damaged", folder)
        elif (entry.stage, entry.key) not in used:
            size = measure_size(entry.folder)
            yield Unused(entry.stage, entry.record.label, entry.folder, size, entry.moment)
        else:
            kept.add(_name_links(entry))
    for path in root.glob(f"*/*{LINKS}"):
        if (path.parent.name, path.name) not in kept:
            yield _describe("links", path)
    yield from (_describe("damaged", path) for path in root.glob(f"{DAMAGED}/*"))
    unfinished = (_describe("unfinished", path) for path in root.glob(f"*/{NEW}*"))
    yield from (item for item in unfinished if item.age_s > _DAY_S)


def _name_links(entry: Entry) -> tuple[str, str]:
    return entry.stage, f"{entry.record.identity.without_links().key()}{LINKS}"


def _describe(kind: str, path: Path) -> Unused:
    stamp = path.lstat().st_mtime
    made = datetime.fromtimestamp(stamp, timezone.utc)
    return Unused(kind, path.name.removesuffix(LINKS)[:12], path, measure_size(path), made)


def _list_work(variants: Container[str]) -> Iterator[Unused]:
    """Trainings from which those of other settings could go on, of variants that are no more."""
    for folder in Path(STATE_DIR, WORK).glob("*"):
        if folder.name not in variants and list_work_folders(folder):
            yield _describe(WORK, folder)._replace(label=f"{WORK} {folder.name}")


def _list_jobs(store: Store, state: State) -> Iterator[Unused]:
    """Jobs that ended, and whose results the store has. One that failed stays: it says why."""
    for folder, record in list_done_jobs():
        made = read_identity(record.identity)
        if made is not None and store.find(record.stage, made, state.sha256) is not None:
            yield _describe(JOB, folder)._replace(label=f"{JOB} {record.name}")


def _list_runs(orphans: Iterable[str], state: State) -> Iterator[Unused]:
    known = read_known_outputs(state)
    for folder in map(Path, orphans):
        foreign = list_foreign_files(folder, known, state)
        yield _describe(RUNS, folder)._replace(label=str(folder), foreign=foreign)


def measure_size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size if os.path.lexists(path) else 0
    files = (Path(root, name) for root, _, names in os.walk(path) for name in names)
    return sum(file.lstat().st_size for file in files)


def describe_large_store() -> Iterator[str]:
    """A line where the project's own store is larger than `execution.store_gb`."""
    table = read_project_table()
    row = next((row for row in table.rows if row.stage == "train"), None)
    bound = None
    with suppress(PtychoTasksError):  # a backend that was changed while the run was at work
        bound = None if row is None else table.payload(row).execution.store_gb
    if bound is not None and (size := measure_size(project_store().own)) > bound * 1e9:
        yield (
            f"the store holds {format_size(size)}, and execution.store_gb is {bound:g}; "
            f"`ptycho-tasks prune --max-size {bound:g}GB` lists what can go"
        )


def choose_unused(
    inventory: Inventory, *, older_than_s: float = 0.0, most_bytes: float | None = None
) -> list[Unused]:
    """What is to be removed of an inventory.

    Args:
        inventory: of `list_unused`.
        older_than_s: what is younger stays.
        most_bytes: what the store may hold: the oldest go first, until it does not hold more.
            None: all go. What is no part of the store is not bounded by it.
    """
    old = [item for item in inventory.unused if item.age_s >= older_than_s]
    if most_bytes is None:
        return old
    in_store = [item for item in old if item.is_in_store]
    # What the store holds when each one's turn comes.
    left = accumulate((-item.bytes for item in in_store), initial=inventory.store_bytes)
    chosen = {item.path for item, held in zip(in_store, left, strict=False) if held > most_bytes}
    return [item for item in old if not item.is_in_store or item.path in chosen]


def remove_unused(item: Unused) -> None:
    """Remove something unused, if all of it is ours.

    Raises:
        FileWriteError: it cannot be removed.
    """
    if item.foreign or not os.path.lexists(item.path):  # another project was faster
        return
    with report_write_errors(item.path):
        if not item.path.is_dir() or item.path.is_symlink():
            item.path.unlink(missing_ok=True)
        elif item.kind == WORK:
            remove_work_folders(item.path)
        elif item.kind in (RUNS, JOB, "damaged", "unfinished"):
            shutil.rmtree(item.path)
        else:
            remove_entry(item.path)

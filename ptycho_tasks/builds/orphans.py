"""Results in `runs/` of variants and scans that ptycho.yaml does not name any more."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from doit.task import Task

from ptycho_tasks.builds.project import list_tables, read_project_table
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.staleness import UpToDate
from ptycho_tasks.builds.state import State, current_state, read_built
from ptycho_tasks.builds.task_table import Table
from ptycho_tasks.errors import one_line
from ptycho_tasks.system.terminal import echo

_RUNS = "runs"
_STAGES = ("training", "inference", "refinement")
_SHOWN = 5


def find_orphans(rows: Iterable[Row]) -> list[str]:
    """Folders of results that belong to no task.

    One look into `runs/`, and where there are several scans, one for each variant.

    Args:
        rows: all tasks of the project in the current folder.

    Returns:
        Paths as `runs/old`, and `runs/default/inference/old` of a scan, sorted.
    """
    rows = [*rows]
    known, variants = _find_known(rows), find_variants(rows)
    orphans = [
        folder
        for folder in _list_folders(_RUNS)
        if folder.rpartition("/")[2] not in variants and _has_results(folder)
    ]
    for place in {folder.rpartition("/")[0] for folder in known if folder.count("/") > 2}:
        orphans += [folder for folder in _list_folders(place) if folder not in known]
    return sorted(orphans)


def find_variants(rows: Iterable[Row]) -> set[str]:
    """The names of all variants."""
    return {folder.split("/")[1] for folder in _find_known(rows)}


def _find_known(rows: Iterable[Row]) -> set[str]:
    """The folders of results that tasks have."""
    folders = {os.path.dirname(path) for row in rows for path in row.outputs}  # noqa: PTH120
    return {folder for folder in folders if folder.startswith(f"{_RUNS}/")}


def _list_folders(place: str) -> Iterator[str]:
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield f"{place}/{entry.name}"


def _has_results(folder: str) -> bool:
    """Whether a folder looks like that of a variant, and not like one of the user's own."""
    return any(os.path.isdir(f"{folder}/{stage}") for stage in _STAGES)  # noqa: PTH112


def has_stages(tasks: Iterable[Task]) -> bool:
    """Whether some tasks are stages of a project of ours."""
    return any(isinstance(one, UpToDate) for task in tasks for one, _, _ in task.uptodate)


def mention_orphans(tasks: Iterable[Task]) -> None:
    """Say in one line which results belong to no task, if there are some.

    Args:
        tasks: of a dodo.py, which may have none of a project of ours.
    """
    if not has_stages(tasks):
        return
    table, state = read_project_table(), current_state()
    if table.changes or state is None:  # a one-off variant is not all of the project
        return
    orphans = find_orphans(table.rows)
    if orphans:  # only now, since each one-off variant has to be settled for it
        text = describe_orphans(list_tables(state))
        if text:
            echo(text, err=True)


def mention_strays() -> None:
    """Say in a line each which files of the project in the current folder are left out, and why."""
    for problem in dict.fromkeys(stray.problem for stray in read_project_table().strays):
        echo(f"left out: {one_line(problem)}", err=True)


def describe_orphans(tables: Iterable[Table]) -> str:
    """Which results belong to no task, in one line; empty where all do.

    Args:
        tables: of the project in the current folder, and of all its one-off variants.
    """
    tables = [*tables]
    left_out = {stray.name for table in tables for stray in table.strays}
    found = find_orphans([row for table in tables for row in table.rows])
    orphans = [folder for folder in found if folder.rpartition("/")[2] not in left_out]
    if not orphans:
        return ""
    more = f" and {len(orphans) - _SHOWN} more" if len(orphans) > _SHOWN else ""
    return (
        f"{', '.join(orphans[:_SHOWN])}{more}: no variant or scan is called so; "
        "`ptycho-tasks prune --runs` lists what can be removed"
    )


def read_known_outputs(state: State) -> dict[str, str | None]:
    """What the database knows of outputs, also of tasks that are no more: path to sha256."""
    built = (read_built(record.get("_values_:")) for _, record in state.records())
    return {path: digest for one in built if one for path, digest in one.outputs.items()}


def list_foreign_files(folder: Path, known: Mapping[str, str | None], state: State) -> list[Path]:
    """The files of a folder that no run put there, or that were changed since.

    Args:
        folder: of a variant or a scan.
        known: of `read_known_outputs`.
        state: the database.
    """
    from ptycho_tasks.layout import CHECKPOINTS, LOGS
    from ptycho_tasks.results.folder_record import RECORD_NAME, list_recorded
    from ptycho_tasks.results.ownership import is_ours

    beside = [folder / "training" / name for name in (CHECKPOINTS, LOGS)]
    recorded = {path for place in beside for path in list_recorded(place)}
    recorded |= {place / RECORD_NAME for place in beside}

    def is_foreign(path: Path) -> bool:
        if path in recorded:
            return False
        digest = known.get(path.as_posix())
        return not ((digest and state.sha256(str(path)) == digest) or is_ours(path))

    # A link to a folder counts as a file: what is behind it is not looked at.
    files = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    return [path for path in files if path.is_symlink() or is_foreign(path)]

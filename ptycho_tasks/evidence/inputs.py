"""What the outcome of an item depends on: the files that it reads, by content."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.task_table import read_table
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.evidence.item import MANIFESTS, RUN_FOLDER, Evidence, Item
from ptycho_tasks.layout import CONFIG_NAME, project_path
from ptycho_tasks.system.files import sha256_file


@dataclass(frozen=True)
class ProjectFiles:
    """The project's files as items see them: what each holds, and which ones a stage makes."""

    digest: Callable[[str], str | None]
    """sha256 of a file by its path as `project_path`; None where there is no such file."""
    read_rows: Callable[[], Sequence[Row]]
    """The rows of the task table."""

    def list_outputs(self, stage: str) -> list[str]:
        """The files that a stage, or one task of it, makes.

        Raises:
            ConfigError: there is no such stage.
        """
        return [path for row in find_rows(self.read_rows(), stage) for path in row.outputs]


def find_rows(rows: Sequence[Row], stage: str) -> list[Row]:
    """The rows of the task table that belong to a stage, or the one of a single task.

    Raises:
        ConfigError: there is none.
    """
    matches = [row for row in rows if stage in (row.name, row.stage)]
    if not matches:
        known = ", ".join(dict.fromkeys(row.stage for row in rows)) or "none"
        raise ConfigError(f"evidence: depends: there is no stage `{stage}`; stages: {known}")
    return matches


def files_on_disk(root: Path) -> ProjectFiles:
    """The files of the project at `root` without its database: each is read anew."""

    @functools.cache
    def read_rows() -> list[Row]:
        return read_table(root, None).rows if os.path.lexists(root / CONFIG_NAME) else []

    return ProjectFiles(functools.partial(digest_file, root), read_rows)


def digest_file(root: Path, path: str) -> str | None:
    """sha256 of a file in a project; None where it cannot be read."""
    try:
        return sha256_file(root / path)
    except OSError:
        return None


def digest_inputs(evidence: Evidence, item: Item, files: ProjectFiles) -> dict[str, str | None]:
    """Path to sha256, as they are now, of every file that an item's outcome may depend on.

    Raises:
        ConfigError: the item names a stage that is not there.
    """
    return {path: files.digest(path) for path in _list_inputs(evidence, item, files)}


def _list_inputs(evidence: Evidence, item: Item, files: ProjectFiles) -> list[str]:
    root = evidence.root
    paths: set[str] = set()
    for stage in item.stages:
        paths.update(files.list_outputs(stage))
    for text in item.scripts:
        name = project_path(root, root / text)
        if (root / name).is_file():  # else it is a word that only looks like a script
            paths.add(name)
    for text in item.depends:
        paths.update(project_path(root, path) for path in _list_files(evidence, text))
    for text in item.tests:
        paths.update(project_path(root, path) for path in _list_files(evidence, text, "*.py"))
        paths.update(project_path(root, path) for path in _list_conftests(root, root / text))
    return sorted(paths)


def exists(evidence: Evidence, text: str) -> bool:
    """Whether a path that an item depends on exists, or a glob matches a file."""
    return any(path.exists() for path in (evidence.root / text, *_list_files(evidence, text)))


def _list_files(evidence: Evidence, text: str, pattern: str = "*") -> Iterator[Path]:
    """The files that a path or glob means; of a folder, those of a pattern. A plain path is given
    though nothing is there: that it is missing counts, too."""
    root = evidence.root
    path = root / text
    if path.is_dir():
        yield from (file for file in path.rglob(pattern) if _is_input(evidence, file, path))
    elif any(character in text for character in "*?[") and not path.exists():
        first = Path(path.anchor) if Path(text).is_absolute() else root
        for match in first.glob(str(path.relative_to(first))):
            inside = match.rglob("*") if match.is_dir() else [match]
            yield from (file for file in inside if _is_input(evidence, file, first))
    else:
        yield path


def _is_input(evidence: Evidence, path: Path, folder: Path) -> bool:
    """Whether a file in a folder counts; hidden files, bytecode and reports do not."""
    parts = path.relative_to(folder).parts
    is_hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
    return not is_hidden and path.is_file() and not _is_in_reports(evidence, path)


def _is_in_reports(evidence: Evidence, path: Path) -> bool:
    """Whether a file belongs to a report: what a run writes must not make the next one stale."""
    if not path.is_relative_to(evidence.reports_dir):
        return False
    first = path.relative_to(evidence.reports_dir).parts[0]
    return first == MANIFESTS or RUN_FOLDER.fullmatch(first) is not None


def _list_conftests(root: Path, path: Path) -> Iterator[Path]:
    """The conftest.py files that pytest reads for a test, up to that of the project."""
    for folder in (path, *path.parents):
        if (folder / "conftest.py").is_file():
            yield folder / "conftest.py"
        if folder == root or not folder.is_relative_to(root):
            return

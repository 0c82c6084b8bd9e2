"""What an item of the evidence depends on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ptycho_tasks.builds.rows import Row
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.evidence.item import MANIFESTS, STAMPED, Evidence, Item
from ptycho_tasks.layout import CONFIG_NAME, project_path
from ptycho_tasks.system.files import sha256_file

Digest = Callable[[str], "str | None"]
"""sha256 of a file by its path as `project_path`; None where there is none."""

Outputs = Callable[[str], "list[str]"]
"""The files that a stage makes."""


# ---------------------------------------------------------------------------------------------
# What an item is about


def input_paths(evidence: Evidence, item: Item, outputs: Outputs) -> list[str]:
    """Every file that an item's outcome may hang on, as `project_path`; some may not be there.

    Args:
        evidence: the project's.
        item: one of its items.
        outputs: gives the files that a stage makes.
    """
    root = evidence.root
    found: set[str] = set()
    for stage in item.stages:
        found.update(outputs(stage))
    for text in item.scripts:
        found.update(
            filter(lambda path: (root / path).is_file(), [project_path(root, root / text)])
        )
    for text in item.depends:
        found.update(project_path(root, path) for path in _files(evidence, text))
    for text in item.tests:
        found.update(project_path(root, path) for path in _files(evidence, text, "*.py"))
        found.update(project_path(root, path) for path in _conftests(root, root / text))
    return sorted(found)


def _files(evidence: Evidence, text: str, of_folder: str = "*") -> Iterator[Path]:
    root = evidence.root
    path = root / text
    if path.is_dir():
        yield from (p for p in path.rglob(of_folder) if _counts(evidence, p, path))
    elif any(character in text for character in "*?[") and not path.exists():
        first = Path(path.anchor) if Path(text).is_absolute() else root
        pattern = str(path.relative_to(first))
        for match in first.glob(pattern):
            inside = match.rglob("*") if match.is_dir() else [match]
            yield from (p for p in inside if _counts(evidence, p, first))
    else:
        yield path


def is_there(evidence: Evidence, text: str) -> bool:
    """Whether a path that an item depends on exists, or a glob matches a file."""
    return any(path.exists() for path in (evidence.root / text, *_files(evidence, text)))


def _counts(evidence: Evidence, path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
    return not hidden and path.is_file() and not _is_reported(evidence, path)


def _is_reported(evidence: Evidence, path: Path) -> bool:
    """Whether a file is of a report: what a run writes must not make the next one stale."""
    if not path.is_relative_to(evidence.reports_dir):
        return False
    first = path.relative_to(evidence.reports_dir).parts[0]
    return first == MANIFESTS or STAMPED.fullmatch(first) is not None


def _conftests(root: Path, path: Path) -> Iterator[Path]:
    """The conftest.py files that pytest reads for a test, down from the project."""
    for folder in (path, *path.parents):
        if (folder / "conftest.py").is_file():
            yield folder / "conftest.py"
        if folder == root or not folder.is_relative_to(root):
            return


def digest_at(root: Path) -> Digest:
    """Reads files of the project at `root` anew, for who has no database."""

    def digest(path: str) -> str | None:
        try:
            return sha256_file(root / path)
        except OSError:
            return None

    return digest


def outputs_at(root: Path) -> Outputs:
    """Looks the stages' files up in the ptycho.yaml at `root`."""

    @functools.cache
    def outputs(stage: str) -> list[str]:
        from ptycho_tasks.builds.task_table import read_table

        rows = read_table(root, None).rows if os.path.lexists(root / CONFIG_NAME) else []
        return outputs_in(rows, stage)

    return outputs


def outputs_in(rows: list[Row], stage: str) -> list[str]:
    """The files that a stage, or one task of it, makes.

    Raises:
        ConfigError: there is no such task.
    """
    found = [row for row in rows if stage in (row.name, row.stage)]
    if not found:
        known = ", ".join(dict.fromkeys(row.stage for row in rows)) or "none"
        raise ConfigError(f"evidence: depends: there is no stage `{stage}`; stages: {known}")
    return [path for row in found for path in row.outputs]

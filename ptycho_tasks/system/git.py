"""What git knows of a folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.system.processes import ask

_PATIENCE_S = 60


class Revision(NamedTuple):
    """The commit that is checked out."""

    commit: str
    is_dirty: bool | None
    """Whether files that git tracks were changed since; None where git does not say."""


def read_revision(folder: Path) -> Revision | None:
    """The revision of a folder; None outside a git repository, without commits, or without git."""
    commit = _ask_git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _ask_git(folder, "status", "--porcelain", "-uno")
    return Revision(commit, None if changes is None else bool(changes))


def _ask_git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints; None where it fails, or where there is no git."""
    with suppress(OSError, PtychoTasksError):
        done = ask(["git", "-C", str(folder), *arguments], _PATIENCE_S)
        return done.stdout.strip() if done.returncode == 0 else None
    return None

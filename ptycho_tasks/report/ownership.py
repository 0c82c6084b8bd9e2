"""Which files are pages of ours, so that nothing else is ever replaced or removed by one."""

from __future__ import annotations

import os
from pathlib import Path

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.system.files import find_file_problem

REPORT_GENERATOR, PLAN_GENERATOR = "ptycho-tasks report", "ptycho-tasks plan"
"""What every report, and every page of a plan, says in its first bytes."""
_HEAD = 300


def is_page(path: Path, generator: str = REPORT_GENERATOR) -> bool:
    """Whether a file is a page of a kind; false where it cannot be read."""
    if find_file_problem(path):
        return False
    try:
        with path.open("rb") as file:
            return f'content="{generator}"'.encode() in file.read(_HEAD)
    except OSError:
        return False


def refuse_other_file(path: Path, generator: str = REPORT_GENERATOR) -> None:
    """Refuse to write a page over what is none of its kind, or into a folder that is not there:
    nobody looks for a page where a mistyped path leads.

    Raises:
        ConfigError: one line that names the path.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}; make it, or choose another")
    if os.path.lexists(path) and not is_page(path, generator):
        what = generator.removeprefix("ptycho-tasks ")
        raise ConfigError(f"{path} is there and is no page of a {what}; choose another path")


def remove_report(path: Path) -> None:
    """Remove a report, if it is one."""
    if is_page(path):
        path.unlink()

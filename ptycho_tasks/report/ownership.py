"""Which files are reports, so that nothing else is ever replaced or removed by one."""

from __future__ import annotations

import os
from pathlib import Path

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.system.files import find_file_problem

GENERATOR = "ptycho-tasks report"
"""What every report says in its first bytes."""
_HEAD = 300


def is_report(path: Path) -> bool:
    """Whether a file is a report; false where it cannot be read."""
    if find_file_problem(path):
        return False
    try:
        with path.open("rb") as file:
            return f'content="{GENERATOR}"'.encode() in file.read(_HEAD)
    except OSError:
        return False


def refuse_other_file(path: Path) -> None:
    """Refuse to write a report over what is none.

    Raises:
        ConfigError: one line that names the path.
    """
    if os.path.lexists(path) and not is_report(path):
        raise ConfigError(f"{path} is there and is no report; choose another path with --output")


def remove_report(path: Path) -> None:
    """Remove a report, if it is one."""
    if is_report(path):
        path.unlink()

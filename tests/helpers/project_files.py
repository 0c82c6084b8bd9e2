"""What lies in a project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def change_settings(root: Path, **settings: Any) -> None:
    """Give top-level keys of a project's ptycho.yaml other values."""
    path = root / "ptycho.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings, sort_keys=False))


def list_stamps(root: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file of a project but for compiled code."""
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

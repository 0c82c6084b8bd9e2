"""The folders that hold trainings under way: see `TrainingPayload.work_dir`."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path


def list_work_folders(root: Path) -> list[Path]:
    """The folders below `root` that hold trainings under way."""
    names = "[0-9a-f]" * 16
    return [path for path in root.glob(names) if path.is_dir() and not path.is_symlink()]


def remove_work_folders(root: Path, *, keep: Path | None = None) -> None:
    """Remove the folders of trainings under way; `root` too, where that leaves it empty."""
    for folder in list_work_folders(root):
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        root.rmdir()

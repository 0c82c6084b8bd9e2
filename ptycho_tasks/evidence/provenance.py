"""What an item of the evidence runs on: commit, Python, packages, devices."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from ptycho_tasks.evidence.item import Item

_PACKAGES = ("ptycho-tasks", "ptycho-tasks-torch", "ptycho-tasks-ptychi", "ptychi", "ptycho",
             "pytest", "numpy", "scipy", "h5py", "torch", "lightning", "tensorflow")  # fmt: skip
_CUDA = "CUDA_VISIBLE_DEVICES"


def surroundings(root: Path, item: Item) -> dict[str, Any]:
    """`commit` and `dirty` (None outside a git repository), `python`, `packages` and
    `cuda_visible_devices` of a run."""
    commit = _git(root, "rev-parse", "HEAD")
    changes = None if commit is None else _git(root, "status", "--porcelain", "-uno")
    return {
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "cuda_visible_devices": item.env.get(_CUDA, os.environ.get(_CUDA)),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None

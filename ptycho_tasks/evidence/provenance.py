"""What an item runs on: commit, Python, packages, devices."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import msgspec

from ptycho_tasks.evidence.item import Item
from ptycho_tasks.system.git import read_revision
from ptycho_tasks.system.libraries import find_version

_PACKAGES = ("ptycho-tasks", "ptycho-tasks-torch", "ptycho-tasks-ptychi", "ptychi", "ptycho",
             "pytest", "numpy", "scipy", "h5py", "torch", "lightning", "tensorflow")  # fmt: skip
_CUDA = "CUDA_VISIBLE_DEVICES"


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of an item took place on."""

    commit: str | None
    """None outside a git repository, as `dirty`."""
    dirty: bool | None
    """Whether files that git tracks were changed since the commit."""
    python: str
    packages: dict[str, str]
    """Name to version."""
    # Checked no further than that it may be left out: results without it are valid.
    cuda_visible_devices: str | msgspec.UnsetType | None = msgspec.UNSET


def read_provenance(root: Path, item: Item) -> Provenance:
    """What an item of the project at `root` would run on now."""
    revision = read_revision(root)
    return Provenance(
        commit=revision and revision.commit,
        dirty=revision and revision.is_dirty,
        python=platform.python_version(),
        packages={name: version for name in _PACKAGES if (version := find_version(name))},
        cuda_visible_devices=item.env.get(_CUDA, os.environ.get(_CUDA)),
    )

"""What an HDF5 file holds, for people who are to say which of it is what."""

from __future__ import annotations

from pathlib import Path

import h5py

from ptycho_tasks.scans.linked_files import DAMAGE

_MOST = 12


def describe_datasets(path: Path) -> str:
    """The datasets of a file with their shapes and types, the largest first."""
    found: list[tuple[int, str]] = []

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            shape = "x".join(map(str, item.shape)) or "one number"
            found.append((item.size or 0, f"{name} ({shape} {item.dtype})"))

    try:
        with h5py.File(path, "r") as file:
            file.visititems(note)
    except (TypeError, *DAMAGE):
        pass
    found.sort(key=lambda one: -one[0])
    shown = ", ".join(text for _, text in found[:_MOST]) or "no datasets"
    return shown + (f" and {len(found) - _MOST} more" if len(found) > _MOST else "")

"""The record of a folder: which files in it are ours, and as what they were left.

What lies beside an output, as logs and kept checkpoints do, is known by a record in its folder:
`.made.json`, the sha256 of every file that a run wrote there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ptycho_tasks.errors import FileWriteError
from ptycho_tasks.system.files import report_write_errors, sha256_file, write_atomic

RECORD_NAME = ".made.json"


def remove_recorded(folder: Path) -> list[Path]:
    """Remove the files of a folder that are as its record says, the record, and empty folders.

    Returns:
        The files that stay, which are of others or were changed.

    Raises:
        FileWriteError: one cannot be removed.
    """
    if not folder.is_dir() or folder.is_symlink():
        return []
    ours = list_recorded(folder)
    with report_write_errors(folder):
        for path in ours:
            path.unlink()
        (folder / RECORD_NAME).unlink(missing_ok=True)
    _remove_empty(folder)
    return sorted(_files(folder))


def list_recorded(folder: Path) -> list[Path]:
    """The files of a folder that are as its record says."""
    record = _read_record(folder)
    return [
        path
        for path in _files(folder)
        if _name(path, folder) in record and record[_name(path, folder)] == _digest(path)
    ]


@contextmanager
def record_changes(folder: Path) -> Iterator[None]:
    """Record the files of a folder that are new or changed after the block, however that ends."""
    before = {path: _stamp(path) for path in _files(folder)}
    known = _read_record(folder)
    try:
        yield
    finally:
        now = {path: _stamp(path) for path in _files(folder)}
        written = [path for path, stamp in now.items() if before.get(path) != stamp]
        names = {_name(path, folder) for path in now}
        kept = {name: sha256 for name, sha256 in known.items() if name in names}
        if written or kept != known:
            write_record(folder, written, kept)


def write_record(folder: Path, written: Iterable[Path], kept: dict[str, str] | None = None) -> None:
    """Record files of a folder, in place of what was recorded.

    Args:
        folder: gets the record.
        written: files in it.
        kept: names in it to sha256, of others that are ours too.
    """
    entries = {_name(path, folder): _digest(path) for path in written}
    text = json.dumps({**(kept or {}), **entries}, indent=1, sort_keys=True) + "\n"
    # Without the record the files stay, when others would be removed; that is all.
    with suppress(FileWriteError):
        write_atomic(folder / RECORD_NAME, text.encode())


def _read_record(folder: Path) -> dict[str, str]:
    try:
        record = json.loads((folder / RECORD_NAME).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder but its record; links are not followed."""
    for root, _, names in os.walk(folder):
        for name in names:
            if name != RECORD_NAME:
                yield Path(root, name)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.lstat()
    except OSError:  # a writer replaced it just now
        return (0, 0, 0)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _digest(path: Path) -> str | None:
    try:
        return None if path.is_symlink() else sha256_file(path)
    except OSError:
        return None


def _remove_empty(folder: Path) -> None:
    for root, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # it holds something
            Path(root).rmdir()

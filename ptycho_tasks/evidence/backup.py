"""A backup of the results of a run, where no command that the run starts can remove it.

A command of the evidence may clean the project up (`git clean -fdx`), and `.ptycho` with it. The
files that wait there for publication are copied into a file without a name. All processes of a run
share it, and it is gone when they have ended, however they end.
"""

from __future__ import annotations

import os
import tempfile
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

from ptycho_tasks.builds.run import at_end
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.system.files import write_atomic
from ptycho_tasks.system.terminal import echo

_NO_RESULTS = ("lock", "journal")
"""Files that say what is done at this moment, and hold no result."""


class Backup:
    """Copies of the files in a folder. A copy that cannot be made is not an error: it is needed
    only if a command removes the file."""

    def __init__(self, folder: Path) -> None:
        """Copy what lies in `folder` now; processes that are forked later share the copies."""
        self.folder = folder
        self._lock = threading.Lock()
        self._file: int | None = None
        with suppress(OSError), tempfile.TemporaryFile() as file:
            self._file = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._file)
        files = (path for path in folder.glob("[!.]*") if path.is_file())
        self.add(path for path in files if path.name not in _NO_RESULTS)

    def add(self, paths: Iterable[Path]) -> None:
        """Copy files of the folder as they are now."""
        with suppress(OSError, BadZipFile), self._open("a") as archive:
            for path in self._select(paths):
                with (
                    path.open("rb") as file,
                    archive.open(_make_entry(path), "w", force_zip64=True) as copy,
                ):
                    copy.write(b"+")  # an entry without it stands for a file that is gone
                    while piece := file.read(1 << 20):
                        copy.write(piece)

    def discard(self, paths: Iterable[Path]) -> None:
        """Have files not put back: they are gone for good."""
        with suppress(OSError, BadZipFile), self._open("a") as archive:
            for path in self._select(paths):
                archive.writestr(_make_entry(path), b"")

    def _select(self, paths: Iterable[Path]) -> list[Path]:
        return [path for path in paths if path.parent == self.folder]

    def restore(self) -> None:
        """Put back what is not in the folder any more.

        Raises:
            FileWriteError: it cannot be written.
        """
        missing: dict[str, bytes] = {}
        with suppress(OSError, BadZipFile), self._open("r") as archive:
            for name in {*archive.namelist()}:
                if not os.path.lexists(self.folder / name):
                    missing[name] = archive.read(name)
        for name, content in missing.items():
            if content:
                write_atomic(self.folder / name, content[1:])

    @contextmanager
    def _open(self, mode: Literal["r", "a"]) -> Iterator[ZipFile]:
        if self._file is None:
            raise OSError("there is no temporary folder")
        with ExitStack() as stack:
            stack.enter_context(self._lock)
            stack.enter_context(_lock_out_others(self._file))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="Duplicate name")  # the last counts
            file = stack.enter_context(open(self._file, "r+b", closefd=False))
            yield stack.enter_context(ZipFile(file, mode))


def _make_entry(path: Path) -> ZipInfo:
    entry = ZipInfo(path.name)  # without the time, for which a zip has few years
    entry.compress_type = ZIP_DEFLATED
    return entry


@contextmanager
def _lock_out_others(file: int) -> Iterator[None]:
    """Keep other processes out: flock would not, as they share the open file."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    fcntl.lockf(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN)


_backup: Backup | None = None
"""Of the run in this process."""


def start_backup(folder: Path) -> None:
    """Copy what lies in a folder, and what `back_up` adds, until the run ends."""
    global _backup
    _backup = Backup(folder)
    at_end(_end_backup)


def back_up(paths: Iterable[Path]) -> None:
    """Copy files as they are now."""
    if _backup is not None:
        _backup.add(paths)


def delete(path: Path) -> None:
    """Remove a file, if it is there, and its copy."""
    if _backup is not None:
        _backup.discard([path])
    path.unlink(missing_ok=True)


def restore_backup() -> None:
    """Put back the files that were removed.

    Raises:
        FileWriteError: one cannot be written.
    """
    if _backup is not None:
        _backup.restore()


def _end_backup() -> None:
    """Put back the files that were removed; from now on, nothing is copied."""
    global _backup
    try:
        restore_backup()
    except PtychoTasksError as error:
        echo(f"warning: results that are not published are lost: {error}", err=True)
    finally:
        _backup = None

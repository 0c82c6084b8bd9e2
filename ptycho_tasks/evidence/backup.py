"""What a run has found so far, where no command that the run starts can remove it.

A command of the evidence may clean the project up (`git clean -fdx`), and `.ptycho` with it. The
files that wait there for publication are kept a second time in a file without a name, which all
processes of a run share, and which ends with them however they end.
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

_NOT_KEPT = ("lock", "journal")
"""What stands for work at this moment, and for no result."""


class Keep:
    """Copies of the files in a folder. One that cannot be made is not missed: only a command that
    removes the files makes it count."""

    def __init__(self, folder: Path) -> None:
        """Keeps what lies in `folder` now; processes that are forked later share it."""
        self.folder = folder
        self._lock = threading.Lock()
        self._file: int | None = None
        with suppress(OSError), tempfile.TemporaryFile() as file:
            self._file = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._file)
        files = (path for path in folder.glob("[!.]*") if path.is_file())
        self.add(path for path in files if path.name not in _NOT_KEPT)

    def add(self, paths: Iterable[Path]) -> None:
        """Keep files of the folder as they are now."""
        with suppress(OSError, BadZipFile), self._opened("a") as kept:
            for path in self._mine(paths):
                with kept.open(_entry(path), "w", force_zip64=True) as copy:
                    copy.write(b"+")
                    with path.open("rb") as file:
                        while piece := file.read(1 << 20):
                            copy.write(piece)

    def drop(self, paths: Iterable[Path]) -> None:
        """Keep files no more, which are gone for good."""
        with suppress(OSError, BadZipFile), self._opened("a") as kept:
            for path in self._mine(paths):
                kept.writestr(_entry(path), b"")

    def _mine(self, paths: Iterable[Path]) -> list[Path]:
        return [path for path in paths if path.parent == self.folder]

    def restore(self) -> None:
        """Put back what is not in the folder any more.

        Raises:
            FileWriteError: it cannot be written.
        """
        found: dict[str, bytes] = {}
        with suppress(OSError, BadZipFile), self._opened("r") as kept:
            for name in {*kept.namelist()}:
                if not os.path.lexists(self.folder / name):
                    found[name] = kept.read(name)
        for name, content in found.items():
            if content:
                write_atomic(self.folder / name, content[1:])

    @contextmanager
    def _opened(self, mode: Literal["r", "a"]) -> Iterator[ZipFile]:
        if self._file is None:
            raise OSError("there is no temporary folder")
        with ExitStack() as stack:
            stack.enter_context(self._lock)
            stack.enter_context(_alone(self._file))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="Duplicate name")  # the last counts
            file = stack.enter_context(open(self._file, "r+b", closefd=False))
            yield stack.enter_context(ZipFile(file, mode))


def _entry(path: Path) -> ZipInfo:
    entry = ZipInfo(path.name)  # without the time, for which a zip has few years
    entry.compress_type = ZIP_DEFLATED
    return entry


@contextmanager
def _alone(file: int) -> Iterator[None]:
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


_kept: Keep | None = None


def begin_keeping(folder: Path) -> None:
    """Keep what lies in a folder from now on."""
    global _kept
    _kept = Keep(folder)
    at_end(_end_keeping)


def keep_files(paths: Iterable[Path]) -> None:
    """Keep files as they are now."""
    if _kept is not None:
        _kept.add(paths)


def forget(path: Path) -> None:
    """Remove a file, if it is there, for good."""
    if _kept is not None:
        _kept.drop([path])
    path.unlink(missing_ok=True)


def put_back() -> None:
    """Put back what was removed of the files that are kept.

    Raises:
        FileWriteError: one cannot be written.
    """
    if _kept is not None:
        _kept.restore()


def _end_keeping() -> None:
    """Put back what was removed; from now on, nothing is kept."""
    global _kept
    try:
        put_back()
    except PtychoTasksError as error:
        echo(f"warning: results that are not published are lost: {error}", err=True)
    finally:
        _kept = None

"""Which files a reader opens: Ptychodus' readers find the members of a series themselves.

Each file that is opened is an input of the scan, and lies in a folder that the scan may reach.
Python says what it opens (`sys.addaudithook`). HDF5 opens files by itself, so `h5py.File` is a
class of ours while a reader is at work, which remembers the datasets looked up: these may lie
behind links to further files.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.linked_files import LinkedFiles
from ptycho_tasks.system.files import FileStamp, file_stamp, real_path

_watching: list[Watch] = []
"""Those at work, of which the last counts."""


class Watch:
    """The files that are opened in the blocks of `watch`."""

    def __init__(self, named: Sequence[Path], follow: Sequence[Path]) -> None:
        """Watch.

        Args:
            named: files that the user names, the scan first; their folders may be read.
            follow: further folders that may be.
        """
        self.stamps: dict[Path, FileStamp] = {}
        """Each file that was opened besides the first of those named, and what it was then."""
        self._own = named[0]
        self._follow = tuple(follow)
        self._folders = [real_path(path).parent for path in named] + [*map(real_path, follow)]
        self._datasets: dict[tuple[Path, str], None] = {}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note what is opened in the block, then what lies behind links in it.

        Raises:
            ScanError: a file lies elsewhere, or a part of a dataset is missing.
        """
        try:
            with _watched_by(self):
                yield
        finally:
            # Also where the reader failed: for want of a linked file, perhaps.
            self._follow_links()

    def note_hdf5(self, path: Path) -> None:
        """Note an HDF5 file before it is opened."""
        if not self._may_read(path):
            raise ScanError(
                f"{path}: outside of the scan's folder; allow that with "
                f"`source.follow: [{real_path(path).parent}]`"
            )
        self._note(path)

    def note_opened(self, path: Path) -> None:
        """Note a file that Python opens, which may be one of its own."""
        if path.suffix not in (".py", ".pyc", ".so") and self._may_read(path):
            self._note(path)

    def note_dataset(self, path: Path, key: str) -> None:
        """Note what is looked up in an HDF5 file."""
        self._datasets[path, key] = None

    def _note(self, path: Path) -> None:
        stamp = None if path == self._own else file_stamp(path)
        if stamp is not None:
            self.stamps.setdefault(path, stamp)

    def _may_read(self, path: Path) -> bool:
        return any(real_path(path).is_relative_to(folder) for folder in self._folders)

    def _follow_links(self) -> None:
        while self._datasets:
            (path, key), _ = self._datasets.popitem()
            if path.is_file():
                with LinkedFiles(path, self._follow) as file:
                    file.dataset(key, in_part=True)
                    for linked, stamp in file.stamps.items():
                        self.stamps.setdefault(linked, stamp)


class _WatchedFile(h5py.File):  # type: ignore[misc]
    """An HDF5 file whose opening, and what is looked up in it, is noted."""

    def __init__(self, name: Any, *args: Any, **options: Any) -> None:
        self._watched = Path(name) if _watching and isinstance(name, str | Path) else None
        if self._watched is not None:
            _watching[-1].note_hdf5(self._watched)
        super().__init__(name, *args, **options)

    def __getitem__(self, name: Any) -> Any:
        self._note(name)
        return super().__getitem__(name)

    def get(self, name: Any, *args: Any, **options: Any) -> Any:
        self._note(name)
        return super().get(name, *args, **options)

    def _note(self, name: Any) -> None:
        if self._watched is not None and _watching and isinstance(name, str):
            _watching[-1].note_dataset(self._watched, name)


@contextmanager
def _watched_by(watch: Watch) -> Iterator[None]:
    _install_hook()
    plain, h5py.File = h5py.File, _WatchedFile
    _watching.append(watch)
    try:
        yield
    finally:
        _watching.pop()
        h5py.File = plain


@functools.cache
def _install_hook() -> None:
    """Have Python say what it opens. A hook cannot be taken away again; without a watch it does
    nothing."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and _watching and isinstance(args[0], str):
            _watching[-1].note_opened(Path(args[0]))

    sys.addaudithook(hook)

"""Digests of files, each read once and then recognised by size, times and inode."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ptycho_tasks.system.clock import now_ns
from ptycho_tasks.system.files import FileStamp, file_stamp, sha256_file

SHA256, PYTHON = "sha256", "python"
"""Kinds of digest: of a file's content, and of what a Python file says."""
Entry = tuple[int, int, int, int, str]
"""A file's stamp and its digest."""

_SETTLED_NS = 20_000_000
"""A file younger than this could change again within one tick of its file system's clock."""
_COARSE_SETTLED_NS = 2_000_000_000
"""Likewise, where the clock has whole seconds only."""
_UNKNOWN: Entry = (-1, -1, -1, -1, "")


class Digests:
    """The digests that are known, and those that are new since they were last kept."""

    def __init__(self) -> None:
        """None is known yet."""
        self.known: dict[tuple[str, str], Entry] = {}
        """By path and kind."""
        self.new: dict[tuple[str, str], Entry] = {}
        self._sources: dict[str, str | None] = {}
        self._opened_ns = now_ns()

    def sha256(self, path: str) -> str | None:
        """sha256 of a file's content; None where there is no file."""
        return self._digest(path, SHA256, sha256_file)

    def source_digest(self, path: str) -> str | None:
        """The digest of what a Python file says; see `State.source_digest`."""
        if path not in self._sources:
            from ptycho_tasks.system.sources import source_digest

            digest = self._digest(path, PYTHON, source_digest)
            with suppress(OSError):
                changed_ns = os.stat(path).st_mtime_ns  # noqa: PTH116
                if self._opened_ns < changed_ns < now_ns() + _COARSE_SETTLED_NS:
                    digest = f"changed while it was loaded, at {changed_ns}"
            self._sources[path] = digest
        return self._sources[path]

    def _digest(self, path: str, kind: str, compute: Callable[[Path], str]) -> str | None:
        stamp = file_stamp(path)
        if stamp is None:
            return None
        known = self.known.get((path, kind), _UNKNOWN)
        if known[:4] == stamp:
            return known[4]
        try:
            digest = compute(Path(path))
        except OSError:
            return None
        if stamp == file_stamp(path) and _is_settled(stamp) and _can_keep(path, stamp):
            self.known[path, kind] = self.new[path, kind] = (*stamp, digest)
        return digest


def _can_keep(path: str, stamp: FileStamp) -> bool:
    """Whether SQLite can hold what is known of a file: its name may be no UTF-8, and its time may
    lie 300 years ahead."""
    is_text = path.isascii() or path == path.encode("utf-8", "replace").decode()
    return is_text and all(-(1 << 63) <= number < 1 << 63 for number in stamp)


def _is_settled(stamp: FileStamp) -> bool:
    """Whether a later change of the file would show in its modification time."""
    age = now_ns() - stamp[1]
    coarse = stamp[1] % 1_000_000_000 == 0
    # A file from the future, by a clock that is wrong, must not be read again for ever.
    return age < -_COARSE_SETTLED_NS or age > (_COARSE_SETTLED_NS if coarse else _SETTLED_NS)

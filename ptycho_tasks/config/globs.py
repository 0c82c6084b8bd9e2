"""Globs for files of a project, and the folders whose listing decides what they match."""

from __future__ import annotations

import fnmatch
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

_MADE = ("fixtures", "runs")
"""Folders of a project that hold what is made of its scans."""
_TEMPORARY = (".tmp", ".part", "~")


def is_glob(text: str) -> bool:
    """Whether a path has a character that stands for others."""
    return any(character in text for character in "*?[")


def expand_glob(root: Path, pattern: str) -> tuple[list[str], list[str]]:
    """Find the files that a glob matches.

    `*`, `?` and `[...]` stand for parts of a name, `**` for any folders, which it enters but
    through links. Left out are hidden and temporary files, and what the project makes.

    Args:
        root: the project's folder.
        pattern: relative to `root`, or absolute; `~` is expanded.

    Returns:
        the paths, sorted, each written as the glob is; and all folders, absolute, whose listing
        decides them, some of which may not be there.
    """
    *folders, last = os.path.expanduser(pattern).split("/")  # noqa: PTH111 (Path's may raise)
    parts = [*folders, "**", "*"] if last == "**" else [*folders, last]
    literal = next((i for i, part in enumerate(parts) if is_glob(part)), len(parts) - 1)
    walk = _Walk(root)
    paths = ["".join(f"{part}/" for part in parts[:literal])]
    for part in parts[literal:-1]:
        paths = [path for base in paths for path in walk.find_folders(base, part)]
    found = {path for base in paths for path in walk.find_files(base, parts[-1])}
    return sorted(found), list(walk.listed)


class _Walk:
    """Steps from folders to what lies in them. A folder is written with a `/` at its end; the
    project's own is the empty text."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.normpath(root)
        self.made = tuple(f"{self.root}/{name}/" for name in _MADE)
        self.listed: dict[str, None] = {}

    def find_folders(self, base: str, part: str) -> Iterator[str]:
        """The folders in `base` that a part of a glob matches; for `**` itself and all below."""
        if part == "**":
            yield base
            for entry in self._list(base):
                if entry.is_dir(follow_symlinks=False):
                    yield from self.find_folders(f"{base}{entry.name}/", part)
        elif not is_glob(part):
            yield f"{base}{part}/"
        else:
            matches = _compile(part)
            yield from (
                f"{base}{entry.name}/"
                for entry in self._list(base)
                if matches(entry.name) and entry.is_dir()
            )

    def find_files(self, base: str, part: str) -> Iterator[str]:
        """The files in `base` that the last part of a glob matches."""
        matches = _compile(part)
        for entry in self._list(base):
            if matches(entry.name) and not entry.name.endswith(_TEMPORARY) and not entry.is_dir():
                yield f"{base}{entry.name}"

    def _list(self, base: str) -> list[os.DirEntry[str]]:
        """What lies in a folder, but for what is hidden; nothing where it cannot be listed."""
        folder = os.path.normpath(os.path.join(self.root, base))  # noqa: PTH118 (thousands)
        if f"{folder}/".startswith(self.made):
            return []
        self.listed[folder] = None
        try:
            with os.scandir(folder) as entries:
                return [entry for entry in entries if not entry.name.startswith(".")]
        except (OSError, ValueError):  # ValueError: no folder can be called so
            return []


@functools.lru_cache
def _compile(part: str) -> Callable[[str], object]:
    return re.compile(fnmatch.translate(part)).match

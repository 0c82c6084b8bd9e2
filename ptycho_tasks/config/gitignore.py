"""The .gitignore of a project: what programs make again need not be committed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ptycho_tasks.layout import LIVE_PAGE, REPORT
from ptycho_tasks.system.files import find_file_problem
from ptycho_tasks.system.lock import STATE_DIR

GITIGNORE = ".gitignore"
OF_EVIDENCE = (f"/{STATE_DIR}/", "__pycache__/", ".pytest_cache/")
"""What gathering evidence leaves, besides the reports."""


LEDGER_LOCKS = ".*.md.lock"
"""Beside the ledger, wherever that lies."""


def list_generated(source: str = "") -> list[str]:
    """The patterns of what a project with stages makes.

    Args:
        source: the scan's path as the project writes it, which stays where it lies among fixtures.
    """
    kept = [f"!/{source}"] if source.startswith("fixtures/") else []
    pages = (f"/{REPORT}", f"/{LIVE_PAGE}")
    return [f"/{STATE_DIR}/", "/runs/", *pages, "/fixtures/*", *kept, "__pycache__/", LEDGER_LOCKS]


def extend_gitignore(root: Path, patterns: Iterable[str]) -> dict[Path, bytes]:
    """The .gitignore of a folder with the patterns that it lacks, by its path; nothing where it
    lacks none, or is no plain file. No line of it changes."""
    path = root / GITIGNORE
    old = b""
    if path.is_symlink() or path.exists():
        if path.is_symlink() or find_file_problem(path):
            return {}
        old = path.read_bytes()
    known = {line.strip().strip("/") for line in old.decode("utf-8", "replace").splitlines()}
    lacks = [pattern for pattern in patterns if pattern.strip("/") not in known]
    if not lacks:
        return {}
    end = "\r\n" if b"\r\n" in old else "\n"
    gap = "" if not old or old.endswith(b"\n") else end
    return {path: old + gap.encode() + "".join(f"{line}{end}" for line in lacks).encode()}

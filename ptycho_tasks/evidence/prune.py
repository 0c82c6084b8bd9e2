"""Old report folders that nothing points to."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ptycho_tasks.evidence.item import MANIFESTS, RUN_FOLDER, Evidence
from ptycho_tasks.evidence.journal import LOCK
from ptycho_tasks.evidence.summaries import BLOCKER, PLAN_UPDATES, SUMMARY
from ptycho_tasks.system.files import report_write_errors
from ptycho_tasks.system.lock import hold_lock

_OURS = re.compile(rf"[^/]+/(?:[^/]+_(?:green|red)\.log|{PLAN_UPDATES}|{SUMMARY}|{BLOCKER})")
"""What a report folder holds; in one that holds more, someone keeps files of their own."""
_PLAN_OR_LEDGER = re.compile(r"^(?:Plan|Ledger): `(.*)`$", re.MULTILINE)


def list_old_reports(evidence: Evidence, keep: int) -> list[Path]:
    """Report folders, oldest first, besides the newest `keep`, that no plan, ledger or manifest
    points to, and in which nobody keeps files of their own.

    Plans and ledgers are those of the project, and those that any report names.

    Args:
        evidence: the project's.
        keep: how many of the newest stay in any case.
    """
    # A link may lead to a folder that another project uses.
    folders = sorted(
        path
        for path in _list_folder(evidence.reports_dir)
        if RUN_FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )
    old = folders[: max(0, len(folders) - keep)]
    texts = "\n".join(_read_text(path) for path in _list_pointing_files(evidence))
    return [folder for folder in old if folder.name not in texts and _is_ours(folder)]


def remove_reports(evidence: Evidence, folders: list[Path]) -> None:
    """Remove report folders.

    Args:
        evidence: the project's.
        folders: of `list_old_reports`.

    Raises:
        FileWriteError: one cannot be removed.
    """
    with hold_lock(evidence.root / LOCK):
        for folder in folders:
            with report_write_errors(folder):
                shutil.rmtree(folder)


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds only files that a run writes."""
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()]
    return all(map(_OURS.fullmatch, names))


def _list_pointing_files(evidence: Evidence) -> Iterator[Path]:
    """The files that may point to a report."""
    yield evidence.plan_file
    yield evidence.ledger_file
    yield from (evidence.reports_dir / MANIFESTS).glob("*.json")
    others = {
        name
        for path in evidence.reports_dir.glob(f"*/*/{SUMMARY}")
        for name in _PLAN_OR_LEDGER.findall(_read_text(path))
    }
    yield from (evidence.root / name for name in sorted(others))


def _list_folder(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _read_text(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.is_file() else ""

"""Old report folders. Of one that the ledger points to, the summary stays, with each sha256."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ptycho_tasks.evidence.item import MANIFESTS, RUN_FOLDER, Evidence
from ptycho_tasks.evidence.journal import LOCK
from ptycho_tasks.evidence.summaries import BLOCKER, PLAN_UPDATES, SUMMARY
from ptycho_tasks.system.files import report_write_errors
from ptycho_tasks.system.lock import hold_lock

PRUNED = "pruned.txt"
"""Names the logs that were removed from a report folder."""
_OURS = re.compile(
    rf"[^/]+/(?:[^/]+_(?:green|red)\.log|{PLAN_UPDATES}|{SUMMARY}|{BLOCKER}|{PRUNED})"
)
"""What a report folder holds; in one that holds more, someone keeps files of their own."""
_OUTCOME = re.compile(r"_(?:green|red)\.log$")
_PLAN = re.compile(r"^Plan: `(.*)`$", re.MULTILINE)
_LEDGER = re.compile(r"^Ledger: `(.*)`$", re.MULTILINE)


def list_old_reports(evidence: Evidence, keep: int) -> list[Path]:
    """Report folders, oldest first, that no plan or manifest points to, in which nobody keeps files
    of their own, and whose items all have `keep` newer reports.

    Plans are those of the project, and those that any report names.

    Args:
        evidence: the project's.
        keep: how many of the newest reports of each item stay in any case.
    """
    # A link may lead to a folder that another project uses.
    folders = sorted(
        path
        for path in _list_folder(evidence.reports_dir)
        if RUN_FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )
    texts = "\n".join(_read_text(path) for path in _list_pointing_files(evidence))
    count: Counter[str] = Counter()
    old: list[Path] = []
    for folder in reversed(folders):
        items = {_OUTCOME.sub("", path.name) for path in folder.glob("*/*.log")} - {BLOCKER}
        is_old = all(count[item] >= keep for item in items)
        count.update(items)
        is_pruned = any(folder.glob(f"*/{PRUNED}"))
        if is_old and not is_pruned and folder.name not in texts and _is_ours(folder):
            old.insert(0, folder)
    return old


def is_in_ledger(evidence: Evidence, folder: Path) -> bool:
    """Whether an entry of a ledger points to a report folder, whose summary then stays."""
    ledgers = (path for path in _list_named(evidence, _LEDGER) if path.is_file())
    return any(folder.name in _read_text(path) for path in (evidence.ledger_file, *ledgers))


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
                if is_in_ledger(evidence, folder):
                    _remove_logs(folder)
                else:
                    shutil.rmtree(folder)


def _remove_logs(folder: Path) -> None:
    """Remove the logs of a report, and note which."""
    for phase in {path.parent for path in folder.glob("*/*.log")}:
        logs = sorted(phase.glob("*.log"))
        # The note first: a log that is missing without one is damage.
        (phase / PRUNED).write_text("".join(f"{log.name}\n" for log in logs), "utf-8")
        for log in logs:
            log.unlink()


def was_pruned(log: Path) -> bool:
    """Whether a log was removed by us, and is no damage."""
    return not log.exists() and log.name in _read_text(log.with_name(PRUNED)).splitlines()


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds only files that a run writes."""
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()]
    return all(map(_OURS.fullmatch, names))


def _list_pointing_files(evidence: Evidence) -> Iterator[Path]:
    """The files that may point to a report."""
    yield evidence.plan_file
    yield from (evidence.reports_dir / MANIFESTS).glob("*.json")
    yield from _list_named(evidence, _PLAN)


def _list_named(evidence: Evidence, pattern: re.Pattern[str]) -> Iterator[Path]:
    """The files that reports name, as their plan or their ledger."""
    summaries = evidence.reports_dir.glob(f"*/*/{SUMMARY}")
    names = {name for path in summaries for name in pattern.findall(_read_text(path))}
    yield from (evidence.root / name for name in sorted(names))


def _list_folder(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _read_text(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.is_file() else ""

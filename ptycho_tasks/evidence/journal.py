"""Plan, ledger and reports appear together or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from ptycho_tasks.errors import FileWriteError, PtychoTasksError
from ptycho_tasks.evidence.backup import forget
from ptycho_tasks.evidence.documents import (
    _as_the_ledger_says,
    _note_plan,
    _refuse_changed_plan,
    read_ledger,
    read_plan,
)
from ptycho_tasks.evidence.item import PENDING, STAMPED, Evidence
from ptycho_tasks.evidence.ledger import appended, holds, lock_of
from ptycho_tasks.evidence.plan import STATES, Change
from ptycho_tasks.evidence.records import read_record
from ptycho_tasks.options import ID_PATTERN
from ptycho_tasks.system.clock import FOLDER_STAMP, Clock
from ptycho_tasks.system.files import real, remove_leftovers, staged_together, write_atomic, writing
from ptycho_tasks.system.lock import waited_for

JOURNAL = f"{PENDING}/journal"

LOCK = f"{PENDING}/lock"
"""Held while something is published."""


# ---------------------------------------------------------------------------------------------
# All together or not at all


@contextmanager
def _new_folder(evidence: Evidence, clock: Clock) -> Iterator[tuple[Path, Path]]:
    """A folder to fill, and the new one of this second, or the next that is free, whose place it
    will take. Neither is there after an error, unless the publication was decided.

    One that the ledger names is not free even where someone removed it: by its name an entry is
    known to be there.
    """
    reports = real(evidence.reports_dir)
    work = _staged(evidence)
    ledger = read_ledger(evidence)
    now = clock.now()
    with writing(reports):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        while True:
            folder = reports / now.strftime(FOLDER_STAMP)
            named = _as_the_ledger_says(evidence, evidence.reports_dir / folder.name)
            if f"`{named}/".encode() not in ledger:
                with suppress(FileExistsError):
                    folder.mkdir()
                    break
            now += timedelta(seconds=1)
    try:
        with writing(work):
            yield work, evidence.reports_dir / folder.name
    except BaseException:
        if not (evidence.root / JOURNAL).exists():
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):
                folder.rmdir()
        raise


def _staged(evidence: Evidence) -> Path:
    project = hashlib.sha256(str(real(evidence.root)).encode()).hexdigest()[:8]
    return real(evidence.reports_dir) / f".{project}.tmp"


def complete(evidence: Evidence) -> None:
    """Complete a publication that was decided when its run was killed; the publication's lock is
    held.

    Raises:
        PlanError: the plan does not have the rows any more.
        FileWriteError: a file cannot be written.
    """
    journal = read_record(evidence.root / JOURNAL)
    if journal is None or not _is_journal(evidence, journal):
        return
    with waited_for(lock_of(evidence.ledger_file)):
        _commit(evidence, journal, decided=True)


def _is_journal(evidence: Evidence, journal: Mapping[str, Any]) -> bool:
    """Whether a journal is of this project; what is none of it decides nothing."""
    try:
        folder = Path(journal["folder"])
        return (
            journal["staged"] == str(_staged(evidence))
            and folder.parent == evidence.reports_dir
            and STAMPED.fullmatch(folder.name) is not None
            and _are_texts(journal["title"], *journal["lines"], journal["lines"][-1])
            and _are_texts(*journal["manifests"].values())
            and all(re.fullmatch(ID_PATTERN, id) for id in journal["manifests"])
            and all(_is_change(*change) for change in journal["changes"].values())
            and {*journal["pending"]} <= {item.name for item in evidence.items}
        )
    except (LookupError, TypeError, AttributeError, ValueError):
        return False


def _are_texts(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_change(state: Any, text: Any) -> bool:
    return state in STATES and (text is None or (isinstance(text, str) and "\n" not in text))


def _commit(evidence: Evidence, journal: Mapping[str, Any], *, decided: bool) -> None:
    plan = read_plan(evidence)
    ledger = read_ledger(evidence)
    changes = {id: Change(*change) for id, change in journal["changes"].items()}
    contents = {evidence.plan_file: plan.changed(changes)}
    new_plan = contents[evidence.plan_file]
    if not holds(ledger, journal["lines"][-1]):
        contents[evidence.ledger_file] = appended(ledger, journal["title"], journal["lines"])
    for id, text in journal["manifests"].items():
        contents[evidence.manifest_file(id)] = text.encode()
    # Whoever else writes to these holds the same locks.
    with writing(evidence.reports_dir):
        remove_leftovers([*contents, evidence.ledger_file, evidence.root / JOURNAL])
    with staged_together(contents) as place:
        if not decided:
            # Who wrote to the plan while this was staged wins too.
            _refuse_changed_plan(evidence, read_plan(evidence).content)
            write_atomic(evidence.root / JOURNAL, json.dumps(journal).encode())
        _place_all(evidence, journal, place, decided=decided)
        with _tidying():
            _note_plan(evidence, new_plan)
            for name in journal["pending"]:
                for ending in ("json", "log"):
                    forget(evidence.root / PENDING / f"{name}.{ending}")
            (evidence.root / JOURNAL).unlink(missing_ok=True)


def _place_all(
    evidence: Evidence, journal: Mapping[str, Any], place: Callable[[], None], *, decided: bool
) -> None:
    """Put the report and all files in place; where one cannot be, none is, and what was decided
    just now is taken back."""
    work, folder = Path(journal["staged"]), Path(journal["folder"])
    moved = work.exists()
    try:
        if moved:
            with writing(folder):
                work.replace(folder)
        place()
    except FileWriteError:
        if moved and not work.exists():
            folder.rename(work)
        if not decided:
            (evidence.root / JOURNAL).unlink(missing_ok=True)
        raise


@contextmanager
def _tidying() -> Iterator[None]:
    try:
        yield
    except (OSError, FileWriteError) as error:
        raise PtychoTasksError(
            f"the evidence is published, but not noted as such: {error}; allow writing there and "
            "run again, which completes it"
        ) from error

"""The journal of a publication: plan, ledger and reports change together or not at all.

All that will change is staged beside its place. Then the journal is written, which says what the
change is, not what the files become. From there on the publication is decided: a run that follows
a kill completes it, also on a plan or ledger that someone else has changed meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import msgspec

from ptycho_tasks.errors import FileWriteError, PtychoTasksError
from ptycho_tasks.evidence.backup import delete
from ptycho_tasks.evidence.documents import (
    read_ledger,
    read_plan,
    refuse_changed_plan,
    remember_plan,
    spell_in_ledger,
)
from ptycho_tasks.evidence.item import OUTBOX, RUN_FOLDER, Evidence
from ptycho_tasks.evidence.ledger import append_attempt, has_line, lock_file
from ptycho_tasks.evidence.plan import STATES, Change
from ptycho_tasks.evidence.records import read_json
from ptycho_tasks.options import ID_PATTERN
from ptycho_tasks.system.clock import FOLDER_STAMP, Clock
from ptycho_tasks.system.files import (
    real_path,
    remove_leftovers,
    report_write_errors,
    stage_files,
    write_atomic,
)
from ptycho_tasks.system.lock import hold_lock

JOURNAL = f"{OUTBOX}/journal"
LOCK = f"{OUTBOX}/lock"
"""Held while something is published."""

_RowId = Annotated[str, msgspec.Meta(pattern=rf"^(?:{ID_PATTERN})\Z")]
_Subject = Annotated[str, msgspec.Meta(pattern=rf"^_?(?:{ID_PATTERN})\Z")]


class Journal(msgspec.Struct, frozen=True):
    """What a publication changes."""

    staged: str
    """The folder that the report was written into."""
    folder: str
    """The report folder whose place that one takes."""
    manifests: dict[_Subject, str]
    """The new content, by `Item.subjects`."""
    changes: dict[_RowId, tuple[str, str | None]]
    """Of the plan, by row: the fields of `plan.Change`."""
    title: str
    """Of the ledger's entry."""
    lines: Annotated[list[str], msgspec.Meta(min_length=1)]
    """Likewise; the last one is in no other entry."""
    pending: list[str]
    """The items whose results are published with it."""


# ---------------------------------------------------------------------------------------------
# A report folder


@contextmanager
def new_report_folder(evidence: Evidence, clock: Clock) -> Iterator[tuple[Path, Path]]:
    """A folder to fill, and the new report folder of this second, or of the next that is free,
    which it will become. After an error neither is there, unless the publication was decided.

    Nothing visible is made before. A name that the ledger has is not free even where someone
    removed the folder: by its name an entry is known to be there.
    """
    reports = real_path(evidence.reports_dir)
    work = _staging_folder(evidence)
    with report_write_errors(reports):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    try:
        # Projects may share the folder of their reports.
        with hold_lock(reports), report_write_errors(work):
            yield work, evidence.reports_dir / _find_free_name(evidence, clock)
    except BaseException:
        if not (evidence.root / JOURNAL).exists():
            shutil.rmtree(work, ignore_errors=True)
        raise


def _find_free_name(evidence: Evidence, clock: Clock) -> str:
    ledger = read_ledger(evidence)
    now = clock.now()
    while True:
        folder = evidence.reports_dir / now.strftime(FOLDER_STAMP)
        is_in_ledger = f"`{spell_in_ledger(evidence, folder)}/".encode() in ledger
        if not (is_in_ledger or os.path.lexists(folder)):
            return folder.name
        now += timedelta(seconds=1)


def _staging_folder(evidence: Evidence) -> Path:
    project = hashlib.sha256(str(real_path(evidence.root)).encode()).hexdigest()[:8]
    return real_path(evidence.reports_dir) / f".{project}.tmp"


# ---------------------------------------------------------------------------------------------
# All together or not at all


def commit(evidence: Evidence, journal: Journal) -> None:
    """Publish what is staged; the locks of the publication and of the ledger are held.

    Raises:
        PtychoTasksError: the plan changed meanwhile; nothing was published.
        FileWriteError: a file cannot be written; nothing was published, or the next run completes.
    """
    _commit(evidence, journal, is_decided=False)


def complete_publication(evidence: Evidence) -> None:
    """Complete a publication that was decided when its run was killed; the publication's lock is
    held.

    Raises:
        PlanError: the plan does not have the rows any more.
        FileWriteError: a file cannot be written.
    """
    journal = _read_journal(evidence)
    if journal is not None:
        with hold_lock(lock_file(evidence.ledger_file)):
            _commit(evidence, journal, is_decided=True)


def _read_journal(evidence: Evidence) -> Journal | None:
    """The journal of this project; None where there is none: any other file decides nothing."""
    try:
        journal = msgspec.convert(read_json(evidence.root / JOURNAL), Journal)
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError):
        return None
    folder = Path(journal.folder)
    is_ours = (
        journal.staged == str(_staging_folder(evidence))
        and folder.parent == evidence.reports_dir
        and RUN_FOLDER.fullmatch(folder.name) is not None
        and all(state in STATES for state, _ in journal.changes.values())
        and all("\n" not in (note or "") for _, note in journal.changes.values())
        and {*journal.pending} <= {item.name for item in evidence.items}
    )
    return journal if is_ours else None


def _commit(evidence: Evidence, journal: Journal, *, is_decided: bool) -> None:
    contents = _make_contents(evidence, journal)
    new_plan = contents[evidence.plan_file]
    # Whoever else writes to these holds the same locks.
    with report_write_errors(evidence.reports_dir):
        remove_leftovers([*contents, evidence.ledger_file, evidence.root / JOURNAL])
    with stage_files(contents) as place:
        if not is_decided:
            # Who wrote to the plan while this was staged wins too.
            refuse_changed_plan(evidence, read_plan(evidence).content)
            text = json.dumps(msgspec.to_builtins(journal))
            write_atomic(evidence.root / JOURNAL, text.encode())
        _place_all(evidence, journal, place, is_decided=is_decided)
        with _explain_leftovers():
            remember_plan(evidence, new_plan)
            for name in journal.pending:
                for ending in ("json", "log"):
                    delete(evidence.root / OUTBOX / f"{name}.{ending}")
            (evidence.root / JOURNAL).unlink(missing_ok=True)


def _make_contents(evidence: Evidence, journal: Journal) -> dict[Path, bytes]:
    """What plan, ledger and manifests become; from what they are now, so that no change by someone
    else is lost."""
    changes = {id: Change(*change) for id, change in journal.changes.items()}
    contents = {evidence.plan_file: read_plan(evidence).apply(changes)}
    ledger = read_ledger(evidence)
    if not has_line(ledger, journal.lines[-1]):
        contents[evidence.ledger_file] = append_attempt(
            ledger, journal.title, journal.lines, evidence.initiative
        )
    for id, text in journal.manifests.items():
        contents[evidence.manifest_file(id)] = text.encode()
    return contents


def _place_all(
    evidence: Evidence, journal: Journal, place: Callable[[], None], *, is_decided: bool
) -> None:
    """Put the report and all files in place. Where one cannot be, none is, and what was decided
    just now is taken back."""
    work, folder = Path(journal.staged), Path(journal.folder)
    has_report = work.exists()
    try:
        if has_report:
            with report_write_errors(folder):
                work.replace(folder)
        place()
    except FileWriteError:
        if has_report and not work.exists():
            folder.rename(work)
        if not is_decided:
            (evidence.root / JOURNAL).unlink(missing_ok=True)
        raise


@contextmanager
def _explain_leftovers() -> Iterator[None]:
    """Say of an error in the block that all is published, and how what is left is tidied up."""
    try:
        yield
    except (OSError, FileWriteError) as error:
        raise PtychoTasksError(
            f"the evidence is published, but not noted as such: {error}; allow writing there and "
            "run again, which completes it"
        ) from error

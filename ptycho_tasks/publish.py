"""Publish what was proved: report, manifests, plan and ledger, all together or not at all.

All that will change is staged beside its place. Then a journal is written, which says what the
change is, not what the files become: from there on the publication is decided, and a run that
follows a kill completes it, also on a plan or ledger that someone else has changed meanwhile.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from ptycho_tasks.clock import FOLDER_STAMP, SYSTEM, Clock
from ptycho_tasks.errors import FileWriteError, PlanError, PtychoTasksError
from ptycho_tasks.evidence import (
    GREEN,
    PENDING,
    RED,
    STAMPED,
    Digest,
    Evidence,
    Item,
    Outputs,
    Record,
    latest,
    pending,
    read_record,
    reasons_of,
    records_of,
)
from ptycho_tasks.files import (
    not_a_file,
    real,
    remove_leftovers,
    staged_together,
    write_atomic,
    writing,
)
from ptycho_tasks.keep import begin_keeping, forget, keep_files
from ptycho_tasks.ledger import appended, holds, lock_of
from ptycho_tasks.lock import waited_for
from ptycho_tasks.plan import DONE, ID_PATTERN, STATES, Change, Plan, note
from ptycho_tasks.prove import end_of_output
from ptycho_tasks.report import (
    BLOCKER,
    PLAN_UPDATES,
    SUMMARY,
    Evaluated,
    RowUpdate,
    attempt,
    blocker,
    manifest,
    one_line,
    outcome_of,
    plan_updates,
    state_of,
    summary,
)
from ptycho_tasks.state import spelled

JOURNAL = f"{PENDING}/journal"
LOCK = f"{PENDING}/lock"
"""Held while something is published."""
_SEEN = f"{PENDING}/plan"
"""Says what the plan was when the run began."""


class Published(NamedTuple):
    """What was published."""

    folder: Path
    updates: list[RowUpdate]


def read_plan(evidence: Evidence) -> Plan:
    """The plan as it is now.

    Raises:
        PlanError: it cannot be read.
    """
    return _plan(_content(evidence, "plan", evidence.plan_file), evidence.plan)


# It is asked for several times a run, and may be long.
_plan = functools.lru_cache(maxsize=1)(Plan)


def read_ledger(evidence: Evidence) -> bytes:
    """The ledger as it is now.

    Raises:
        PlanError: it cannot be read.
    """
    return _content(evidence, "ledger", evidence.ledger_file)


def _content(evidence: Evidence, key: str, path: Path) -> bytes:
    where = f"{evidence.file}: {key}: {getattr(evidence, key)}"
    unfit = not_a_file(path)
    if unfit:
        raise PlanError(f"{where}: {unfit}; expected a Markdown file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise PlanError(f"{where}: {error.strerror or error}; correct the path") from error


def begin(evidence: Evidence) -> None:
    """Note what the plan is when a run begins; completes what a killed run left half published.

    Raises:
        PlanError: the plan or the ledger cannot be read.
        FileWriteError: the note cannot be written.
    """
    with waited_for(evidence.root / LOCK):
        complete(evidence)
        _note_plan(evidence, read_plan(evidence).content)
        begin_keeping(evidence.root / PENDING)


def _note_plan(evidence: Evidence, content: bytes) -> None:
    with writing(evidence.root / _SEEN):
        remove_leftovers([evidence.root / _SEEN])
    write_atomic(evidence.root / _SEEN, json.dumps(_told(evidence, content)).encode())
    keep_files([evidence.root / _SEEN])


def _told(evidence: Evidence, content: bytes) -> dict[str, str]:
    """What tells a plan from any other."""
    return {"plan": evidence.plan, "sha256": hashlib.sha256(content).hexdigest()}


def _refuse_changed_plan(evidence: Evidence, content: bytes) -> None:
    if read_record(evidence.root / _SEEN) != _told(evidence, content):
        raise PtychoTasksError(
            f"{evidence.plan}: was changed while the items ran; it and {evidence.ledger} are as "
            "they were, and the results are kept: run again to publish them"
        )


def publish(
    evidence: Evidence,
    items: Sequence[Item],
    digest: Digest,
    outputs: Outputs,
    clock: Clock = SYSTEM,
) -> Published | None:
    """Publish what some items have pending, and what `unsaid` gives; None where that is nothing.

    Args:
        evidence: the project's.
        items: those to publish.
        digest: tells the content of files.
        outputs: gives the files that a stage makes.
        clock: tells the time.

    Raises:
        PtychoTasksError: a result rests on a mistake in the configuration, or the plan changed
            while the items ran; nothing was changed.
        PlanError: a row is not there, or has no state; nothing was changed.
        FileWriteError: a file cannot be written; nothing was changed, or the next run completes.
    """
    with waited_for(evidence.root / LOCK):
        complete(evidence)
        results = {item: found for item in items if (found := pending(evidence, item))}
        _refuse_mistakes(results)
        rows = {id for item in results for id in item.ids}
        rows.update(unsaid(evidence, items, digest, outputs))
        if not rows:
            return None
        with waited_for(lock_of(evidence.ledger_file)):
            plan = read_plan(evidence)
            _refuse_changed_plan(evidence, plan.content)
            ids = sorted(rows, key=lambda id: plan.row(id).line)
            return _published(evidence, plan, ids, results, digest, outputs, clock)


def unsaid(
    evidence: Evidence, items: Iterable[Item], digest: Digest, outputs: Outputs
) -> Iterator[str]:
    """Rows that are proved, though plan or manifest say otherwise, as after someone reopened them.

    Args:
        evidence: the project's.
        items: only rows that need no others, and whose results are published, are looked at.
        digest: tells the content of files.
        outputs: gives the files that a stage makes.

    Raises:
        PlanError: the plan cannot be read, or a row is not there, or has no state.
    """
    plan = read_plan(evidence)
    given = {item for item in items if pending(evidence, item) is None}
    for id in dict.fromkeys(id for item in evidence.items for id in item.ids):
        needed, state = evidence.items_of(id), plan.row(id).state or ""
        said = records_of(evidence, id)
        is_said = state == DONE and all(latest(evidence, item) in said for item in needed)
        if is_said or not given.issuperset(needed):
            continue
        parts = [evaluate(evidence, item, digest, outputs) for item in needed]
        after, _ = state_of(parts, state, by_hand=id in evidence.by_hand)
        is_said = after == state and all(part.record in said for part in parts)
        if outcome_of(parts) == GREEN and not is_said:
            yield id


def _refuse_mistakes(results: Mapping[Item, Record]) -> None:
    wrong = [(item, record["mistake"]) for item, record in results.items() if record["mistake"]]
    if wrong:
        said = "; ".join(
            f"{', '.join(item.ids)}: `{' '.join(item.command.split())}` {text}"
            for item, text in wrong
        )
        raise PtychoTasksError(
            f"{said}; correct the command and run again: plan and ledger are as they were, other "
            "results are kept until then"
        )


def _published(
    evidence: Evidence,
    plan: Plan,
    ids: Sequence[str],
    results: Mapping[Item, Record],
    digest: Digest,
    outputs: Outputs,
    clock: Clock,
) -> Published:
    time = clock.stamp()
    # A green result that is stale already, as after an edit meanwhile, proves nothing now.
    evaluated = {
        id: [evaluate(evidence, item, digest, outputs) for item in evidence.items_of(id)]
        for id in ids
    }
    with _new_folder(evidence, clock) as (work, folder):
        inside = work / evidence.phase
        inside.mkdir()
        moved: dict[str, Record] = {}
        for item, record in results.items():
            log = folder / evidence.phase / f"{item.name}_{record['outcome']}.log"
            shutil.copyfile(evidence.pending_log(item), inside / log.name)
            moved[item.name] = {**record, "log": spelled(evidence.root, log)}
        parts = {
            id: [part._replace(record=moved.get(part.item.name, part.record)) for part in found]
            for id, found in evaluated.items()
        }
        updates = [_update(evidence, plan, id, parts[id], time) for id in ids]
        _write_report(evidence, inside, moved, updates, time)
        title, lines = _attempt(evidence, moved, parts, folder / evidence.phase, time)
        journal = {
            "staged": str(work),
            "folder": str(folder),
            "manifests": {id: manifest(evidence, id, parts[id], time) for id in ids},
            "changes": {update.id: [update.after, update.note] for update in updates},
            "title": title,
            "lines": lines,
            "pending": [item.name for item in results],
        }
        _commit(evidence, journal, decided=False)
    return Published(folder / evidence.phase, updates)


def _attempt(
    evidence: Evidence,
    results: Mapping[str, Record],
    parts: Mapping[str, Sequence[Evaluated]],
    folder: Path,
    time: str,
) -> tuple[str, list[str]]:
    """Title and lines of the ledger's entry, with paths as the ledger says them."""

    def shown(log: str) -> str:
        return _as_the_ledger_says(evidence, evidence.root / log)

    still = {
        id: [shown(log) for log in _logs(found)]
        for id, found in parts.items()
        if not any(part.item.name in results for part in found)
    }
    places = {name: shown(record["log"]) for name, record in results.items()}
    places[""] = _as_the_ledger_says(evidence, folder)
    return attempt(evidence, results, still, places, time)


def _logs(parts: Sequence[Evaluated]) -> list[str]:
    return [part.record["log"] for part in parts if part.record is not None]


def _write_report(
    evidence: Evidence,
    folder: Path,
    results: Mapping[str, Record],
    updates: Sequence[RowUpdate],
    time: str,
) -> None:
    """Write what a report folder, in which the logs lie already, says besides."""
    (folder / SUMMARY).write_text(summary(evidence, results, time), "utf-8")
    (folder / PLAN_UPDATES).write_text(plan_updates(evidence, updates, time), "utf-8")
    red = {name: record for name, record in results.items() if record["outcome"] == RED}
    if red:
        outputs = {n: end_of_output(folder / Path(r["log"]).name) for n, r in red.items()}
        (folder / BLOCKER).write_text(blocker(red, outputs))


def evaluate(evidence: Evidence, item: Item, digest: Digest, outputs: Outputs) -> Evaluated:
    """What is known of an item, and whether it still holds."""
    record = latest(evidence, item)
    stale = ""
    if record is not None and record.get("outcome") == GREEN:
        reasons = reasons_of(evidence, item, record, digest, outputs)
        stale = next((reason.text for reason in reasons), "")
    return Evaluated(item, record, stale)


def _update(
    evidence: Evidence, plan: Plan, id: str, parts: Sequence[Evaluated], time: str
) -> RowUpdate:
    row = plan.row(id)
    assert row.state is not None
    after, reason = state_of(parts, row.state, by_hand=id in evidence.by_hand)
    records = [part.record for part in parts if part.record is not None]
    red = [record for record in records if record["outcome"] == RED]
    pointers = ", ".join(record["log"] for record in red or records)
    text = one_line(red[0]["problem"] if red else "" if after == "x" else reason)
    pointer = f"{pointers}; {text}" if text else pointers
    return RowUpdate(id, row.state, after, note(time, RED if red else GREEN, pointer), reason)


def _as_the_ledger_says(evidence: Evidence, path: Path) -> str:
    """Relative to the project; to a ledger outside it, relative to that, so that two projects
    cannot mean the same."""
    if evidence.ledger_file.is_relative_to(real(evidence.root)):
        return spelled(evidence.root, path)
    return os.path.relpath(real(path), evidence.ledger_file.parent)


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

"""Publish what was proved: report, manifests, plan and ledger, all together or not at all.

All that will change is staged beside its place. Then a journal is written, which says what the
change is, not what the files become: from there on the publication is decided, and a run that
follows a kill completes it, also on a plan or ledger that someone else has changed meanwhile.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.evidence.backup import begin_keeping
from ptycho_tasks.evidence.documents import (
    _as_the_ledger_says,
    _note_plan,
    _refuse_changed_plan,
    read_plan,
)
from ptycho_tasks.evidence.inputs import Digest, Outputs
from ptycho_tasks.evidence.item import GREEN, PENDING, RED, Evidence, Item
from ptycho_tasks.evidence.journal import LOCK, _commit, _new_folder, complete
from ptycho_tasks.evidence.ledger import lock_of
from ptycho_tasks.evidence.log import end_of_output
from ptycho_tasks.evidence.plan import DONE, Plan, note
from ptycho_tasks.evidence.records import Record, latest, pending, reasons_of, records_of
from ptycho_tasks.evidence.summaries import (
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
from ptycho_tasks.layout import spelled
from ptycho_tasks.system.clock import SYSTEM, Clock
from ptycho_tasks.system.lock import waited_for


class Published(NamedTuple):
    """What was published."""

    folder: Path
    updates: list[RowUpdate]


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

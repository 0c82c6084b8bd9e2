"""Publish what was proved: report, manifests, plan and ledger."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.evidence.backup import start_backup
from ptycho_tasks.evidence.documents import (
    read_plan,
    refuse_changed_plan,
    remember_plan,
    spell_in_ledger,
)
from ptycho_tasks.evidence.evaluation import (
    ItemStatus,
    RowUpdate,
    decide_outcome,
    decide_state,
    evaluate_item,
    roll_up,
)
from ptycho_tasks.evidence.inputs import ProjectFiles
from ptycho_tasks.evidence.item import GREEN, OUTBOX, RED, Evidence, Item
from ptycho_tasks.evidence.journal import (
    LOCK,
    Journal,
    commit,
    complete_publication,
    new_report_folder,
)
from ptycho_tasks.evidence.ledger import lock_file
from ptycho_tasks.evidence.log import read_end_of_output
from ptycho_tasks.evidence.plan import DONE, Plan, format_note
from ptycho_tasks.evidence.records import Record, find_record, find_unpublished, read_records
from ptycho_tasks.evidence.summaries import (
    BLOCKER,
    PLAN_UPDATES,
    SUMMARY,
    format_attempt,
    format_blocker,
    format_manifest,
    format_plan_updates,
    format_summary,
    shorten,
)
from ptycho_tasks.layout import project_path
from ptycho_tasks.system.clock import SYSTEM_CLOCK, Clock
from ptycho_tasks.system.lock import hold_lock


class Publication(NamedTuple):
    """What was published."""

    folder: Path
    """Of the report."""
    updates: list[RowUpdate]


def begin_evidence(evidence: Evidence) -> None:
    """Begin a run: complete what a killed one left half published, and remember the plan.

    Raises:
        PlanError: the plan or the ledger cannot be read.
        FileWriteError: the note cannot be written.
    """
    with hold_lock(evidence.root / LOCK):
        complete_publication(evidence)
        remember_plan(evidence, read_plan(evidence).content)
        start_backup(evidence.root / OUTBOX)


def publish(
    evidence: Evidence, items: Sequence[Item], files: ProjectFiles, clock: Clock = SYSTEM_CLOCK
) -> Publication | None:
    """Publish the results of some items that are not published yet, and mark the rows of
    `find_unmarked_rows`; None where there is nothing to do.

    Args:
        evidence: the project's.
        items: those to publish.
        files: where the items' inputs are looked up.
        clock: tells the time.

    Raises:
        PtychoTasksError: a result rests on a mistake in the configuration, or the plan changed
            while the items ran; nothing was changed.
        PlanError: a row is not there, or has no state; nothing was changed.
        FileWriteError: a file cannot be written; nothing was changed, or the next run completes.
    """
    with hold_lock(evidence.root / LOCK):
        complete_publication(evidence)
        results = {item: record for item in items if (record := find_unpublished(evidence, item))}
        _refuse_mistakes(results)
        if results:  # before a row is looked for that the change may have removed
            refuse_changed_plan(evidence, read_plan(evidence).content)
        rows = {id for item in results for id in item.ids}
        rows.update(find_unmarked_rows(evidence, items, files))
        if not (rows or results):
            return None
        with hold_lock(lock_file(evidence.ledger_file)):
            plan = read_plan(evidence)
            refuse_changed_plan(evidence, plan.content)
            ids = sorted(rows, key=lambda id: plan.row(id).line)
            # A green result that is stale already, as after an edit meanwhile, proves nothing now.
            statuses = {
                id: [evaluate_item(evidence, item, files) for item in evidence.items_for(id)]
                for id in ids
            }
            for item in results:
                if not item.ids:
                    statuses[item.subjects[0]] = [evaluate_item(evidence, item, files)]
            return _publish_rows(evidence, plan, statuses, results, clock)


def find_unmarked_rows(
    evidence: Evidence, items: Iterable[Item], files: ProjectFiles
) -> Iterator[str]:
    """Rows that are proved, though plan or manifest say otherwise, as after someone reopened them.

    Args:
        evidence: the project's.
        items: only rows that need no others, and whose results are published, are looked at.
        files: where the items' inputs are looked up.

    Raises:
        PlanError: the plan cannot be read, or a row is not there, or has no state.
    """
    plan = read_plan(evidence)
    candidates = {item for item in items if find_unpublished(evidence, item) is None}
    for id in dict.fromkeys(id for item in evidence.items for id in item.ids):
        needed, state = evidence.items_for(id), plan.row(id).state or ""
        records = read_records(evidence, id)
        # Comparing records is cheap, and reading all inputs is not.
        is_marked = state == DONE and all(find_record(evidence, item) in records for item in needed)
        if is_marked or not candidates.issuperset(needed):
            continue
        statuses = [evaluate_item(evidence, item, files) for item in needed]
        after, _ = decide_state(statuses, state, by_hand=id in evidence.by_hand)
        is_marked = after == state and all(status.record in records for status in statuses)
        if decide_outcome(statuses) == GREEN and not is_marked:
            yield id


def _refuse_mistakes(results: Mapping[Item, Record]) -> None:
    texts = [
        f"{item.label}: `{' '.join(item.command.split())}` {record.mistake}"
        for item, record in results.items()
        if record.mistake
    ]
    if texts:
        raise PtychoTasksError(
            f"{'; '.join(texts)}; correct the command and run again: plan and ledger are as they "
            "were, other results are kept until then"
        )


def _publish_rows(
    evidence: Evidence,
    plan: Plan,
    statuses: Mapping[str, Sequence[ItemStatus]],
    results: Mapping[Item, Record],
    clock: Clock,
) -> Publication:
    """Publish some rows.

    Args:
        evidence: the project's.
        plan: as it is now.
        statuses: of the items that each row needs, in the order of the plan.
        results: what is to be published.
        clock: tells the time.
    """
    time = clock.stamp()
    with new_report_folder(evidence, clock) as (work, folder):
        report = folder / evidence.phase
        (work / evidence.phase).mkdir()
        moved = _copy_logs(evidence, results, work / evidence.phase, report)
        statuses = {
            id: [status._replace(record=moved.get(status.item.name, status.record)) for status in s]
            for id, s in statuses.items()
        }
        updates = [
            _update_row(evidence, plan, id, s, time)
            for id, s in statuses.items()
            if id in evidence.ids
        ]
        updates += roll_up(evidence, plan, updates, time)
        _write_report(evidence, work / evidence.phase, moved, updates, time)
        title, lines = _describe_attempt(evidence, moved, statuses, report, time)
        journal = Journal(
            staged=str(work),
            folder=str(folder),
            manifests={id: format_manifest(evidence, id, s, time) for id, s in statuses.items()},
            changes={update.id: (update.after, update.note) for update in updates},
            title=title,
            lines=lines,
            pending=[item.name for item in results],
        )
        commit(evidence, journal)
    return Publication(report, updates)


def _copy_logs(
    evidence: Evidence, results: Mapping[Item, Record], work: Path, report: Path
) -> dict[str, Record]:
    """Copy the logs into the folder to fill; gives the records by item, with the paths that the
    logs will have in the report."""
    moved = {}
    for item, record in results.items():
        name = item.name_log(record.outcome)
        shutil.copyfile(evidence.log_file(item), work / name)
        log = project_path(evidence.root, report / name)
        moved[item.name] = msgspec.structs.replace(record, log=log)
    return moved


def _write_report(
    evidence: Evidence,
    folder: Path,
    results: Mapping[str, Record],
    updates: Sequence[RowUpdate],
    time: str,
) -> None:
    """Write the files of a report folder beside the logs, which lie there already."""
    (folder / SUMMARY).write_text(format_summary(evidence, results, time), "utf-8")
    (folder / PLAN_UPDATES).write_text(format_plan_updates(evidence, updates, time), "utf-8")
    red = [record for record in results.values() if record.outcome == RED]
    if red:
        tails = [read_end_of_output(folder / Path(record.log).name) for record in red]
        (folder / BLOCKER).write_text(format_blocker(red, tails))


def _describe_attempt(
    evidence: Evidence,
    results: Mapping[str, Record],
    statuses: Mapping[str, Sequence[ItemStatus]],
    report: Path,
    time: str,
) -> tuple[str, list[str]]:
    """Title and lines of the ledger's entry, with paths as the ledger writes them."""

    def spell(log: str) -> str:
        return spell_in_ledger(evidence, evidence.root / log)

    proved = {
        id: [spell(status.record.log) for status in s if status.record is not None]
        for id, s in statuses.items()
        if not any(status.item.name in results for status in s)
    }
    by_log = {spell(record.log): record for record in results.values()}
    return format_attempt(evidence, by_log, proved, spell_in_ledger(evidence, report), time)


def _update_row(
    evidence: Evidence, plan: Plan, id: str, statuses: Sequence[ItemStatus], time: str
) -> RowUpdate:
    row = plan.row(id)
    assert row.state is not None
    after, reason = decide_state(statuses, row.state, by_hand=id in evidence.by_hand)
    records = [status.record for status in statuses if status.record is not None]
    red = [record for record in records if record.outcome == RED]
    pointer = ", ".join(record.log for record in red or records)
    text = shorten(red[0].problem if red else "" if after == DONE else reason)
    pointer = f"{pointer}; {text}" if text else pointer
    note = format_note(time, RED if red else GREEN, pointer)
    return RowUpdate(id, row.state, after, note, reason)

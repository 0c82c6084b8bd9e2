"""A plan's checklist against its evidence: what is proved, what went stale, what was altered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from ptycho_tasks.errors import PlanError
from ptycho_tasks.evidence.documents import read_ledger, read_plan
from ptycho_tasks.evidence.evaluation import list_children
from ptycho_tasks.evidence.inputs import ProjectFiles
from ptycho_tasks.evidence.item import GREEN, MANIFESTS, RED, Evidence, Item
from ptycho_tasks.evidence.journal import LOCK
from ptycho_tasks.evidence.plan import DONE, OPEN, STATES, Change, PlanRow, format_adoption
from ptycho_tasks.evidence.preflight import check_rows, check_writable
from ptycho_tasks.evidence.prune import was_pruned
from ptycho_tasks.evidence.records import Record, find_manifest_problem, read_records
from ptycho_tasks.evidence.staleness import (
    find_log_problem,
    is_in_report,
    list_changed_settings,
    list_reasons,
)
from ptycho_tasks.evidence.summaries import SUMMARY, find_logs, find_reports, shorten
from ptycho_tasks.layout import project_path
from ptycho_tasks.system.clock import SYSTEM_CLOCK, Clock, parse_stamp
from ptycho_tasks.system.files import real_path, write_files
from ptycho_tasks.system.lock import hold_lock

VALID, STALE, BROKEN, NONE, BY_HAND = "valid", "stale", "broken", "none", "by hand"
"""What the evidence of a row is, besides `red`; broken: a log is missing, altered, or elsewhere."""
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True)
class CheckedRow:
    """A row of the plan, and its evidence."""

    id: str
    line: int
    """In the plan."""
    state: str
    """`open`, `done` or `blocked`."""
    text: str
    evidence: str
    """`valid`, `stale`, `red`, `broken`, `none` or `by hand`."""
    reason: str
    """Why it is not valid."""
    outcome: str | None
    """The last one: `green`, `red` or, where all was to be red and is, `red as expected`."""
    time: str | None
    """When the oldest of what the row stands on was run."""
    age_s: float | None
    logs: tuple[str, ...]

    @property
    def age(self) -> str:
        """For people: `3 d`."""
        if self.age_s is None:
            return ""
        size, unit = next(((s, u) for s, u in _UNITS if self.age_s >= s), _UNITS[-1])
        return f"{max(0, self.age_s) // size:.0f} {unit}"


class Basis(NamedTuple):
    """What evidence rests on besides its logs."""

    files: ProjectFiles
    """Where the inputs of items are looked up."""
    find_stage_problem: Callable[[str], str]
    """Why a stage is not up to date; empty where it is."""


def check_plan(
    evidence: Evidence, basis: Basis | None, clock: Clock = SYSTEM_CLOCK
) -> list[CheckedRow]:
    """Every row of the plan that has a state, with its evidence.

    Args:
        evidence: the project's.
        basis: the files and stages; None judges the logs alone, as where `runs/` is not there.
        clock: tells the time.

    Raises:
        PlanError: the plan cannot be read, or lacks a row of the evidence.
    """
    plan = read_plan(evidence)
    check_rows(evidence, plan)
    now = clock.now()
    checked = [_check_row(evidence, row, basis, now) for row in plan.rows if row.state is not None]
    by_id = {row.id: row for row in checked}
    for row in sorted(checked, key=lambda row: -len(row.id)):
        children = [by_id[child.id] for child in list_children(row.id, plan.rows)]
        if row.evidence == NONE and children and not evidence.items_for(row.id):
            by_id[row.id] = _sum_up(row, children)
    return [by_id[row.id] if by_id[row.id].line == row.line else row for row in checked]


def _sum_up(row: CheckedRow, children: list[CheckedRow]) -> CheckedRow:
    """A row by the evidence of those that it sums up."""
    for child in children:
        if child.state != STATES[DONE]:
            return replace(row, reason=f"{child.id}, of which it consists, is {child.state}")
        if child.evidence not in (VALID, BY_HAND):
            return replace(row, evidence=child.evidence, reason=f"{child.id}: {child.reason}")
    return replace(row, evidence=VALID, reason="")


def list_problems(evidence: Evidence, rows: list[CheckedRow]) -> list[str]:
    """What a check of the plan must not pass, in one line each.

    Args:
        evidence: the project's.
        rows: of `check_plan`.
    """
    plan = read_plan(evidence)
    problems = [*map(plan.describe_odd_state, plan.odd_rows)]
    for row in rows:
        is_unproved = row.state == STATES[DONE] and row.evidence not in (VALID, BY_HAND)
        if is_unproved or row.evidence == BROKEN:
            claim = f"{row.id} is marked done, but " if is_unproved else f"{row.id}: "
            problems.append(f"{evidence.plan}:{row.line}: {claim}{row.reason}")
    ids = {row.id for row in rows}
    checked_logs = {log for row in rows for log in row.logs}
    # A row that was taken out of the plan may have left its manifest.
    for path in sorted((evidence.reports_dir / MANIFESTS).glob("*.json")):
        if path.stem not in ids:
            damage = _list_damage(evidence, path.stem)
            problems += [f"{path.stem}: {problem}" for problem in damage]
            checked_logs |= {record.log for record in read_records(evidence, path.stem)}
    return [*problems, *_list_earlier_problems(evidence, checked_logs)]


def _list_earlier_problems(evidence: Evidence, checked_logs: set[str]) -> Iterator[str]:
    """What is wrong with the reports of earlier runs; logs that were checked already aside."""
    is_inside = evidence.ledger_file.is_relative_to(real_path(evidence.root))
    base = evidence.root if is_inside else evidence.ledger_file.parent
    for name in find_reports(read_ledger(evidence).decode("utf-8", "replace")):
        summary = base / name / SUMMARY
        # Other projects may share the ledger.
        if is_in_report(evidence, summary) and not summary.is_file():
            yield f"{evidence.ledger}: the report {name} lacks its {SUMMARY}; restore it"
    for path in sorted(evidence.reports_dir.glob(f"*/*/{SUMMARY}")):
        if not is_in_report(evidence, path):
            continue
        for log_name, sha256 in find_logs(path.read_text("utf-8", "replace")):
            log = project_path(evidence.root, path.with_name(log_name))
            problem = find_log_problem(evidence, log, sha256)
            if problem and log not in checked_logs and not was_pruned(path.with_name(log_name)):
                yield f"{project_path(evidence.root, path)}: {problem}"


def reopen_rows(evidence: Evidence, rows: list[CheckedRow]) -> list[str]:
    """Mark the rows open that are done, but whose evidence does not hold any more; gives them.

    A row that never had evidence is left: someone marked it, who knows why.

    Args:
        evidence: the project's.
        rows: of `check_plan`.

    Raises:
        PlanError: the plan cannot be read any more.
        FileWriteError: the plan cannot be written; it is as it was.
    """
    ids = [
        row.id for row in rows if row.state == STATES[DONE] and row.evidence in (STALE, BROKEN, RED)
    ]
    with hold_lock(evidence.root / LOCK):
        plan = read_plan(evidence)
        if ids:
            check_writable(evidence.plan_file)
            write_files({evidence.plan_file: plan.apply({id: Change(OPEN) for id in ids})})
    return ids


def adopt_rows(
    evidence: Evidence, name: str, ids: Collection[str] = (), clock: Clock = SYSTEM_CLOCK
) -> list[str]:
    """Note of rows that are done, and for which there is no evidence, who says so and when; gives
    them.

    Args:
        evidence: the project's.
        name: of who says so.
        ids: only these; all where there are none.
        clock: tells the time.

    Raises:
        PlanError: the plan cannot be read, or a row is not there, not done, or takes no note.
        FileWriteError: the plan cannot be written; it is as it was.
    """
    with hold_lock(evidence.root / LOCK):
        plan = read_plan(evidence)
        rows = [row for row in check_plan(evidence, None, clock) if row.evidence == NONE]
        known = [row.id for row in rows if row.state == STATES[DONE]]
        for id in ids:
            if id not in known:
                state = STATES[plan.row(id).state or ""]
                raise PlanError(f"{evidence.plan}: row `{id}` is {state}, and not to be adopted")
        chosen = [id for id in known if id in ids] if ids else known
        for row in map(plan.row, chosen):
            if row.note is None:
                raise PlanError(
                    f"{evidence.plan}:{row.line}: row `{row.id}` has no place for a note; add a "
                    "cell, or name the rows to adopt"
                )
        note = format_adoption(clock.stamp(), shorten(name))
        if chosen:
            check_writable(evidence.plan_file)
            content = plan.apply({id: Change(DONE, note) for id in chosen})
            write_files({evidence.plan_file: content})
    return chosen


def _check_row(evidence: Evidence, row: PlanRow, basis: Basis | None, now: datetime) -> CheckedRow:
    assert row.state is not None
    records = read_records(evidence, row.id)
    kind, reason = _judge_row(evidence, row, basis)
    time = min((record.started for record in records), default=None)
    outcomes = {record.shown_outcome for record in records}
    shown = next((one for one in (RED, GREEN) if one in outcomes), next(iter(outcomes), None))
    return CheckedRow(
        id=row.id,
        line=row.line,
        state=STATES[row.state],
        text=row.text,
        evidence=kind,
        reason=reason,
        outcome=shown,
        time=time,
        age_s=None if time is None else (now - parse_stamp(time)).total_seconds(),
        logs=tuple(record.log for record in records),
    )


def _list_damage(evidence: Evidence, id: str) -> list[str]:
    """What is wrong with the manifest of a row and the logs that it names."""
    logs = (
        find_log_problem(evidence, record.log, record.sha256)
        for record in read_records(evidence, id)
    )
    return [problem for problem in (find_manifest_problem(evidence, id), *logs) if problem]


def _judge_row(evidence: Evidence, row: PlanRow, basis: Basis | None) -> tuple[str, str]:
    """What the evidence of a row is, and why it is not valid."""
    damage = _list_damage(evidence, row.id)
    if damage:
        return BROKEN, damage[0]
    items = evidence.items_for(row.id)
    records = {record.item: record for record in read_records(evidence, row.id)}
    if not items:
        if row.id in evidence.by_hand:
            return BY_HAND, evidence.by_hand[row.id]
        if row.adopted:
            return BY_HAND, f"adopted {row.adopted}"
        if records:
            return STALE, f"no item in {evidence.file} proves it any more"
        return NONE, f"no item in {evidence.file} proves it"
    for item in items:
        record = records.get(item.name)
        if record is None:
            manifest = project_path(evidence.root, evidence.manifest_file(row.id))
            gap = "has no result of it" if records else "is not there"
            return NONE, f"nothing says that {item.name} was run: {manifest} {gap}"
        if record.outcome == RED:
            return RED, f"{item.name} was red: {record.problem}"
        reason = _find_stale_reason(evidence, item, record, basis)
        if reason:
            return STALE, f"{item.name} is stale: {reason}"
    return VALID, ""


def _find_stale_reason(evidence: Evidence, item: Item, record: Record, basis: Basis | None) -> str:
    """Why a green result does not hold any more; empty where it does."""
    if basis is None:
        return next((reason.text for reason in list_changed_settings(item, record)), "")
    # First the stages: each says what changed, and the files that it made only that something did.
    for stage in item.stages:
        problem = basis.find_stage_problem(stage)
        if problem:
            return problem
    reasons = list_reasons(evidence, item, record, basis.files)
    return next((reason.text for reason in reasons), "")

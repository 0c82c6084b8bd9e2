"""A plan's checklist against its evidence: what is proved, what went stale, what was altered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from ptycho_tasks.evidence.documents import read_ledger, read_plan
from ptycho_tasks.evidence.inputs import Digest, Outputs
from ptycho_tasks.evidence.item import MANIFESTS, RED, Evidence, Item, Standing
from ptycho_tasks.evidence.journal import LOCK
from ptycho_tasks.evidence.plan import DONE, OPEN, STATES, Change, Plan
from ptycho_tasks.evidence.plan import Row as PlanRow
from ptycho_tasks.evidence.preflight import check_rows
from ptycho_tasks.evidence.records import (
    Record,
    is_in_report,
    log_problem,
    manifest_problem,
    reasons_of,
    records_of,
    setting_reasons,
)
from ptycho_tasks.evidence.summaries import SUMMARY, logs_named, reports_named
from ptycho_tasks.layout import spelled
from ptycho_tasks.system.clock import SYSTEM, Clock, parsed
from ptycho_tasks.system.files import real, write_all
from ptycho_tasks.system.lock import waited_for

VALID, STALE, BROKEN, NONE, BY_HAND = "valid", "stale", "broken", "none", "by hand"
"""What the evidence of a row is, besides `red`; broken: a log is missing, altered, or elsewhere."""
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True)
class Line:
    """A row of the checklist, and its evidence."""

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
    """The last one: `green` or `red`."""
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


class Sight(NamedTuple):
    """What is looked at, besides the logs and the commands that wrote them."""

    digest: Digest
    """Tells the content of files."""
    outputs: Outputs
    """Gives the files that a stage makes."""
    standing: Standing
    """Tells why a stage is not up to date."""


def checklist(evidence: Evidence, sight: Sight | None, clock: Clock = SYSTEM) -> list[Line]:
    """Every row of the plan that has a state, with its evidence.

    Args:
        evidence: the project's.
        sight: of files and stages; None judges the logs alone, as where `runs/` is not there.
        clock: tells the time.

    Raises:
        PlanError: the plan cannot be read, or lacks a row of the evidence.
    """
    return list(_lines(evidence, _checked_plan(evidence), sight, clock))


def problems(evidence: Evidence, lines: list[Line]) -> list[str]:
    """What a check of the plan must not pass, in one line each.

    Args:
        evidence: the project's.
        lines: its checklist.
    """
    plan = read_plan(evidence)
    found = [*map(plan.odd_state, plan.odd_rows)]
    for line in lines:
        unproved = STATES[DONE] == line.state and line.evidence not in (VALID, BY_HAND)
        if unproved or line.evidence == BROKEN:
            marked = f"{line.id} is marked done, but " if unproved else f"{line.id}: "
            found.append(f"{evidence.plan}:{line.line}: {marked}{line.reason}")
    shown = {line.id for line in lines}
    told = {log for line in lines for log in line.logs}
    for path in sorted((evidence.reports_dir / MANIFESTS).glob("*.json")):
        if path.stem not in shown:
            found += [f"{path.stem}: {problem}" for problem in _broken(evidence, path.stem)]
            told |= {record["log"] for record in records_of(evidence, path.stem)}
    return [*found, *_earlier_problems(evidence, told)]


def _earlier_problems(evidence: Evidence, told: set[str]) -> Iterator[str]:
    """What is wrong with the reports of earlier runs, besides some logs."""
    inside = evidence.ledger_file.is_relative_to(real(evidence.root))
    base = evidence.root if inside else evidence.ledger_file.parent
    for name in reports_named(read_ledger(evidence).decode("utf-8", "replace")):
        report = base / name
        if is_in_report(evidence, report / SUMMARY) and not (report / SUMMARY).is_file():
            yield f"{evidence.ledger}: the report {name} lacks its {SUMMARY}; restore it"
    for path in sorted(evidence.reports_dir.glob(f"*/*/{SUMMARY}")):
        if not is_in_report(evidence, path):
            continue
        for log, sha256 in logs_named(path.read_text("utf-8", "replace")):
            beside = spelled(evidence.root, path.with_name(log))
            problem = log_problem(evidence, {"log": beside, "sha256": sha256})
            if problem and beside not in told:
                yield f"{spelled(evidence.root, path)}: {problem}"


def reopen(evidence: Evidence, lines: list[Line]) -> list[str]:
    """Mark the rows open that are done, but whose evidence does not hold any more; gives them.

    A row that never had evidence is left: someone marked it, who knows why.

    Args:
        evidence: the project's.
        lines: its checklist.

    Raises:
        PlanError: the plan cannot be read any more.
        FileWriteError: the plan cannot be written; it is as it was.
    """
    ids = [
        line.id
        for line in lines
        if line.state == STATES[DONE] and line.evidence in (STALE, BROKEN, RED)
    ]
    with waited_for(evidence.root / LOCK):
        plan = read_plan(evidence)
        if ids:
            write_all({evidence.plan_file: plan.changed({id: Change(OPEN) for id in ids})})
    return ids


def _checked_plan(evidence: Evidence) -> Plan:
    plan = read_plan(evidence)
    check_rows(evidence, plan)
    return plan


def _lines(evidence: Evidence, plan: Plan, sight: Sight | None, clock: Clock) -> Iterator[Line]:
    now = clock.now()
    for row in plan.rows:
        if row.state is None:
            continue
        records = records_of(evidence, row.id)
        kind, reason = _judged(evidence, row, sight)
        time = min((str(record["started"]) for record in records), default=None)
        outcomes = {record["outcome"] for record in records}
        yield Line(
            id=row.id,
            line=row.line,
            state=STATES[row.state],
            text=row.text,
            evidence=kind,
            reason=reason,
            outcome=RED if RED in outcomes else next(iter(outcomes), None),
            time=time,
            age_s=None if time is None else (now - parsed(time)).total_seconds(),
            logs=tuple(str(record["log"]) for record in records),
        )


def _broken(evidence: Evidence, id: str) -> list[str]:
    """What is wrong with the manifest of a row and the logs that it names."""
    logs = (log_problem(evidence, record) for record in records_of(evidence, id))
    return [problem for problem in (manifest_problem(evidence, id), *logs) if problem]


def _judged(evidence: Evidence, row: PlanRow, sight: Sight | None) -> tuple[str, str]:
    """What the evidence of a row is, and why it is not valid."""
    broken = _broken(evidence, row.id)
    if broken:
        return BROKEN, broken[0]
    items = evidence.items_of(row.id)
    records = {record["item"]: record for record in records_of(evidence, row.id)}
    if not items:
        if row.id in evidence.by_hand:
            return BY_HAND, evidence.by_hand[row.id]
        if records:
            return STALE, f"no item in {evidence.file} proves it any more"
        return NONE, f"no item in {evidence.file} proves it"
    for item in items:
        record = records.get(item.name)
        if record is None:
            manifest = spelled(evidence.root, evidence.manifest_file(row.id))
            there = "has no result of it" if records else "is not there"
            return NONE, f"nothing says that {item.name} was run: {manifest} {there}"
        if record["outcome"] == RED:
            return RED, f"{item.name} was red: {record['problem']}"
        reason = _why_stale(evidence, item, record, sight)
        if reason:
            return STALE, f"{item.name} is stale: {reason}"
    return VALID, ""


def _why_stale(evidence: Evidence, item: Item, record: Record, sight: Sight | None) -> str:
    """Why a green result does not hold any more; empty where it does."""
    if sight is None:
        return next((reason.text for reason in setting_reasons(item, record)), "")
    reasons = reasons_of(evidence, item, record, sight.digest, sight.outputs)
    # A stage says what changed; the files that it made, at most that something did.
    of_stages = filter(None, map(sight.standing, item.stages))
    return next(chain(of_stages, (reason.text for reason in reasons)), "")

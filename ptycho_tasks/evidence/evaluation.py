"""Which state a row of the plan gets by the results of its items."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ptycho_tasks.evidence.inputs import ProjectFiles
from ptycho_tasks.evidence.item import GREEN, RED, Evidence, Item
from ptycho_tasks.evidence.plan import BLOCKED, DONE, Plan, PlanRow, format_note
from ptycho_tasks.evidence.records import Record, find_record
from ptycho_tasks.evidence.staleness import list_reasons


class ItemStatus(NamedTuple):
    """An item that a row needs, and what is known of it."""

    item: Item
    record: Record | None
    """The last result; None where there is none."""
    stale: str
    """Why a green result does not hold any more; empty where it does, or is not green."""


class RowUpdate(NamedTuple):
    """What becomes of a row of the plan."""

    id: str
    before: str
    """One of `plan.STATES`, as `after`."""
    after: str
    note: str
    """The pointer to the log."""
    reason: str


def evaluate_item(evidence: Evidence, item: Item, files: ProjectFiles) -> ItemStatus:
    """What is known of an item, and whether it still holds."""
    record = find_record(evidence, item)
    stale = ""
    if record is not None and record.outcome == GREEN:
        reasons = list_reasons(evidence, item, record, files)
        stale = next((reason.text for reason in reasons), "")
    return ItemStatus(item, record, stale)


def decide_state(statuses: Sequence[ItemStatus], before: str, *, by_hand: bool) -> tuple[str, str]:
    """The state that a row gets, and why.

    Args:
        statuses: of all items that the row needs.
        before: its present state.
        by_hand: whether a person does a part of it, and marks it done.
    """
    for item, record, _ in statuses:
        if record is not None and record.outcome == RED:
            return BLOCKED, f"{item.name} is red: {record.problem}"
    missing = [status.item.name for status in statuses if status.record is None]
    if missing:
        return BLOCKED, f"{', '.join(missing)} was not run yet"
    for item, _, stale in statuses:
        if stale:
            return BLOCKED, f"{item.name} is stale: {stale}"
    if by_hand and before != DONE:
        return BLOCKED, "all that is run is green; the rest is done and marked by hand"
    return DONE, "all that it needs is green"


def list_children(id: str, rows: Iterable[PlanRow]) -> list[PlanRow]:
    """The rows that a row sums up, by their ids: those with a point behind its own, as `A.1` of
    `A`; where there is none, those with a number or a letter there, as `C4.D1` of `C4.D`."""
    with_state = [row for row in rows if row.state is not None and row.id.startswith(id)]
    for ending in (r"\.[A-Za-z0-9]+", "[0-9]+|[a-z]"):
        child = re.compile(rf"{re.escape(id)}(?:{ending})")
        children = [row for row in with_state if child.fullmatch(row.id)]
        if children:
            return children
    return []


def roll_up(
    evidence: Evidence, plan: Plan, updates: Sequence[RowUpdate], time: str
) -> Iterator[RowUpdate]:
    """What becomes of the rows that sum up others of which some change.

    Args:
        evidence: the project's.
        plan: as it is now.
        updates: of those others.
        time: of the report.
    """
    states = {row.id: row.state for row in plan.rows if row.state is not None}
    states |= {update.id: update.after for update in updates}
    changed = {update.id for update in updates}
    # The innermost first, as outer ones sum up these.
    for row in sorted(plan.rows, key=lambda row: -len(row.id)):
        children = [child.id for child in list_children(row.id, plan.rows)]
        if row.state is None or row.id in evidence.ids or changed.isdisjoint(children):
            continue
        is_done = all(states[child] == DONE for child in children)
        # A person may have marked it with rows in mind that stay as they are.
        is_undone = row.state == DONE and any(states[id] != DONE for id in changed & {*children})
        after = DONE if is_done else BLOCKED if is_undone else row.state
        if after == row.state:
            continue
        states[row.id] = after
        changed.add(row.id)
        which = [child for child in children if is_done or states[child] != DONE]
        reason = f"{', '.join(which)}: {'done' if is_done else 'not done'}"
        note = format_note(time, GREEN if is_done else RED, shorten_ids(which))
        yield RowUpdate(row.id, row.state, after, note, reason)


def shorten_ids(ids: Sequence[str]) -> str:
    """Ids as a note names them."""
    return ", ".join(ids[:8]) + (", ..." if len(ids) > 8 else "")


def decide_outcome(statuses: Sequence[ItemStatus]) -> str:
    """`green` where all is; `red` where one is; else `partial`."""
    outcomes = {None if record is None else record.outcome for _, record, _ in statuses}
    if RED in outcomes:
        return RED
    is_stale = any(status.stale for status in statuses)
    return GREEN if outcomes == {GREEN} and not is_stale else "partial"

"""What a report folder says: which rows changed and why, what was run, what is blocked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ptycho_tasks import errors
from ptycho_tasks.evidence.item import GREEN, RED, Evidence, Item
from ptycho_tasks.evidence.junit import Counts
from ptycho_tasks.evidence.log import in_one_line
from ptycho_tasks.evidence.plan import BLOCKED, DONE, STATES
from ptycho_tasks.evidence.records import Record

SUMMARY, PLAN_UPDATES, BLOCKER = "summary.md", "plan_updates.md", "blocker.log"
_FORMAT = 1
_TAIL_LINES = 60
_LONGEST_NOTE = 160
# What would end the note or its cell, or hide what comes after it.
_FIT = str.maketrans({"(": "[", ")": "]", "|": "/", "`": "'", "<": "&lt;", "\\": "/"})


class RowUpdate(NamedTuple):
    """What a row of the plan becomes."""

    id: str
    before: str
    """One of `plan.STATES`, as `after`."""
    after: str
    note: str
    reason: str


class Evaluated(NamedTuple):
    """An item that a row needs, and what is known of it."""

    item: Item
    record: Record | None
    stale: str
    """Why a green result does not hold any more; empty where it does, or is none."""


def state_of(parts: Sequence[Evaluated], before: str, *, by_hand: bool) -> tuple[str, str]:
    """The state that a row gets, and why.

    Args:
        parts: all that the row needs.
        before: its present state.
        by_hand: whether a person does a part of it, and marks it done.
    """
    red = [part for part in parts if part.record is not None and part.record["outcome"] == RED]
    if red:
        return BLOCKED, f"{red[0].item.name} is red: {red[0].record['problem']}"  # type: ignore[index]
    missing = [part.item.name for part in parts if part.record is None]
    if missing:
        return BLOCKED, f"{', '.join(missing)} was not run yet"
    stale = [part for part in parts if part.stale]
    if stale:
        return BLOCKED, f"{stale[0].item.name} is stale: {stale[0].stale}"
    if by_hand and before != DONE:
        return BLOCKED, "all that is run is green; the rest is done and marked by hand"
    return DONE, "all that it needs is green"


def outcome_of(parts: Sequence[Evaluated]) -> str:
    """`green` where all is; `red` where one is; else `partial`."""
    outcomes = {None if part.record is None else part.record["outcome"] for part in parts}
    if RED in outcomes:
        return RED
    return GREEN if outcomes == {GREEN} and not any(part.stale for part in parts) else "partial"


def one_line(text: str) -> str:
    """A text fit for a note in a table's cell."""
    fit = errors.one_line(" ".join(text.split()).translate(_FIT))
    return fit if len(fit) <= _LONGEST_NOTE else f"{fit[: _LONGEST_NOTE - 3]}..."


def _in_code(text: str) -> str:
    """A path as it stands between backticks."""
    return errors.one_line(text).replace("`", "'")


def said(record: Record) -> str:
    """An outcome in a few words: `green, 3 passed, 0 failed, 0 skipped, 1.2 s`."""
    counts = record.get("counts")
    parts = [
        record["outcome"],
        *([str(Counts(**counts))] if counts else []),
        f"{record['duration_s']:.1f} s",
    ]
    return ", ".join(parts)


def manifest(evidence: Evidence, id: str, parts: Sequence[Evaluated], time: str) -> str:
    """What is known of a row, for programs."""
    content: dict[str, Any] = {
        "format": _FORMAT,
        "id": id,
        "initiative": evidence.initiative,
        "phase": evidence.phase,
        "plan": evidence.plan,
        "outcome": outcome_of(parts),
        "time": time,
        "items": [part.record for part in parts if part.record is not None],
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def plan_updates(evidence: Evidence, updates: Sequence[RowUpdate], time: str) -> str:
    """Which rows changed, from what to what, and why."""
    lines = [f"# Plan updates, {time}", "", f"Plan: `{evidence.plan}`", ""]
    lines += ["| row | from | to | why |", "|---|---|---|---|"]
    lines += [
        f"| {update.id} | {_state(update.before)} | {_state(update.after)} | "
        f"{one_line(update.reason)} |"
        for update in updates
    ]
    return "\n".join([*lines, ""])


def summary(evidence: Evidence, results: Mapping[str, Record], time: str) -> str:
    """What was run, with counts, durations, artefacts and environment.

    Args:
        evidence: the project's.
        results: by item; `log` is where it is published.
        time: of the report.
    """
    lines = [
        f"# Summary, {time}",
        "",
        f"Initiative: {evidence.initiative}",
        f"Phase: {evidence.phase}",
        f"Plan: `{evidence.plan}`",
        f"Ledger: `{evidence.ledger}`",
    ]
    for name, record in results.items():
        lines += ["", f"## {name}: {record['outcome']}", "", *_facts(record)]
    if not results:
        lines += ["", f"Nothing was run; {PLAN_UPDATES} says which rows were proved already."]
    return "\n".join([*lines, ""])


def _facts(record: Record) -> Iterator[str]:
    yield f"- rows: {', '.join(record['ids'])}"
    # Four blanks more than the list's: a code block, whatever the command holds.
    yield "- command:"
    yield ""
    lines = str(record["command"]).splitlines()
    yield from (f"      {errors.one_line(line)}" for line in lines)
    yield ""
    yield f"- outcome: {said(record)}; {record['ended']}"
    if record.get("problem"):
        yield f"- problem: {one_line(record['problem'])}"
    yield f"- started: {record['started']}"
    yield f"- log: `{record['log']}`, sha256 {record['sha256']}"
    for path, digest in record["inputs"].items():
        yield f"- artefact: `{_in_code(path)}`, sha256 {digest or 'missing'}"
    for name, value in record["env"].items():
        yield f"- environment: {name}={json.dumps(value)}"
    dirty = ", with changes" if record["dirty"] else ""
    yield f"- commit: {record['commit'] or 'none'}{dirty}"
    packages = ", ".join(f"{name} {version}" for name, version in record["packages"].items())
    yield f"- python: {record['python']}; {packages}"


_LOG = re.compile(r"^- log: `(?:.*/)?([^/`\n]+)`, sha256 ([0-9a-f]{64})$", re.MULTILINE)


def logs_named(summary: str) -> list[tuple[str, str]]:
    """The logs of a report by its summary: the name of each, and its sha256."""
    return _LOG.findall(summary)


def blocker(results: Mapping[str, Record], outputs: Mapping[str, Sequence[str]]) -> str:
    """The red items' commands, and the ends of their output.

    Args:
        results: by item, of those that are red.
        outputs: the last lines of what they said.
    """
    lines: list[str] = []
    for name, record in results.items():
        tail = outputs[name][-_TAIL_LINES:]
        lines += [
            f"# {', '.join(record['ids'])}: blocked",
            f"# command: {in_one_line(record['command'])}",
            f"# {record['ended']}: {in_one_line(record['problem'])}",
            f"# the end of {record['log']}:",
            *tail,
            "",
        ]
    return "\n".join(lines)


def attempt(
    evidence: Evidence,
    results: Mapping[str, Record],
    still: Mapping[str, Sequence[str]],
    shown: Mapping[str, str],
    time: str,
) -> tuple[str, list[str]]:
    """Title and lines of the ledger's entry.

    Args:
        evidence: the project's.
        results: by item.
        still: rows for which nothing was run, as their evidence still holds, to its logs.
        shown: each log's path, as the ledger says it; that of the report under "".
        time: of the report.
    """
    lines = []
    files = [PLAN_UPDATES, SUMMARY]
    if any(record["outcome"] == RED for record in results.values()):
        files.append(BLOCKER)
    for name, record in results.items():
        problem = f": {one_line(record['problem'])}" if record["outcome"] == RED else ""
        lines.append(f"- {', '.join(record['ids'])}: {said(record)}{problem}; `{shown[name]}`")
    for id, logs in still.items():
        lines.append(f"- {id}: was proved already; {', '.join(f'`{log}`' for log in logs)}")
    return f"{time}, {evidence.initiative}, {evidence.phase}", [
        *lines,
        # The last line, which names a folder that is no other's, tells entries apart.
        f"- Report: `{shown['']}/` ({', '.join(files)})",
    ]


_REPORT = re.compile(r"^- Report: `(.*)/` \(", re.MULTILINE)


def reports_named(ledger: str) -> list[str]:
    """The folders of the reports that a ledger's entries name."""
    return _REPORT.findall(ledger)


def _state(marker: str) -> str:
    return f"`[{marker}]` {STATES[marker]}"

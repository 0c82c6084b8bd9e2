"""The texts that a run publishes: what changed in the plan and why, what was run, what is blocked.

Some are read again, so that what writes a line and what finds it stand side by side here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ptycho_tasks.errors import one_line
from ptycho_tasks.evidence.evaluation import ItemStatus, RowUpdate, decide_outcome
from ptycho_tasks.evidence.item import RED, RED_AS_EXPECTED, Evidence
from ptycho_tasks.evidence.log import escape_line
from ptycho_tasks.evidence.plan import STATES
from ptycho_tasks.evidence.records import Record, format_json

SUMMARY, PLAN_UPDATES, BLOCKER = "summary.md", "plan_updates.md", "blocker.log"
REPORT_FILES = (PLAN_UPDATES, SUMMARY, BLOCKER)
"""Files of a report folder, besides the logs."""
_FORMAT = 1
_TAIL_LINES = 60
_LONGEST_CELL = 160
# What would end the note or its cell, or hide what comes after it.
_CELL = str.maketrans({"(": "[", ")": "]", "|": "/", "`": "'", "<": "&lt;", "\\": "/"})


def shorten(text: str) -> str:
    """A text as it may stand in a table's cell, or in a note there."""
    cell = one_line(" ".join(text.split()).translate(_CELL))
    return cell if len(cell) <= _LONGEST_CELL else f"{cell[: _LONGEST_CELL - 3]}..."


def _quote_path(path: str) -> str:
    """A path as it may stand between backticks."""
    return one_line(path).replace("`", "'")


def _describe(record: Record) -> str:
    """An outcome in a few words: `green, 3 passed, 0 failed, 0 skipped, 1.2 s`."""
    counts = [] if record.counts is None else [str(record.counts)]
    return ", ".join([record.shown_outcome, *counts, f"{record.duration_s:.1f} s"])


def format_manifest(evidence: Evidence, id: str, statuses: Sequence[ItemStatus], time: str) -> str:
    """What is known of a row, for programs: JSON.

    Args:
        evidence: the project's.
        id: the row.
        statuses: of all items that it needs.
        time: of the report.
    """
    content = {
        "format": _FORMAT,
        "id": id,
        "initiative": evidence.initiative,
        "phase": evidence.phase,
        "plan": evidence.plan,
        "outcome": decide_outcome(statuses),
        "time": time,
        "items": [status.record for status in statuses if status.record is not None],
    }
    return format_json(content)


def format_plan_updates(evidence: Evidence, updates: Sequence[RowUpdate], time: str) -> str:
    """Which rows changed, from what to what, and why."""
    lines = [f"# Plan updates, {time}", "", f"Plan: `{evidence.plan}`", ""]
    lines += ["| row | from | to | why |", "|---|---|---|---|"]
    lines += [
        f"| {update.id} | {_show_state(update.before)} | {_show_state(update.after)} | "
        f"{shorten(update.reason)} |"
        for update in updates
    ]
    return "\n".join([*lines, ""])


def format_summary(evidence: Evidence, results: Mapping[str, Record], time: str) -> str:
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
        lines += ["", f"## {name}: {record.shown_outcome}", "", *_list_facts(record)]
    if not results:
        lines += ["", f"Nothing was run; {PLAN_UPDATES} says which rows were proved already."]
    return "\n".join([*lines, ""])


def _list_facts(record: Record) -> Iterator[str]:
    yield f"- rows: {record.label}"
    # Four blanks more than the list's: a code block, whatever the command holds.
    yield "- command:"
    yield ""
    yield from (f"      {one_line(line)}" for line in record.command.splitlines())
    yield ""
    yield f"- outcome: {_describe(record)}; {record.ended}"
    if record.problem:
        yield f"- problem: {shorten(record.problem)}"
    yield f"- started: {record.started}"
    yield f"- log: `{record.log}`, sha256 {record.sha256}"
    for path, digest in record.inputs.items():
        yield f"- artefact: `{_quote_path(path)}`, sha256 {digest or 'missing'}"
    for name, value in record.env.items():
        yield f"- environment: {name}={json.dumps(value)}"
    changes = ", with changes" if record.dirty else ""
    yield f"- commit: {record.commit or 'none'}{changes}"
    packages = ", ".join(f"{name} {version}" for name, version in record.packages.items())
    yield f"- python: {record.python}; {packages}"


_LOG = re.compile(r"^- log: `(?:.*/)?([^/`\n]+)`, sha256 ([0-9a-f]{64})$", re.MULTILINE)


def find_logs(summary: str) -> list[tuple[str, str]]:
    """The logs that a summary names: the file name of each, and its sha256."""
    return _LOG.findall(summary)


class Attempt(NamedTuple):
    """One run of an item, as a summary tells of it."""

    item: str
    subject: str
    """The rows, as `Record.label` names them."""
    outcome: str
    """In a few words: `green, 3 passed, 0 failed, 0 skipped, 1.2 s; exit status 0`."""
    problem: str
    started: str
    log: str


_GREEN_BY_FAILING = re.compile(r"^green(?=, [0-9]+ passed, [1-9][0-9]* failed)")
"""What summaries once said of a test that failed as expected."""
_ATTEMPT = re.compile(
    r"^## (?P<item>.*): (?:green|red)(?: as expected)?\n\n- rows: (?P<subject>.*)\n(?:.*\n)*?"
    r"- outcome: (?P<outcome>(?:green|red)(?: as expected)?, .*)\n(?:- problem: (?P<problem>.*)\n)?"
    r"- started: (?P<started>.*)\n- log: `(?P<log>.*)`, sha256 [0-9a-f]{64}$",
    re.MULTILINE,
)


def find_attempts(summary: str) -> list[Attempt]:
    """The runs that a summary tells of."""
    attempts = (Attempt(**found.groupdict(default="")) for found in _ATTEMPT.finditer(summary))
    return [
        attempt._replace(outcome=_GREEN_BY_FAILING.sub(RED_AS_EXPECTED, attempt.outcome))
        for attempt in attempts
    ]


def format_blocker(records: Sequence[Record], tails: Sequence[Sequence[str]]) -> str:
    """The red items' commands, and the ends of their output.

    Args:
        records: of the items that are red.
        tails: for each, the last lines of its output.
    """
    lines: list[str] = []
    for record, tail in zip(records, tails, strict=True):
        lines += [
            f"# {record.label}: blocked",
            f"# command: {escape_line(record.command)}",
            f"# {record.ended}: {escape_line(record.problem)}",
            f"# the end of {record.log}:",
            *tail[-_TAIL_LINES:],
            "",
        ]
    return "\n".join(lines)


def format_attempt(
    evidence: Evidence,
    results: Mapping[str, Record],
    proved: Mapping[str, Sequence[str]],
    report: str,
    time: str,
) -> tuple[str, list[str]]:
    """Title and lines of the ledger's entry.

    Args:
        evidence: the project's.
        results: by the log's path, as the ledger spells it.
        proved: rows for which nothing was run, as their evidence still holds, to its logs.
        report: the folder's path, as the ledger spells it.
        time: of the report.
    """
    lines = []
    files = [PLAN_UPDATES, SUMMARY]
    if any(record.outcome == RED for record in results.values()):
        files.append(BLOCKER)
    for log, record in results.items():
        problem = f": {shorten(record.problem)}" if record.outcome == RED else ""
        lines.append(f"- {record.label}: {_describe(record)}{problem}; `{log}`")
    for id, logs in proved.items():
        lines.append(f"- {id}: was proved already; {', '.join(f'`{log}`' for log in logs)}")
    return f"{time}, {evidence.initiative}, {evidence.phase}", [
        *lines,
        # The last line, which names a folder that is no other's, tells entries apart.
        f"- Report: `{report}/` ({', '.join(files)})",
    ]


_REPORT = re.compile(r"^[ \t]*- Report: `(.*)/` \(", re.MULTILINE)


def find_reports(ledger: str) -> list[str]:
    """The folders of the reports that a ledger's entries name."""
    return _REPORT.findall(ledger)


def _show_state(marker: str) -> str:
    return f"`[{marker}]` {STATES[marker]}"

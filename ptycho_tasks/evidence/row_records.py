"""The rows of the plan with the ends of their logs, for a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ptycho_tasks.builds.state import State
from ptycho_tasks.errors import PtychoTasksError, one_line
from ptycho_tasks.evidence.checklist import Basis, CheckedRow, check_plan
from ptycho_tasks.evidence.inputs import ProjectFiles, files_on_disk
from ptycho_tasks.evidence.item import GREEN, Evidence
from ptycho_tasks.evidence.loading import load_evidence
from ptycho_tasks.evidence.records import Record, read_records
from ptycho_tasks.evidence.stage_status import find_stage_problem
from ptycho_tasks.evidence.staleness import is_in_report
from ptycho_tasks.evidence.summaries import SUMMARY, Attempt, find_attempts
from ptycho_tasks.layout import STATE_NAME
from ptycho_tasks.system.cache import cached

_LONGEST = 6_000
"""Bytes that are shown of a log, from its end."""
_MOST = 300_000
"""Bytes of all logs together."""
_LONGEST_SUMMARY = 1_000_000
_MOST_ATTEMPTS = 20
"""That are shown of a row, the newest."""


def list_row_records(root: Path) -> list[dict[str, Any]]:
    """Each row of the plan as values that JSON can hold; none where there is no evidence.

    Where the plan cannot be read, one record has a `problem`. Nothing says how old a row is, so
    that the same evidence gives the same records.
    """
    try:
        evidence = load_evidence(root)
        if evidence is None:
            return []
        # The database knows the digests of files that did not change.
        files = ProjectFiles(State(STATE_NAME).sha256, files_on_disk(evidence.root).read_rows)
        rows = check_plan(evidence, Basis(files, _find_stage_problem))
    except PtychoTasksError as error:
        return [{"problem": one_line(str(error))}]
    room = min(_LONGEST, _MOST // max(sum(len(row.logs) for row in rows), 1))
    attempts = _list_attempts(evidence)
    return [
        {**_describe_row(root, row, room), **_describe_history(evidence, row.id, attempts)}
        for row in rows
    ]


@cached
def _find_stage_problem(stage: str) -> str:
    return find_stage_problem(stage, skips_strays=True)


def _describe_row(root: Path, row: CheckedRow, room: int) -> dict[str, Any]:
    logs = [{"path": path, "end": _read_end(root / path, room)} for path in row.logs]
    record = {key: value for key, value in asdict(row).items() if key != "age_s"}
    return {**record, "logs": logs, "problem": None}


def _describe_history(evidence: Evidence, id: str, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """The last run of each item of a row, and all runs of them that reports tell of."""
    own = [attempt for attempt in attempts if id in attempt.subject.split(", ")]
    asked = {item.name: item.expect for item in evidence.items}
    return {
        "runs": [
            _describe_run(record, asked.get(record.item, GREEN))
            for record in read_records(evidence, id)
        ],
        "attempts": [attempt._asdict() for attempt in own[:_MOST_ATTEMPTS]],
        "attempt_count": len(own),
    }


def _describe_run(record: Record, expected: str) -> dict[str, Any]:
    return {
        "expected": "" if expected == GREEN else expected,
        "item": record.item,
        "command": record.command,
        "outcome": record.outcome,
        "problem": record.problem,
        "ended": record.ended,
        "started": record.started,
        "duration_s": record.duration_s,
        "counts": None if record.counts is None else str(record.counts),
        "commit": record.commit,
        "dirty": record.dirty,
        "inputs": dict(record.inputs),
    }


def _list_attempts(evidence: Evidence) -> list[Attempt]:
    """The runs that all reports tell of, the newest first."""
    # Folders are named by their time.
    summaries = sorted(evidence.reports_dir.glob(f"*/*/{SUMMARY}"), reverse=True)
    texts = (_read_end(p, _LONGEST_SUMMARY) for p in summaries if is_in_report(evidence, p))
    return [attempt for text in texts for attempt in find_attempts(text)]


def _read_end(path: Path, room: int) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    text = data[-room:].decode("utf-8", "replace")
    return f"[...]\n{text}" if len(data) > room else text

"""What a report says besides the content of results: their states, and the evidence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ptycho_tasks.report.comparison import Result, compare_results
from ptycho_tasks.report.graph import draw_graph


def digest_states(evidence: Sequence[Mapping[str, Any]]) -> str:
    """sha256 of all that a report of the project in the current folder says and that may change
    while every result stays as it is.

    Args:
        evidence: the rows of its plan, see `write_report`.

    Raises:
        ConfigError: there is no project.
        SystemExit: something in ptycho.yaml is wrong, and the user was told.
    """
    comparison = compare_results(sort="variant")
    results = [*map(_list_facts, comparison.results)]
    facts = [results, [*comparison.notes], asdict(draw_graph()), [*evidence]]
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _list_facts(result: Result) -> list[Any]:
    facts: list[Any] = [result.variant, result.scan, result.stage, result.state]
    facts += [dict(result.settings), dict(result.measures)]
    if result.files is not None:
        made = [(one.row.name, one.record and one.record.made) for one in result.files.made]
        facts += [[*result.files.reasons], made]
    return facts

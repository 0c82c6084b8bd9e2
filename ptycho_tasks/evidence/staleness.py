"""Why a result does not hold any more: settings, inputs or its log are not what they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptycho_tasks.builds.reasons import Reason, describe_change
from ptycho_tasks.evidence.inputs import ProjectFiles, digest_file, digest_inputs
from ptycho_tasks.evidence.item import GREEN, OUTBOX, RUN_FOLDER, Evidence, Item
from ptycho_tasks.evidence.records import Record
from ptycho_tasks.system.files import real_path


def list_reasons(
    evidence: Evidence, item: Item, record: Record | None, files: ProjectFiles
) -> Iterator[Reason]:
    """Why an item must run, if its last result was this one.

    Args:
        evidence: the project's.
        item: one of its items.
        record: the result; None where there is none.
        files: where the item's inputs are looked up.
    """
    if record is None:
        yield Reason("new", item.name, f"{item.name} was not run yet")
        return
    yield from list_changed_settings(item, record)
    if not (item.is_past and record.outcome == GREEN):
        yield from _list_changed_inputs(record.inputs, digest_inputs(evidence, item, files))
    if record.outcome != GREEN:
        problem = f": {record.problem}" if record.problem else ""
        yield Reason("output", item.name, f"{item.name} was red{problem}")
    else:
        problem = find_log_problem(evidence, record.log, record.sha256)
        if problem:
            yield Reason("output", record.log, problem)


def list_changed_settings(item: Item, record: Record) -> Iterator[Reason]:
    """What of an item, besides files, is not what it was when it ran."""
    old, new = record.settings, item.settings
    for key in sorted({*old, *new}):
        if key not in old or key not in new or old[key] != new[key]:
            text = " -> ".join(_show(v[key]) if key in v else "not there" for v in (old, new))
            yield Reason("setting", key, f"{key} {text}", old.get(key), new.get(key))


def _list_changed_inputs(
    old: dict[str, str | None], new: dict[str, str | None]
) -> Iterator[Reason]:
    for path in sorted({*old, *new}):
        if path not in new:
            yield Reason("input", path, f"{path} is no longer an input", old[path], None)
        elif path not in old or old[path] != new[path]:
            before, after = old.get(path), new[path]
            text = describe_change(path, before, after, "is new as an input")
            yield Reason("input", path, text, before, after)


def find_log_problem(evidence: Evidence, log: str, sha256: str) -> str:
    """What is wrong with a log; empty where nothing is.

    Args:
        evidence: the project's.
        log: the log's path, relative to the project.
        sha256: what it was when its item ended.
    """
    if not log.startswith(f"{OUTBOX}/") and not is_in_report(evidence, evidence.root / log):
        return f"{log} lies outside the report folders of {evidence.reports}"
    now = digest_file(evidence.root, log)
    if now is None:
        return f"{log} is missing"
    if now != sha256:
        return f"{log} was altered: sha256 {sha256[:12]} -> {now[:12]}"
    return ""


def is_in_report(evidence: Evidence, path: Path) -> bool:
    """Whether a file lies in a report folder, as reports/2025-10-20T050500Z/phase, by whatever
    name it is reached."""
    reports, log = real_path(evidence.reports_dir), real_path(path)
    if not log.is_relative_to(reports):
        return False
    parts = log.relative_to(reports).parts
    return len(parts) == 3 and RUN_FOLDER.fullmatch(parts[0]) is not None


def _show(value: Any) -> str:
    # As it was written, so that it can be compared: JSON would double backslashes.
    is_plain = isinstance(value, str) and value.isprintable()
    return f'"{value}"' if is_plain else json.dumps(value)

"""Records of what items gave, and why one is stale."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ptycho_tasks.builds.reasons import Reason, describe_change
from ptycho_tasks.evidence.inputs import Digest, Outputs, digest_at, input_paths
from ptycho_tasks.evidence.item import GREEN, PENDING, RED, STAMPED, Evidence, Item
from ptycho_tasks.layout import EVIDENCE, project_path
from ptycho_tasks.system.clock import is_stamp
from ptycho_tasks.system.files import real_path

Record = dict[str, Any]
"""What is known of one run of an item: `item`, `ids`, `outcome`, `command`, `env`, `settings`,
`inputs` (path to sha256), `started`, `duration_s`, `ended` (how), `exit_status`, `counts`,
`problem` (the first failing test or error line), `mistake` (of the user, so that it counts for
nothing), `log` (path), `sha256` (of the log), and what it ran on."""


# ---------------------------------------------------------------------------------------------
# What was found out


def read_record(path: Path) -> Record | None:
    """A result or manifest; None where there is none that can be read."""
    try:
        record = json.loads(path.read_text("utf-8"))
        # Halves of characters are no text, those aside that stand for the bytes of a file's name.
        json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def pending(evidence: Evidence, item: Item) -> Record | None:
    """The result of an item that is not published yet."""
    return next(_whole([read_record(evidence.pending_file(item))]), None)


def published(evidence: Evidence, item: Item) -> Record | None:
    """The last published result of an item."""
    found = [record for id in item.ids for record in records_of(evidence, id)]
    mine = [record for record in found if record["item"] == item.name]
    return max(mine, key=lambda record: str(record["started"]), default=None)


def records_of(evidence: Evidence, id: str) -> list[Record]:
    """The published results that a row stands on."""
    return [*_whole(_items(read_record(evidence.manifest_file(id))))]


def manifest_problem(evidence: Evidence, id: str) -> str:
    """What is wrong with a row's manifest; empty where nothing is, or where there is none."""
    path = evidence.manifest_file(id)
    if not os.path.lexists(path):
        return ""
    manifest = read_record(path)
    items = _items(manifest)
    if manifest and items and manifest.get("id") == id and len(items) == len([*_whole(items)]):
        return ""
    return (
        f"{project_path(evidence.root, path)} is damaged; restore it, or remove it and run "
        f"`doit {EVIDENCE}`"
    )


def _items(manifest: Record | None) -> list[Any]:
    items = (manifest or {}).get("items")
    return items if isinstance(items, list) else []


_TYPES: dict[str, Any] = {"item": str, "ids": list, "outcome": str, "problem": str, "started": str,
          "log": str, "sha256": str, "settings": dict, "inputs": dict, "command": str,
          "env": dict, "ended": str, "mistake": str, "packages": dict, "python": str,
          "commit": (str, type(None)), "dirty": (bool, type(None))}  # fmt: skip

_LONGEST_S = 1e10


def _whole(records: Iterable[Any]) -> Iterator[Record]:
    """Those that are results, whatever else a file may say."""
    return (
        record
        for record in records
        if isinstance(record, dict)
        and all(isinstance(record.get(key, ...), kind) for key, kind in _TYPES.items())
        and record["outcome"] in (GREEN, RED)
        and is_stamp(record["started"])
        and "\0" not in record["log"]
        and all(isinstance(id, str) for id in record["ids"])
        and all(type(digest) in (str, type(None)) for digest in record["inputs"].values())
        and _are_counts(record.get("counts"))
        and type(record.get("duration_s")) in (int, float)
        and 0 <= record["duration_s"] < _LONGEST_S
    )


def _are_counts(counts: Any) -> bool:
    """Whether a value is what `counts` of a record may be."""
    if counts is None:
        return True
    names = ("passed", "failed", "skipped")
    return (
        isinstance(counts, dict)
        and counts.keys() == {*names}
        and all(type(number) is int for number in counts.values())
    )


def latest(evidence: Evidence, item: Item) -> Record | None:
    """The last result of an item, published or not."""
    return pending(evidence, item) or published(evidence, item)


def log_problem(evidence: Evidence, record: Record) -> str:
    """What is wrong with the log of a result; empty where nothing is."""
    log = str(record.get("log"))
    path = evidence.root / log
    if not log.startswith(f"{PENDING}/") and not is_in_report(evidence, path):
        return f"{log} lies outside the report folders of {evidence.reports}"
    found = digest_at(evidence.root)(log)
    if found is None:
        return f"{log} is missing"
    if found != record.get("sha256"):
        return f"{log} was altered: sha256 {str(record.get('sha256'))[:12]} -> {found[:12]}"
    return ""


def is_in_report(evidence: Evidence, path: Path) -> bool:
    """Whether a file lies in a report folder, as reports/2025-10-20T050500Z/phase, by whatever
    name it is reached."""
    reports, log = real_path(evidence.reports_dir), real_path(path)
    if not log.is_relative_to(reports):
        return False
    parts = log.relative_to(reports).parts
    return len(parts) == 3 and STAMPED.fullmatch(parts[0]) is not None


def setting_reasons(item: Item, record: Record) -> Iterator[Reason]:
    """What of an item is not as it was when it was run, besides files."""
    old, new = record.get("settings") or {}, item.settings
    for key in sorted({*old, *new}):
        if key not in old or key not in new or old[key] != new[key]:
            text = " -> ".join(_shown(v[key]) if key in v else "not there" for v in (old, new))
            yield Reason("setting", key, f"{key} {text}", old.get(key), new.get(key))


def reasons_of(
    evidence: Evidence, item: Item, record: Record | None, digest: Digest, outputs: Outputs
) -> Iterator[Reason]:
    """Why an item must run, if its last result was this one.

    Args:
        evidence: the project's.
        item: one of its items.
        record: the result; None where there is none.
        digest: tells the content of files.
        outputs: gives the files that a stage makes.
    """
    if record is None:
        yield Reason("new", item.name, f"{item.name} was not run yet")
        return
    yield from setting_reasons(item, record)
    seen = record.get("inputs") or {}
    now = {path: digest(path) for path in input_paths(evidence, item, outputs)}
    for path in sorted({*seen, *now}):
        if path not in now:
            yield Reason("input", path, f"{path} is no longer an input", seen[path], None)
        elif path not in seen or seen[path] != now[path]:
            before, after = seen.get(path), now[path]
            text = describe_change(path, before, after, "is new as an input")
            yield Reason("input", path, text, before, after)
    if record.get("outcome") != GREEN:
        said = f": {record['problem']}" if record.get("problem") else ""
        yield Reason("output", item.name, f"{item.name} was red{said}")
    else:
        problem = log_problem(evidence, record)
        if problem:
            yield Reason("output", str(record.get("log")), problem)


def _shown(value: Any) -> str:
    # As it was written, so that it can be compared: JSON would double backslashes.
    plain = isinstance(value, str) and value.isprintable()
    return f'"{value}"' if plain else json.dumps(value)

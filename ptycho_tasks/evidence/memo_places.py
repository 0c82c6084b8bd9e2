"""The files and folders that a memo names: its plan, its ledger, and where its artefacts lie."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import NamedTuple

from ptycho_tasks.evidence.item import RUN_FOLDER
from ptycho_tasks.evidence.memo_shell import STAMP

_WORD = re.compile(r"[\w.~/-]+")
_PLAN_NAME = re.compile(
    r"(?i:(?!fix_?plan|test_?plan)(?:.*[_-])?(?:plan|implementation|checklist)\.md)"
)
_LEDGER_NAME = re.compile(r"(?i:(?:.*[_-])?(?:fix_?plan|ledger|attempts|journal|worklog)\.md)")
_OUTPUT_NAME = re.compile(
    r"(?i:(?:.*[_-])?(?:blocke\w+|summary|notes?|plan_updates|blockers?)\.md)"
)
_NOTED_IN = re.compile(
    r"(?i:\b(?:log|note|record|append|add|update|write|document|describe|put|mention|report|"
    r"describe|enter)\b)"
)
_ONLY_READ = re.compile(r"(?i:\b(?:see|read|consult|check|follow|not|never|per)\s+(?:touch\s+)?$)")
_STAMP_LIKE = re.compile(
    r"(?:[0-9]{4}-?[0-9]{2}-?[0-9]{2}(?:[T_-]?[0-9:]{4,8}Z?)?|<[^>]*>|[{(]?(?i:iso8601|timestamp|stamp|"
    rf"yyyy\S*)[)}}]?|\$\{{?\w+\}}?|{STAMP})"
)
_PATH = re.compile(
    r"(?P<folder>(?:<[^<>/]*>|\{\w+\}(?=/)|[\w.~$()+-]|\$\{\w+\}|/)+)(?:\{(?P<files>[^{}]*)\})?"
)


class Artifacts(NamedTuple):
    """Where a memo puts its artefacts."""

    reports: str
    """The folder of the reports."""
    phase: str
    """The folder below the one of a run's time; empty where the memo has none."""
    stamp: str
    """The folder of a run's time; empty where the memo has none."""
    files: list[str]


def read_artifacts(text: str) -> Artifacts | None:
    """Where the artefacts of a memo lie, by the first path of a text; None where it has none."""
    for match in _PATH.finditer(text.replace("`", " ").replace("**", "")):
        folder = match["folder"].rstrip("/.")
        if "/" not in match["folder"] or not re.search(r"\w", folder) or "//" in folder:
            continue
        files = [name.strip() for name in (match["files"] or "").split(",") if name.strip()]
        path = PurePath(folder)
        if not files and re.fullmatch(r"\.[A-Za-z]\w{1,4}", path.suffix):
            path, files = path.parent, [path.name]
        return _split_folder(path, files)
    return None


def _split_folder(path: PurePath, files: list[str]) -> Artifacts:
    stamps = [
        index for index, part in enumerate(path.parts) if index and _STAMP_LIKE.fullmatch(part)
    ]
    if stamps:
        at = stamps[-1]
        phase = "_".join(path.parts[at + 1 :])
        return Artifacts(str(PurePath(*path.parts[:at])), phase, path.parts[at], files)
    if len(path.parts) == 1 or path.name == "reports":
        return Artifacts(str(path), "", "", files)
    return Artifacts(str(path.parent), path.name, "", files)


def is_stamp(text: str) -> bool:
    """Whether the name of a folder says when, and not what."""
    return bool(RUN_FOLDER.fullmatch(text) or _STAMP_LIKE.fullmatch(text))


def list_markdown(text: str) -> list[str]:
    """The Markdown files that a text names."""
    names = (word.rstrip("./-") for word in _WORD.findall(text))
    return [*dict.fromkeys(os.path.normpath(name) for name in names if name.endswith(".md"))]


def list_files(text: str) -> list[str]:
    """What looks like the names of files in a text."""
    names = (word.strip("./-~") for word in _WORD.findall(text))
    return [name for name in names if re.fullmatch(r"[^.].*\.[A-Za-z0-9]+", name)]


def is_plan_name(path: str) -> bool:
    """Whether a file is called as plans are."""
    return bool(_PLAN_NAME.fullmatch(PurePath(path).name))


def is_ledger_name(path: str) -> bool:
    """Whether a file is called as ledgers are."""
    return bool(_LEDGER_NAME.fullmatch(PurePath(path).name))


def find_ledger(text: str, others: Iterable[str]) -> str:
    """The ledger that a text says to note something in; empty where it names none.

    Args:
        text: of If Blocked.
        others: files that have another purpose.
    """
    excluded = set(others)
    names = [
        name
        for name in list_markdown(text)
        if name not in excluded
        and not _OUTPUT_NAME.fullmatch(PurePath(name).name)
        and not any(map(is_stamp, PurePath(name).parts))
    ]
    for name in names:
        if is_ledger_name(name):
            return name
    for name in names:
        before = re.split(r"[.;]\s", text[: text.index(name)])[-1].rstrip("` ") + " "
        if _NOTED_IN.search(before) and not _ONLY_READ.search(before):
            return name
    is_alone = len(names) == 1 and text.strip(" `.") == names[0]
    return names[0] if is_alone else ""

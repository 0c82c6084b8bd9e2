"""The plan and the ledger of a project, as files; and what the plan was when a run began."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from ptycho_tasks.errors import PlanError, PtychoTasksError
from ptycho_tasks.evidence.backup import back_up
from ptycho_tasks.evidence.inputs import digest_file
from ptycho_tasks.evidence.item import OUTBOX, Evidence
from ptycho_tasks.evidence.plan import Plan
from ptycho_tasks.evidence.records import read_json
from ptycho_tasks.layout import project_path
from ptycho_tasks.system.files import (
    find_file_problem,
    real_path,
    remove_leftovers,
    report_write_errors,
    write_atomic,
)
from ptycho_tasks.system.terminal import echo

_REMEMBERED = f"{OUTBOX}/plan"
"""Says what the plan was when the run began."""


class Documents(NamedTuple):
    """What plan and ledger are."""

    files: dict[str, str | None]
    """By name, to sha256."""
    published: str | None
    """Of the note of what a run last made the plan."""


def read_plan(evidence: Evidence) -> Plan:
    """The plan as it is now.

    Raises:
        PlanError: it cannot be read.
    """
    content = _read_bytes(evidence, "plan", evidence.plan_file)
    return _parse_plan(content, evidence.plan, tuple(evidence.states.items()))


# It is asked for several times a run, and may be long.
_parse_plan = functools.lru_cache(maxsize=1)(Plan)


def read_ledger(evidence: Evidence) -> bytes:
    """The ledger as it is now.

    Raises:
        PlanError: it cannot be read.
    """
    return _read_bytes(evidence, "ledger", evidence.ledger_file)


def leads_outside(root: Path, name: str) -> bool:
    """Whether a path that is spelt as one in a project is, by a link, none."""
    spelt = Path(os.path.normpath(root / name))
    real_root = real_path(root)
    is_inside = spelt.is_relative_to(root) or spelt.is_relative_to(real_root)
    return is_inside and not real_path(spelt).is_relative_to(real_root)


def _read_bytes(evidence: Evidence, key: str, path: Path) -> bytes:
    where = f"{evidence.file}: {key}: {getattr(evidence, key)}"
    if not getattr(evidence, key):
        raise PlanError(f"{evidence.file}: {key}: is missing; write the path of a Markdown file")
    problem = find_file_problem(path)
    if problem:
        raise PlanError(f"{where}: {problem}; expected a Markdown file")
    if leads_outside(evidence.root, getattr(evidence, key)):
        raise PlanError(f"{where}: is a link out of the project, to {path}; name a file in it")
    try:
        return path.read_bytes()
    except OSError as error:
        raise PlanError(f"{where}: {error.strerror or error}; correct the path") from error


def remember_plan(evidence: Evidence, content: bytes) -> None:
    """Remember what the plan is, so that a change by someone else shows.

    Raises:
        FileWriteError: the note cannot be written.
    """
    path = evidence.root / _REMEMBERED
    with report_write_errors(path):
        remove_leftovers([path])
    write_atomic(path, json.dumps(_fingerprint(evidence, content)).encode())
    back_up([path])


def mention_changes(evidence: Evidence, before: Documents, name: str) -> None:
    """Say which of plan and ledger changed while an item ran, by its name; not what a run published
    meanwhile.

    Args:
        evidence: the project's.
        before: what `digest_documents` gave before it ran.
        name: of the item.
    """
    now = digest_documents(evidence)
    if now.published != before.published:
        return
    changed = [file for file, digest in now.files.items() if digest != before.files[file]]
    if changed:
        echo(
            f"warning: {evidence.file}: {name}: {' and '.join(changed)} changed while it ran; "
            "correct its command, if that did it",
            err=True,
        )


def digest_documents(evidence: Evidence) -> Documents:
    """What plan and ledger are; not a ledger outside the project, which others write too."""
    files = {evidence.plan: evidence.plan_file, evidence.ledger: evidence.ledger_file}
    root = real_path(evidence.root)
    digests = {
        name: digest_file(root, str(path))
        for name, path in files.items()
        if path.is_relative_to(root)
    }
    return Documents(digests, digest_file(root, _REMEMBERED))


def refuse_changed_plan(evidence: Evidence, content: bytes) -> None:
    """Refuse a plan that is not the one of `remember_plan`.

    Raises:
        PtychoTasksError: someone changed it meanwhile.
    """
    if read_json(evidence.root / _REMEMBERED) != _fingerprint(evidence, content):
        raise PtychoTasksError(
            f"{evidence.plan}: was changed while the items ran; no run wrote to it or to "
            f"{evidence.ledger}, and the results are kept: run again to publish them"
        )


def _fingerprint(evidence: Evidence, content: bytes) -> dict[str, str]:
    return {"plan": evidence.plan, "sha256": hashlib.sha256(content).hexdigest()}


def spell_in_ledger(evidence: Evidence, path: Path) -> str:
    """A path as the ledger writes it: relative to the project; in a ledger outside it, relative to
    the ledger, so that two projects cannot mean the same."""
    if evidence.ledger_file.is_relative_to(real_path(evidence.root)):
        return project_path(evidence.root, path)
    return os.path.relpath(real_path(path), evidence.ledger_file.parent)

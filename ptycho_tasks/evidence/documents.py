"""The plan and the ledger of the evidence."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path

from ptycho_tasks.errors import PlanError, PtychoTasksError
from ptycho_tasks.evidence.backup import keep_files
from ptycho_tasks.evidence.item import PENDING, Evidence
from ptycho_tasks.evidence.plan import Plan
from ptycho_tasks.evidence.records import read_record
from ptycho_tasks.layout import spelled
from ptycho_tasks.system.files import not_a_file, real, remove_leftovers, write_atomic, writing

_SEEN = f"{PENDING}/plan"
"""Says what the plan was when the run began."""


def read_plan(evidence: Evidence) -> Plan:
    """The plan as it is now.

    Raises:
        PlanError: it cannot be read.
    """
    return _plan(_content(evidence, "plan", evidence.plan_file), evidence.plan)


# It is asked for several times a run, and may be long.
_plan = functools.lru_cache(maxsize=1)(Plan)


def read_ledger(evidence: Evidence) -> bytes:
    """The ledger as it is now.

    Raises:
        PlanError: it cannot be read.
    """
    return _content(evidence, "ledger", evidence.ledger_file)


def _content(evidence: Evidence, key: str, path: Path) -> bytes:
    where = f"{evidence.file}: {key}: {getattr(evidence, key)}"
    unfit = not_a_file(path)
    if unfit:
        raise PlanError(f"{where}: {unfit}; expected a Markdown file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise PlanError(f"{where}: {error.strerror or error}; correct the path") from error


def _note_plan(evidence: Evidence, content: bytes) -> None:
    with writing(evidence.root / _SEEN):
        remove_leftovers([evidence.root / _SEEN])
    write_atomic(evidence.root / _SEEN, json.dumps(_told(evidence, content)).encode())
    keep_files([evidence.root / _SEEN])


def _told(evidence: Evidence, content: bytes) -> dict[str, str]:
    """What tells a plan from any other."""
    return {"plan": evidence.plan, "sha256": hashlib.sha256(content).hexdigest()}


def _refuse_changed_plan(evidence: Evidence, content: bytes) -> None:
    if read_record(evidence.root / _SEEN) != _told(evidence, content):
        raise PtychoTasksError(
            f"{evidence.plan}: was changed while the items ran; it and {evidence.ledger} are as "
            "they were, and the results are kept: run again to publish them"
        )


def _as_the_ledger_says(evidence: Evidence, path: Path) -> str:
    """Relative to the project; to a ledger outside it, relative to that, so that two projects
    cannot mean the same."""
    if evidence.ledger_file.is_relative_to(real(evidence.root)):
        return spelled(evidence.root, path)
    return os.path.relpath(real(path), evidence.ledger_file.parent)

"""Read what a project wants to prove, from its files or from what the database keeps of them.

Every command of doit imports this module: the parser is imported only where a file has changed.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ptycho_tasks.builds.notes import open_note, seal_note
from ptycho_tasks.builds.state import State, current_state
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.evidence.item import Evidence, Item
from ptycho_tasks.layout import (
    CONFIG_NAME,
    EVIDENCE,
    EVIDENCE_NAME,
    has_evidence_file,
    may_have_evidence,
    read_config_bytes,
)
from ptycho_tasks.system.cache import cached
from ptycho_tasks.system.faults import exit_on_error

_FORMAT = 1
_NOTE = "evidence"
"""What the database calls the note of what the files came to."""


def load_evidence(root: Path, state: State | None = None) -> Evidence | None:
    """The evidence that the project at `root` asks for; None where it asks for none.

    Args:
        root: the project's folder.
        state: the database, which may hold what the files came to.

    Raises:
        ConfigError: something in ptycho.yaml or evidence.yaml is wrong.
    """
    if not may_have_evidence(root):
        return None
    own, config = (
        read_config_bytes(root / name) if os.path.lexists(root / name) else None
        for name in (EVIDENCE_NAME, CONFIG_NAME)
    )
    key = _make_key(root, config, own)
    note = open_note(state.note(_NOTE)) if state is not None else {}
    if note.get("key") == key:
        return note["evidence"] and _from_json(note["evidence"])
    # Only now: parsing takes longer than all else that a run with nothing to do does here.
    from ptycho_tasks.evidence.options import parse_files

    evidence = parse_files(root, config, own)
    # A command that only looks makes no database.
    if state is not None and Path(state.name).exists():
        state.keep_note(_NOTE, seal_note({"key": key, "evidence": evidence and _to_json(evidence)}))
    return evidence


def require_evidence(root: Path) -> Evidence:
    """The evidence that the project at `root` asks for.

    Raises:
        ConfigError: it asks for none, or something in its files is wrong.
    """
    if not has_evidence_file(root) and not os.path.lexists(root / CONFIG_NAME):
        raise ConfigError(
            f"{root}: has neither {CONFIG_NAME} nor {EVIDENCE_NAME}; go to a project, or write "
            f"one with `ptycho-tasks plan import`"
        )
    evidence = load_evidence(root)
    if evidence is None:
        raise ConfigError(
            f"{CONFIG_NAME}: has no section `{EVIDENCE}`, nor is there {EVIDENCE_NAME}; write it"
        )
    return evidence


def load_current_evidence() -> Evidence | None:
    """The evidence that the project in the current folder asks for; a mistake in it ends the
    program with one line. None where the project asks for none."""
    return _load_cached(Path.cwd(), current_state())


@cached
def _load_cached(root: Path, state: State | None) -> Evidence | None:
    with exit_on_error():
        return load_evidence(root, state)


def _make_key(root: Path, config: bytes | None, own: bytes | None) -> str:
    """Names what a note was made from: another content, or another version of ours, is no match."""
    origin = (_FORMAT, [*Item.__dataclass_fields__], str(root), config, own)
    return hashlib.sha256(repr(origin).encode()).hexdigest()


def _to_json(evidence: Evidence) -> dict[str, Any]:
    return {**asdict(evidence), "root": str(evidence.root)}


def _from_json(content: dict[str, Any]) -> Evidence:
    def to_item(content: dict[str, Any]) -> Item:
        fields: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in content.items()}
        return Item(**fields)

    items = tuple(map(to_item, content["items"]))
    return Evidence(**{**content, "root": Path(content["root"]), "items": items})

"""The evidence that a project asks for."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ptycho_tasks.builds.notes import opened, sealed
from ptycho_tasks.builds.state import State, current
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


# ---------------------------------------------------------------------------------------------
# Reading


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
    said = (_FORMAT, [*Item.__dataclass_fields__], str(root), config, own)
    key = hashlib.sha256(repr(said).encode()).hexdigest()
    kept = opened(state.note(_NOTE)) if state is not None else {}
    if kept.get("key") == key:
        return kept["evidence"] and _from_plain(kept["evidence"])
    from ptycho_tasks.evidence.options import parse_files

    evidence = parse_files(root, config, own)
    if state is not None and Path(state.name).exists():
        kept = {"key": key, "evidence": evidence and _plain(evidence)}
        state.keep_note(_NOTE, sealed(kept))
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


def _plain(evidence: Evidence) -> dict[str, Any]:
    return {**asdict(evidence), "root": str(evidence.root)}


def _from_plain(plain: dict[str, Any]) -> Evidence:
    def item(given: dict[str, Any]) -> Item:
        fields: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in given.items()}
        return Item(**fields)

    items = tuple(map(item, plain["items"]))
    return Evidence(**{**plain, "root": Path(plain["root"]), "items": items})


def project_evidence() -> Evidence | None:
    """The evidence that the project asks for, read likewise; None where it asks for none."""
    return _evidence_at(Path.cwd(), current())


@cached
def _evidence_at(root: Path, state: State | None) -> Evidence | None:
    with exit_on_error():
        if not may_have_evidence(root):
            return None
        from ptycho_tasks.evidence.loading import load_evidence

        return load_evidence(root, state)

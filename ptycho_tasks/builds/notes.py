"""Notes that the database keeps, in which damage shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def seal_note(note: Mapping[str, Any]) -> str:
    """A note as text for the database, in which damage shows."""
    text = json.dumps(note, separators=(",", ":"))
    return f"{hashlib.sha256(text.encode()).hexdigest()}{text}"


def open_note(note: object) -> dict[str, Any]:
    """What `seal_note` was given; empty where that is not known any more."""
    if not isinstance(note, str):
        return {}
    digest, text = note[:64], note[64:]
    if hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() != digest:
        return {}
    return parse_mapping(text)


def parse_mapping(text: str) -> dict[str, Any]:
    """A mapping as JSON; empty where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}

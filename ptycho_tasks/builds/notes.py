"""Notes that the database keeps, in which damage shows."""

from __future__ import annotations

import binascii
import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any


def seal_note(note: Mapping[str, Any]) -> str:
    """A note as short text for the database, in which damage shows."""
    packed = zlib.compress(json.dumps(note, separators=(",", ":")).encode(), level=1)
    text = binascii.b2a_base64(packed, newline=False).decode()
    return f"{hashlib.sha256(text.encode()).hexdigest()}{text}"


def open_note(note: object) -> dict[str, Any]:
    """What `seal_note` was given; empty where that is not known any more."""
    if not isinstance(note, str):
        return {}
    digest, text = note[:64], note[64:]
    if hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() != digest:
        return {}
    try:
        return parse_mapping(zlib.decompress(binascii.a2b_base64(text)).decode())
    except (ValueError, zlib.error):
        return {}


def parse_mapping(text: str) -> dict[str, Any]:
    """A mapping as JSON; empty where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}

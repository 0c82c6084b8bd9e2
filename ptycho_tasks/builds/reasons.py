"""Why a task is stale."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reason:
    """One reason why a task is stale."""

    kind: str
    """`setting`, `code`, `input`, `output`, `upstream`, `new`, or `missing`: an input that is not
    there and that no task makes, without which a run would fail."""
    subject: str
    """The config key, file or task."""
    text: str
    """What is said to the user, the subject included."""
    old: Any = None
    new: Any = None


def _value(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not there"


def changed(path: str, old: str | None, new: str | None, appeared: str) -> str:
    """What is said of a file whose content is not what it was.

    Args:
        path: names it.
        old: sha256 of what it was; None for no file.
        new: likewise, of what it is.
        appeared: what is said of a file that was not there.
    """
    if new is None:
        return f"{path} is missing"
    if old is None:
        return f"{path} {appeared}"
    return f"{path} changed: sha256 {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)[:12]

"""Why a task is stale."""

from __future__ import annotations

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


def describe_change(path: str, old: str | None, new: str | None, appeared: str) -> str:
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
    return f"{path} changed: sha256 {shorten(old)} -> {shorten(new)}"


def shorten(value: Any) -> str:
    """A version or a digest, short enough to be read."""
    return "none" if value is None else str(value)[:12]

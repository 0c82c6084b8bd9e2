"""Rows: the tasks of a project as plain data.

This is read at each command of doit, so it imports nothing that takes time; a NamedTuple, since a
thousand of them are made in a millisecond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One task, of which all paths are relative to the project where they lie in it."""

    name: str
    stage: str
    variant: str
    """The name of the first variant that has it."""
    scan: str
    """The name of the scan that it is of; empty where the project has one, or for all of them."""
    doc: str
    inputs: Mapping[str, str]
    """What it reads: role, as `bundle` or `scan`, to path."""
    outputs: list[str]
    """What it makes; where several variants share it, once for each of them."""
    after: str
    """The task that has to run before, though it makes no input; may be empty."""
    settings: str
    """Canonical JSON of dotted config key to value: those that change the outputs."""
    at_default: Sequence[str]
    """The keys among them whose value is the default."""
    versions: Mapping[str, str | int]
    """Code by name, to the version that its author gave it."""
    sources: Mapping[str, str]
    """Source files whose content counts: name, which begins with its package, to path."""
    aliases: Sequence[str] = ()
    """The names that it has for further variants, which share it."""

"""Which tasks failed when they last ran, and why: noted by a run, for whoever looks at the project.

A note counts only while the task has the settings that it failed with.
"""

from __future__ import annotations

import json

from ptycho_tasks.builds.notes import parse_mapping
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.state import State

_NOTE = "failed "
"""How the note of a task begins, in the database."""


def note_failure(state: State, row: Row, message: str) -> None:
    """Note that a task failed; where the database cannot be written, only the note is lost."""
    text = json.dumps({"settings": row.settings, "message": message})
    state.keep_note(_NOTE + row.name, text)


def forget_failure(state: State, row: Row) -> None:
    """Note that a task succeeded."""
    if state.note(_NOTE + row.name):
        state.keep_note(_NOTE + row.name, "")


def find_failure(state: State, row: Row) -> str:
    """Why a task failed when it last ran; empty where it did not, or has other settings now."""
    noted = parse_mapping(state.note(_NOTE + row.name) or "")
    message = noted.get("message")
    is_current = noted.get("settings") == row.settings and isinstance(message, str)
    return str(message) if is_current else ""

"""What is known of a job, in its folder.

    .ptycho/jobs/KEY/job.json       what is to be made, and which job of which executor makes it
    .ptycho/jobs/KEY/ptycho.yaml    the settings that it is made with, whatever becomes of the file
    .ptycho/jobs/KEY/log.txt        what the stage printed
    .ptycho/jobs/KEY/outcome.json   how it ended, written by the job itself

KEY is the beginning of the key of the entry in the store that it makes, so that any later run finds
the job of what it needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from ptycho_tasks.layout import JOBS_NAME
from ptycho_tasks.options import Resources
from ptycho_tasks.system.files import write_atomic

JOBS = Path(JOBS_NAME)
LOG, RECORD, OUTCOME = "log.txt", "job.json", "outcome.json"
_Record = TypeVar("_Record", bound=msgspec.Struct)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a job ended by its own account."""

    exit_code: int
    problem: str = ""
    machine: str = ""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a job, kept in its folder."""

    name: str
    """Of the task."""
    stage: str
    identity: dict[str, Any]
    """Of what it makes."""
    replaces: bool
    """Whether it is made although the store has it."""
    changes: dict[str, str]
    """KEY=VALUE of the run's command line."""
    executor: str
    options: dict[str, Any]
    resources: Resources
    run: str
    """The run that submitted or waits for it."""
    id: str = ""
    """The scheduler's name for it; empty until it has one."""
    is_underway: bool = False
    """Whether the scheduler may have it, though its name for it is not known."""
    refusal: Outcome | None = None
    """Why the scheduler did not take it."""
    estimated: tuple[str, ...] = ()
    """Which of its resources the user did not say."""
    ended: str = ""
    """Of which of these it had too little, as `memory` and `timeout` of a `Status`."""


class JobPlace(NamedTuple):
    """Where a job of the project in the current folder is kept."""

    folder: Path

    @property
    def log(self) -> Path:
        """What the stage printed."""
        return self.folder / LOG

    def read(self) -> JobRecord | None:
        """What is known of the job; None where that is nothing."""
        return read_struct(self.folder / RECORD, JobRecord)

    def write(self, record: JobRecord) -> None:
        """Note what is known of the job.

        Raises:
            FileWriteError: it cannot be written.
        """
        write_struct(self.folder / RECORD, record)

    def outcome(self) -> Outcome | None:
        """How the job ended; None before it says so."""
        return read_struct(self.folder / OUTCOME, Outcome)


def list_open_jobs() -> dict[JobPlace, JobRecord]:
    """The jobs of the project that did not say yet how they ended, also those that their scheduler
    may not have."""
    places = [JobPlace(folder) for folder in JOBS.glob("*/")]
    records = {place: place.read() for place in places if place.outcome() is None}
    return {place: record for place, record in records.items() if record is not None}


def read_struct(path: Path, kind: type[_Record]) -> _Record | None:
    """What a file holds; None where that is nothing of the kind."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, RecursionError):
        return None


def write_struct(path: Path, record: msgspec.Struct) -> None:
    """Write what `read_struct` reads.

    Raises:
        FileWriteError: it cannot be written.
    """
    write_atomic(path, json.dumps(msgspec.to_builtins(record), indent=1).encode())

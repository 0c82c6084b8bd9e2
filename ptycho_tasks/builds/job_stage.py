"""What runs on the other machine: the stage of a job, which makes its entry in the store."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ptycho_tasks.builds.identity import list_differences, read_identity
from ptycho_tasks.builds.job_records import JOBS, LOG, OUTCOME, RECORD, JobRecord, Outcome
from ptycho_tasks.builds.live import end_job, note_task
from ptycho_tasks.builds.planning import make_plan
from ptycho_tasks.builds.results import identify, make_entry
from ptycho_tasks.builds.stages import find_stage
from ptycho_tasks.builds.state import State
from ptycho_tasks.builds.store import Store
from ptycho_tasks.builds.task_table import Table
from ptycho_tasks.errors import ConfigError, PtychoTasksError
from ptycho_tasks.layout import CONFIG_NAME, STORE_NAME
from ptycho_tasks.system.faults import is_raised_by, show_error, show_fault
from ptycho_tasks.system.files import write_atomic
from ptycho_tasks.system.lock import hold_lock
from ptycho_tasks.system.processes import Stopped, exit_on_signals

if TYPE_CHECKING:
    from ptycho_tasks.backend import Backend
    from ptycho_tasks.config.payload import Payload


def run_job(key: str) -> int:
    """Run the stage of a job of the project in the current folder; gives the exit code.

    All that it prints goes to its log; how it ended, to its outcome. A job that is stopped leaves
    no outcome: it may be started again.

    Args:
        key: the name of the job's folder.

    Raises:
        ConfigError: there is no such job.
    """
    folder = JOBS / key
    try:
        record = msgspec.json.decode((folder / RECORD).read_bytes(), type=JobRecord)
        config = (folder / CONFIG_NAME).read_bytes()
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{folder.absolute()}: there is no job here; `doit` submits jobs, and this machine has "
            "to see the project's folder as that one does"
        ) from error
    # Two jobs for one result: the second finds what the first made.
    with _write_output(folder / LOG), hold_lock(folder / "lock"), exit_on_signals():
        outcome = _run(folder, record, config)
        end_job(Path.cwd(), record.name, outcome.problem if outcome.exit_code else None)
        write_atomic(folder / OUTCOME, msgspec.json.encode(outcome))
    return outcome.exit_code


def _run(folder: Path, record: JobRecord, config: bytes) -> Outcome:
    machine = os.uname().nodename if hasattr(os, "uname") else "?"
    backends: list[Backend] = []
    try:
        _make(folder, record, config, backends)
    except Stopped:
        raise
    except PtychoTasksError as error:
        show_error(error)
        return Outcome(exit_code=error.exit_code, problem=str(error), machine=machine)
    except Exception as error:
        culprit = next((f"backend `{b.name}`" for b in backends if is_raised_by(error, b)), "")
        return Outcome(exit_code=1, problem=show_fault(error, culprit), machine=machine)
    return Outcome(exit_code=0, machine=machine)


def _make(folder: Path, record: JobRecord, config: bytes, backends: list[Backend]) -> None:
    path = Path.cwd() / CONFIG_NAME
    plan = make_plan(path, config, record.changes, skips_strays=True)
    table = Table(plan.rows, path, config, plan.store, record.changes)
    if record.name not in {row.name for row in table.rows}:
        raise ConfigError(f"{record.name}: the project has no such task any more; run `doit` again")
    row = table.row(record.name)
    state = State(str(folder / "state.sqlite"))
    state.is_read_only = True
    store = Store(Path(STORE_NAME), Path(table.store) if table.store else None)
    expected = read_identity(record.identity)
    now = identify(row, state)
    if expected is None or now.key() != expected.key():
        differences = [] if expected is None else list_differences(expected, now, paths=row.inputs)
        first = next((reason.text for reason in differences), "its record is damaged")
        raise ConfigError(
            f"{record.name}: here it would make another result than was asked for: {first}; give "
            "both machines the same versions and files, then run `doit` again"
        )
    payload: Payload = table.payload(row)
    backends.append(payload.backend)
    run = find_stage(row.stage)
    with store.hold(row.stage, now.key()):
        if not record.replaces and store.find(row.stage, now, state.sha256) is not None:
            return
        with (
            note_task(Path.cwd(), row.name),
            make_entry(row, state, store, payload, run, replaces=record.replaces) as entry,
        ):
            if not (entry.folder.name == entry.key):
                raise ConfigError(
                    f"{record.name}: its inputs changed while it ran; run `doit` again"
                )


@contextmanager
def _write_output(log: Path) -> Iterator[None]:
    """Write all that this process and its children print to a log."""
    streams = sys.stdout, sys.stderr
    saved = [os.dup(number) for number in (1, 2)]
    with log.open("a", buffering=1, errors="backslashreplace") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        sys.stdout = sys.stderr = file
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams
            for number, copy in zip((1, 2), saved, strict=True):
                with suppress(OSError):
                    os.dup2(copy, number)
                os.close(copy)

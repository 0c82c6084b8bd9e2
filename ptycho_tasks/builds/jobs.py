"""Stages as jobs of a scheduler: submitted, followed, found again by a later run, cancelled.

The job makes the entry of the store; the run puts it in its places. What is known of a job stands
in its folder: see `job_records`.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ptycho_tasks.builds.estimates import double, estimate_resources
from ptycho_tasks.builds.identity import Identity
from ptycho_tasks.builds.job_records import (
    JOBS,
    LOG,
    JobPlace,
    JobRecord,
    Outcome,
    list_open_jobs,
    read_struct,
    write_struct,
)
from ptycho_tasks.builds.results import (
    describe_built,
    identify,
    place_files,
    prepare_training,
)
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.running import is_all_made, is_detached
from ptycho_tasks.builds.state import Built, State
from ptycho_tasks.builds.store import Entry, Store
from ptycho_tasks.builds.submitting import JobError, recall_jobs, submit_job
from ptycho_tasks.builds.task_table import Table
from ptycho_tasks.config.job_settings import (
    JOB_STAGES,
    list_asked,
    read_executor_options,
    read_resources,
)
from ptycho_tasks.errors import FileWriteError, PtychoTasksError
from ptycho_tasks.executors import LOCAL, Executor, Status, find_executor
from ptycho_tasks.layout import CONFIG_NAME
from ptycho_tasks.system.files import report_write_errors, write_atomic
from ptycho_tasks.system.lock import hold_lock
from ptycho_tasks.system.processes import run_id
from ptycho_tasks.system.terminal import echo, print_text

if TYPE_CHECKING:
    from ptycho_tasks.config.payload import Payload

_LOOK_S = 0.3
_ASK = "PTYCHO_TASKS_ASK_S"
"""Environment variable: how often a scheduler is asked, by all tasks of a run together, seconds."""
_LATE = "PTYCHO_TASKS_LATE_S"
"""Environment variable: how long a file system may take to show what another machine wrote."""
_DEFAULT_S = 10.0


class DetachedError(PtychoTasksError):
    """A job goes on while the run does not wait for it."""


def is_job(row: Row, payload: Payload) -> bool:
    """Whether a task runs as a job."""
    return row.stage in JOB_STAGES and payload.execution.executor != LOCAL


def make_by_job(row: Row, state: State, store: Store, payload: Payload, table: Table) -> Built:
    """Have a job make a result, and put it in its places; raises as `make_result`.

    Args:
        row: the task.
        state: knows the digests of files.
        store: of the project.
        payload: of the stage.
        table: the project's tasks.

    Raises:
        JobError: the job failed.
        DetachedError: the job was submitted, or found, and the user does not want to wait for it.
    """
    now = identify(row, state)
    place = JobPlace(JOBS / now.key()[:16])
    # Since doit asked, a job may have made it that an earlier run submitted.
    is_wanted = is_all_made() or not place.folder.exists()
    entry = None if is_wanted else store.find(row.stage, now, state.sha256)
    if entry is None:
        job = _find_job(place)
        job = _submit(place, row, payload, table, now, store, state) if job is None else job
        if is_detached():
            raise DetachedError(f"job {job.record.id} of {job.executor.name}")
        entry = _wait(job, row, now, store, state)
    place_files(row, entry)
    return describe_built(row, entry)


class _Job(NamedTuple):
    """A job that its scheduler knows."""

    place: JobPlace
    record: JobRecord
    executor: Executor
    offset: int = 0
    """Bytes of its log that were shown to who is gone."""


def _wait(job: _Job, row: Row, now: Identity, store: Store, state: State) -> Entry:
    """Wait for a job; gives what it made.

    Raises:
        JobError: it failed.
    """
    outcome = _Follower(job).wait()
    where = f"job {job.record.id} on {outcome.machine}; its log is {job.place.log}"
    if outcome.exit_code:
        raise JobError(f"{outcome.problem} ({where})", outcome.exit_code)
    entry = _find_entry(store, row, now, state)
    if entry is None:
        raise JobError(
            f"{row.name}: its job says that it is done, but {store.roots[-1]} does not have what "
            f"it made: both machines have to see that folder ({where})"
        )
    return entry


def _find_entry(store: Store, row: Row, now: Identity, state: State) -> Entry | None:
    until = time.monotonic() + _seconds(_LATE)
    while True:
        entry = store.find(row.stage, now, state.sha256)
        if entry is not None or time.monotonic() > until:
            return entry
        time.sleep(_LOOK_S)


def _find_job(place: JobPlace) -> _Job | None:
    """The job that makes what a task needs, if one is pending or runs; it is this run's now."""
    record = place.read()
    if record is None or place.outcome() is not None:
        return None
    executor = find_executor(record.executor, Path.cwd())
    if record.is_underway:
        recall_jobs(executor, record)
        record = place.read()
    if record is None or not record.id:
        return None
    answer = _ask_of_all(executor, record)
    if answer.problem:
        raise PtychoTasksError(answer.problem)
    status = answer.states.get(record.id)
    if status is None or not status.is_alive:
        _note_end(place, status or Status("ended"))
        return None
    record = msgspec.structs.replace(record, run=run_id())
    place.write(record)
    echo(f"found job {record.id} of {record.executor}, which makes it")
    return _Job(place, record, executor, place.log.stat().st_size if place.log.exists() else 0)


def _submit(
    place: JobPlace,
    row: Row,
    payload: Payload,
    table: Table,
    now: Identity,
    store: Store,
    state: State,
) -> _Job:
    execution = payload.execution
    prepare_training(row, payload, now)
    executor = find_executor(execution.executor, table.path.parent)
    asked = list_asked(execution.resources, row.stage, payload.backend.name)
    estimate = (
        _estimate(place, row, payload, store) if getattr(executor, "has_limits", True) else {}
    )
    record = JobRecord(
        name=row.name,
        stage=row.stage,
        identity=now.to_record(),
        replaces=is_all_made() and store.find(row.stage, now, state.sha256) is not None,
        changes=dict(table.changes),
        executor=executor.name,
        options=execution.executor_options,
        resources=read_resources(estimate | asked, row.stage),
        run=run_id(),
        estimated=tuple(name for name in estimate if name not in asked),
    )
    with report_write_errors(place.folder):
        shutil.rmtree(place.folder, ignore_errors=True)
        place.folder.mkdir(parents=True)
        write_atomic(place.folder / CONFIG_NAME, table.config)
    record = submit_job(executor, place, record)
    echo(f"submitted as job {record.id} of {executor.name}{_describe_estimate(record)}")
    return _Job(place, record, executor)


def _estimate(place: JobPlace, row: Row, payload: Payload, store: Store) -> dict[str, Any]:
    """What a job asks for where the user says nothing: twice as much of what it had too little of
    when it was tried before."""
    before = place.read()
    if before is not None and before.ended:
        return double(before.resources, before.ended)
    return estimate_resources(row, payload, store)


def _describe_estimate(record: JobRecord) -> str:
    if not record.estimated:
        return ""
    values = {
        "memory_gb": f"{record.resources.memory_gb or 0:g} GB",
        "minutes": f"{record.resources.minutes} min",
    }
    text = ", ".join(values[name] for name in record.estimated)
    return f"; asks for {text} (estimated; execution.resources.{record.stage} says otherwise)"


class _Follower:
    """Waits for a job, and shows what it prints meanwhile."""

    def __init__(self, job: _Job) -> None:
        self.place, self.record, self.executor, self.offset = job
        self.said = ""
        self._is_lost = False

    def wait(self) -> Outcome:
        """Wait until the job has ended.

        Raises:
            JobError: it ended without a word.
        """
        ended_at: float | None = None
        status = None
        while True:
            outcome = self.place.outcome()
            self._show_log()
            if outcome is not None:
                return outcome
            status = self._ask()
            if status is not None and status.is_alive:
                ended_at = None
                self._say(status)
            elif status is not None or self._is_lost:
                ended_at = ended_at or time.monotonic()
                if time.monotonic() - ended_at > _seconds(_LATE):
                    raise JobError(self._explain(status or Status("ended")))
            time.sleep(_LOOK_S)

    def _ask(self) -> Status | None:
        answer = _ask_of_all(self.executor, self.record)
        self._is_lost = not answer.problem and self.record.id not in answer.states
        return answer.states.get(self.record.id)

    def _say(self, status: Status) -> None:
        about = f" ({status.detail})" if status.detail not in ("", "None") else ""
        text = f"job {self.record.id} is {status.state}{about}"
        if text != self.said:
            echo(text)
        self.said = text

    def _show_log(self) -> None:
        with suppress(OSError), self.place.log.open("rb") as file:
            file.seek(self.offset)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self.offset += len(whole)
            if whole:
                print_text(whole.decode(errors="replace"))

    def _explain(self, status: Status) -> str:
        asked = self.record.resources
        state, output = _note_end(self.place, status)
        reasons = {
            "memory": "ran out of memory"
            + ("" if asked.memory_gb is None else f" (it had {asked.memory_gb:g} GB)"),
            "timeout": f"reached its time limit of {asked.minutes} min",
            "node": "lost its machine: run again, a training goes on from its checkpoint",
            "cancelled": "was cancelled: run again",
        }
        why = reasons.get(state, "ended before it said how") + _advise(self.record, state)
        if state == "ended" and output is None and not self.place.log.exists():
            why += " and wrote nothing, as if its machine did not see this folder"
        log = output or (self.place.log if self.place.log.exists() else self.place.folder)
        return (
            f"{self.record.name}: job {self.record.id} of {self.record.executor} {why}; see {log}"
        )


_LACKED = {"memory": "memory_gb", "timeout": "minutes"}
"""Which of its resources a job had too little of, by how it ended."""


def _advise(record: JobRecord, state: str) -> str:
    """What to do about a job that ended so; empty where that is said already."""
    if state not in _LACKED:
        return ""
    key = f"execution.resources.{record.stage}.{_LACKED[state]}"
    goes_on = ": a training goes on from its checkpoint" if state == "timeout" else ""
    if _LACKED[state] in record.estimated:
        return f", as estimated: run again for twice as much{goes_on}, or set {key}"
    return f": raise {key}" + (f", or run again{goes_on}" if goes_on else "")


def _note_end(place: JobPlace, status: Status) -> tuple[str, Path | None]:
    """Why a job ended that said nothing itself, and where that stands; an estimate that was too low
    is remembered."""
    state, output = _search_outputs(place.folder)
    # A scheduler that only says that a job failed has often written why to the job's output.
    state = state if status.state == "ended" else status.state
    record = place.read()
    if record is not None and _LACKED.get(state) in record.estimated:
        place.write(msgspec.structs.replace(record, ended=state))
    return state, output


_TRACES = {
    "memory": re.compile(r"memory limit|oom.?kill|out.of.memory|TERM_MEMLIMIT|mem .*exceed", re.I),
    "timeout": re.compile(r"time limit|timed-out too many|TERM_RUNLIMIT|walltime.* exceed", re.I),
    # A worker of Dask that is lost writes no more.
    "node": re.compile(r"NODE FAILURE|^begins on (?!.*^ended )", re.M | re.S),
}
"""What schedulers write to the output of a job that they end."""
_TAIL = 10_000


def _search_outputs(folder: Path) -> tuple[str, Path | None]:
    """Why a job ended, by what its scheduler wrote beside its log, and where that stands."""
    files = [path for path in folder.rglob("*") if path.suffix in (".out", ".err", ".txt")]
    found: Path | None = None
    for path in sorted(files, key=lambda path: path.name == LOG):
        with suppress(OSError):
            text = path.read_bytes()[-_TAIL:].decode(errors="replace")
            if path.name != LOG and text.strip():
                found = found or path
            for state, trace in _TRACES.items():
                if path.name != LOG and trace.search(text):
                    return state, path
    return "ended", found


def _ask_of_all(executor: Executor, record: JobRecord) -> _Answer:
    """How the jobs of the project fare. A scheduler is asked seldom: one of the tasks that want to
    know asks for all of them."""
    file = JOBS / f"{executor.name}.json"
    with hold_lock(file.with_suffix(".lock")):
        known = read_struct(file, _Answer)
        if known is not None and known.holds_of(record.id):
            return known
        ids = [job.id for job in _list_submitted(executor.name)]
        try:
            found = executor.poll(ids, read_executor_options(executor, record.options))
            answer = _Answer(time=time.time(), asked=ids, states=dict(found))
        except PtychoTasksError as error:
            if known is None or not known.problem:
                echo(f"warning: {error}; asking again", err=True)
            answer = _Answer(time=time.time(), asked=ids, states={}, problem=str(error))
        with suppress(FileWriteError):  # on a full disk, each asks by itself
            write_struct(file, answer)
    return answer


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a scheduler said when it was asked last."""

    time: float
    asked: list[str]
    states: dict[str, Status]
    problem: str = ""

    def holds_of(self, job: str) -> bool:
        """Whether the scheduler need not be asked again about a job."""
        return 0 <= time.time() - self.time < _seconds(_ASK) and job in self.asked


def list_done_jobs() -> Iterator[tuple[Path, JobRecord]]:
    """The jobs of the project that ended and did what they were to do, with their folders."""
    for place in map(JobPlace, sorted(JOBS.glob("*/"))):
        record, outcome = place.read(), place.outcome()
        if record is not None and outcome is not None and not outcome.exit_code:
            yield place.folder, record


def cancel_jobs(run: str) -> None:
    """Cancel the jobs that a run that is stopped submitted or waited for."""
    own = [job for job in list_open_jobs().values() if job.run == run]
    for name in sorted({job.executor for job in own}):
        try:
            executor = find_executor(name, Path.cwd())
            underway = next((job for job in own if job.is_underway and job.executor == name), None)
            if underway is not None:
                recall_jobs(executor, underway)
            jobs = [job for job in _list_submitted(name) if job.run == run]
            if not jobs:
                continue
            options = read_executor_options(executor, jobs[0].options)
            executor.cancel([job.id for job in jobs], options)
        except PtychoTasksError as error:
            echo(f"warning: the jobs of {name} are not cancelled: {error}", err=True)
        else:
            echo(f"cancelled {len(jobs)} job{'s' * (len(jobs) > 1)} of {name}", err=True)


def _list_submitted(executor: str) -> list[JobRecord]:
    jobs = list_open_jobs().values()
    return [job for job in jobs if job.id and job.executor == executor]


def _seconds(variable: str) -> float:
    try:
        return float(os.environ.get(variable, _DEFAULT_S))
    except ValueError:
        return _DEFAULT_S

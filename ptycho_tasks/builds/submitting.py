"""Jobs handed over to a scheduler, together those that ask for the same.

    .ptycho/jobs/EXECUTOR.turn           locked by who submits
    .ptycho/jobs/EXECUTOR.waiting/KEY    for each job that waits to be submitted

A process of a run knows one job. It puts that down, in the job's folder, and waits for its turn, as
a busy controller leaves some of many calls that come at once without an answer. Whose turn it is
submits all that wait and ask for the same as its own, where the executor can do that in one
call; the others find it done.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from ptycho_tasks.builds.job_records import JOBS, JobPlace, JobRecord, Outcome, list_open_jobs
from ptycho_tasks.config.job_settings import read_executor_options
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.executors import Executor, Job
from ptycho_tasks.options import Resources
from ptycho_tasks.system.files import report_write_errors
from ptycho_tasks.system.lock import hold_lock, take_flock

_LOOK_S, _MOST_TURN_S = 0.02, 20.0
_IS_ESTIMATE = re.compile(r"memory|time.?limit|node configuration", re.I)


class JobError(PtychoTasksError):
    """A job failed."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        """Say why; the exit code is that of the stage."""
        super().__init__(text)
        self.exit_code = exit_code


def submit_job(executor: Executor, place: JobPlace, record: JobRecord) -> JobRecord:
    """Have a job submitted; gives what is known of it then.

    Args:
        executor: that of the record.
        place: the job's, with the settings that it is made with.
        record: what is to be made.

    Raises:
        JobError: the scheduler does not take it.
    """
    request = JOBS / f"{executor.name}.waiting" / place.folder.name
    with report_write_errors(request):
        place.write(record)
        request.parent.mkdir(exist_ok=True)
        request.touch()
    with _wait_for_turn(executor):
        if _is_underway(place):
            _recall(executor, record)
        if _is_open(place.read()):
            _hand_over(executor, [place, *_list_alike(executor, place, record)])
    request.unlink(missing_ok=True)
    known = place.read()
    if known is None:
        raise JobError(f"{record.name}: {place.folder} was removed meanwhile: run again")
    if known.refusal is not None:
        raise JobError(known.refusal.problem, known.refusal.exit_code)
    return known


def recall_jobs(executor: Executor, record: JobRecord) -> None:
    """Note which of the jobs the scheduler has that were being submitted when who did that was
    killed.

    Args:
        executor: where they are.
        record: of one of them.

    Raises:
        PtychoTasksError: the scheduler does not answer.
    """
    with hold_lock(_turn(executor)):
        _recall(executor, record)


def _recall(executor: Executor, record: JobRecord) -> None:
    jobs = {
        place: known
        for place, known in list_open_jobs().items()
        if known.executor == executor.name and _is_underway(place)
    }
    if not jobs:
        return
    options = read_executor_options(executor, record.options)
    folders = {place: place.folder.absolute() for place in jobs}
    found: Mapping[Path, str] = executor.recall([*folders.values()], options)  # type: ignore[attr-defined]
    for place, known in jobs.items():
        name = found.get(folders[place], "")
        place.write(msgspec.structs.replace(known, id=name, is_underway=False))


def _is_open(record: JobRecord | None) -> bool:
    """Whether a job was neither taken by its scheduler nor refused, as far as is known."""
    return record is not None and not record.id and record.refusal is None


def _is_underway(place: JobPlace) -> bool:
    known = place.read()
    return known is not None and known.is_underway and _is_open(known)


def _turn(executor: Executor) -> Path:
    return JOBS / f"{executor.name}.turn"


@contextmanager
def _wait_for_turn(executor: Executor) -> Iterator[None]:
    """Submit one after the other. Where each job is a call of its own, one that takes minutes is
    waited for side by side."""
    until = time.monotonic() + _MOST_TURN_S
    with _turn(executor).open("w") as file:
        while not take_flock(file) and (_takes_many(executor) or time.monotonic() < until):
            time.sleep(_LOOK_S)
        yield


def _takes_many(executor: Executor) -> bool:
    return hasattr(executor, "submit_all")


def _list_alike(executor: Executor, place: JobPlace, record: JobRecord) -> list[JobPlace]:
    """The other jobs of this run that wait, and ask for the same as one does."""

    def sign(known: JobRecord) -> Any:
        return known.run, known.executor, known.options, known.resources, known.estimated

    if not _takes_many(executor):
        return []
    requests = (JOBS / f"{executor.name}.waiting").iterdir()
    others = {JobPlace(JOBS / request.name) for request in requests} - {place}
    # What somebody who was killed may have submitted is left to its own process, which asks.
    waiting = {
        one: known
        for one in others
        if (known := one.read()) is not None and _is_open(known) and not known.is_underway
    }
    alike = {one: known for one, known in waiting.items() if sign(known) == sign(record)}
    return sorted(alike, key=lambda one: alike[one].name)


def _hand_over(executor: Executor, places: Sequence[JobPlace]) -> None:
    """Submit jobs, and note what becomes of each.

    Without an estimate where the scheduler does not take that, as one that knows no memory of its
    machines, or has a shorter time limit.
    """
    waiting = {place: known for place in places if (known := place.read()) is not None}
    while waiting:
        if hasattr(executor, "recall"):
            waiting = {p: msgspec.structs.replace(r, is_underway=True) for p, r in waiting.items()}
            for place, record in waiting.items():
                place.write(record)
        answers = _submit(executor, waiting)
        again = {}
        for (place, record), answer in zip(waiting.items(), answers, strict=True):
            known = msgspec.structs.replace(record, is_underway=False)
            if isinstance(answer, str):
                place.write(msgspec.structs.replace(known, id=answer))
            elif record.estimated and _IS_ESTIMATE.search(str(answer)):
                again[place] = _drop_estimate(known)
            else:
                refusal = Outcome(exit_code=answer.exit_code, problem=str(answer))
                place.write(msgspec.structs.replace(known, refusal=refusal))
        waiting = again


def _submit(
    executor: Executor, waiting: dict[JobPlace, JobRecord]
) -> Sequence[str | PtychoTasksError]:
    jobs = [_make_job(executor, place, record) for place, record in waiting.items()]
    if len(jobs) > 1:
        answers: Sequence[str | PtychoTasksError] = executor.submit_all(jobs)  # type: ignore[attr-defined]
        return answers
    try:
        return [executor.submit(jobs[0])]
    except PtychoTasksError as error:
        return [error]


def _make_job(executor: Executor, place: JobPlace, record: JobRecord) -> Job:
    command = [sys.executable, "-m", "ptycho_tasks.commands.cli", "run-stage", place.folder.name]
    options = read_executor_options(executor, record.options)
    folder = place.folder.absolute()
    return Job(record.name, command, Path.cwd(), folder, record.resources, options)


def _drop_estimate(record: JobRecord) -> JobRecord:
    known = msgspec.structs.asdict(record.resources)
    said = {name: value for name, value in known.items() if name not in record.estimated}
    return msgspec.structs.replace(record, resources=Resources(**said), estimated=())

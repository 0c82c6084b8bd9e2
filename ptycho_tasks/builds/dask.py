"""The executor `dask`: jobs of dask.distributed, on workers that a group has, or of the run itself.

A task of Dask starts the stage's command and waits for it: see `dask_stage`. It is left to the
scheduler ("fire and forget"), which forgets it when it has ended: so a worker that is lost repeats
what it had, and nothing that has ended.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast
from uuid import uuid4

from ptycho_tasks.builds.dask_stage import end_commands, run_command
from ptycho_tasks.builds.running import is_detached
from ptycho_tasks.errors import ConfigError, PtychoTasksError, one_line
from ptycho_tasks.executors import Job, State, Status
from ptycho_tasks.layout import JOBS_NAME
from ptycho_tasks.options import Section, doc, limits
from ptycho_tasks.system.lock import hold_lock, is_alive
from ptycho_tasks.system.processes import run_id, run_pid

_TIMEOUT_S = 5
"""How long a scheduler may take to answer."""
_START_S = 60
_LOOK_S = 0.02
_RECORD = "dask.txt"
_WAITING = ("released", "waiting", "queued", "no-worker")
_KEY = "execution.executor_options"


class DaskOptions(Section, frozen=True, kw_only=True):
    """Where the workers are."""

    scheduler: Annotated[
        Annotated[str, limits(min_length=1)] | None,
        doc("address of a scheduler, as tcp://host:8786; null: a cluster of the run's own"),
    ] = None
    scheduler_file: Annotated[
        Annotated[str, limits(min_length=1)] | None,
        doc("instead, the file in which a scheduler wrote its address, from the project's folder"),
    ] = None
    workers: Annotated[
        Annotated[int, limits(ge=1)] | None,
        doc("workers of a cluster of the run's own; null: one a GPU of this machine, or one"),
    ] = None

    def __post_init__(self) -> None:
        """Refuse two schedulers."""
        if self.scheduler and self.scheduler_file:
            raise ValueError("give `scheduler` or `scheduler_file`, not both")

    @property
    def is_own(self) -> bool:
        """Whether the run has a cluster of its own, which ends with it."""
        return not (self.scheduler or self.scheduler_file)


class Dask:
    """A scheduler of Dask, and its workers."""

    name, options_type, has_limits = "dask", DaskOptions, False

    def submit(self, job: Job) -> str:
        """Submit a job; the scheduler has it when this ends."""
        options = cast("DaskOptions", job.options)
        if options.is_own:
            if is_detached():
                raise ConfigError(
                    f"{_KEY}: without `scheduler`, Dask's workers end with the run, so that "
                    "nothing could go on: name a scheduler, or run without --detach"
                )
            _start_cluster(options)
        key = f"{job.name}-{uuid4().hex[:8]}"
        record = job.folder / _RECORD
        threads = {"OMP_NUM_THREADS": str(job.resources.cpus)} if job.resources.cpus else {}
        # One that took a worker down with it would take the next.
        may_repeat = job.name.partition(":")[0] != "train"
        with _connect(options, checks_versions=True) as client:
            future = client.submit(
                run_command, [*job.command], str(job.root), str(record), threads, may_repeat,
                key=key, pure=False, resources=_list_resources(job),
            )  # fmt: skip
            _make_sure(client, future)
        return key

    def poll(self, ids: Sequence[str], options: Section) -> Mapping[str, Status]:
        """Ask the scheduler, which knows of no job that has ended."""
        if _is_gone(options):
            return {}
        with _connect(options) as client:
            states = client.sync(client.scheduler.get_task_status, keys=[*ids])
            places = {key: worker for worker, keys in client.processing().items() for key in keys}
            has_workers = bool(client.nthreads())
        return {
            key: Status(*_describe(state, places.get(key, ""), has_workers=has_workers))
            for key, state in states.items()
            if state in (*_WAITING, "processing")
        }

    def cancel(self, ids: Sequence[str], options: Section) -> None:
        """End jobs."""
        if _is_gone(options):
            return
        with _connect(options) as client:
            from distributed import Future

            client.cancel([Future(key, client) for key in ids], force=True)
            client.run(end_commands, [*ids], on_error="ignore")


def _describe(state: str, worker: str, *, has_workers: bool) -> tuple[State, str]:
    if not has_workers:
        return "pending", "there is no worker; those that ended wrote why"
    if state == "no-worker":
        return "pending", "no worker offers what it asks for"
    return ("pending", "") if state in _WAITING else ("running", worker)


def _list_resources(job: Job) -> dict[str, float]:
    """What a worker has to offer, as it was started: `dask worker --resources GPU=1`."""
    asked = job.resources
    wrong = next((key for key, value in asked.options.items() if isinstance(value, str)), None)
    if wrong is not None:
        raise ConfigError(
            f"execution.resources: options.{wrong}: Dask counts resources; give a number"
        )
    offered = {"GPU": float(asked.gpus)} if asked.gpus else {}
    return offered | {key: float(value) for key, value in asked.options.items()}


def _make_sure(client: Any, future: Any) -> None:
    """Wait until the scheduler has a job, and leave it to it."""
    from distributed import fire_and_forget

    until = time.monotonic() + _TIMEOUT_S
    while not future.done():
        if client.sync(client.scheduler.get_task_status, keys=[future.key])[future.key]:
            break
        if time.monotonic() > until:
            raise TimeoutError("it does not take the job")
        time.sleep(_LOOK_S)
    fire_and_forget(future)


@contextmanager
def _connect(options: Section, *, checks_versions: bool = False) -> Iterator[Any]:
    """A client of the scheduler.

    Args:
        options: where it is.
        checks_versions: whether machines are refused whose dask.distributed is of another version,
            where workers would end instead of taking a stage.

    Raises:
        PtychoTasksError: it does not answer.
    """
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ConfigError(
            "execution.executor: dask needs dask.distributed; install `ptycho-tasks[dask]`"
        ) from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # the error says it
    address = _find_address(cast("DaskOptions", options))
    try:
        # Of other packages, the stage itself sees to it that versions are as they have to be.
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            client = Client(address, timeout=_TIMEOUT_S, set_as_default=False)
        with client:
            if checks_versions and any("Mismatched" in str(one.message) for one in warned):
                _refuse_other_versions(client)
            yield client
    except PtychoTasksError:
        raise
    except TypeError as error:  # what one says is not what the other understands
        raise PtychoTasksError(
            f"Dask's scheduler at {address} is of another version than here "
            f"({one_line(str(error))}); {_SAME_VERSIONS}"
        ) from error
    except Exception as error:  # of sockets, of asyncio, of the scheduler itself
        why = one_line(str(error) or type(error).__name__)
        raise PtychoTasksError(
            f"Dask's scheduler at {address} does not answer: {why}; start it, or correct {_KEY}"
        ) from error


_SAME_VERSIONS = "give all machines the same version of dask.distributed"


def _refuse_other_versions(client: Any) -> None:
    """Refuse machines whose dask.distributed is of another version.

    Raises:
        PtychoTasksError: there is one.
    """
    found = client.get_versions()
    machines = {"the scheduler": found["scheduler"], **found["workers"]}
    versions = {name: one["packages"]["distributed"] for name, one in machines.items()}
    here = found["client"]["packages"]["distributed"]
    for name, version in versions.items():
        if version != here:
            raise PtychoTasksError(
                f"Dask: {name} has distributed {version}, and {here} is here; {_SAME_VERSIONS}"
            )


def _find_address(options: DaskOptions) -> str:
    if options.scheduler:
        return options.scheduler
    path = _own_file() if options.is_own else Path(options.scheduler_file or "")
    try:
        return str(_read(path)["address"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        why = getattr(error, "strerror", None) or "holds no address of a scheduler"
        raise PtychoTasksError(
            f"{_KEY}.scheduler_file: {path}: {why}; start `dask scheduler --scheduler-file {path}`"
        ) from error


def _own_file() -> Path:
    return Path(JOBS_NAME, f"dask-{run_id() or os.getpid()}.json")


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _is_gone(options: Section) -> bool:
    """Whether jobs were those of a cluster of a run's own that has ended."""
    if not cast("DaskOptions", options).is_own:
        return False
    try:
        return not is_alive(_read(_own_file())["pid"])
    except FileNotFoundError:
        return True


def _start_cluster(options: DaskOptions) -> None:
    """Start the run's own cluster, if it has none yet."""
    file = _own_file()
    with hold_lock(file.with_name("dask-cluster.lock")):
        if file.exists():
            return
        log = file.with_name("dask-cluster.log")
        module = "ptycho_tasks.builds.dask_cluster"
        words = [str(run_pid() or os.getpid()), str(file), str(options.workers or 0)]
        with log.open("w") as output:
            cluster = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C is the run's
            )
        until = time.monotonic() + _START_S
        while not file.exists():
            if cluster.poll() is not None or time.monotonic() > until:
                cluster.kill()
                raise PtychoTasksError(f"Dask cannot be started on this machine; see {log}")
            time.sleep(_LOOK_S)


executor = Dask()

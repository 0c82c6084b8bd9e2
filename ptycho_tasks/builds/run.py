"""The frame of a run: the lock, signals, worker processes."""

from __future__ import annotations

import atexit
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from ptycho_tasks.builds.running import is_detached
from ptycho_tasks.builds.state import State
from ptycho_tasks.layout import JOBS_NAME
from ptycho_tasks.system.clock import utc_now
from ptycho_tasks.system.faults import exit_on_error
from ptycho_tasks.system.lock import ProjectLock
from ptycho_tasks.system.processes import (
    Stopped,
    enter_run,
    handle_signals,
    is_abandoned,
    is_run,
    is_stopping,
    leave_run,
    run_id,
    stop,
)
from ptycho_tasks.system.terminal import echo

_GRACE_S = 10.0
"""How long a worker process that was told to end may take to tidy up."""


class _Run:
    """What frames a run: the lock, signals, and a look at worker processes."""

    def __init__(self) -> None:
        """Take the lock, and arrange for an orderly end."""
        self.lock = ProjectLock()
        with exit_on_error():
            utc_now()  # a wrong SOURCE_DATE_EPOCH ends libraries that are imported later
            self.lock.acquire()
        self.workers: set[Any] = set()
        self.handlers = ExitStack()
        self.handlers.enter_context(handle_signals(stop))

    def end(self) -> None:
        """Put everything back."""
        if is_stopping():
            self._end_workers()
            # Where only the terminal is gone, nobody said that the work is not wanted any more.
            if Path(JOBS_NAME).is_dir() and not (is_detached() or is_abandoned()):
                from ptycho_tasks.builds.jobs import cancel_jobs

                with suppress(Exception):  # the run ends, whatever comes of it
                    cancel_jobs(run_id())
        self.handlers.close()
        while _last_steps:
            _last_steps.pop()()
        self.lock.release()

    def watch_workers(self) -> None:
        """From the first task of a parallel run on, end it if one of its processes is killed:
        doit would wait for that one's result for ever."""
        multiprocessing = sys.modules.get("multiprocessing")
        if multiprocessing is not None and is_run():
            first = not self.workers
            self.workers |= set(multiprocessing.active_children())
            if first and self.workers:
                self.handlers.enter_context(handle_signals(self._child_ended, [signal.SIGCHLD]))

    def _end_workers(self) -> None:
        """End the processes of a run that was stopped. doit does that too, but for those that were
        just being started; Python would wait for these for ever."""
        multiprocessing = sys.modules.get("multiprocessing")
        if multiprocessing is None or not is_run():
            return
        workers = multiprocessing.active_children()
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(_GRACE_S)
            if worker.is_alive():
                worker.kill()

    def _child_ended(self, number: int, frame: FrameType | None) -> None:
        killed = [worker.exitcode for worker in self.workers if (worker.exitcode or 0) < 0]
        if killed:
            echo(
                f"error: a worker process was killed by signal {-killed[0]} (out of memory?); run "
                "again with fewer, what is finished is kept",
                err=True,
            )
            self.workers.clear()
            raise Stopped(1)


_run: _Run | None = None
_last_steps: list[Callable[[], None]] = []


def begin_run(state: object) -> None:
    """Frame a run, if none is framed yet; for each reporter that doit has.

    Raises:
        SystemExit: another run is at work, and the user was told.
    """
    global _run
    if _run is None:
        _run = _Run()
        enter_run()
    if isinstance(state, State):
        state.running = True


def begin_task(name: str) -> None:
    """Say to who asks for the lock that a task runs, and look after worker processes."""
    if _run is not None:
        _run.lock.note_task(name)
        _run.watch_workers()


def at_end(step: Callable[[], None]) -> None:
    """Do something at the end of the run, while it still holds the lock; without a run, never."""
    if step not in _last_steps:
        _last_steps.append(step)


@atexit.register  # a second Ctrl-C may come while the first is acted on
def end_run() -> None:
    """End the run, if there is one, and put everything back as it was before."""
    global _run
    if _run is not None:
        _run.end()
        leave_run()
        _run = None

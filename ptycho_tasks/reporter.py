"""What doit says while it runs, and what has to frame a run: the lock, and signals.

doit tells its reporter when a run begins, which task it runs, and when it ends; nothing else of
doit is told only of runs.
"""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from doit.exceptions import BaseFail, TaskFailed, UnmetDependency
from doit.globals import Globals
from doit.reporter import ConsoleReporter

from ptycho_tasks.clock import utc_now
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.lock import ProjectLock
from ptycho_tasks.order import in_run_order
from ptycho_tasks.output import echo, say
from ptycho_tasks.state import State
from ptycho_tasks.table import EVIDENCE

if TYPE_CHECKING:
    from ptycho_tasks.blocked import Blocked

_LONGEST_LINE = 1 << 16
"""A longer one is shown in parts."""
_WATCH_S = 0.2
"""How often a worker process looks whether its run is still there."""
_SIGNALS: list[signal.Signals] = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
]
"""What asks a process to end."""

run_pid: int | None = None
"""The process that runs the tasks; None where no tasks are run."""


class _Run:
    """What frames a run: the lock, signals, and a look at worker processes."""

    def __init__(self) -> None:
        """Take the lock, and arrange for an orderly end."""
        from ptycho_tasks.tasks import or_exit

        self.lock = ProjectLock()
        with or_exit():
            utc_now()  # a wrong SOURCE_DATE_EPOCH ends libraries that are imported later
            self.lock.acquire()
        self.workers: set[Any] = set()
        self.handlers = ExitStack()
        self.handlers.enter_context(handling(_stop))

    def end(self) -> None:
        """Put everything back."""
        self.handlers.close()
        _put_back_results()
        self.lock.release()

    def mind_workers(self) -> None:
        """From the first task of a parallel run on, end it if one of its processes is killed:
        doit would wait for that one's result for ever."""
        multiprocessing = sys.modules.get("multiprocessing")
        if multiprocessing is not None and run_pid == os.getpid():
            first = not self.workers
            self.workers |= set(multiprocessing.active_children())
            if first and self.workers:
                self.handlers.enter_context(handling(self._child_ended, [signal.SIGCHLD]))

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


def _put_back_results() -> None:
    """Leave the results of the evidence where a later run finds them."""
    keep = sys.modules.get("ptycho_tasks.keep")
    if keep is not None:
        try:
            keep.end_keeping()
        except PtychoTasksError as error:
            echo(f"warning: results that are not published are lost: {error}", err=True)


_run: _Run | None = None


def begin_run(state: object) -> None:
    """Frame a run, if none is framed yet; for each reporter that doit has.

    Raises:
        SystemExit: another run is at work, and the user was told.
    """
    global run_pid, _run
    if _run is None:
        _run = _Run()
        run_pid = os.getpid()
        _watch_workers()
    if isinstance(state, State):
        state.running = True


class GoesOn:
    """doit's option --continue, where the user gives none: whether a run goes on after a failure.

    One that gathers evidence does while all that failed only blocks items: others may be proved.
    """

    blocked: Blocked | None = None
    """Of the run in this process, if it gathers evidence."""

    def __bool__(self) -> bool:
        """Asked after each failure."""
        return GoesOn.blocked is not None and GoesOn.blocked.only_blocks

    def __repr__(self) -> str:
        """What `doit help run` shows."""
        return "only if what failed merely blocks evidence"


class Reporter(ConsoleReporter):  # type: ignore[misc]
    """doit's console output, for one run at a time."""

    desc = "console output, one run at a time in a project"

    def __init__(self, outstream: Any, options: Any) -> None:
        """A run's report; see doit's."""
        super().__init__(outstream, options)
        self.failed: list[str] = []
        """Names of tasks that failed."""
        self.not_run: list[str] = []
        """Names of tasks that did not run, since one before them failed."""

    def initialize(self, tasks: Any, selected_tasks: Any) -> None:
        """Begin a run."""
        # doit has not looked at the list yet: with each task behind those that it needs, none
        # has to wait for another, and they run in the order that `dry-run` shows.
        selected_tasks[:] = in_run_order(tasks, selected_tasks)
        from ptycho_tasks.tasks import or_exit, refuse_missing_scans

        with or_exit():
            refuse_missing_scans(tasks, selected_tasks)
        begin_run(Globals.dep_manager.backend)
        if EVIDENCE in tasks:
            from ptycho_tasks.evidence_tasks import refuse_unready

            with or_exit():
                refuse_unready(tasks, selected_tasks)
            from ptycho_tasks.blocked import Blocked

            GoesOn.blocked = Blocked(tasks, selected_tasks)

    def write(self, text: str) -> None:
        """Show a text, as long as someone reads."""
        try:
            super().write(text)
        except (AttributeError, OSError):  # closed, full, or without a reader
            say(text, self.outstream)

    def execute_task(self, task: Any) -> None:
        """Say that a task runs, also to who asks for the lock."""
        if _run is not None:
            _run.lock.working_on(task.name)
            _run.mind_workers()
        super().execute_task(task)
        # A whole line at once, between those of worker processes.
        say("", self.outstream)

    def add_failure(self, task: Any, fail: BaseFail) -> None:
        """Note that a task failed, or did not run since one before it failed."""
        if isinstance(fail, UnmetDependency):
            self.not_run.append(task.name)
            # doit would end with the code of a wrong usage, of which nothing was started.
            fail.__class__ = _NotRun
            return
        self.failed.append(task.name)
        if GoesOn.blocked is not None:
            GoesOn.blocked.note(task.name, fail)
        super().add_failure(task, fail)

    def complete_run(self) -> None:
        """End a run."""
        global run_pid, _run
        blocked, GoesOn.blocked = GoesOn.blocked, None
        # A run that is stopped ends with an error that passes by here.
        if blocked is not None and self.failed and sys.exc_info()[0] is None:
            told = blocked.publish()
            self.not_run = [name for name in self.not_run if name not in told]
        super().complete_run()
        self.write("".join(f"{line}\n" for line in self._summary()))
        say("", self.outstream)
        if _run is not None:
            _run.end()
            run_pid, _run = None, None

    def _summary(self) -> Iterator[str]:
        """What failed, where more than the last line says it."""
        if len(self.failed) + len(self.not_run) > 1:
            yield f"failed: {', '.join(self.failed)}"
            if self.not_run:
                yield f"not run because of that: {', '.join(self.not_run)}"


class _NotRun(TaskFailed, UnmetDependency):  # type: ignore[misc]
    """A task that did not run, since one before it failed: the work failed, with that one."""


def in_worker() -> bool:
    """Whether this is one of several processes that run tasks side by side."""
    return run_pid is not None and os.getpid() != run_pid


class _Prefixed(io.TextIOBase):
    """A text stream that puts a task's name before each line, and writes only whole lines."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self._stream, self._prefix, self._part = stream, prefix, ""

    def write(self, text: str) -> int:
        *lines, self._part = (self._part + text).split("\n")
        if len(self._part) > _LONGEST_LINE:
            lines, self._part = [*lines, self._part], ""
        if lines:
            # One write, which the kernel does not split as long as it is short.
            say("".join(f"{self._prefix}{line}\n" for line in lines), self._stream)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        if self._part:
            self.write("\n")


@contextmanager
def lines_of(task: str) -> Iterator[None]:
    """Where tasks run side by side, name the task in each line that the block writes."""
    if not in_worker():
        yield
        return
    out, err = (_Prefixed(stream, f"{task}: ") for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            out.close()
            err.close()


class Stopped(SystemExit):
    """The user or the system ended the run; a backend that ends it raises a plain SystemExit."""

    def __init__(self, status: int | str) -> None:
        """With the exit status, which doit hands on from a worker process as text."""
        super().__init__(int(status))


_stopping = False
"""Whether this process was told to end."""


def stopping_in_order() -> AbstractContextManager[None]:
    """In the block, a signal that asks this process to end removes files that are being written."""
    return handling(_stop)


@contextmanager
def handling(
    handler: Callable[[int, FrameType | None], None],
    numbers: Sequence[signal.Signals] = _SIGNALS,
) -> Iterator[None]:
    """Handle signals, by default those that ask a process to end, in the block."""
    before: dict[int, Any] = {}
    with suppress(ValueError):  # not in the main thread, which alone gets them
        before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    """End at once but in order: files that are being written are removed."""
    global _stopping
    # The run ends its worker processes too, which may have been told already.
    if in_worker() and _stopping:
        return
    _stopping = True
    if not in_worker():
        # Past Python's own buffers: a signal that interrupts a write to them may not write too.
        with suppress(OSError):
            os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
    raise Stopped(128 + number)


@functools.cache
def _watch_workers() -> None:
    os.register_at_fork(after_in_child=_watch_the_run)


def _watch_the_run() -> None:
    """In a worker process: end when the run that began it is gone, however it was killed."""
    if run_pid is None:
        return

    parent = run_pid

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()

"""Processes: signals, workers, and lines of output from several of them."""

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
    contextmanager,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.system.terminal import print_text

if TYPE_CHECKING:
    import subprocess

_LONGEST_LINE = 1 << 16
"""A longer one is shown in parts."""

_WATCH_S = 0.2
"""How often a worker process looks whether its run is still there."""

_SIGNALS: list[signal.Signals] = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
]
"""What asks a process to end."""


_run_pid: int | None = None
"""The process that runs the tasks; None where no tasks are run."""
_run_id = ""


def enter_run() -> None:
    """Note that this process runs the tasks. Processes that it forks from now on are workers, and
    end when it ends."""
    global _run_pid, _run_id
    _run_pid = os.getpid()
    _run_id = f"{_run_pid}-{time.time_ns()}"
    _watch_workers()


def leave_run() -> None:
    """Note that the run is over."""
    global _run_pid
    _run_pid = None


def run_id() -> str:
    """What tells the run that this process is of from every other; empty where there is none."""
    return _run_id


def run_pid() -> int | None:
    """The process of the run that this one belongs to; None where there is no run."""
    return _run_pid


def count_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_run() -> bool:
    """Whether this is the process that runs the tasks."""
    return _run_pid == os.getpid()


def is_worker() -> bool:
    """Whether this is a worker: one of several processes that run tasks side by side."""
    return _run_pid is not None and not is_run()


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
            print_text("".join(f"{self._prefix}{line}\n" for line in lines), self._stream)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        if self._part:
            self.write("\n")


@contextmanager
def prefix_lines(task: str) -> Iterator[None]:
    """In a worker, put the task's name before each line that the block writes."""
    if not is_worker():
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
    """The user or the system ended the run. (A backend that does raises a plain SystemExit.)"""

    def __init__(self, status: int | str) -> None:
        """Take the exit status; from a worker process, doit hands it on as text."""
        super().__init__(int(status))


class HardExit(SystemExit):
    """Code of a plugin called `os._exit`."""


def describe_exit(error: SystemExit) -> str:
    """The call that ended the program, as code says it."""
    return f"{'os._exit' if isinstance(error, HardExit) else 'sys.exit'}({error.code!r})"


@contextmanager
def catch_hard_exits() -> Iterator[None]:
    """Have `os._exit` raise in the block, as `sys.exit` does: it would end the run past all
    messages and clean-up, with the status of one that went well.

    In this process alone: one that is forked in the block ends so, as it must.

    Raises:
        HardExit: what the block calls ends the process.
    """
    before, here = os._exit, os.getpid()

    def end(status: int) -> NoReturn:
        if os.getpid() != here:
            before(status)
        raise HardExit(status)

    os._exit = end
    try:
        yield
    finally:
        os._exit = before


_stopping: int | None = None
"""The signal that told this process to end."""


def is_stopping() -> bool:
    """Whether this process was told to end."""
    return _stopping is not None


def is_abandoned() -> bool:
    """Whether this process was told to end since its terminal is gone."""
    return _stopping == getattr(signal, "SIGHUP", -1)


def exit_on_signals() -> AbstractContextManager[None]:
    """In the block, end in order at a signal that asks this process to end: see `stop`."""
    return handle_signals(stop)


@contextmanager
def handle_signals(
    handler: Callable[[int, FrameType | None], None],
    numbers: Sequence[signal.Signals] = _SIGNALS,
) -> Iterator[None]:
    """Handle signals in the block; by default those that ask a process to end."""
    before: dict[int, Any] = {}
    with suppress(ValueError):  # not in the main thread, which alone gets them
        before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Overdue(BaseException):
    """A block took longer than it may. (No `Exception`, which code of others may catch.)"""


@contextmanager
def limit_time(limit_s: float) -> Iterator[None]:
    """End the block if it lasts longer: what Python does in it, and what waits for the system.

    Only in the main thread, and where there is SIGALRM; elsewhere it may last.

    Raises:
        Overdue: the block took so long.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise Overdue(f"{limit_s:g} s")

    alarm = getattr(signal, "SIGALRM", None)
    if alarm is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    begun, (outer_s, _) = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)
    try:
        with handle_signals(end, [alarm]):
            signal.setitimer(signal.ITIMER_REAL, limit_s)
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
    finally:
        if outer_s:
            signal.setitimer(signal.ITIMER_REAL, max(outer_s - time.monotonic() + begun, 1e-3))


def stop(number: int, frame: FrameType | None) -> None:
    """Handle a signal: end at once, but in order. Files that are being written are removed."""
    global _stopping
    # The run ends its worker processes too, which may have been told already.
    if is_worker() and is_stopping():
        return
    _stopping = number
    if not is_worker():
        # Past Python's own buffers: a signal that interrupts a write to them may not write too.
        with suppress(OSError):
            os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
    raise Stopped(128 + number)


@functools.cache
def _watch_workers() -> None:
    os.register_at_fork(after_in_child=_watch_the_run)


def _watch_the_run() -> None:
    """In a worker: end when the run that started it has ended, however that happened."""
    if _run_pid is None:
        return

    parent = _run_pid

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def ask(
    command: str | Sequence[str], timeout_s: float, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run another program to its end, and keep what it prints.

    Args:
        command: its words; the status is 127 where there is no such program. Or a line for the
            shell.
        timeout_s: how long it may take, seconds.
        folder: where it runs; None is the present one.

    Raises:
        PtychoTasksError: it does not end in time.
    """
    import subprocess  # a run with nothing to do asks nobody

    is_line = isinstance(command, str)
    try:
        return subprocess.run(
            command,
            shell=is_line,
            cwd=folder,
            text=True,
            errors="replace",
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        if is_line:
            raise  # the folder is not there
        return subprocess.CompletedProcess(command, 127, "", f"there is no `{command[0]}` here")
    except subprocess.TimeoutExpired as error:
        name = command if is_line else command[0]
        raise PtychoTasksError(f"`{name}` gave no answer in {timeout_s:g} s") from error

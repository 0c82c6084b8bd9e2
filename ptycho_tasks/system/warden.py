"""A program that runs a command and ends with it all that the command started.

    python warden.py COMMAND ARGUMENT...

Its standard input is a pipe of which the run holds the other end: `T` asks all to end, anything
else, and the end of the pipe, ends them; the kernel closes it for a run that is killed as well.

On Linux it adopts whatever loses its parent (prctl(2), PR_SET_CHILD_SUBREAPER), so that a process
with a session of its own, or a daemon, is found too. Elsewhere the command's process group ends.

It imports nothing of the package: it is started once an item.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_LINGER_S = 0.2
"""How long what the command leaves may take to end by itself, as `tee` in `> >(tee log)`."""
_GIVE_UP_S = 3.0
"""How long is tried to end what cannot be ended, as what runs as another user."""
_LOOK_S = 0.01


def run(command: list[str]) -> int:
    """Run a command; gives what `waitpid` says of it."""
    _prctl(_PR_SET_CHILD_SUBREAPER)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        _become(command)
    pipe = _silenced_pipe()
    statuses: dict[int, int] = {}
    while child not in statuses:
        ready = select.select([0, pipe], [], [])[0]
        if pipe in ready:
            os.read(pipe, 1 << 12)
            _reap(statuses)
        elif os.read(0, 1) == b"T":
            _signal(child, signal.SIGTERM)
        else:
            break
    else:
        _wait_for_the_rest(statuses)
    _end_all(child, statuses)
    return statuses.get(child, signal.SIGKILL.value)


def _become(command: list[str]) -> None:
    """Turn the new process into the command, in a session of its own."""
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _silenced_pipe() -> int:
    """What can be read when a child ends; lets go of the output, so that its end shows."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    os.write(writing, b"\0")  # it may have ended already
    return reading


def _reap(statuses: dict[int, int]) -> bool:
    """Note how children ended, by process id; gives whether there are others."""
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return True
            statuses[pid] = status
    except ChildProcessError:
        return False


def _wait_for_the_rest(statuses: dict[int, int]) -> None:
    until = time.monotonic() + _LINGER_S
    while _reap(statuses) and time.monotonic() < until:
        time.sleep(_LOOK_S)


def _end_all(child: int, statuses: dict[int, int]) -> None:
    """Kill the command and all that it started."""
    until = time.monotonic() + _GIVE_UP_S
    _signal(child, signal.SIGKILL)
    while _reap(statuses) and time.monotonic() < until:
        time.sleep(_LOOK_S)
        _signal(child, signal.SIGKILL)


def _signal(child: int, number: int) -> None:
    """Signal all that the command started, or, where that is not known, its process group."""
    pids = _descendants()
    with suppress(ProcessLookupError, PermissionError):
        if not pids:
            os.killpg(child, number)
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _descendants() -> list[int]:
    """All processes below this one; none where the system has no /proc."""
    children: dict[int, list[int]] = {}
    with suppress(OSError):
        for name in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208 (a quick start)
            with suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    # The name of the program, in parentheses, may hold anything.
                    parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    pids = children.get(os.getpid(), [])
    for pid in pids:  # grows meanwhile
        pids += children.get(pid, [])
    return pids


def _prctl(option: int, value: int = 1) -> None:
    """Ask the kernel, where it is Linux."""
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _end_alike(status: int) -> None:
    """End as the command did, also by its signal."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command's own is enough
        with suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    _end_alike(run(sys.argv[1:]))

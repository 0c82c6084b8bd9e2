"""The process of an item: start its command, follow its output, end it with all that it started."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from ptycho_tasks.evidence.item import Evidence, Item
from ptycho_tasks.evidence.log import Tee
from ptycho_tasks.evidence.shell import make_environment, make_shell_command
from ptycho_tasks.system.clock import Clock
from ptycho_tasks.system.lock import lend_lock
from ptycho_tasks.system.processes import is_worker, run_pid
from ptycho_tasks.system.warded import end_warded, start_warded

_POLL_S = 0.1
"""How long to wait for output before looking whether a silent command has ended."""


def start_command(
    evidence: Evidence, item: Item, junit: Path
) -> tuple[subprocess.Popen[bytes], int]:
    """Start an item's command; gives its process, and the descriptor that its output is read from:
    stdout and stderr together, so that their order is kept.

    Args:
        evidence: the project's.
        item: one of its items.
        junit: where pytest, if the command calls it, is to write its JUnit XML.
    """
    env = {**make_environment(), **item.env}
    run = run_pid()
    if run is not None:
        env |= lend_lock(run)
    if item.arguments:
        command = [sys.executable, "-m", "pytest", *item.arguments, f"--junitxml={junit}"]
    else:
        if item.has_pytest:
            # The words of the command are the user's, and stay as they are.
            env["PYTEST_ADDOPTS"] = f"{env.get('PYTEST_ADDOPTS', '')} --junitxml={junit}".strip()
        command = make_shell_command(item.command)
    has_terminal = sys.stdout.isatty() and not is_worker()
    reading, writing = _open_terminal() if has_terminal else os.pipe()
    try:
        # By the warden's session, Ctrl-C reaches it only after the log says so.
        process = start_warded(command, cwd=evidence.root, env=env, stdout=writing, stderr=writing)
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return process, reading


def _open_terminal() -> tuple[int, int]:
    """A terminal for the command, as it cannot have ours: programs then colour their output, and
    write it line by line. Gives the ends to read and to write."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    modes = termios.tcgetattr(theirs)
    modes[1] &= ~termios.OPOST  # line ends stay as they are written
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    with suppress(OSError):
        columns, lines = os.get_terminal_size()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    return ours, theirs


def follow(
    process: subprocess.Popen[bytes],
    channel: int,
    tee: Tee,
    limit_s: float | None,
    clock: Clock,
) -> str:
    """Hand on a command's output until it ends; gives how it ended: `exit status 0`.

    Args:
        process: of `start_command`.
        channel: likewise, the descriptor of its output.
        tee: takes the output.
        limit_s: seconds after which the command is ended; None for no limit.
        clock: measures them.
    """
    deadline = None if limit_s is None else clock.seconds() + limit_s
    ended = ""
    open_channels = [channel]
    while True:
        if not ended and deadline is not None and clock.seconds() > deadline:
            end_warded(process)
            ended = f"time limit of {limit_s:g} s"
        is_ready = select.select(open_channels, [], [], _POLL_S)[0]
        data = _read(channel) if is_ready else b""
        if data:
            tee.take(data)
        elif process.poll() is not None:
            break
        elif is_ready:
            open_channels = []  # it closed its output, and may work on in silence
    tee.finish()
    if ended:
        return ended
    status = process.returncode
    return f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"


def _read(channel: int) -> bytes:
    try:
        return os.read(channel, 1 << 16)
    except OSError as error:
        if error.errno == errno.EIO:  # the other side of a terminal was closed
            return b""
        raise

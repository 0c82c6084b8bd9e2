"""Commands that run in the background, in forks as `run_command` has them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any, TextIO

import psutil

from ptycho_tasks.testing.forks import ask_server
from ptycho_tasks.testing.project import PYTHON, TIMEOUT_S


def start_command(command: Sequence[str], *, cwd: Path, **streams: int) -> Any:
    """Start `DOIT` or `OURS` with arguments in a session of its own.

    Args:
        command: its words.
        cwd: the folder to run in.
        streams: `stdout` and `stderr`, as `subprocess.Popen` takes them; nobody reads one left out.

    Returns:
        What `subprocess.Popen` gives.
    """
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **streams}
    if sys.platform == "linux":
        return StartedCommand(command, cwd=cwd, **streams)
    return subprocess.Popen(command, cwd=cwd, text=True, start_new_session=True, **streams)


class Fork:
    """A program that runs in a fork; stands in for `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], answer: TextIO) -> None:
        self.args, self.returncode, self._answer = command, None, answer
        self.pid = int(answer.readline())

    def poll(self) -> int | None:
        """Its exit code; None while it runs, and minus the signal that killed it."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its exit code, for so many seconds at most."""
        if self.returncode is None:
            if not select.select([self._answer], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            with self._answer:
                self.returncode = int(self._answer.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, where it still runs."""
        self.send_signal(signal.SIGKILL)


class StartedCommand(Fork):
    """A command of ours, or of doit."""

    def __init__(self, command: Sequence[str], *, cwd: Path, stdout: int, stderr: int) -> None:
        assert (*command[:2],) == PYTHON
        self.stdout, out = _open_stream(stdout)
        self.stderr, err = (None, out) if stderr == subprocess.STDOUT else _open_stream(stderr)
        answer = ask_server(
            command[2:],
            cwd=cwd,
            streams=[Path(os.devnull), path_of(out), path_of(err)],
            timeout_s=TIMEOUT_S,
            is_apart=True,
        )
        super().__init__(command, answer)
        for end in {out, err}:
            os.close(end)

    def __enter__(self) -> StartedCommand:
        return self

    def __exit__(self, *error: object) -> None:
        for stream in filter(None, (self.stdout, self.stderr)):
            stream.close()
        self.wait()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read what is left in the pipes, and wait."""
        guard = Timer(timeout or TIMEOUT_S, self.kill)
        guard.start()
        try:
            with ThreadPoolExecutor() as pool:
                out, err = pool.map(_read, (self.stdout, self.stderr))
            self.wait(timeout)
        finally:
            guard.cancel()
        return out, err


def is_alive(pid: int) -> bool:
    """Whether a process is there that has not ended, though its exit code may wait to be read."""
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def path_of(descriptor: int) -> Path:
    """Where another process opens what is open here."""
    return Path(f"/proc/{os.getpid()}/fd/{descriptor}")


def _open_stream(kind: int) -> tuple[TextIO | None, int]:
    """What reads a pipe, None for one that nobody reads; and the descriptor that writes to it."""
    if kind == subprocess.DEVNULL:
        return None, os.open(os.devnull, os.O_WRONLY)
    reading, writing = os.pipe()
    return os.fdopen(reading), writing


def _read(stream: TextIO | None) -> str:
    if stream is None or stream.closed:
        return ""
    with stream:
        return stream.read()

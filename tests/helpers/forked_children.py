"""Stands in for `subprocess.Popen` where many programs import what takes seconds to import."""

from __future__ import annotations

import os
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["ptycho_tasks_torch.training.trainer", "ptycho_tasks_torch.physics.tiles"]
)


class ForkedProgram:
    """`python -c CODE`, in a fork of a process that has imported the trainer and nothing done.

    It is a process of its own all the same, with its own environment, signals and exit code.
    Standard input and output are pipes, and what it writes to standard error is lost.
    """

    def __init__(self, command: list[str], *, env: Any = None, **streams: Any) -> None:
        (stdin, to), (back, stdout) = CONTEXT.Pipe(duplex=False), CONTEXT.Pipe(duplex=False)
        self.stdin, self.stdout = _as_file(to, "wb"), _as_file(back, "rb")
        given = (command[-1], dict(os.environ if env is None else env), stdin, stdout)
        self._process = CONTEXT.Process(target=_run, args=given)
        self._process.start()
        self.pid, self.kill = self._process.pid, self._process.kill
        stdin.close()
        stdout.close()

    def __enter__(self) -> ForkedProgram:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self.wait()
        self.stdin.close()
        self.stdout.close()

    def poll(self) -> int | None:
        """Its exit code; None while it runs, and minus the signal that killed it."""
        return self._process.exitcode

    def wait(self) -> int | None:
        """Wait for its exit code."""
        self._process.join()
        return self.poll()


def _as_file(end: Connection, mode: str) -> BinaryIO:
    with end:
        return os.fdopen(os.dup(end.fileno()), mode)


def _run(code: str, environment: dict[str, str], stdin: Connection, stdout: Connection) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with stdin, stdout, Path(os.devnull).open("wb") as nothing:
        for number, stream in enumerate((stdin, stdout, nothing)):
            os.dup2(stream.fileno(), number)
    sys.stdin = os.fdopen(0)
    exec(code, {})

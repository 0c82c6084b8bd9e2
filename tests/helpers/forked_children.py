"""Stands in for `subprocess.Popen` where many programs import what takes seconds to import."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptycho_tasks.testing.forks import ask_server
from ptycho_tasks.testing.project import TIMEOUT_S
from started_commands import Fork, path_of

_started: set[ForkedProgram] = set()


class ForkedProgram(Fork):
    """`python -c CODE`, in a fork as `run_command` has them.

    It is a process of its own all the same, with its own environment, signals and exit code.
    Standard input and output are pipes, and what it writes to standard error is lost.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, **streams: Any
    ) -> None:
        stdin, to = os.pipe()
        back, stdout = os.pipe()
        answer = ask_server(
            command[1:],
            cwd=Path.cwd(),
            streams=[path_of(stdin), path_of(stdout), Path(os.devnull)],
            timeout_s=TIMEOUT_S,
            environment=os.environ if env is None else env,
        )
        super().__init__(command, answer)
        for end in (stdin, stdout):
            os.close(end)
        self.stdin, self.stdout = os.fdopen(to, "wb"), os.fdopen(back, "rb")
        _started.add(self)

    def __enter__(self) -> ForkedProgram:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self.wait()
        self.stdin.close()
        self.stdout.close()


def list_running() -> list[int]:
    """The process ids of those that run."""
    return [program.pid for program in _started if program.poll() is None]

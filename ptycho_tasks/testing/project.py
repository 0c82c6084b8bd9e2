"""Projects in which tests run the real commands. Import the fixtures in a conftest.py:

from ptycho_tasks.testing.project import doit, build, write_project  # noqa: F401
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from doit.cmd_base import ModuleTaskLoader
from doit.doit_cmd import DoitMain
from doit.globals import Globals

from ptycho_tasks import tasks
from ptycho_tasks.config.dodo import DODO
from ptycho_tasks.layout import CONFIG_NAME, DODO_NAME
from ptycho_tasks.system.cache import forget_all
from ptycho_tasks.testing.forks import Completed, run_forked

TIMEOUT_S = 300
PYTHON = (sys.executable, "-m")
DOIT = (*PYTHON, "doit")
OURS = (*PYTHON, "ptycho_tasks.commands.cli")
"""The command `ptycho-tasks`."""


def make_project(root: Path, config: str, files: Mapping[str, str] | None = None) -> Path:
    """Write a project.

    Args:
        root: its folder, which is made.
        config: the text of its ptycho.yaml.
        files: text of further files, by path in the project.
    """
    for name, text in {CONFIG_NAME: config, DODO_NAME: DODO, **(files or {})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def run_command(command: Sequence[str], *, cwd: Path, **options: Any) -> Completed:
    """Run a command as a user would; gives exit status and output.

    `DOIT` and `OURS` run in a process that has imported the large libraries before, unless
    `options`, those of `subprocess.run`, ask for something else.
    """
    if (*command[:2],) == PYTHON and not options and hasattr(os, "fork"):
        return run_forked(command[2:], cwd=cwd, timeout_s=TIMEOUT_S)
    return subprocess.run(
        command, cwd=cwd, text=True, capture_output=True, timeout=TIMEOUT_S, check=False, **options
    )


@pytest.fixture
def write_project(tmp_path: Path) -> Callable[..., Path]:
    """Write a project; called with its ptycho.yaml, and where wanted a `name` for its folder."""

    def write(config: str, name: str = "project") -> Path:
        return make_project(tmp_path / name, config)

    return write


@pytest.fixture
def doit() -> Callable[..., Completed]:
    """Run doit in a project; called with its folder and the arguments of doit."""
    return lambda root, *arguments, **options: run_command([*DOIT, *arguments], cwd=root, **options)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Run doit in this process, which saves its start; gives the stages that ran, in order."""

    def run(root: Path, *arguments: str) -> list[str]:
        ran: list[str] = []

        class Watching(tasks.Reporter):
            def execute_task(self, task: Any) -> None:
                super().execute_task(task)
                if task.actions:
                    ran.append(task.name.partition(":")[0])

        monkeypatch.chdir(root)
        forget_all()
        monkeypatch.setattr(Globals, "dep_manager", None)
        dodo = {name: getattr(tasks, name) for name in tasks.__all__}
        dodo["DOIT_CONFIG"] = tasks.DOIT_CONFIG | {"reporter": Watching}
        assert DoitMain(ModuleTaskLoader(dodo)).run(list(arguments)) == 0
        return ran

    return run

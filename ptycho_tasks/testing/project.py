"""Projects in which tests run the real commands.

A conftest.py imports the fixtures; one of a backend that needs a large library has it imported
once for all commands:

from ptycho_tasks.testing.forks import preloading
from ptycho_tasks.testing.project import build, doit, write_project  # noqa: F401

@pytest.fixture(scope="package", autouse=True)
def _libraries():
    with preloading("torch"):
        yield

and a test runs them:

def test_a_second_run_does_nothing(write_project, doit):
    root = write_project("name: tiny\\nsource: {simulate: {size: 16}}\\nbackend: mine\\n")
    assert doit(root, "infer").returncode == 0
    assert doit(root, "dry-run").stdout == "nothing would run: all is up to date\\n"
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoints, entry_points
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
    """Write a project: its ptycho.yaml, its dodo.py and what else is given.

    Args:
        root: its folder, which is made if it is not there.
        config: the text of its ptycho.yaml.
        files: the text of further files, by path in the project.

    Returns:
        Its folder.
    """
    for name, text in {CONFIG_NAME: config, DODO_NAME: DODO, **(files or {})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def find_entry_points(*, group: str) -> EntryPoints:
    """As `importlib.metadata.entry_points`, which reads what is installed each time."""
    places = [Path(place) for place in sys.path]
    stamps = [(place, place.stat().st_mtime_ns) for place in places if place.is_dir()]
    return _find_entry_points(group, tuple(each for each in stamps if _has_metadata(*each)))


@cache
def _has_metadata(place: Path, stamp: int) -> bool:
    return any(path.name.endswith((".dist-info", ".egg-info")) for path in place.iterdir())


@cache
def _find_entry_points(group: str, places: tuple[tuple[Path, int], ...]) -> EntryPoints:
    return entry_points(group=group)


def run_command(command: Sequence[str], *, cwd: Path, **options: Any) -> Completed:
    """Run a command as a user would.

    On Linux, `DOIT` and `OURS` run in a fork of a process that has imported the large libraries.
    With any option they run in a new process, as other commands do.

    Args:
        command: its words; `[*DOIT, "infer"]` runs doit, `[*OURS, "why"]` runs `ptycho-tasks`.
        cwd: the folder to run in.
        options: further ones of `subprocess.run`, such as `env`.

    Returns:
        Its exit status and output. A failure raises nothing.
    """
    if (*command[:2],) == PYTHON and not options and sys.platform == "linux":
        return run_forked(command[2:], cwd=cwd, timeout_s=TIMEOUT_S)
    return subprocess.run(
        command, cwd=cwd, text=True, capture_output=True, timeout=TIMEOUT_S, check=False, **options
    )


@pytest.fixture
def write_project(tmp_path: Path) -> Callable[..., Path]:
    """Write a project in the test's own folder; gives the project's folder.

    Called with the text of its ptycho.yaml, and if wanted with a `name` for its folder.
    """

    def write(config: str, name: str = "project") -> Path:
        return make_project(tmp_path / name, config)

    return write


@pytest.fixture
def doit() -> Callable[..., Completed]:
    """Run doit in a project; gives exit status and output, as `run_command` does.

    Called with the project's folder and the arguments of doit.
    """
    return lambda root, *arguments, **options: run_command([*DOIT, *arguments], cwd=root, **options)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Run doit in this process, so that a test can replace parts of the program.

    Called with the project's folder and the arguments of doit; gives the stages that ran, in
    order. Asserts that the run succeeds.
    """

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
        for module in ("doit.plugin", "ptycho_tasks.system.plugins"):
            monkeypatch.setattr(f"{module}.entry_points", find_entry_points)
        dodo = {name: getattr(tasks, name) for name in tasks.__all__}
        dodo["DOIT_CONFIG"] = tasks.DOIT_CONFIG | {"reporter": Watching}
        assert DoitMain(ModuleTaskLoader(dodo)).run(list(arguments)) == 0
        return ran

    return run

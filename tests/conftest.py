"""Small projects to run the real commands in."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from doit.cmd_base import ModuleTaskLoader
from doit.doit_cmd import DoitMain
from doit.globals import Globals
from hypothesis import settings

from ptycho_tasks import payload, table, tasks
from ptycho_tasks.reporter import Reporter
from ptycho_tasks.template import DODO

# Machines are busy at times, and no test is about time.
settings.register_profile("calm", deadline=None)
settings.load_profile("calm")

PAGE = Path(__file__).parents[1] / "docs" / "backends.md"

TINY_SCAN = """\
name: tiny
source:
  simulate: {size: 32, grid: 6, step: 4.0, jitter: 1.0, photons: 1e6, seed: 3}
fixture: {subset_size: 25}
backend: epie
training: {epochs: 5}
"""

FURTHER = '''\
from ptycho_tasks.backend import Reconstruction, TrainingOptions


class Further:
    """Goes on from a reconstruction with an ePIE."""

    name, version, options_type = "further", "1", TrainingOptions

    def train(self, request):
        raise NotImplementedError

    def infer(self, request):
        raise NotImplementedError

    def refine(self, request):
        import numpy as np
        from ptycho_tasks.scan import corners_and_fractions

        scan, start, N = request.scan, request.start, request.scan.size
        image, probe = start.object.copy(), start.probe[0]
        corners = corners_and_fractions(start.positions, N)[0] - start.origin
        for epoch in range(request.options.epochs):
            request.progress(epoch, request.options.epochs, {})
            for frame, (y, x) in zip(scan.diffraction, corners):
                patch = image[y : y + N, x : x + N]
                wave = np.fft.fft2(probe * patch, norm="ortho")
                error = np.fft.ifftshift(frame) * np.exp(1j * np.angle(wave)) - wave
                patch += probe.conj() / np.abs(probe).max() ** 2 * np.fft.ifft2(error, norm="ortho")
        request.progress(request.options.epochs, request.options.epochs, {})
        return Reconstruction(image, start.origin, start.probe, start.positions)


backend = Further()
'''
"""A backend that can refine."""


def page_block(label: str) -> str:
    """The code block of docs/backends.md whose fence says `label`."""
    for block in PAGE.read_text().split("```")[1::2]:
        first, _, code = block.partition("\n")
        if first == label:
            return code
    raise AssertionError(f"{PAGE} has no block ```{label}")


@pytest.fixture
def write_project(tmp_path: Path) -> Callable[..., Path]:
    """Write a project that uses the one-file backend of docs/backends.md."""

    def write(config: str = TINY_SCAN, name: str = "project") -> Path:
        return _write_project(tmp_path / name, config)

    return write


@pytest.fixture
def project(write_project: Callable[..., Path]) -> Path:
    """A tiny simulated project, nothing built yet."""
    return write_project()


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = _write_project(tmp_path_factory.mktemp("built") / "project", TINY_SCAN)
    done = run_command(DOIT, cwd=root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def built_project(_built: Path, tmp_path: Path) -> Path:
    """A tiny simulated project with everything built and nothing stale."""
    return Path(shutil.copytree(_built, tmp_path / "built"))


def _write_project(root: Path, config: str) -> Path:
    (root / "backends").mkdir(parents=True)
    (root / "ptycho.yaml").write_text(config)
    (root / "dodo.py").write_text(DODO)
    (root / "backends" / "epie.py").write_text(page_block("python backends/epie.py"))
    (root / "backends" / "further.py").write_text(FURTHER)
    return root


Completed = subprocess.CompletedProcess[str]
DOIT = [sys.executable, "-m", "doit"]


def run_command(command: Sequence[str], *, cwd: Path, **options: Any) -> Completed:
    """Run a command as a user would; gives exit status and output."""
    return subprocess.run(
        command, cwd=cwd, text=True, capture_output=True, timeout=300, check=False, **options
    )


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Run doit in this process, which saves its start; gives the stages that ran."""

    def build(root: Path, *arguments: str) -> list[str]:
        ran: list[str] = []

        class Watching(Reporter):
            def execute_task(self, task: Any) -> None:
                super().execute_task(task)
                if task.actions:
                    ran.append(task.name.partition(":")[0])

        monkeypatch.chdir(root)
        tasks._table_at.cache_clear()
        tasks._evidence_at.cache_clear()
        payload._backend.cache_clear()
        table._sources.cache_clear()
        monkeypatch.setattr(Globals, "dep_manager", None)
        dodo = {name: getattr(tasks, name) for name in tasks.__all__}
        dodo["DOIT_CONFIG"] = tasks.DOIT_CONFIG | {"reporter": Watching}
        assert DoitMain(ModuleTaskLoader(dodo)).run(list(arguments)) == 0
        return ran

    return build


@pytest.fixture
def doit() -> Callable[..., Completed]:
    """Run doit in a project."""

    def doit(root: Path, *arguments: str, **options: Any) -> Completed:
        return run_command([*DOIT, *arguments], cwd=root, **options)

    return doit

"""Small projects to run the real commands in."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doit.globals import Globals
from hypothesis import HealthCheck, settings

from ptycho_tasks.system.cache import forget_all
from ptycho_tasks.testing.forks import REMEMBERED, remember, remembered_metadata
from ptycho_tasks.testing.project import (  # noqa: F401
    DOIT,
    Completed,
    build,
    doit,
    find_entry_points,
    make_project,
    run_command,
)

# Machines are busy at times, and no test is about time. Examples are the same each time: what fails
# is to fail for a change, and not by chance.
settings.register_profile(
    "calm",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("calm")


def pytest_xdist_auto_num_workers() -> int | None:
    """One more than there are cores: a fifth of the time, a test waits for a process or a clock."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return (os.cpu_count() or 1) + 1


PAGE = Path(__file__).parents[1] / "docs" / "backends.md"

FILE_SOURCE = """\
name: tiny
source: {file: scan.npz}
fixture: {subset_size: 25}
backend: epie
training: {epochs: 5}
"""
TINY_SCAN = """\
name: tiny
source:
  simulate: {size: 32, grid: 6, step: 4.0, jitter: 1.0, photons: 1e6, seed: 3}
fixture: {subset_size: 25}
backend: epie
training: {epochs: 5}
"""

FURTHER = '''\
from ptycho_tasks.backend import Reconstruction
from ptycho_tasks.options import TrainingOptions


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


@pytest.fixture(scope="session", autouse=True)
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of what was drawn and scored in this process."""
    folder = tmp_path_factory.mktemp("remembered")
    with pytest.MonkeyPatch.context() as patch:
        for module, name in REMEMBERED:
            there = importlib.import_module(module)
            patch.setattr(there, name, remember(getattr(there, name), folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _fast() -> Iterator[None]:
    """Leave out what takes much of the time of a small run, and no test is about."""
    with pytest.MonkeyPatch.context() as patch:
        # A process that is killed loses nothing that it wrote; only a loss of power would.
        patch.setattr("os.fsync", lambda descriptor: None)
        # Else each of many processes compiles what it imports.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        # A command reads six times what is installed.
        for module in ("doit.plugin", "ptycho_tasks.system.plugins"):
            patch.setattr(f"{module}.entry_points", find_entry_points)
        patch.setattr("importlib.metadata.Distribution.metadata", remembered_metadata())
        yield


@pytest.fixture(autouse=True)
def _own_path() -> Iterator[None]:
    """A project's own backends put their folder on the path, where each import would look later."""
    before = sys.path[:]
    yield
    sys.path[:] = before


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


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run `ptycho-tasks` in a project, in this process; gives exit status, stdout and stderr."""

    from ptycho_tasks.commands import cli as command_line

    def run(root: Path, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(root)
        forget_all()
        monkeypatch.setattr(Globals, "dep_manager", None)
        monkeypatch.setattr("sys.argv", ["ptycho-tasks", *arguments])
        monkeypatch.delitem(sys.modules, "dodo", raising=False)  # of another project
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        return int(caught.value.code or 0), *capsys.readouterr()

    return run


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


@pytest.fixture(scope="session")
def _built_on_a_file(_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("file") / "project"
    shutil.copytree(_built, root, ignore=shutil.ignore_patterns("runs", ".ptycho", "fixtures"))
    shutil.copy(_built / "fixtures" / "tiny_source.npz", root / "scan.npz")
    (root / "ptycho.yaml").write_text(FILE_SOURCE)
    done = run_command(DOIT, cwd=root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def file_project(_built_on_a_file: Path, tmp_path: Path) -> Path:
    """A built project on a scan file, which tests may damage."""
    return Path(shutil.copytree(_built_on_a_file, tmp_path / "file"))


def _write_project(root: Path, config: str) -> Path:
    backends = {"epie": page_block("python backends/epie.py"), "further": FURTHER}
    files = {f"backends/{name}.py": text for name, text in backends.items()}
    return make_project(root, config, files)

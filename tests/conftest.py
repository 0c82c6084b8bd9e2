"""Small projects to run the real commands in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ptycho_tasks.template import DODO

README = Path(__file__).parents[1] / "README.md"

TINY_SCAN = """\
name: tiny
source:
  simulate: {size: 32, grid: 6, step: 4.0, jitter: 1.0, photons: 1e6, seed: 3}
fixture: {subset_size: 25}
backend: epie
training: {epochs: 5}
"""


def readme_block(label: str) -> str:
    """The README's code block whose fence says `label`."""
    for block in README.read_text().split("```")[1::2]:
        first, _, code = block.partition("\n")
        if first == label:
            return code
    raise AssertionError(f"the README has no block ```{label}")


@pytest.fixture
def write_project(tmp_path: Path) -> Callable[..., Path]:
    """Write a project that uses the README's one-file backend."""

    def write(config: str = TINY_SCAN) -> Path:
        root = tmp_path / "project"
        (root / "backends").mkdir(parents=True)
        (root / "ptycho.yaml").write_text(config)
        (root / "dodo.py").write_text(DODO)
        (root / "backends" / "epie.py").write_text(readme_block("python backends/epie.py"))
        return root

    return write


@pytest.fixture
def project(write_project: Callable[..., Path]) -> Path:
    """A tiny simulated project."""
    return write_project()


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run() -> Run:
    """Run a command of this environment in a folder, as a user would."""

    def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **environment}
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
        return subprocess.run(
            command, cwd=cwd, env=env, text=True, capture_output=True, timeout=300, check=False
        )

    return run

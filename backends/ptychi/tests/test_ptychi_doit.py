"""`doit` with the backend `ptychi`, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ptycho_tasks.template import DODO

pytest.importorskip("ptychi", reason="the library pty-chi is not installed")
pytest.importorskip("ptycho_tasks_ptychi")

CONFIG = """\
name: tiny
backend: ptychi
source:
  simulate: {size: 32, grid: 8, step: 3.5, jitter: 1.0, photons: 1e6, seed: 3}
training: {epochs: 6, algorithm: rPIE, alpha: 0.3}
execution: {accelerator: cpu, threads: 1}
"""


def doit(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "doit", *arguments],
        cwd=root,
        text=True,
        capture_output=True,
        check=False,
    )


@pytest.fixture
def write_project(tmp_path):
    def write(name: str, config: str = CONFIG) -> Path:
        root = tmp_path / name
        root.mkdir()
        (root / "ptycho.yaml").write_text(config)
        (root / "dodo.py").write_text(DODO)
        return root

    return write


def test_infer_makes_a_reconstruction_once(write_project):
    root = write_project("one")
    first = doit(root, "infer")
    assert first.returncode == 0, first.stderr
    assert "train ptychi 6/6  loss" in first.stderr
    assert "warning" not in first.stderr.lower()
    metrics = json.loads((root / "runs/default/inference/metrics.json").read_text())
    assert metrics["r_factor"] < 0.15
    assert metrics["scores"]["amplitude_ssim"] > 0.8
    assert all(line.startswith("-- ") for line in doit(root, "infer").stdout.splitlines())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("alpha: 0.3", "alpa: 0.3", "ptycho.yaml:5: training.alpa: unknown key; did you mean"),
        ("rPIE", "PIE", "ptycho.yaml:5: training.algorithm: expected one of"),
        ("rPIE", "DM", "ptycho.yaml:5: training: alpha is for rPIE and means nothing to DM"),
    ],
)
def test_a_wrong_option_is_one_line(write_project, old, new, expected):
    done = doit(write_project("one", CONFIG.replace(old, new)))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {expected}")
    assert done.stderr.count("\n") == 1

"""`doit` with the backend `ptychi`, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ptycho_tasks.config.dodo import DODO

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

REFINED = """\
name: tiny
backend: level
source:
  simulate: {size: 32, grid: 8, step: 3.5, jitter: 1.0, photons: 1e6, seed: 3}
refine: {backend: ptychi, epochs: 3, algorithm: rPIE, alpha: 0.3}
execution: {accelerator: cpu, threads: 1}
"""
LEVEL = '''\
"""A backend that knows of an object its level, and a part of what is above and below that."""

import numpy as np

from ptycho_tasks.backend import Reconstruction, TrainedModel
from ptycho_tasks.options import TrainingOptions
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks.scan import canvas_of


class Level:
    name, version, options_type = "level", "1", TrainingOptions
    execution_type = ExecutionOptions

    def train(self, request):
        return TrainedModel(models={})

    def infer(self, request):
        scan = request.scan
        canvas = canvas_of(scan.positions, scan.size)
        image = np.full(canvas.shape, 0.7, np.complex64)
        (y, x), (height, width) = canvas.origin, canvas.shape
        known = scan.object[y : y + height, x : x + width]
        image[: known.shape[0], : known.shape[1]] += np.complex64(0.3) * (known - np.complex64(0.7))
        return Reconstruction(image, canvas.origin, scan.probe, scan.positions)


backend = Level()
'''


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
        (
            "alpha: 0.3",
            "alpa: 0.3",
            "ptycho.yaml:5: training.alpa: backend `ptychi` does not know this key",
        ),
        ("rPIE", "PIE", "ptycho.yaml:5: training.algorithm: expected one of"),
        ("rPIE", "DM", "ptycho.yaml:5: training: alpha is for rPIE and means nothing to DM"),
    ],
)
def test_a_wrong_option_is_one_line(write_project, old, new, expected):
    done = doit(write_project("one", CONFIG.replace(old, new)))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {expected}")
    assert done.stderr.count("\n") == 1


def executed(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith(".  ")]


def test_refine_goes_on_from_another_backend_and_alone_is_redone(write_project):
    root = write_project("refined", REFINED)
    (root / "backends").mkdir()
    (root / "backends/level.py").write_text(LEVEL)
    first = doit(root, "infer")
    assert executed(first) == ["source", "fixture", "train", "infer:default", "refine:default"]
    assert "refine ptychi 3/3  loss" in first.stderr
    level, refined = (
        json.loads((root / f"runs/default/{folder}/metrics.json").read_text())
        for folder in ("inference", "refinement")
    )
    assert refined["start"]["r_factor"] == pytest.approx(level["r_factor"])
    assert refined["r_factor"] < 0.6 * level["r_factor"]
    assert refined["scores"]["amplitude_ssim"] > level["scores"]["amplitude_ssim"]
    assert executed(doit(root, "infer")) == []
    config = root / "ptycho.yaml"
    config.write_text(config.read_text().replace("epochs: 3", "epochs: 4"))
    assert executed(doit(root, "infer")) == ["refine:default"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "alpha: 0.3",
            "alpa: 0.3",
            "ptycho.yaml:5: refine.alpa: backend `ptychi` does not know this key",
        ),
        ("rPIE", "DM", "ptycho.yaml:5: refine: alpha is for rPIE and means nothing to DM"),
        ("epochs: 3", "epochs: 0", "ptycho.yaml:5: refine.epochs: "),
        ("epochs: 3", "refine_probe_from: 50", "ptycho.yaml:5: refine: refine_probe_from 50"),
    ],
)
def test_a_wrong_option_of_refine_is_one_line(write_project, old, new, expected):
    root = write_project("one", REFINED.replace(old, new))
    (root / "backends").mkdir()
    (root / "backends/level.py").write_text(LEVEL)
    done = doit(root)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {expected}")
    assert done.stderr.count("\n") == 1

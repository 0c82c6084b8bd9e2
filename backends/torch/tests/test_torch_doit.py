"""`doit` with the backend `pinn`, as a user runs it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from ptycho_tasks.config.dodo import DODO
from ptycho_tasks_torch import load_inference_bundle

CONFIG = """\
name: tiny
source:
  simulate: {size: 32, grid: 6, step: 4.0, jitter: 1.0, photons: 1e6, seed: 3}
training: {epochs: 2, channels: 4, steps: 1, neighbours: 16, batch_size: 16}
execution: {accelerator: cpu, threads: 1}
"""
BUNDLE = "runs/default/training/wts.h5.zip"


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


def test_train_save_load_infer_and_the_same_bytes_elsewhere(write_project):
    one, two = write_project("one"), write_project("two")
    first = doit(one, "train")
    assert first.returncode == 0, first.stderr
    assert "train pinn 2/2  loss" in first.stderr
    models, params = load_inference_bundle(one / "runs" / "default" / "training")
    assert params["N"] == 32
    assert models["autoencoder"].training is False

    second = doit(one)
    assert second.returncode == 0, second.stderr
    assert "-- train" in second.stdout
    assert "R-factor" in second.stdout
    assert (one / "runs/default/inference/reconstructed_phase.png").read_bytes()[:4] == b"\x89PNG"
    assert all(line.startswith("-- ") for line in doit(one).stdout.splitlines())

    assert doit(two).returncode == 0
    assert {p: hashlib.sha256((one / p).read_bytes()).hexdigest() for p in outputs(one)} == {
        p: hashlib.sha256((two / p).read_bytes()).hexdigest() for p in outputs(two)
    }


def test_what_execution_asks_for_lies_beside_the_same_bundle(write_project):
    """Best epochs and logs; a change of them rebuilds nothing."""
    asked = "threads: 1, num_workers: 2, checkpoint_save_top_k: 1, logger: csv}"
    one, two = write_project("one"), write_project("two", CONFIG.replace("threads: 1}", asked))
    for root in (one, two):
        done = doit(root, "train")
        assert done.returncode == 0, done.stderr
    assert (one / BUNDLE).read_bytes() == (two / BUNDLE).read_bytes()
    (kept,) = (two / "runs/default/training/checkpoints").glob("*/wts.h5.zip")
    models, _ = load_inference_bundle(kept.parent)
    assert models.keys() == {"diffraction_to_obj", "autoencoder"}
    log = (two / "runs/default/training/logs/csv/metrics.csv").read_text()
    assert log.count("\n") == 3
    (two / "ptycho.yaml").write_text(CONFIG)
    assert all(line.startswith("-- ") for line in doit(two, "train").stdout.splitlines())


def outputs(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in (root / "runs").rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "epochs: 2",
            "epoch: 2",
            "ptycho.yaml:4: training.epoch: backend `pinn` does not know this",
        ),
        (
            "epochs: 2",
            "gridsize: 3",
            "ptycho.yaml:4: training.gridsize: expected one of 1, 2, got 3",
        ),
        (
            "batch_size: 16",
            "batch_size: 10",
            "ptycho.yaml:4: training: batch_size 10 is no multiple of",
        ),
        (
            "threads: 1",
            "checkpointing: false, checkpoint_save_top_k: 1",
            "ptycho.yaml:5: execution: checkpoint_save_top_k 1 needs checkpointing: true",
        ),
    ],
)
def test_a_wrong_option_costs_no_torch(write_project, old, new, expected):
    done = doit(write_project("one", CONFIG.replace(old, new)))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {expected}")
    assert done.stderr.count("\n") == 1

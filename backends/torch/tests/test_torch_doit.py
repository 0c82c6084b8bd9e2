"""`doit` with the backend `pinn`, as a user runs it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ptycho_tasks_torch import load_inference_bundle

CONFIG = """\
name: tiny
source:
  simulate: {size: 32, grid: 6, step: 4.0, jitter: 1.0, photons: 1e6, seed: 3}
training: {epochs: 2, channels: 4, steps: 1, neighbours: 16, batch_size: 16}
execution: {accelerator: cpu, threads: 1}
"""
MORE = "threads: 1, num_workers: 2, checkpoint_save_top_k: 1, logger: csv}"


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (root / "runs").rglob("*")
        if path.is_file()
    }


def test_train_save_load_infer_and_the_same_bytes_elsewhere(write_project, doit, build):
    """The second project asks for best epochs and a log, which change no result."""
    one = write_project(CONFIG, name="one")
    two = write_project(CONFIG.replace("threads: 1}", MORE), name="two")
    first = doit(one)
    assert first.returncode == 0, first.stderr
    assert "train pinn 2/2  loss" in first.stderr
    assert "R-factor" in first.stdout
    models, params = load_inference_bundle(one / "runs" / "default" / "training")
    assert params["N"] == 32
    assert models["autoencoder"].training is False
    assert (one / "runs/default/inference/reconstructed_phase.png").read_bytes()[:4] == b"\x89PNG"
    assert build(one) == []

    assert build(two, "train") == ["source", "fixture", "train"]
    assert build(two) == ["infer"]
    ours, theirs = digests(one), digests(two)
    assert {name: theirs[name] for name in ours} == ours
    (kept,) = (two / "runs/default/training/checkpoints").glob("*/wts.h5.zip")
    models, _ = load_inference_bundle(kept.parent)
    assert models.keys() == {"diffraction_to_obj", "autoencoder"}
    log = (two / "runs/default/training/logs/csv/metrics.csv").read_text()
    assert log.count("\n") == 3
    (two / "ptycho.yaml").write_text(CONFIG)
    assert build(two) == []


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
def test_a_wrong_option_is_one_line(write_project, doit, old, new, expected):
    done = doit(write_project(CONFIG.replace(old, new)))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {expected}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("steps", ["autos", "12.5"])
def test_a_number_or_a_word_is_asked_for_by_name(write_project, doit, steps):
    project = write_project(
        f"source: {{simulate: {{}}}}\nbackend: unrolled\ntraining: {{steps: {steps}}}\n"
    )
    refused = doit(project, "list")
    assert refused.returncode
    assert "ptycho.yaml:3: training.steps: expected auto or a whole number, got " in refused.stderr

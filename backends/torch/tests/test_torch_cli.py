"""`ptycho-tasks train` and `infer` with the backend `pinn`, as a user runs them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_tasks.config.dodo import DODO
from ptycho_tasks_torch import load_inference_bundle

SMALL = "training: {channels: 4, steps: 1, neighbours: 16, batch_size: 16}\n"
SCAN = ["--size", "32", "--grid", "7", "--step", "4", "--jitter", "1", "--seed", "3"]
RESULTS = {
    "reconstruction.h5",
    "reconstructed_amplitude.png",
    "reconstructed_phase.png",
    "metrics.json",
}


def run(cwd: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        text=True,
        capture_output=True,
        check=False,
    )


def ptycho_tasks(cwd: Path, *arguments: str) -> str:
    done = run(cwd, "ptycho_tasks.commands.cli", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def weights(bundle: Path) -> bytes:
    with zipfile.ZipFile(bundle) as archive:
        return archive.read("wts.h5")


@pytest.fixture
def place(tmp_path):
    """A folder with a scan, a fixture of it, and what makes the network a small one."""
    ptycho_tasks(tmp_path, "simulate", "scan.npz", *SCAN)
    cut = ["--source", "scan.npz", "--output", "fixture.npz", "--subset-size", "36"]
    ptycho_tasks(tmp_path, "fixture", *cut)
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


def test_run_pytorch_train_save_load_infer(place):
    flags = ["--train_data_file", "fixture.npz", "--config", "small.yaml"]
    flags += ["--max_epochs", "2", "--gridsize", "2", "--accelerator", "cpu", "--threads", "1"]
    said = ptycho_tasks(place, "train", *flags, "--output_dir", "out", "--n_groups", "32")
    assert "train pinn 2/2  loss" in said
    assert "bundle     out/wts.h5.zip" in said

    models, params = load_inference_bundle(place / "out")
    assert models["autoencoder"].training is False
    assert (params["nepochs"], params["n_groups"]) == (2, 32)
    assert params["train_data_file_path"] == "fixture.npz"

    said = ptycho_tasks(
        place, "infer", "--model_path", "out", "--test_data", "scan.npz", "--output_dir", "images"
    )
    assert "R-factor" in said
    results = place / "images"
    assert {path.name for path in results.iterdir() if path.is_file()} == RESULTS
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["frames"] == 49
    assert all(math.isfinite(metrics[name]) for name in ("r_factor", "poisson_deviance"))
    assert metrics["scores"]["phase_ssim"] > 0
    with h5py.File(results / "reconstruction.h5") as product:
        assert np.isfinite(product["object"][()]).all()

    # Quiet, and into another folder: the same bytes.
    more = ["--n-images", "32", "--output-dir", "again", "--quiet"]
    said = ptycho_tasks(place, "train", *flags, *more)
    assert said == "warning: --n-images is an old name; use --n-groups\n"
    bundles = [(place / name / "wts.h5.zip").read_bytes() for name in ("out", "again")]
    assert bundles[0] == bundles[1]


def test_a_project_gives_what_the_commands_give(place):
    project = place / "project"
    project.mkdir()
    (project / "dodo.py").write_text(DODO)
    (project / "ptycho.yaml").write_text(
        "source: {file: ../scan.npz}\nfixture: {subset_size: 36}\n"
        + SMALL.replace("{", "{epochs: 2, ")
        + "execution: {accelerator: cpu, threads: 1}\n"
    )
    done = run(project, "doit", "infer")
    assert done.returncode == 0, done.stderr
    runs = project / "runs" / "default"
    assert {path.name for path in (runs / "inference").iterdir()} >= RESULTS

    # The configuration names scan and fixture, which is cut in memory here.
    command = ["train", "--config", "project/ptycho.yaml", "--output-dir", "out"]
    ptycho_tasks(place, *command, "--test-data-file", "scan.npz")
    assert weights(place / "out" / "wts.h5.zip") == weights(runs / "training" / "wts.h5.zip")
    metrics = [
        json.loads((folder / "inference" / "metrics.json").read_text())
        for folder in (runs, place / "out")
    ]
    assert metrics[0]["scores"] == metrics[1]["scores"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--gridsize", "3"], "error: --gridsize: training.gridsize: expected one of 1, 2, got 3"),
        (["--scheduler", "x"], "error: --scheduler: training.scheduler: expected one of cosine"),
        (["--learning-rate", "2"], "error: --learning-rate: training.learning_rate: expected `flo"),
        (["--logger", "wandb"], "error: --logger: execution.logger: expected one of none"),
    ],
)
def test_a_wrong_value_costs_no_torch(tmp_path, flags, expected):
    (tmp_path / "scan.npz").write_bytes(b"")
    watched = (
        "import sys; from ptycho_tasks.commands.cli import main\n"
        "try: main()\n"
        "finally: print(*sorted({'numpy', 'torch', 'h5py'} & set(sys.modules)))"
    )
    given = ["train", "--train_data_file", "scan.npz", "--output_dir", "out", *flags]
    done = subprocess.run(
        [sys.executable, "-c", watched, *given],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (2, "")
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()

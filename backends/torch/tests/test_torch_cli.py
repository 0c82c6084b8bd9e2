"""`ptycho-tasks train` and `infer` with the backend `pinn`, as a user runs them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_tasks.commands import cli
from ptycho_tasks_torch import load_inference_bundle

SMALL = "training: {channels: 4, steps: 1, neighbours: 16, batch_size: 16}\n"
SCAN = ["--size", "32", "--grid", "7", "--step", "4", "--jitter", "1", "--seed", "3"]
RESULTS = {
    "reconstruction.h5",
    "reconstructed_amplitude.png",
    "reconstructed_phase.png",
    "metrics.json",
}


def weights(bundle: Path) -> bytes:
    with zipfile.ZipFile(bundle) as archive:
        return archive.read("wts.h5")


@pytest.fixture
def ptycho_tasks(tmp_path, monkeypatch, capsys):
    """Run the command in this process, which saves its start; gives what it writes."""

    def run(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["ptycho-tasks", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        written = "".join(capsys.readouterr())
        assert not end.value.code, written
        return written

    return run


@pytest.fixture
def place(tmp_path, ptycho_tasks):
    """A folder with a scan, a fixture of it, and a configuration of a small network."""
    ptycho_tasks("simulate", "scan.npz", *SCAN)
    cut = ["--source", "scan.npz", "--output", "fixture.npz", "--subset-size", "36"]
    ptycho_tasks("fixture", *cut)
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


def test_run_pytorch_train_save_load_infer(place, ptycho_tasks):
    flags = ["--train_data_file", "fixture.npz", "--config", "small.yaml"]
    flags += ["--max_epochs", "2", "--gridsize", "2", "--accelerator", "cpu", "--threads", "1"]
    said = ptycho_tasks("train", *flags, "--output_dir", "out", "--n_groups", "32")
    assert "train pinn 2/2  loss" in said
    assert "bundle     out/wts.h5.zip" in said

    models, params = load_inference_bundle(place / "out")
    assert models["autoencoder"].training is False
    assert (params["nepochs"], params["n_groups"]) == (2, 32)
    assert params["train_data_file_path"] == "fixture.npz"

    said = ptycho_tasks(
        "infer", "--model_path", "out", "--test_data", "scan.npz", "--output_dir", "images"
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
    said = ptycho_tasks("train", *flags, *more)
    assert said == "warning: --n-images is an old name; use --n-groups\n"
    bundles = [(place / name / "wts.h5.zip").read_bytes() for name in ("out", "again")]
    assert bundles[0] == bundles[1]


def test_a_project_gives_what_the_commands_give(place, ptycho_tasks, write_project, build):
    project = write_project(
        "source: {file: ../scan.npz}\nfixture: {subset_size: 36}\n"
        + SMALL.replace("{", "{epochs: 2, ")
        + "execution: {accelerator: cpu, threads: 1}\n"
    )
    build(project, "infer")
    runs = project / "runs" / "default"
    assert {path.name for path in (runs / "inference").iterdir()} >= RESULTS

    # The configuration names scan and fixture, which is cut in memory here.
    command = ["train", "--config", "project/ptycho.yaml", "--output-dir", "out"]
    ptycho_tasks(*command, "--test-data-file", "scan.npz")
    assert weights(place / "out" / "wts.h5.zip") == weights(runs / "training" / "wts.h5.zip")
    metrics = [
        json.loads((folder / "inference" / "metrics.json").read_text())
        for folder in (runs, place / "out")
    ]
    assert metrics[0]["scores"] == metrics[1]["scores"]


WRONG = {
    "--gridsize 3": "error: --gridsize: training.gridsize: expected one of 1, 2, got 3",
    "--scheduler x": "error: --scheduler: training.scheduler: expected one of cosine",
    "--learning-rate 2": "error: --learning-rate: training.learning_rate: expected `flo",
    "--logger wandb": "error: --logger: execution.logger: expected one of none",
}
WATCHED = """
import contextlib, io, json, sys
from ptycho_tasks.commands.cli import main
for flags in json.loads(sys.argv[1]):
    sys.argv = ["ptycho-tasks", *flags]
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try: code = main()
        except SystemExit as end: code = end.code
    heavy = sorted({"numpy", "torch", "h5py"} & set(sys.modules))
    print(json.dumps([code, stderr.getvalue(), heavy]))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What becomes of each of `WRONG`, one after the other in a new process: exit status, standard
    error and the heavy modules that are imported; the last is the folder."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "scan.npz").write_bytes(b"")
    given = ["train", "--train_data_file", "scan.npz", "--output_dir", "out"]
    lines = json.dumps([[*given, *flags.split()] for flags in WRONG])
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, lines],
        cwd=folder,
        text=True,
        capture_output=True,
        check=True,
    )
    answers = map(json.loads, done.stdout.splitlines())
    return dict(zip(WRONG, answers, strict=True)), folder


@pytest.mark.parametrize(("flags", "expected"), WRONG.items())
def test_a_wrong_value_costs_no_torch(refusals, flags, expected):
    answers, folder = refusals
    code, stderr, heavy = answers[flags]
    assert (code, heavy) == (2, [])
    assert stderr.startswith(expected)
    assert stderr.count("\n") == 1
    assert not (folder / "out").exists()

"""The benchmark of a GPU, as it is tried where there is none."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("threadpoolctl", reason="the benchmarks need the extra `dev`")

from click.testing import CliRunner

import gpu

TINY = gpu.Plan(
    scans={16: 6},
    compared=(16, 6),
    blocks=(1,),
    block_frames=8,
    repeats=1,
    epochs=2,
    batches=(16,),
)


@pytest.fixture
def tiny(monkeypatch, few_objects):
    monkeypatch.setattr(gpu, "QUICK", TINY)
    monkeypatch.setattr(gpu, "STEPS", 4)


def run(*words: str):
    return CliRunner().invoke(gpu.main, [*words, "--threads", "1"])


def test_everything_is_measured_and_written(tiny, tmp_path):
    file = tmp_path / "gpu.json"
    done = run("--device", "cpu", "--quick", "--json", str(file))
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert {row["value"] for row in found[gpu.EQUALITY]} >= {"object of the whole inference"}
    assert all(row["difference"] <= gpu.TOLERANCE for row in found[gpu.EQUALITY])
    (whole,) = found["whole reconstruction"]
    assert whole["frames/s"] == pytest.approx(36 / whole["s"])
    assert all(row["patterns/s"] > 0 for row in found["training"])
    assert f"CPU, torch {torch.__version__}" in done.stdout
    assert "| N | frames |" in done.stdout


def test_a_device_that_gives_something_else_ends_the_benchmark_with_1(tiny, monkeypatch):
    steps = iter([torch.ones(2), torch.ones(2) + 1e-3])
    monkeypatch.setattr(gpu, "take_steps", lambda scan, device: next(steps))
    monkeypatch.setattr(gpu, "SECTIONS", {gpu.EQUALITY: gpu.compare_devices})
    done = run("--device", "cpu", "--quick")
    assert done.exit_code == 1
    assert "| object after 4 steps | 0.001 |" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_machine_without_a_gpu_says_so_in_a_line():
    done = run()
    assert done.exit_code == 1
    assert done.output.count("\n") == 1
    assert "finds no `cuda` here; `--device cpu --quick` tries the script itself" in done.output

"""Measure a backend on a scan: speed, memory, start-up and scores, each beside a yardstick.

    python benchmarks/run.py                                # the demo's simulated scan
    python benchmarks/run.py scan.npz --set training.epochs=20
    python benchmarks/run.py train.npz --test test.npz

Machines are noisy, so what counts is the ratio of two figures taken in the same run. Every stage
runs in a process of its own, as it does for a user.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from measuring import alone, inference, nested, peak_mb, scored, told_in_a_line, trained
from ptycho_tasks.config.document import ConfigFile, read_config
from ptycho_tasks.config.dodo import DODO
from ptycho_tasks.config.factories import create_inference_payload, create_training_payload

ROOT = Path(__file__).resolve().parents[1]
EMPTY_DODO = 'def task_nothing():\n    return {"actions": [], "doc": "nothing"}\n'
STARTS = 9


@click.command()
@click.argument("scan", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--test", type=click.Path(exists=True, path_type=Path), help="Infer this scan.")
@click.option("--backend", default="pinn", show_default=True, help="The backend to measure.")
@click.option("--set", "settings", multiple=True, help="KEY=VALUE of ptycho.yaml; may be repeated.")
@click.option("--project", type=click.Path(path_type=Path), help="Work here and keep the files.")
def main(
    scan: Path | None,
    test: Path | None,
    backend: str,
    settings: tuple[str, ...],
    project: Path | None,
) -> None:
    """Measure a backend on SCAN; without one, on the demo's simulated scan."""
    with told_in_a_line(), tempfile.TemporaryDirectory() as folder:
        project = project or Path(folder)
        write_project(project, scan, test, backend, settings)
        measured = {stage.__name__: child(stage, project) for stage in STAGES}
        report(measured, start_times(project))


def write_project(
    project: Path, scan: Path | None, test: Path | None, backend: str, settings: tuple[str, ...]
) -> None:
    """A project with everything set in its ptycho.yaml."""
    data: dict[str, Any] = {"name": "bench", "source": {}}
    if scan is None:
        data = dict(read_config(ROOT / "ptycho.yaml").data)
    else:
        data["source"]["file"] = str(scan.resolve())
    if test is not None:
        data["inference"] = {"scan": str(test.resolve())}
    data["backend"] = backend
    nested(settings, data)
    project.mkdir(parents=True, exist_ok=True)
    (project / "ptycho.yaml").write_text(yaml.safe_dump(data))
    (project / "dodo.py").write_text(DODO)


Stage = Callable[[ConfigFile, float], dict[str, Any]]


def child(stage: Stage, project: Path) -> dict[str, Any]:
    """Run one stage in a process of its own; gives what it measured."""
    click.echo(f"{stage.__name__} ...", err=True)
    return alone(run_stage, stage, time.time(), project)


def run_stage(stage: Stage, started: float, project: Path) -> dict[str, Any]:
    """One stage, and what it cost in this process."""
    result = stage(read_config(project / "ptycho.yaml"), started)
    return result | {"wall_s": time.time() - started, "peak_mb": peak_mb()}


def scan(file: ConfigFile, started: float) -> dict[str, Any]:
    """Source and fixture."""
    from ptycho_tasks.builds import stages

    payload = create_training_payload(file, {"execution.quiet": True})
    stages.check_source(payload)
    stages.make_fixture(payload)
    return {}


def train(file: ConfigFile, started: float) -> dict[str, Any]:
    """Train, timing from the first epoch's end to the last one's."""
    from ptycho_tasks.scans.fixture import read_fixture

    payload = create_training_payload(file)
    scan = read_fixture(payload.fixture_file)
    begun = time.time()
    done = trained(
        payload.backend,
        scan,
        payload.training,
        payload.execution,
        payload.model_dir,
        payload.params(scan.size),
    )
    ends = [cost.wall_s for epoch, cost, _ in done.epochs if epoch > 0]
    return {
        "frames": scan.frame_count,
        "train_s": done.cost.wall_s,
        "patterns_per_s": done.frames_per_s,
        "first_epoch_s": begun - started + ends[0] if ends else None,
    }


def infer(file: ConfigFile, started: float) -> dict[str, Any]:
    """Infer twice: cold, and with the libraries and the network in memory."""
    from ptycho_tasks.results.bundle import load_bundle
    from ptycho_tasks.scans.readers import read_scan

    payload = create_inference_payload(file)
    bundle, scan = load_bundle(payload.model_dir), read_scan(payload.scan_file)
    begun = time.time()
    timed = inference(payload.backend, bundle, scan, payload.execution)
    cold_s = time.time() - begun
    made, cost = timed()
    return {
        "frames": scan.frame_count,
        "cold_s": cold_s,
        "patterns_per_s": scan.frame_count / cost.wall_s,
        "scores": scored(made, scan),
    }


def fft(file: ConfigFile, started: float) -> dict[str, Any]:
    """The yardstick: one forward and one inverse FFT of every frame, by scipy, one thread."""
    import numpy as np
    from scipy.fft import fft2, ifft2

    from ptycho_tasks.scans.readers import read_scan

    frames = read_scan(create_inference_payload(file).scan_file).diffraction
    waves = np.asarray(frames, dtype=np.complex64)
    times = []
    for _ in range(3):
        begun = time.time()
        for first in range(0, len(waves), 64):
            ifft2(fft2(waves[first : first + 64]))
        times.append(time.time() - begun)
    return {"patterns_per_s": len(waves) / statistics.median(times)}


STAGES = (scan, train, infer, fft)


def start_times(project: Path) -> dict[str, float]:
    """Median seconds of `doit list` with our tasks and with an empty dodo.py, taken in turn."""
    empty = project / "empty"
    empty.mkdir(exist_ok=True)
    (empty / "dodo.py").write_text(EMPTY_DODO)
    times: dict[str, list[float]] = {"ours": [], "empty": []}
    for _ in range(STARTS):
        for name, folder in (("ours", project), ("empty", empty)):
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "doit", "list"], cwd=folder, check=True, capture_output=True
            )
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def report(measured: Mapping[str, Mapping[str, Any]], starts: Mapping[str, float]) -> None:
    """Print the table."""
    training, inference = measured["train"], measured["infer"]
    limit = measured["fft"]["patterns_per_s"]
    click.echo(f"\n{platform.machine()}, Python {platform.python_version()}")
    for name, value, unit, beside in (
        ("training frames", training["frames"], "", ""),
        ("training", training["patterns_per_s"], "patterns/s", ratio(training, limit)),
        ("training, all epochs", training["train_s"], "s", ""),
        ("training, start to first epoch's end", training["first_epoch_s"], "s", ""),
        ("training, peak memory", training["peak_mb"], "MB", ""),
        ("inference frames", inference["frames"], "", ""),
        (
            "inference, in memory",
            inference["patterns_per_s"],
            "patterns/s",
            ratio(inference, limit),
        ),
        ("inference, first call", inference["cold_s"], "s", ""),
        ("inference, whole process", inference["wall_s"], "s", ""),
        ("inference, peak memory", inference["peak_mb"], "MB", ""),
        ("two FFTs alone", limit, "patterns/s", ""),
        (
            "doit list",
            starts["ours"],
            "s",
            f"{starts['ours'] / starts['empty']:.2f} x an empty dodo.py ({starts['empty']:.3f} s)",
        ),
        *((f"score {key}", value, "", "") for key, value in inference["scores"].items()),
    ):
        shown = "none" if value is None else f"{value:.4g}"
        click.echo(f"{name:<38} {shown:>9} {unit:<11} {beside}".rstrip())


def ratio(stage: Mapping[str, Any], limit: float) -> str:
    """How far from the speed of the FFTs alone."""
    rate = stage["patterns_per_s"]
    return f"1/{limit / rate:.1f} of two FFTs alone" if rate else ""


if __name__ == "__main__":
    main()

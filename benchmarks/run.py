"""Measure a backend on a scan: speed, memory, start-up and scores, each beside a yardstick.

    python benchmarks/run.py                                # the demo's simulated scan
    python benchmarks/run.py scan.npz --set training.epochs=20
    python benchmarks/run.py train.npz --test test.npz

Machines are noisy, so what counts is the ratio of two figures taken in the same run. Every stage
runs in a process of its own, as it does for a user.
"""

from __future__ import annotations

import json
import platform
import resource
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

from ptycho_tasks.backend import InferRequest, TrainRequest
from ptycho_tasks.config import ConfigFile, read_config
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.payload import create_inference_payload, create_training_payload
from ptycho_tasks.template import DODO

ROOT = Path(__file__).resolve().parents[1]
EMPTY_DODO = 'def task_nothing():\n    return {"actions": [], "doc": "nothing"}\n'
STARTS = 9


@click.command()
@click.argument("scan", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--test", type=click.Path(exists=True, path_type=Path), help="Infer this scan.")
@click.option("--backend", default="pinn", show_default=True, help="The backend to measure.")
@click.option("--set", "settings", multiple=True, help="KEY=VALUE of ptycho.yaml; may be repeated.")
@click.option("--stage", nargs=2, hidden=True, help="Run one stage: its name, when it started.")
@click.option("--project", type=click.Path(path_type=Path), help="Work here and keep the files.")
def main(
    scan: Path | None,
    test: Path | None,
    backend: str,
    settings: tuple[str, ...],
    stage: tuple[str, str] | None,
    project: Path | None,
) -> None:
    """Measure a backend on SCAN; without one, on the demo's simulated scan."""
    if stage is not None and project is not None:
        click.echo(json.dumps(run_stage(stage[0], float(stage[1]), project)))
        return
    with tempfile.TemporaryDirectory() as folder:
        project = project or Path(folder)
        write_project(project, scan, test, backend, settings)
        measured = {name: child(name, project) for name in ("scan", "train", "infer", "fft")}
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
    for setting in settings:
        key, _, value = setting.partition("=")
        *parents, last = key.split(".")
        section = data
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = yaml.safe_load(value)
    project.mkdir(parents=True, exist_ok=True)
    (project / "ptycho.yaml").write_text(yaml.safe_dump(data))
    (project / "dodo.py").write_text(DODO)


def child(stage: str, project: Path) -> dict[str, Any]:
    """Run one stage in a process of its own; gives what it measured."""
    click.echo(f"{stage} ...", err=True)
    command = [sys.executable, __file__, "--project", str(project), "--stage", stage]
    done = subprocess.run([*command, str(time.time())], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_stage(name: str, started: float, project: Path) -> dict[str, Any]:
    """One stage, and what it cost in this process."""
    stages: dict[str, Callable[[ConfigFile, list[float]], dict[str, Any]]] = {
        "scan": make_scan,
        "train": train,
        "infer": infer,
        "fft": fft_only,
    }
    steps: list[float] = []
    try:
        result = stages[name](read_config(project / "ptycho.yaml"), steps)
    except PtychoTasksError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error
    return result | {
        "wall_s": time.time() - started,
        "cpu_s": time.process_time(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "first_step_s": steps[0] - started if steps else None,
    }


def make_scan(file: ConfigFile, steps: list[float]) -> dict[str, Any]:
    """Source and fixture."""
    from ptycho_tasks import stages

    payload = create_training_payload(file, {"execution.quiet": True})
    stages.check_source(payload)
    stages.make_fixture(payload)
    return {}


def train(file: ConfigFile, steps: list[float]) -> dict[str, Any]:
    """Train, timing from the first epoch's end to the last one's."""
    from ptycho_tasks.bundle import BUNDLE_NAME, bundle_bytes
    from ptycho_tasks.files import write_atomic
    from ptycho_tasks.fixture import read_fixture

    payload = create_training_payload(file)
    backend, scan = payload.backend, read_fixture(payload.fixture_file)

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        steps.append(time.time())

    begun = time.time()
    model = backend.train(TrainRequest(scan, payload.training, payload.execution, progress))
    data = bundle_bytes(
        model,
        backend=backend.name,
        backend_version=backend.version,
        size=scan.size,
        params=payload.params(scan.size),
    )
    write_atomic(payload.model_dir / BUNDLE_NAME, data)
    epochs, span = (len(steps) - 1, steps[-1] - steps[0]) if len(steps) > 1 else (0, 0.0)
    return {
        "frames": scan.frame_count,
        "train_s": time.time() - begun,
        "patterns_per_s": scan.frame_count * epochs / span if span else None,
    }


def infer(file: ConfigFile, steps: list[float]) -> dict[str, Any]:
    """Infer twice: cold, and with the libraries and the network in memory."""
    import msgspec

    from ptycho_tasks.bundle import load_bundle
    from ptycho_tasks.metrics import data_misfit, score
    from ptycho_tasks.readers import read_scan

    payload = create_inference_payload(file)
    bundle, scan = load_bundle(payload.model_dir), read_scan(payload.scan_file)
    options = msgspec.convert(bundle.params["training"], payload.backend.options_type)
    request = InferRequest(scan, bundle.model, options, payload.execution)
    cold_start = time.time()
    payload.backend.infer(request)
    warm_start = time.time()
    made = payload.backend.infer(request)
    end = time.time()
    misfit = data_misfit(made.object, made.origin, made.probe, made.positions, scan.diffraction)
    scores: dict[str, Any] = {"R-factor": misfit.r_factor}
    if scan.object is not None:
        scores |= score(made.object, made.origin, scan.object, made.positions, scan.size)
    return {
        "frames": scan.frame_count,
        "cold_s": warm_start - cold_start,
        "patterns_per_s": scan.frame_count / (end - warm_start),
        "scores": scores,
    }


def fft_only(file: ConfigFile, steps: list[float]) -> dict[str, Any]:
    """The yardstick: one forward and one inverse FFT of every frame, by scipy, one thread."""
    import numpy as np
    from scipy import fft

    from ptycho_tasks.readers import read_scan

    frames = read_scan(create_inference_payload(file).scan_file).diffraction
    waves = np.asarray(frames, dtype=np.complex64)
    times = []
    for _ in range(3):
        begun = time.time()
        for first in range(0, len(waves), 64):
            fft.ifft2(fft.fft2(waves[first : first + 64]))
        times.append(time.time() - begun)
    return {"patterns_per_s": len(waves) / statistics.median(times)}


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
        ("training, start to first epoch's end", training["first_step_s"], "s", ""),
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

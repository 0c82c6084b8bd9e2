"""Kill trainings at random moments; the bundle must be that of a training left in peace.

    python benchmarks/kill.py
    python benchmarks/kill.py --kills 50 --seed 1

Every kill is a SIGKILL of `doit train` and all its children, anywhere from start-up to the writing
of the bundle. A training that ends before its kill is compared, and another one begun.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from ptycho_tasks.config.dodo import DODO

CONFIG = """\
name: kill
source:
  simulate: {size: 32, grid: 14, step: 3.5, jitter: 1.0, seed: 1}
training: {epochs: 24, batch_size: 32}
execution: {accelerator: cpu, threads: 1}
"""
BUNDLE = "runs/default/training/wts.h5.zip"
GOES_ON = ("resumes after epoch", "takes the finished training")


@click.command()
@click.option("--kills", default=20, show_default=True, help="How many must land.")
@click.option("--seed", default=0, show_default=True, help="Of the moments of the kills.")
def main(kills: int, seed: int) -> None:
    """Kill trainings; exit 1 if a bundle is not that of a training left in peace."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "ptycho.yaml").write_text(CONFIG)
        (project / "dodo.py").write_text(DODO)
        _, whole, _ = train(project, None)
        reference = sha256(project)
        click.echo(f"left in peace: {whole:.1f} s, sha256 {reference}")
        forget(project)
        landed = resumed = 0
        found = []
        fresh = killed = True
        while killed or landed < kills:
            after = moments.uniform(0, whole) if landed < kills else None
            killed, seconds, output = train(project, after)
            landed += killed
            lines = [line.strip() for line in output.splitlines()]
            went_on = [line for line in lines if line.startswith(GOES_ON)]
            resumed += len(went_on)
            if killed:
                end = f"kill {landed} after {seconds:.1f} s"
            else:
                found.append(sha256(project))
                end = f"training {len(found)} is done, sha256 {found[-1][:8]}..."
                # The load of the machine changes: keep the kills spread over a whole training.
                whole = seconds if fresh else whole
                forget(project)
            fresh = not killed
            reached = [line for line in lines if line.startswith(("train pinn", "bundle"))]
            click.echo("; ".join([end, *went_on, *reached[-1:]]))
    equal = set(found) == {reference}
    click.echo(
        f"{landed} kills landed, {resumed} times a training went on, {len(found)} trainings "
        f"ended, sha256 {', '.join(sorted(set(found)))}: {'equal' if equal else 'NOT EQUAL'}"
    )
    raise SystemExit(0 if equal else 1)


def train(project: Path, after: float | None) -> tuple[bool, float, str]:
    """Run `doit train`, and kill it after so many seconds.

    Gives whether the kill landed, the seconds that it ran, and its output.
    """
    begun = time.monotonic()
    log = project / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "doit", "train"],
            cwd=project,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode not in (0, -signal.SIGKILL):
        raise click.ClickException(f"doit train ended with {process.returncode}: {log.read_text()}")
    return process.returncode != 0, time.monotonic() - begun, log.read_text()


def sha256(project: Path) -> str:
    return hashlib.sha256((project / BUNDLE).read_bytes()).hexdigest()


def forget(project: Path) -> None:
    """Remove all that doit made."""
    for name in ("runs", ".ptycho", "fixtures"):
        shutil.rmtree(project / name, ignore_errors=True)


if __name__ == "__main__":
    main()

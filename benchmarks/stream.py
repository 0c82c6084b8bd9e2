"""Memory and time of `ptycho-tasks infer` on scans of growing length: frames of 128 x 128.

    python benchmarks/stream.py                                  # trains a small model first
    python benchmarks/stream.py --backend pinn --frames 500 --frames 2000 --set epochs=1
    python benchmarks/stream.py --model runs/default/training --threads 0
    python benchmarks/stream.py --counts                         # uint16, as a detector has them

The object is periodic, so that one cell's frames, simulated with their noise, serve for every
cell, and 100,000 frames (6.5 GB) are written about as fast as the disk takes them. A scan is
removed once it is measured.

`peak` is what the system counts as the process's memory at its worst (VmHWM): its own memory,
libraries, and pages of the mapped scan. `own` is the first alone (RssAnon, looked at 20 times a
second). Counts are read into a temporary file of amplitudes, which is mapped likewise.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import yaml
from numpy.typing import NDArray

from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.physics.simulate import make_object, make_probe
from ptycho_tasks.scans.npz import write_npz
from ptycho_tasks.system.large_arrays import Rows

SIZE, STEP, JITTER = 128, 8, 2.0
CELL = np.array((40, 25))
"""Scan points of a cell along y and x; its frames are the distinct ones."""
PHOTONS = 1e6
PAD = SIZE // 2 + STEP
"""How far patches reach beyond the cell that their centres lie in."""
COMMAND = (sys.executable, "-m", "ptycho_tasks.commands.cli")


class Cost(NamedTuple):
    """What one process cost."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    own_mb: float


class Cell(NamedTuple):
    """One period of the scan."""

    object: NDArray[np.complex64]
    """(H, W), periodic."""
    probe: NDArray[np.complex64]
    """(1, N, N)."""
    positions: NDArray[np.float64]
    """(M, 2)."""
    frames: NDArray[np.float32] | NDArray[np.uint16]
    """(M, N, N) amplitude, or counts."""


@click.command()
@click.option("--backend", default="unrolled", show_default=True, help="What is trained.")
@click.option(
    "--model",
    type=click.Path(exists=True, path_type=Path),
    help="Infer with this bundle's folder; frames of 128 x 128.",
)
@click.option("--set", "settings", multiple=True, help="KEY=VALUE of the training's options.")
@click.option("--train-frames", default=128, show_default=True, help="Frames to train on.")
@click.option(
    "--frames",
    "counts",
    multiple=True,
    type=click.IntRange(min=16),
    default=(1_000, 10_000, 100_000),
    show_default=True,
    help="Frames of a scan; may be repeated.",
)
@click.option("--threads", default=1, show_default=True, help="Of a process; 0: no limit.")
@click.option("--truth", is_flag=True, help="Put the object into the scan, so that it is scored.")
@click.option("--counts", "are_counts", is_flag=True, help="Frames as a detector writes them.")
@click.option(
    "--folder", type=click.Path(exists=True, path_type=Path), help="Where the scans are made."
)
def main(
    backend: str,
    model: Path | None,
    settings: tuple[str, ...],
    train_frames: int,
    counts: tuple[int, ...],
    threads: int,
    truth: bool,
    are_counts: bool,
    folder: Path | None,
) -> None:
    """Measure inference on scans of growing length."""
    cell = make_cell()
    kept = count_photons(cell) if are_counts else cell
    with tempfile.TemporaryDirectory(dir=folder) as work:
        scan = Path(work) / "scan.npz"
        if model is None:
            model = Path(work) / "model"
            write_scan(scan, cell, train_frames, truth=True)
            train(scan, model, backend, settings, threads)
        rows = []
        click.echo(
            f"{'frames':>8}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}{'own MB':>9}{'frames/s':>10}"
        )
        for count in counts:
            write_scan(scan, kept, count, truth=truth)
            output = ("--output-dir", f"{work}/out", "--quiet")
            cost = measured(
                [*COMMAND, "infer", "--model-path", str(model), "--test-data", str(scan), *output],
                threads,
            )
            scan.unlink()
            rows.append((count, cost))
            click.echo(f"{row(count, cost)}{count / cost.wall_s:10.1f}")
    for (before, cost), (count, worse) in pairwise(rows):
        ratios = Cost(*(b / a for a, b in zip(cost, worse, strict=True)))
        click.echo(f"{row(count / before, ratios)}  times those of {before} frames")


def row(count: float, cost: Cost) -> str:
    """A line of the table."""
    digits = [2 if value < 10 else 1 if value < 1000 else 0 for value in cost]
    cells = (f"{value:9.{places}f}" for value, places in zip(cost, digits, strict=True))
    return f"{count:8g}" + "".join(cells)


def make_cell() -> Cell:
    """Simulate one period, with Poisson noise."""
    generator = np.random.default_rng(0)
    options = SimulationOptions(size=SIZE, grid=int(CELL.max()), step=STEP, jitter=JITTER)
    rows, columns = CELL * STEP
    period = make_object(options, generator)[:rows, :columns]
    flux = PHOTONS / float(np.mean(np.abs(period) ** 2))
    probe = (make_probe(options) * np.sqrt(flux)).astype(np.complex64)
    nominal = np.stack(np.indices(CELL), axis=-1).reshape(-1, 2) * STEP
    positions = nominal + generator.uniform(-JITTER, JITTER, nominal.shape)
    frames = np.empty((len(positions), SIZE, SIZE), dtype=np.float32)
    around = np.pad(period, PAD, mode="wrap")
    for some, counts in expected_intensity(around, probe, positions, (-PAD, -PAD)):
        frames[some] = np.sqrt(generator.poisson(counts))
    return Cell(period, probe, positions, frames)


def count_photons(cell: Cell) -> Cell:
    """The same cell with frames of counts."""
    counts = np.rint(np.square(cell.frames.astype(np.float64)))
    if counts.max() > np.iinfo(np.uint16).max:
        raise SystemExit(f"{counts.max():.3g} counts of a pixel; lower PHOTONS")
    return cell._replace(frames=counts.astype(np.uint16))


def write_scan(path: Path, cell: Cell, count: int, *, truth: bool) -> None:
    """Write the first frames of as many cells as it takes, in a block about as wide as long."""
    size = len(cell.frames)
    cells = -(-count // size)
    wide = max(1, round((cells * CELL[0] / CELL[1]) ** 0.5))
    places = np.stack(np.divmod(np.arange(cells), wide), axis=1) * CELL * STEP
    positions = (places[:, None] + cell.positions + PAD).reshape(-1, 2)[:count]
    key = "diff3d" if cell.frames.dtype.kind == "f" else "patterns"
    arrays: dict[str, NDArray[np.generic] | Rows] = {
        key: Rows(cell.frames, np.arange(count) % size),
        "xcoords": positions[:, 1],
        "ycoords": positions[:, 0],
        "probeGuess": cell.probe,
        "frame_axis": np.zeros((), dtype=np.int64),
    }
    if truth:
        tall = -(-cells // wide)
        room = [(PAD, PAD), (PAD, PAD)]
        arrays["objectGuess"] = np.pad(np.tile(cell.object, (tall, wide)), room, mode="wrap")
    write_npz(path, arrays)


def train(scan: Path, model: Path, backend: str, settings: Sequence[str], threads: int) -> None:
    """Train a model; what it has learnt is of no interest here."""
    pairs = (setting.partition("=")[::2] for setting in settings)
    options = {key: yaml.safe_load(value) for key, value in pairs}
    config = scan.with_name("ptycho.yaml")
    config.write_text(yaml.safe_dump({"name": "stream", "backend": backend, "training": options}))
    click.echo(f"train {backend} ...", err=True)
    files = ("--train-data-file", str(scan), "--output-dir", str(model), "--config", str(config))
    measured([*COMMAND, "train", *files], threads)


def measured(command: Sequence[str], threads: int) -> Cost:
    """Run a command; gives what it cost.

    Raises:
        SystemExit: it failed.
    """
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    begun = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, **(limits if threads else {})})
    status = Path(f"/proc/{process.pid}/status")
    peak_mb, own_mb = 0.0, 0.0
    while True:
        ended, code, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        said = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in said:  # not of a process that has just ended
            peak_mb = int(said["VmHWM"].split()[0]) / 1024
            own_mb = max(own_mb, int(said["RssAnon"].split()[0]) / 1024)
        time.sleep(0.05)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Cost(time.perf_counter() - begun, cpu_s, peak_mb, own_mb)


if __name__ == "__main__":
    main()

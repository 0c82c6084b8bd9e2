"""A beamline: scans that come one after another, and how long each takes to be reconstructed.

    python benchmarks/beamline.py                                     # 20 scans, one each 3 s
    python benchmarks/beamline.py --scans 200 --every 1 --variants 3
    python benchmarks/beamline.py --mode doit --scans 200 --variants 3
    python benchmarks/beamline.py --backend pinn --grid 8 --set epochs=1

All scans hold the same frames but differ in their bytes, so that each is a scan of its own. By
turns they are written in one piece, in several, and under another name first.

`watch` runs `ptycho-tasks watch` and reports the time from a scan's last byte to the line that says
that the product of all variants is there, and the memory of the process. `doit` reports what
`doit infer` takes from nothing to all reconstructed, for nothing to do, for one scan more, and for
one setting that counts after the training.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import psutil
import yaml

from ptycho_tasks.config.dodo import DODO
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate

WATCH = (sys.executable, "-m", "ptycho_tasks.commands.cli", "watch")
DOIT = (sys.executable, "-m", "doit")
PIECES, PAUSE_S = 8, 0.1
"""Of a scan that is written in several pieces."""
LIMIT_S = 600.0
"""How long to wait for the last scans."""
REPORT_EVERY = 20
"""Scans between two lines of a long run."""


@dataclass
class Project:
    """A project whose scans come to the folder `raw`."""

    root: Path
    content: bytes
    """Of an NPZ scan."""
    config: dict[str, object]

    def write_config(self, **changes: object) -> None:
        (self.root / "ptycho.yaml").write_text(yaml.safe_dump({**self.config, **changes}))

    def write_scan(self, number: int) -> str:
        """Write a scan as beamlines do, by turns; gives its name."""
        name = f"scan{number:04d}"
        path = self.root / "raw" / f"{name}.npz"
        # A zip may end in a comment, whose length stands before it.
        comment = name.encode()
        content = self.content[:-2] + len(comment).to_bytes(2, "little") + comment
        if number % 3 == 0:
            path.write_bytes(content)
        elif number % 3 == 1:
            part = path.with_suffix(".part")
            part.write_bytes(content)
            part.rename(path)
        else:
            size = -(-len(content) // PIECES)
            with path.open("wb") as file:
                for start in range(0, len(content), size):
                    file.write(content[start : start + size])
                    file.flush()
                    time.sleep(PAUSE_S)
        return name


@dataclass
class Watch:
    """`ptycho-tasks watch`, and when it said what."""

    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        """Note each line with its time; runs beside what drops the scans."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))
            if line.startswith("watching "):
                self.begun.set()
        self.begun.set()

    def find_ends(self) -> dict[str, list[float]]:
        """When each reconstruction of each scan was there."""
        ends: dict[str, list[float]] = {}
        for moment, line in [*self.lines]:
            if " R-factor " in line and "warning" not in line:
                ends.setdefault(line.split()[0].rpartition("/")[2], []).append(moment)
        return ends


@click.command()
@click.option("--mode", type=click.Choice(["watch", "doit"]), default="watch", show_default=True)
@click.option("--scans", default=20, show_default=True, help="How many come.")
@click.option("--every", default=3.0, show_default=True, help="Seconds from one to the next.")
@click.option("--variants", default=1, show_default=True, help="Networks, each of another seed.")
@click.option("--backend", default="unrolled", show_default=True)
@click.option("--size", default=64, show_default=True, help="Pixels of a frame's edge.")
@click.option("--grid", default=32, show_default=True, help="Scan points of an edge.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    default=("epochs=1", "max_minutes=1"),
    show_default=True,
    help="KEY=VALUE of the training's options.",
)
@click.option("--poll", is_flag=True, help="Have `watch` poll.")
@click.option(
    "--folder", type=click.Path(exists=True, path_type=Path), help="Where the project is made."
)
def main(
    mode: str,
    scans: int,
    every: float,
    variants: int,
    backend: str,
    size: int,
    grid: int,
    settings: tuple[str, ...],
    poll: bool,
    folder: Path | None,
) -> None:
    """Let scans come, and report how long each takes."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        project = make_project(Path(work), backend, variants, size, grid, settings)
        if mode == "doit":
            run_doit(project, scans)
        else:
            run_watch(project, scans, every, variants, ["--poll"] if poll else [])


def make_project(
    root: Path, backend: str, variants: int, size: int, grid: int, settings: Sequence[str]
) -> Project:
    """Write a project whose first scan is learned from."""
    scan = simulate(SimulationOptions(size=size, grid=grid, step=size / 10, photons=1e6, seed=1))
    content = io.BytesIO()
    np.savez(
        content,
        diff3d=scan.diffraction,
        xcoords=scan.positions[:, 1],
        ycoords=scan.positions[:, 0],
        probeGuess=scan.probe,
    )
    pairs = (setting.partition("=")[::2] for setting in settings)
    config: dict[str, object] = {
        "name": "beamline",
        "source": {"files": ["raw/*.npz"]},
        "fixture": {"scans": ["scan0000"], "subset_size": min(grid**2, 256)},
        "backend": backend,
        "training": {key: yaml.safe_load(value) for key, value in pairs},
    }
    if variants > 1:
        config["matrix"] = {"training.seed": [*range(variants)]}
    project = Project(root, content.getvalue(), config)
    (root / "raw").mkdir()
    (root / "dodo.py").write_text(DODO)
    project.write_config()
    project.write_scan(0)
    click.echo(
        f"{backend}, {variants} variant(s), scans of {grid**2} frames of {size} x {size}, "
        f"{len(project.content) / 1e6:.1f} MB"
    )
    return project


def run_watch(
    project: Project, scans: int, every: float, variants: int, arguments: list[str]
) -> None:
    """Let scans come while `ptycho-tasks watch` runs."""
    process = subprocess.Popen(
        [*WATCH, *arguments], cwd=project.root, stdout=subprocess.PIPE, text=True
    )
    try:
        came, watch, sizes = drop_scans(project, process, scans, every, variants)
    finally:
        process.terminate()
        process.wait()
    report(came, watch, variants, sizes)
    click.echo(f"ended by SIGTERM: exit {process.returncode}; {watch.lines[-1][1]}")


def drop_scans(
    project: Project, process: subprocess.Popen[str], scans: int, every: float, variants: int
) -> tuple[dict[str, float], Watch, list[int]]:
    """Let scans come; gives when each had come, what `watch` said, and its memory in bytes."""
    watch = Watch(process)
    threading.Thread(target=watch.read, daemon=True).start()
    begun = time.monotonic()
    watch.begun.wait()
    click.echo(f"the start, with the training: {time.monotonic() - begun:.1f} s")
    memory = psutil.Process(process.pid)
    sizes = [memory.memory_info().rss]
    came: dict[str, float] = {}
    for number in range(1, scans + 1):
        due = time.monotonic() + every
        name = project.write_scan(number)
        came[name] = time.monotonic()
        sizes.append(memory.memory_info().rss)
        if number % REPORT_EVERY == 0:
            show_so_far(came, watch, variants, sizes)
        time.sleep(max(0.0, due - time.monotonic()))
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until and process.poll() is None:
        ends = watch.find_ends()
        failed = [
            line.split()[0].rpartition("/")[2] for _, line in [*watch.lines] if "  failed: " in line
        ]
        if all(len(ends.get(name, ())) >= variants or name in failed for name in came):
            break
        time.sleep(0.2)
    if process.poll() is None:
        sizes.append(memory.memory_info().rss)
    return came, watch, sizes


def show_so_far(came: dict[str, float], watch: Watch, variants: int, sizes: list[int]) -> None:
    """Print a line of a long run, so that one that is cut short has said something."""
    latencies = list_latencies(came, watch, variants)
    median = f"{statistics.median(latencies):.2f}" if latencies else "-"
    click.echo(
        f"    {len(came)} came, {len(latencies)} reconstructed, median {median} s, "
        f"worst {max(latencies, default=0.0):.2f} s, {sizes[-1] / 1e6:.0f} MB"
    )


def list_latencies(came: dict[str, float], watch: Watch, variants: int) -> list[float]:
    """Seconds from each scan's last byte to the product of all its variants."""
    ends = watch.find_ends()
    return [
        max(ends[name]) - moment
        for name, moment in came.items()
        if len(ends.get(name, ())) >= variants
    ]


def report(came: dict[str, float], watch: Watch, variants: int, sizes: list[int]) -> None:
    """Print latencies and memory."""
    latencies = list_latencies(came, watch, variants)
    if len(latencies) < len(came):
        click.echo(f"{len(came) - len(latencies)} scans were not reconstructed:")
        odd = [line for _, line in watch.lines if " R-factor " not in line]
        click.echo("\n".join(f"    {line}" for line in odd[-10:]))
    if latencies:
        click.echo(
            f"{len(latencies)} scans, from the last byte to the product: first "
            f"{latencies[0]:.2f} s, median {statistics.median(latencies):.2f} s, worst of the "
            f"others {max(latencies[1:] or latencies):.2f} s"
        )
    tenth = sizes[min(10, len(sizes) - 1)]
    shown = ", ".join(
        f"{when} {size / 1e6:.0f} MB"
        for when, size in (
            ("at the start", sizes[0]),
            ("after 10 scans", tenth),
            ("at the end", sizes[-1]),
        )
    )
    click.echo(f"memory {shown}")


def run_doit(project: Project, scans: int) -> None:
    """Reconstruct all scans by `doit infer`, and again after small changes."""
    for number in range(1, scans):
        project.write_scan(number)
    for what, seconds, tasks in measure_builds(project, scans):
        click.echo(f"{what:<28}{seconds:8.2f} s  {tasks:4d} tasks")
    size = sum(file.stat().st_size for file in (project.root / ".ptycho").glob("state.sqlite*"))
    click.echo(f"state {size / 1e3:.0f} kB for {scans + 1} scans")


def measure_builds(project: Project, scans: int) -> Iterator[tuple[str, float, int]]:
    """What is built, the seconds that it takes, and how many tasks run."""
    yield "from nothing", *build(project)
    yield "nothing to do", *build(project)
    project.write_scan(scans)
    yield "one scan more", *build(project)
    project.write_config(inference={"n_groups": 32})
    yield "one setting after training", *build(project)
    project.write_config()
    yield "and back", *build(project)


def build(project: Project) -> tuple[float, int]:
    """Run `doit infer`; gives seconds, and how many tasks ran.

    Raises:
        SystemExit: it failed.
    """
    begun = time.perf_counter()
    done = subprocess.run(
        [*DOIT, "infer"],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    if done.returncode:
        raise SystemExit(f"failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    seconds = time.perf_counter() - begun
    lines = done.stdout.splitlines()
    return seconds, sum(line.startswith(".  ") for line in lines)


if __name__ == "__main__":
    main()

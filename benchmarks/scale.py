"""What thousands of stages cost: doit's own time, calls of a file system, a simulated cluster.

    python benchmarks/scale.py                          # measures, then simulates
    python benchmarks/scale.py --stages 400 --stages 10000

Measured: CPU seconds and memory of `doit list`, of a build whose stages are stubs, of a run with
nothing to do and of one after a change of one setting; and by strace (where it is installed), the
calls of the file system that a stage costs the run, its job, and a process that waits for a job.
Simulated, from these figures: stages in pairs, a training and an inference, on workers that share
a slow file system. It answers so many calls a second at most; the run is serial.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from noop import run, write_ours

DOIT = [sys.executable, "-m", "doit"]
CALLS_A_SECOND = 5000.0
"""Calls that the shared file system answers at most: a busy NFS server."""
LOOK_S = 0.3
"""How often a process that waits looks for its job's outcome."""
EXECUTOR = """
import subprocess
from ptycho_tasks.executors import NoOptions, Status

class Traced:
    name, options_type = "traced", NoOptions

    def submit(self, job):
        words = " ".join(job.command)
        trace = f"strace -f -qq -e trace=%file -o {job.root}/{job.name}.trace"
        command = ["sh", "-c", f"sleep WAIT; exec {trace} {words}"]
        return str(subprocess.Popen(command, cwd=job.root, start_new_session=True).pid)

    def poll(self, ids, options):
        return {one: Status("running") for one in ids}

    def cancel(self, ids, options):
        pass

executor = Traced()
"""


@dataclass(frozen=True)
class Costs:
    """What a stage costs."""

    run_cpu_s: float
    """CPU time in the process that runs the graph."""
    run_calls: float
    """Calls of the file system there, in the project and the store."""
    job_calls: float
    """In the job, in the project and the store."""
    start_calls: float
    """In the job, in Python's environment: what it imports."""
    waiting_calls: float
    """A second, of a process that waits for a job."""


def measure_graph(stages: int, folder: Path) -> dict[str, tuple[float, float]]:
    """CPU seconds and peak MB of doit, by kind of run, of a graph of chains of four stages."""
    values = {f"v{index}": 5 for index in range(stages // 4)}
    write_ours(folder, values)
    found = {"dispatch": measure([*DOIT], folder)}
    measure([*DOIT], folder)
    found["no-op"] = measure([*DOIT], folder)
    found["list"] = measure([*DOIT, "list", "--all"], folder)
    write_ours(folder, values | {"v0": 6})
    found["one value"] = measure([*DOIT], folder)
    return found


def measure(command: list[str], folder: Path) -> tuple[float, float]:
    """CPU seconds and peak MB of a command."""
    report = f"import resource, subprocess, sys; subprocess.run({command!r}, check=True, \
stdout=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", report], cwd=folder, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, float(done.stdout)


def count_calls(trace: Path, root: Path) -> Counter[str]:
    """Calls of the file system in a project, and of Python's environment, by strace's lines."""
    found: Counter[str] = Counter()
    for line in trace.read_text(errors="replace").splitlines():
        path = re.search(r'"([^"]+)"', line)  # without one, it is asked of an open file
        if path is None:
            continue
        is_outside = path[1].startswith("/") and not path[1].startswith(str(root))
        is_system = is_outside and path[1].startswith(("/proc", "/sys", "/dev", "/tmp", "/etc"))
        found["system" if is_system else "environment" if is_outside else "project"] += 1
    return found


def trace_run(root: Path, *arguments: str) -> Counter[str]:
    """Calls of the process of a run."""
    trace = root / "run.trace"
    command = ["strace", "-qq", "-e", "trace=%file", "-o", str(trace), *DOIT, *arguments]
    run(command, root)
    return count_calls(trace, root)


def count_stub_calls(folder: Path) -> float:
    """Calls in the project that a stage costs the run: those of 40 more stages, divided."""
    found = []
    for chains in (5, 15):
        root = folder / f"stubs{chains}"
        root.mkdir()
        write_ours(root, {f"v{index}": 5 for index in range(chains)})
        found.append(trace_run(root)["project"])
    return (found[1] - found[0]) / 40


def count_job_calls(folder: Path) -> tuple[float, float, float]:
    """Calls of a job in the project and of its environment, and a second of waiting for one."""
    waiting = []
    for wait in (0, 20):
        root = folder / f"jobs{wait}"
        (root / "executors").mkdir(parents=True)
        (root / "executors" / "traced.py").write_text(EXECUTOR.replace("WAIT", str(wait)))
        (root / "dodo.py").write_text("from ptycho_tasks.tasks import *\n")
        source = {"simulate": {"size": 32, "grid": 6}}
        config = {"source": source, "backend": "unrolled", "execution": {"executor": "traced"}}
        (root / "ptycho.yaml").write_text(json.dumps(config))
        waiting.append(trace_run(root, "train")["project"])
    job = count_calls(root / "train.trace", root)
    return job["project"], job["environment"], (waiting[1] - waiting[0]) / 20


@dataclass
class Cluster:
    """Jobs on workers that share a file system, and one serial process that hands them out."""

    costs: Costs
    workers: int
    latency_s: float
    minutes: float
    """Of a stage, on average; the longest take four times as long."""
    waits: bool
    """Whether a process waits for each job; else the run is detached, and called again."""
    has_own_python: bool
    """Whether workers have Python's environment on their own disk."""
    busy_s: float = 0.0
    worked_s: float = 0.0
    calls: float = 0.0
    known: dict[int, float] = field(default_factory=dict)

    def call_s(self, running: int) -> float:
        """Seconds of a call of the file system: `latency_s`, or so long that no more calls come
        than it answers."""
        if running not in self.known:
            self.known[running] = self._find_call_s(running)
        return self.known[running]

    def _find_call_s(self, running: int) -> float:
        low, high = self.latency_s, 100.0
        if self.demand(running, low) <= CALLS_A_SECOND:
            return low
        for _ in range(30):
            middle = (low * high) ** 0.5
            is_enough = self.demand(running, middle) <= CALLS_A_SECOND
            low, high = (low, middle) if is_enough else (middle, high)
        return high

    def demand(self, running: int, call_s: float) -> float:
        """Calls a second, if each takes so long."""
        looks = LOOK_S * self.costs.waiting_calls
        pollers = looks / (LOOK_S + looks * call_s) if self.waits else 0.0
        jobs = self.job_calls / (60 * self.minutes + self.job_calls * call_s)
        return running * (pollers + jobs)

    @property
    def job_calls(self) -> float:
        """Calls of a job."""
        return self.costs.job_calls + self.costs.start_calls * (not self.has_own_python)

    def simulate(self, stages: int) -> float:
        """Seconds until all stages are done."""
        dice, now, free_at = random.Random(1), 0.0, 0.0
        ready, running = [1] * (stages // 2), list[tuple[float, int]]()
        done = 0
        while done < stages:
            while ready and len(running) < self.workers:
                free_at = max(free_at, now) + self.serve(len(running))
                work = 60 * self.minutes * dice.triangular(0.25, 4, 0.25) / 1.5
                end = free_at + work + self.job_calls * self.call_s(len(running))
                self.worked_s += work
                heapq.heappush(running, (end, ready.pop()))
            then, count = now, len(running)
            now, follows = heapq.heappop(running)
            self.calls += (now - then) * self.demand(count, self.call_s(count))
            ready += [0] * follows
            done += 1
        return now

    def serve(self, running: int) -> float:
        """Seconds that a stage costs the process that hands it out."""
        cost = self.costs.run_cpu_s + self.costs.run_calls * self.call_s(running)
        self.busy_s += cost
        return cost


def simulate_clusters(costs: Costs, stages: int) -> Iterator[str]:
    """Lines of a table."""
    yield (
        f"{'workers':>8}{'min':>5}{'ms a call':>10}  {'waits':<6}{'own Python':<11}{'hours':>7}"
        f"{'ideal':>7}{'workers busy':>14}{'run busy':>10}{'calls/s':>9}"
    )
    settings = itertools.product(
        (50, 500), (1, 10), (0.2, 2.0, 20.0), ((True, False), (False, False), (False, True))
    )
    for workers, minutes, latency_ms, (waits, is_own) in settings:
        cluster = Cluster(costs, workers, latency_ms / 1000, minutes, waits, is_own)
        took = cluster.simulate(stages)
        yield (
            f"{workers:>8}{minutes:>5}{latency_ms:>10.1f}  {'yes' if waits else 'no':<6}"
            f"{'yes' if is_own else 'no':<11}{took / 3600:>7.1f}"
            f"{cluster.worked_s / workers / 3600:>7.1f}"
            f"{cluster.worked_s / took / workers:>14.0%}{cluster.busy_s / took:>10.0%}"
            f"{cluster.calls / took:>9.0f}"
        )


@click.command()
@click.option("--stages", multiple=True, type=int, default=(400, 2000, 10_000), show_default=True)
def main(stages: tuple[int, ...]) -> None:
    """Measure, simulate and print."""
    kinds = ("list", "no-op", "one value", "dispatch")
    click.echo(f"{'stages':>8}" + "".join(f"{kind:>20}" for kind in kinds) + "   CPU s, peak MB")
    for count in stages:
        with tempfile.TemporaryDirectory() as folder:
            found = measure_graph(count, Path(folder))
        cells = (f"{found[kind][0]:>11.2f} {found[kind][1]:>5.0f} MB" for kind in kinds)
        click.echo(f"{count:>8}" + "".join(cells))
    if shutil.which("strace") is None:
        raise SystemExit("strace is not installed: no calls are counted, and nothing is simulated")
    with tempfile.TemporaryDirectory() as folder:
        calls, jobs = count_stub_calls(Path(folder)), count_job_calls(Path(folder))
    costs = Costs(found["dispatch"][0] / count, calls, *jobs)
    click.echo(
        f"a stage: {1000 * costs.run_cpu_s:.1f} ms of CPU and {calls:.0f} calls in the run, "
        f"{jobs[0]:.0f} calls in its job and {jobs[1]:.0f} for what it imports; "
        f"{jobs[2]:.1f} calls a second while a process waits for it"
    )
    for line in simulate_clusters(costs, 10_000):
        click.echo(line)


if __name__ == "__main__":
    main()

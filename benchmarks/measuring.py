"""What the benchmarks share: clocks, processes of their own, trainings, inferences, and pty-chi
epoch by epoch.

Machines are noisy, so what counts is the ratio of two figures taken in the same run, in turns.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import msgspec
import numpy as np
import yaml
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ptycho_tasks.backend import (
    Backend,
    InferRequest,
    Reconstruction,
    TrainedModel,
    TrainRequest,
    checked_model,
    checked_reconstruction,
)
from ptycho_tasks.backends import execution_type, find_backend
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks.physics.metrics import score
from ptycho_tasks.results.bundle import Bundle, bundle_bytes
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.readers import read_scan
from ptycho_tasks.system.files import write_atomic

FALLING = ("r_factor", "nrmse")
"""Scores of which less is better."""
SHOWN = {
    "r_factor": "R-factor",
    "amplitude_ssim": "amp SSIM",
    "phase_ssim": "pha SSIM",
    "amplitude_psnr_db": "PSNR dB",
    "frc50": "FRC50",
}
"""Scores of the tables, and their titles."""
T = TypeVar("T")


# --- clocks and processes ------------------------------------------------------------------------


class Cost(NamedTuple):
    """Seconds by the wall's clock, and of CPU."""

    wall_s: float
    cpu_s: float

    def plus(self, other: Cost) -> Cost:
        return Cost(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


class Usage(NamedTuple):
    """What a whole process took."""

    cost: Cost
    peak_mb: float


def clock() -> Callable[[], Cost]:
    """Start a clock; call what it gives to read it."""
    wall, cpu = time.perf_counter(), time.process_time()
    return lambda: Cost(time.perf_counter() - wall, time.process_time() - cpu)


def median_cost(costs: Iterable[Cost]) -> Cost:
    return Cost(*(statistics.median(side) for side in zip(*costs, strict=True)))


def alone(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of a module in a process of its own, as a user's command runs in one.

    Linux hands a process's peak memory down to its children, so that the one that calls must stay
    small: nothing that imports torch runs in it.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def command(words: Sequence[str]) -> Usage:
    """Run a command to its end; gives what it took with all its children."""
    read = clock()
    try:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    except OSError as error:
        raise click.ClickException(f"`{words[0]}` does not start: {error.strerror}") from error
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"`{' '.join(words)}` ended with {process.returncode}")
    cost = Cost(read().wall_s, used.ru_utime + used.ru_stime)
    return Usage(cost, used.ru_maxrss / 1024)


def peak_mb() -> float:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """A user's mistake ends the program with one line."""
    try:
        yield
    except (PtychoTasksError, msgspec.ValidationError) as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(getattr(error, "exit_code", 2)) from error
    except BrokenProcessPool as error:
        message = "a process was killed from outside, perhaps for want of memory"
        raise click.ClickException(message) from error


# --- settings ------------------------------------------------------------------------------------


def parsed(settings: Iterable[str]) -> dict[str, Any]:
    """KEY=VALUE, each value as in ptycho.yaml."""
    return {
        key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in settings)
    }


def nested(settings: Iterable[str], into: dict[str, Any] | None = None) -> dict[str, Any]:
    """Dotted KEY=VALUE of ptycho.yaml, put into what it may hold already."""
    data = {} if into is None else into
    for key, value in parsed(settings).items():
        *parents, last = key.split(".")
        section = data
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return data


def backend_named(name: str) -> Backend:
    return find_backend(name, Path.cwd()).load()


def execution_of(backend: Backend, threads: int, **given: Any) -> ExecutionOptions:
    return msgspec.convert(
        {"accelerator": "cpu", "threads": threads, **given}, execution_type(backend)
    )


def halves(scan: ScanData) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The frames of the upper half of the rows, and the others, each in their order."""
    order = np.argsort(scan.positions[:, 0], kind="stable")
    middle = scan.frame_count // 2
    return np.sort(order[:middle]), np.sort(order[middle:])


# --- the network ---------------------------------------------------------------------------------


@dataclass
class Training:
    """What a training cost, and how it went."""

    cost: Cost
    frames: int
    peak_mb: float
    weights: int
    epochs: list[tuple[int, Cost, dict[str, float]]]
    """What the backend told, and when; by `done`, where 0 is before the first step."""

    @property
    def frames_per_s(self) -> float | None:
        """Without the first epoch, which warms up."""
        steps = [(done, cost.wall_s) for done, cost, _ in self.epochs if done > 0]
        if len(steps) < 2 or steps[-1][1] <= steps[0][1]:
            return None
        (first, begun), (last, ended) = steps[0], steps[-1]
        return self.frames * (last - first) / (ended - begun)


def trained(
    backend: Backend,
    scan: ScanData,
    options: Any,
    execution: ExecutionOptions,
    folder: Path,
    params: Mapping[str, Any] | None = None,
) -> Training:
    """Train on a scan and keep the bundle in a folder; its writing is not timed."""
    epochs: list[tuple[int, Cost, dict[str, float]]] = []
    read = clock()

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        epochs.append((done, read(), dict(metrics)))

    given = backend.train(TrainRequest([scan], options, execution, progress))
    cost = read()
    model = checked_model(given, backend.name)
    content = bundle_bytes(
        model,
        backend=backend.name,
        backend_version=backend.version,
        size=scan.size,
        params={"training": msgspec.to_builtins(options), "cost": [*cost], **(params or {})},
    )
    write_atomic(folder / BUNDLE_NAME, content)
    # One array under several names is one weight.
    arrays = {id(array): array for named in model.models.values() for array in named.values()}
    weights = sum(array.size for array in arrays.values())
    return Training(cost, scan.frame_count, peak_mb(), weights, epochs)


def trained_on(
    name: str, file: Path, options: Any, execution: ExecutionOptions, folder: Path
) -> Training:
    """Train the backend of a name on the scan in a file."""
    return trained(backend_named(name), read_scan(file), options, execution, folder)


def untrained_model(scan: ScanData, options: Any) -> TrainedModel:
    """The backend `unrolled` with the weights that it would begin to learn with."""
    from ptycho_tasks_torch.physics.scale import read_intensity
    from ptycho_tasks_torch.training.weights import OBJECT_NETWORK
    from ptycho_tasks_torch.unrolled.network import make_unrolled_networks

    weights = make_unrolled_networks(options)[0].state_dict()
    arrays = {name: weight.contiguous().numpy() for name, weight in weights.items()}
    scale = read_intensity(scan, np.arange(scan.frame_count))
    return TrainedModel({OBJECT_NETWORK: arrays}, {"N": scan.size, "intensity_scale": scale})


def inference(
    backend: Backend, bundle: Bundle, scan: ScanData, execution: ExecutionOptions
) -> Callable[[], tuple[Reconstruction, Cost]]:
    """Something to call for the network's reconstruction and what it cost, libraries loaded."""
    options = msgspec.convert(bundle.params["training"], backend.options_type)
    request = InferRequest(scan, bundle.model, options, execution)
    backend.infer(request)

    def timed() -> tuple[Reconstruction, Cost]:
        read = clock()
        made = backend.infer(request)
        cost = read()
        return checked_reconstruction(made, scan, backend.name), cost

    return timed


def by_step(
    backend: Backend, bundle: Bundle, scan: ScanData, execution: ExecutionOptions
) -> Curve | None:
    """What the network has come to after each of its steps; None where it has none to show."""
    if backend.name != "unrolled":
        return None
    options = msgspec.convert(bundle.params["training"], backend.options_type)
    curve = Curve(Cost(0, 0))
    for cost, made in stepwise(InferRequest(scan, bundle.model, options, execution)):
        curve.cost = curve.cost.plus(cost)
        curve.after.append((curve.cost, scored(made, scan)))
    return curve


def stepwise(request: InferRequest, runs: int = 3) -> list[tuple[Cost, Reconstruction]]:
    """What each step of `unrolled` costs, the first with all that comes before it, and what it
    came to: medians over some runs."""
    import torch

    from ptycho_tasks_torch.device import settings
    from ptycho_tasks_torch.unrolled.inference import reconstruct_stepwise

    costs: list[list[Cost]] = []
    with settings(request.execution), torch.inference_mode():
        for _ in range(runs):
            spent, made, read = [], [], clock()
            for each in reconstruct_stepwise(request):
                spent.append(read())
                made.append(each)
                read = clock()
            costs.append(spent)
    medians = [median_cost(each) for each in zip(*costs, strict=True)]
    return list(zip(medians, made, strict=True))


# --- scores --------------------------------------------------------------------------------------


# BLAS threads spin for a while after their work, and would be counted as what is measured next.
@threadpool_limits.wrap(limits=1, user_api="blas")
def scored(
    made: Reconstruction, scan: ScanData, frames: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """R-factor, of some frames or of all, and scores where the truth is known."""
    some = slice(None) if frames is None else frames
    flux = None if made.flux is None else made.flux[some]
    part = replace(made, positions=made.positions[some], flux=flux)
    misfit = part.measure_misfit(scan.diffraction[some])
    scores: dict[str, float] = {"r_factor": misfit.r_factor}
    if scan.object is not None:
        found = score(made.object, made.origin, scan.object, made.positions, scan.size)
        scores |= {name: value for name, value in found.items() if value is not None}
    return scores


def no_worse(name: str, value: float, than: float) -> bool:
    return value <= than if name in FALLING else value >= than


def best_of(name: str, values: Iterable[float]) -> float:
    return (min if name in FALLING else max)(values)


@dataclass
class Curve:
    """What an engine had come to after each epoch; entry 0 is its start."""

    cost: Cost
    """So far."""
    after: list[tuple[Cost, dict[str, float]]] = field(default_factory=list)

    def reached(self, name: str, value: float) -> tuple[int, Cost] | None:
        """The first epoch that is as good as a target, and the cost up to it; None if none is."""
        for epoch, (cost, scores) in enumerate(self.after):
            if name in scores and no_worse(name, scores[name], value):
                return epoch, cost
        return None

    def best(self, name: str) -> float | None:
        """The best score; None where there is none."""
        values = [scores[name] for _, scores in self.after if name in scores]
        return best_of(name, values) if values else None


# --- the engines ---------------------------------------------------------------------------------


def steps(
    scan: ScanData, start: Reconstruction, options: Any
) -> Iterator[tuple[Cost, Reconstruction]]:
    """What each epoch costs, the first with all that comes before it, and what it came to."""
    from ptycho_tasks_ptychi.library import import_library
    from ptycho_tasks_ptychi.reconstruct import make_task, read_result, run_epoch

    read = clock()
    task = make_task(*import_library(), options, scan, start, "cpu")
    for _ in range(options.epochs):
        run_epoch(task)
        yield read(), read_result(task, options, start)
        read = clock()


def from_flat(scan: ScanData, options: Any, threads: int) -> Iterator[tuple[Cost, Reconstruction]]:
    """The start and then each epoch of an engine; between them the process is as before."""
    from ptycho_tasks_ptychi.library import contain_library
    from ptycho_tasks_ptychi.reconstruct import make_flat_start, read_counts

    execution = ExecutionOptions(accelerator="cpu", threads=threads)
    with contain_library(execution):
        next(steps(scan, make_flat_start(scan, options, float(read_counts(scan).mean())), options))
        read = clock()
        start = make_flat_start(scan, options, float(read_counts(scan).mean()))
        cost = read()
    yield cost, start
    run = steps(scan, start, options)
    for _ in range(options.epochs):
        with contain_library(execution):
            made = next(run)
        yield made


@dataclass
class Race:
    """A network and an engine on one scan, in one process, in turns."""

    object: Reconstruction
    costs: list[Cost]
    """Of the inferences."""
    scores: dict[str, float]
    engine: Curve
    objects: list[Reconstruction]
    """The engine's, after each entry of its curve."""

    @property
    def cost(self) -> Cost:
        """Of an inference."""
        return median_cost(self.costs)

    @property
    def equal(self) -> int:
        """The engine's first epoch that has had at least the CPU time of an inference."""
        costs = [cost.cpu_s for cost, _ in self.engine.after]
        late = [epoch for epoch, spent in enumerate(costs) if epoch and spent >= self.cost.cpu_s]
        return late[0] if late else len(costs) - 1


INFERENCES = 5


def race(
    timed: Callable[[], tuple[Reconstruction, Cost]],
    scan: ScanData,
    engine: Mapping[str, Any],
    threads: int,
    frames: NDArray[np.int64] | None = None,
) -> Race:
    """Time inferences and an engine from a flat object in turns; scores are taken off the clock.

    Args:
        timed: made by `inference`.
        scan: what both reconstruct.
        engine: options of the backend `ptychi`.
        threads: of the engine.
        frames: those that the R-factor is taken over; None takes all.
    """
    options = msgspec.convert(dict(engine), backend_named("ptychi").options_type)
    made, cost = timed()
    curve = Curve(Cost(0, 0))
    result = Race(made, [cost], scored(made, scan, frames), curve, [])
    for spent, iterate in from_flat(scan, options, threads):
        curve.cost = curve.cost.plus(spent)
        curve.after.append((curve.cost, scored(iterate, scan, frames)))
        result.objects.append(iterate)
        if len(result.costs) < INFERENCES:
            result.costs.append(timed()[1])
    return result

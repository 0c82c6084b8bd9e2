"""How good and how fast a backend is, beside its bars, pty-chi's LSQML and the FFTs alone.

    python benchmarks/bars.py                                    # every set that has bars
    python benchmarks/bars.py siemens_1e9 star_64 --seed 0 --out /tmp/bars
    python benchmarks/bars.py siemens_1e4 --object-seed 7        # objects of one's own

For each set and seed the backend trains in a process of its own and reconstructs what it has not
seen, libraries and network in memory. LSQML, with the known probe, runs from a flat object in the
same process, an epoch after each inference. Tables show medians over the seeds, and the range.
With --out, bundles, objects and figures are kept, for look.py.
"""

from __future__ import annotations

import platform
import shlex
import statistics
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from measuring import (
    FALLING,
    SHOWN,
    Cost,
    Curve,
    Race,
    Training,
    Usage,
    alone,
    backend_named,
    best_of,
    by_step,
    clock,
    command,
    execution_of,
    inference,
    median_cost,
    nested,
    parsed,
    race,
    told_in_a_line,
    trained_on,
)
from ptycho_tasks.errors import ConfigError, TrainingError
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks.results.bundle import load_bundle
from ptycho_tasks.scans.npz import write_npz
from ptycho_tasks.system.files import write_atomic
from sets import WHOLE, make, read_test, test_files, wanted

RESULTS = "results.json"
START_S = 8.0
"""Of a plan's time, what a training takes before its first step and after its last."""
SPEED_SET = "siemens_1e9"
ENOUGH = ("amplitude_ssim", 0.99)
"""The score that the race to it is about."""
REFERENCE_RATE = 20.0
"""Patterns a second that PtychoPINN's torch half trains on 2 cores, 2.34 million weights: recorded
on another day, not measured in the run."""
PINN = ("training.epochs=3", "training.gridsize=1", "training.channels=10", "training.halvings=5")
"""No fewer weights than the reference has, which are 2.34 million."""


@dataclass(frozen=True)
class Plan:
    """What a set is measured with and by."""

    seconds: float
    """Of training that are allowed; 0 trains nothing, and fits a refined probe only."""
    epochs: int
    """Of LSQML."""
    bars: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Bar and stretch of a score."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Options of `unrolled`; --set wins."""


MEASURED = {"probe": "refined", "probe_modes": 3}
"""A beam is never quite coherent."""
PLANS = {
    "siemens_1e9": Plan(
        0,
        30,
        {
            "amplitude_ssim": (0.999, 0.9999),
            "phase_ssim": (0.975, 0.999),
            "amplitude_psnr_db": (66, 73),
        },
    ),
    "siemens_1e4": Plan(
        0,
        30,
        {
            "amplitude_ssim": (0.84, 0.88),
            "phase_ssim": (0.72, 0.77),
            "amplitude_psnr_db": (29, 32),
        },
    ),
    "disc_1e9": Plan(0, 20, {"amplitude_ssim": (0.998, 0.9995), "phase_ssim": (0.90, 0.95)}),
    "disc_1e4": Plan(0, 30, {"amplitude_ssim": (0.90, 0.92), "phase_ssim": (0.87, 0.90)}),
    "star_64": Plan(0, 100, {"r_factor": (0.0625, 0.060)}, MEASURED),
    "star_128": Plan(0, 60, {"r_factor": (0.139, 0.135)}, MEASURED),
    "simulated_1e9": Plan(0, 30),
    "simulated_1e4": Plan(0, 30),
}


@dataclass
class Trial:
    """What one seed came to on one scan."""

    seed: int
    cost: Cost
    """Of an inference."""
    scores: dict[str, float]
    steps: Curve | None
    """Of ours, where the network works in steps."""
    engine: Curve
    equal: int
    """The engine's first epoch that has had the CPU time of an inference."""


@dataclass
class Result:
    """All of one set; `results.json` holds it."""

    name: str
    backend: str
    training: dict[str, Any]
    machine: str
    trainings: dict[int, Training]
    """By seed."""
    failed: dict[int, str]
    """Why a seed's training gave nothing."""
    trials: dict[str, list[Trial]]
    """By the stem of the scan's file, one a seed."""


@dataclass(frozen=True)
class Task:
    """What to measure with; picklable, so that processes can be given it."""

    backend: str
    settings: tuple[str, ...]
    engine: Mapping[str, Any]
    threads: int

    @property
    def execution(self) -> ExecutionOptions:
        given = nested(self.settings).get("execution", {})
        return execution_of(backend_named(self.backend), **{"threads": self.threads, **given})

    def options(self, plan: Plan, seed: int) -> Any:
        """The training's; a backend that knows a time budget gets the plan's."""
        kind = backend_named(self.backend).options_type
        budget = {}
        if plan.seconds and "max_minutes" in kind.__struct_fields__:
            # The time is to end the training, and nothing else.
            minutes = (plan.seconds - START_S) / 60
            budget = {"max_minutes": minutes, "epochs": 100_000, "early_stop_patience": 100}
        own = plan.training if self.backend == "unrolled" else {}
        given = nested(self.settings).get("training", {})
        return msgspec.convert({**budget, **own, **given, "seed": seed}, kind)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--backend", default="unrolled", show_default=True)
@click.option("--set", "settings", multiple=True, help="training.KEY=VALUE or execution.KEY=VALUE.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), show_default=True)
@click.option("--object-seed", type=int, help="Objects of one's own in place of the shared ones.")
@click.option("--engine-set", multiple=True, help="KEY=VALUE of LSQML's options.")
@click.option("--threads", default=2, show_default=True)
@click.option("--speed/--no-speed", default=True, help="Measure the speeds too.")
@click.option("--reference", help="COMMAND with {train} {test} {out}, run beside ours and timed.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep everything in this folder.")
def main(
    names: tuple[str, ...],
    backend: str,
    settings: tuple[str, ...],
    seeds: tuple[int, ...],
    object_seed: int | None,
    engine_set: tuple[str, ...],
    threads: int,
    speed: bool,
    reference: str | None,
    out: Path | None,
) -> None:
    """Measure a backend on the sets NAMES of sets.py; without names, on those that have bars."""
    task = Task(backend, settings, parsed(engine_set), threads)
    chosen = wanted(names or [name for name, plan in PLANS.items() if plan.bars], object_seed)
    with told_in_a_line(), tempfile.TemporaryDirectory() as temporary:
        refuse_unknown(task, chosen)
        folder = out or Path(temporary)
        folders = [make(name, object_seed, folder) for name in chosen]
        bundles = {}
        for name, made in zip(chosen, folders, strict=True):
            result = measure(task, PLANS[name], seeds, made)
            tell(result, PLANS[name])
            if result.trainings:
                bundles[name] = bundle_dir(made, min(result.trainings))
        if speed and bundles:
            tell_speeds(task, bundles.get(SPEED_SET, next(iter(bundles.values()))), reference)


def refuse_unknown(task: Task, chosen: Iterable[str]) -> None:
    """Refuse, before hours are spent, what the backend or LSQML does not know."""
    extra = set(nested(task.settings)) - {"training", "execution"}
    if extra:
        raise ConfigError(f"--set {extra.pop()}: begin with `training.` or `execution.`")
    backend = backend_named(task.backend)
    check = getattr(backend, "check", lambda training, execution: None)
    try:
        for name in chosen:
            check(task.options(PLANS[name], 0), task.execution)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--set: {error}; `{task.backend}` takes other values") from error
    try:
        msgspec.convert(dict(task.engine), backend_named("ptychi").options_type)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--engine-set: {error}; `ptychi` takes other values") from error


def measure(task: Task, plan: Plan, seeds: Sequence[int], made: Path) -> Result:
    """Train on a set with each seed and try it on the set's unseen scans."""
    trainings, failed = {}, {}
    for seed in seeds:
        click.echo(f"{made.name}: train {task.backend}, seed {seed} ...", err=True)
        options, folder = task.options(plan, seed), bundle_dir(made, seed)
        given = (task.backend, made / "train.npz", options, task.execution, folder)
        try:
            trainings[seed] = alone(trained_on, *given)
        except TrainingError as error:
            failed[seed] = str(error)
    trials = {}
    for file in test_files(made) if trainings else ():
        click.echo(f"{made.name}: {file.stem}, beside LSQML ...", err=True)
        trials[file.stem] = alone(tried, task, plan, file, list(trainings))
    options = msgspec.to_builtins(task.options(plan, seeds[0]))
    machine = f"{platform.node()}, {platform.machine()}"
    result = Result(made.name, task.backend, options, machine, trainings, failed, trials)
    write_atomic(made / RESULTS, msgspec.json.encode(result))
    return result


def bundle_dir(made: Path, seed: int) -> Path:
    """Holds the bundle of a seed, and what came of it."""
    return made / f"seed{seed}"


def tried(task: Task, plan: Plan, file: Path, seeds: Sequence[int]) -> list[Trial]:
    """Race each seed's network against LSQML on a scan; keeps their objects."""
    scan, frames = read_test(file)
    trials = []
    for seed in seeds:
        bundle = bundle_dir(file.parent, seed)
        given = (backend_named(task.backend), load_bundle(bundle), scan, task.execution)
        timed, steps = inference(*given), by_step(*given)
        engine = {"epochs": plan.epochs, "refine_probe": False, "seed": seed, **task.engine}
        done = race(timed, scan, engine, task.threads, frames)
        keep(bundle / file.name, done)
        trials.append(Trial(seed, done.cost, done.scores, steps, done.engine, done.equal))
    return trials


def keep(file: Path, done: Race) -> None:
    """Objects and their origins: ours, LSQML's at equal CPU time, and its last."""
    arrays = {}
    for name, made in (
        ("ours", done.object),
        ("equal", done.objects[done.equal]),
        ("full", done.objects[-1]),
    ):
        arrays |= {name: made.object, f"{name}_origin": np.asarray(made.origin)}
    with file.open("wb") as stream:
        write_npz(stream, arrays)


# --- speeds --------------------------------------------------------------------------------------


def tell_speeds(task: Task, bundle: Path, reference: str | None) -> None:
    """Measure and print how fast inference, its process and the training of `pinn` are."""
    made = bundle.parent
    file = made / "test.npz"
    click.echo(f"{made.name}: speeds ...", err=True)
    rates = alone(inference_rates, task, file, bundle)
    whole = [infer_process(file, bundle) for _ in range(3)]
    pinn = Task("pinn", PINN, {}, task.threads)
    options = pinn.options(Plan(0, 0), 0)
    with tempfile.TemporaryDirectory() as folder:
        training = alone(
            trained_on, "pinn", made / "train.npz", options, pinn.execution, Path(folder)
        )
    click.echo(f"\nspeed on {made.name}, {rates['frames']} frames, {task.threads} threads")
    head()
    ours, ffts = rates["ours"], rates["ffts"]
    limit = f"FFTs alone {median(ffts):,.0f}"
    row("inference, frames/s", (2000, 5000), ours, limit, f"1/{median(ffts) / median(ours):.1f}")
    walls = [usage.cost.wall_s for usage in whole]
    row("whole infer process, s", (5, 3), walls, falling=True)
    row("  CPU s", (), [usage.cost.cpu_s for usage in whole])
    row("  peak MB", (1000,), [usage.peak_mb for usage in whole], falling=True)
    rate = training.frames_per_s
    if rate:
        label = f"pinn, {training.weights / 1e6:.1f} M weights, patterns/s"
        theirs = f"PtychoPINN {REFERENCE_RATE:g}, recorded"
        bars = (2 * REFERENCE_RATE, 5 * REFERENCE_RATE)
        row(label, bars, [rate], theirs, f"{rate / REFERENCE_RATE:.1f}")
    tell_reference(reference, made, training)


def inference_rates(task: Task, file: Path, bundle: Path) -> dict[str, Any]:
    """Frames a second of inferences, and of their FFTs alone, in turns."""
    import torch

    scan, _ = read_test(file)
    loaded = load_bundle(bundle)
    timed = inference(backend_named(task.backend), loaded, scan, task.execution)
    frames = torch.from_numpy(scan.diffraction.astype(np.complex64))
    steps = loaded.params["training"].get("steps", 1) * len(scan.probe)
    ours, ffts = [], []
    for _ in range(5):
        ours.append(len(frames) / timed()[1].wall_s)
        torch.set_num_threads(task.threads)
        read = clock()
        for chunk in frames.split(32):  # complex pixels that stay in a core's cache
            for _ in range(steps):
                torch.fft.ifft2(torch.fft.fft2(chunk))
        ffts.append(len(frames) / read().wall_s)
    return {"frames": len(frames), "ours": ours, "ffts": ffts}


def infer_process(file: Path, bundle: Path) -> Usage:
    """`ptycho-tasks infer` from its start to its end."""
    program = Path(sysconfig.get_path("scripts")) / "ptycho-tasks"
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--model-path", bundle, "--test-data", file, "--output-dir", f"{folder}/made")
        return command([str(word) for word in (program, "infer", *flags, "--quiet")])


def tell_reference(text: str | None, made: Path, ours: Training) -> None:
    """Time the user's command; what it computes is the user's to answer for."""
    if text is None:
        click.echo("the reference itself: not run; give --reference COMMAND where it is installed")
        return
    with tempfile.TemporaryDirectory() as out:
        files = {"train": made / "train.npz", "test": made / "test.npz", "out": out}
        try:
            words = [word.format(**files) for word in shlex.split(text)]
        except (ValueError, LookupError) as error:
            raise click.BadParameter(
                f"--reference: {error}; name {{train}} {{test}} {{out}}"
            ) from error
        used = command(words)
    click.echo(
        f"the reference's command: {used.cost.wall_s:.1f} s, {used.cost.cpu_s:.1f} s CPU, "
        f"{used.peak_mb:.0f} MB; the training of `pinn` above: {ours.cost.wall_s:.1f} s, "
        f"{ours.cost.cpu_s:.1f} s CPU, {ours.peak_mb:.0f} MB"
    )


# --- the tables ----------------------------------------------------------------------------------


def tell(result: Result, plan: Plan) -> None:
    """Print one table a scan."""
    for seed, reason in result.failed.items():
        click.echo(f"\n{result.name}: seed {seed} failed: {reason}")
    seconds = [training.cost.wall_s for training in result.trainings.values()]
    for stem, trials in result.trials.items():
        cost, count = median_cost(trial.cost for trial in trials), len(trials[0].engine.after) - 1
        click.echo(
            f"\n{result.name}, {stem}: {result.backend} infers in {cost.wall_s:.2f} s "
            f"({cost.cpu_s:.2f} s CPU), seeds {' '.join(map(str, result.trainings))}; "
            f"LSQML: {count} epochs"
        )
        head("LSQML last, best, equal CPU")
        if stem == "test" and plan.seconds:
            row("training, s", (plan.seconds,), seconds, falling=True)
        for name, title in SHOWN.items():
            if name in trials[0].scores:
                # What else a network is tried on has no bar, but for the same unseen frames.
                bars = plan.bars.get(name, ()) if stem in ("test", WHOLE) else ()
                score_row(title, name, bars, trials)
        if ENOUGH[0] in trials[0].scores:
            race_row(trials)


def score_row(title: str, name: str, bars: Sequence[float], trials: Sequence[Trial]) -> None:
    last, best, equal = (
        median(trial.engine.after[at(trial)][1][name] for trial in trials)
        for at in (
            lambda trial: -1,
            lambda trial: best_epoch(trial.engine, name),
            lambda trial: trial.equal,
        )
    )
    ours = [trial.scores[name] for trial in trials]
    theirs = f"{last:.4g}, {best:.4g}, {equal:.4g}"
    row(title, bars, ours, theirs, f"{median(ours) / best:.3f}", falling=name in FALLING)


def best_epoch(curve: Curve, name: str) -> int:
    values = [scores[name] for _, scores in curve.after]
    return values.index(best_of(name, values))


def race_row(trials: Sequence[Trial]) -> None:
    """CPU time to a score: of an inference, or as many of its steps as it takes, and of LSQML from
    flat."""
    label = f"CPU s to amp SSIM {ENOUGH[1]:g}"
    late = [trial for trial in trials if trial.scores[ENOUGH[0]] < ENOUGH[1]]
    found = [trial.engine.reached(*ENOUGH) for trial in trials]
    theirs = [cost.cpu_s for _, cost in filter(None, found)]
    ours = [sooner(trial) for trial in trials]
    if late:
        line(label, "", "", f"never with {len(late)} of {len(trials)} seeds", "no")
    elif len(theirs) < len(trials):
        row(label, (), ours, "never", "")
    else:
        times = [their / our for their, our in zip(theirs, ours, strict=True)]
        row(label, (), ours, f"{median(theirs):.2f}")
        row("  times less", (5, 10), times)


def sooner(trial: Trial) -> float:
    """CPU s to the score, which the whole inference reaches."""
    reached = None if trial.steps is None else trial.steps.reached(*ENOUGH)
    return trial.cost.cpu_s if reached is None else reached[1].cpu_s


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def row(
    label: str,
    bars: Sequence[float],
    ours: Sequence[float],
    theirs: str = "",
    ratio: str = "",
    *,
    falling: bool = False,
) -> None:
    """One line: the bar, the median of ours with its range, whether it is reached, and theirs."""
    middle, low, high = median(ours), min(ours), max(ours)
    shown = f"{middle:.4g}" + (f" ({low:.4g}..{high:.4g})" if len(ours) > 1 else "")
    met = [middle <= bar if falling else middle >= bar for bar in bars]
    reached = ("no", "yes", "stretch")[sum(met)] if bars else ""
    told = [f"{bar:g}" for bar in bars] + ["", ""]
    line(label, *told[:2], shown, reached, theirs, ratio)


def head(theirs: str = "theirs") -> None:
    line("", "bar", "stretch", "ours (range)", "reached", theirs, "ratio")


def line(*cells: str) -> None:
    widths = (38, 8, 8, 26, 8, 28, 8)
    shown = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False))
    click.echo(" ".join(shown).rstrip())


if __name__ == "__main__":
    main()

"""How good the backend `unrolled` is on scans of many kinds, beside the best engines of pty-chi.

    python benchmarks/regimes.py --json /tmp/regimes.json --out /tmp/regimes
    python benchmarks/regimes.py kb_texture_1e6 zone_lines_1e4 --seed 0 --contestant nothing
    python benchmarks/look.py /tmp/regimes                     # pictures side by side

Each regime of regime_scans.py is a kind of scan that no network has learned from; the probe is
known. Ours counts as it ends; an engine, which a user would have to stop at the right moment, with
the best that it came to after any epoch. All run in one process, one after the other. NRMSE is
that of the complex object, the norm of the error over that of the truth after alignment; a phase
error is wrapped. With --json, what is in the file already is not measured again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from measuring import (
    Cost,
    Curve,
    alone,
    backend_named,
    best_of,
    clock,
    execution_of,
    from_flat,
    no_worse,
    stepwise,
    told_in_a_line,
    untrained_model,
)
from ptycho_tasks.backend import InferRequest, Reconstruction, TrainRequest
from ptycho_tasks.errors import ConfigError, PtychoTasksError
from ptycho_tasks.physics.metrics import align, compare, scanned_box
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.npz import write_npz
from ptycho_tasks.system.files import write_atomic
from regime_scans import FEW_PHOTONS, REGIMES, Regime, is_here, make_scan

Image = NDArray[np.complex128]
Steps = Iterable[tuple[Cost, Reconstruction]]
"""What each step or epoch costs, and what it came to."""
SCORES = {
    "nrmse": "NRMSE",
    "amplitude_ssim": "amp SSIM",
    "phase_ssim": "pha SSIM",
    "amplitude_psnr_db": "PSNR dB",
    "frc50": "FRC50",
}
DECIDING = ("nrmse", "amplitude_ssim", "phase_ssim")
"""Scores that a regime is lost by."""
IMAGES = ".images.npz"
"""How the name of a file of aligned images ends."""
BEYOND, DIVERGED = 1e6, "diverged"
"""The amplitude, of an object whose own is at most 1, that is no result any more."""
WORST = {"nrmse": BEYOND, **dict.fromkeys([*SCORES][1:], 0.0)}
"""Scores of what is no result."""
PATIENCE = 15
"""Epochs without a better score of any kind that end an engine."""


# --- the contestants -----------------------------------------------------------------------------


class Run(NamedTuple):
    """A contestant at work on a scan."""

    training: Cost
    steps: Steps


Contestant = Callable[[ScanData, int], Run]
"""From a scan, whose probe is known, and a number of threads."""


def ours(training: Mapping[str, Any], scan: ScanData, threads: int) -> Run:
    """The backend `unrolled` with some options of `training:`."""
    backend = backend_named("unrolled")
    execution = execution_of(backend, threads)
    options = msgspec.convert(dict(training), backend.options_type)
    read = clock()
    model = backend.train(TrainRequest([scan], options, execution))
    cost = read()
    return Run(cost, stepwise(InferRequest(scan, model, options, execution)))


def untrained(training: Mapping[str, Any], scan: ScanData, threads: int) -> Run:
    """The backend `unrolled` with the weights that it would begin to learn with."""
    backend = backend_named("unrolled")
    options = msgspec.convert(dict(training), backend.options_type)
    model = untrained_model(scan, options)
    request = InferRequest(scan, model, options, execution_of(backend, threads))
    return Run(Cost(0, 0), stepwise(request))


def engine(options: Mapping[str, Any], scan: ScanData, threads: int) -> Run:
    """An engine of pty-chi from a flat object."""
    given = msgspec.convert(
        {"refine_probe": False, **options}, backend_named("ptychi").options_type
    )
    return Run(Cost(0, 0), epochs(scan, given, threads))


def epochs(scan: ScanData, options: Any, threads: int) -> Iterator[tuple[Cost, Reconstruction]]:
    run = from_flat(scan, options, threads)
    before, _ = next(run)
    for cost, made in run:
        yield before.plus(cost), made
        before = Cost(0, 0)


OURS: dict[str, Contestant] = {
    "nothing": partial(untrained, {}),
    "prior": partial(ours, {"start": "pretrained", "epochs": 0}),
    # The time is to end the training, and nothing else.
    "tuned": partial(
        ours,
        {
            "start": "pretrained",
            "max_minutes": 1.0,
            "epochs": 100_000,
            "early_stop_patience": 100_000,
        },
    ),
}
ENGINES: dict[str, Contestant] = {
    "LSQML": partial(
        engine,
        {
            "algorithm": "LSQML",
            "batch_size": 64,
            "noise_model": "gaussian",
            "object_step": 1.0,
            "epochs": 80,
        },
    ),
    "rPIE-0.2": partial(
        engine,
        {"algorithm": "rPIE", "batch_size": 16, "alpha": 0.2, "object_step": 1.0, "epochs": 40},
    ),
    "rPIE-0.5": partial(
        engine,
        {"algorithm": "rPIE", "batch_size": 16, "alpha": 0.5, "object_step": 0.3, "epochs": 40},
    ),
    "DM": partial(engine, {"algorithm": "DM", "epochs": 60}),
}
CONTESTANTS = OURS | ENGINES
TITLES = {
    "nothing": "ours, nothing learned",
    "prior": "ours, the prior",
    "tuned": "ours, tuned for 60 s",
}


# --- measuring -----------------------------------------------------------------------------------


@dataclass
class Outcome:
    """How a contestant did on a scan."""

    training: Cost
    curve: Curve
    """Entry k is after step or epoch k + 1."""
    ended: str = ""
    """Why it was ended early."""

    @property
    def best(self) -> int:
        """The entry of the least error."""
        errors = [scores["nrmse"] for _, scores in self.curve.after]
        return errors.index(min(errors))


@dataclass
class Result:
    """How all contestants did on the scan of a regime and a seed."""

    regime: Regime
    seed: int
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Why a contestant gave nothing."""


def measure(
    regime: Regime,
    seed: int,
    names: Sequence[str],
    threads: int,
    seconds: float,
    file: Path | None = None,
) -> Result:
    """Let contestants run on a scan, an engine for so many CPU seconds; keep images in a file.

    Ours come first in `names`, for an engine is also looked at after as much CPU time.
    """
    scan, result, kept = make_scan(regime, seed), Result(regime, seed), dict[str, list[Entry]]()
    truth = truth_of(scan)
    for name in names:
        try:
            run = CONTESTANTS[name](scan, threads)
            outcome, images = follow(run, scan, truth, np.inf if name in OURS else seconds)
        except (PtychoTasksError, msgspec.ValidationError) as error:
            result.left_out[name] = str(error)
            continue
        result.outcomes[name] = outcome
        entries = [shown_entry(name, outcome)]
        if our_cpu_s(result) is not None:
            entries.append(equal_entry(result, outcome))
        kept[name] = [Entry(name, at, *outcome.curve.after[at], images[at]) for at in entries]
    if file is not None:
        keep_images(file, {"truth": truth, **chosen_images(kept)})
    return result


def truth_of(scan: ScanData) -> Image:
    assert scan.object is not None
    return scan.object[scanned_box(scan.positions, scan.size)].astype(np.complex128)


def follow(
    run: Run, scan: ScanData, truth: Image, seconds: float
) -> tuple[Outcome, list[NDArray[np.complex64]]]:
    """Score each step off the clock; gives the aligned images too."""
    outcome, images, better = Outcome(run.training, Curve(Cost(0, 0))), [], 0
    curve, best = outcome.curve, dict[str, float]()
    for cost, made in run.steps:
        curve.cost = curve.cost.plus(cost)
        image, scores = judged(made, scan, truth)
        curve.after.append((curve.cost, scores))
        images.append(image.astype(np.complex64))
        if scores == WORST:
            outcome.ended = DIVERGED
            break
        for name, value in scores.items():
            if name not in best or not no_worse(name, best[name], value):
                best[name], better = value, len(images)
        if len(images) - better >= PATIENCE and np.isfinite(seconds):
            outcome.ended = "worse and worse"
            break
        if curve.cost.cpu_s > seconds:
            outcome.ended = "time"
            break
    return outcome, images


@threadpool_limits.wrap(limits=1, user_api="blas")
def judged(made: Reconstruction, scan: ScanData, truth: Image) -> tuple[Image, dict[str, float]]:
    """The image, aligned with the truth over the scanned box, and its scores."""
    assert scan.object is not None
    if not np.abs(made.object).max() < BEYOND:  # neither is NaN
        return np.zeros_like(truth), WORST
    box = scanned_box(scan.positions, scan.size)
    image = align(made.object, scan.object, box, made.origin)
    nrmse = float(np.linalg.norm(image - truth) / np.linalg.norm(truth))
    found = {"nrmse": nrmse, **compare(image, truth)}
    return image, {name: found[name] for name in SCORES if found[name] is not None}


def shown_entry(name: str, outcome: Outcome) -> int:
    """What counts: the last entry of ours, of an engine the one of the least error."""
    return len(outcome.curve.after) - 1 if name in OURS else outcome.best


def our_cpu_s(result: Result) -> float | None:
    """Of the first of ours."""
    mine = [result.outcomes[name] for name in OURS if name in result.outcomes]
    return mine[0].curve.cost.cpu_s if mine else None


def equal_entry(result: Result, outcome: Outcome) -> int:
    """The first entry that has had as much CPU time as ours."""
    spent = our_cpu_s(result) or 0.0
    late = [at for at, (cost, _) in enumerate(outcome.curve.after) if cost.cpu_s >= spent]
    return late[0] if late else len(outcome.curve.after) - 1


# --- what is kept --------------------------------------------------------------------------------


class Entry(NamedTuple):
    """What a contestant had come to after one of its steps."""

    name: str
    at: int
    cost: Cost
    scores: Mapping[str, float]
    image: NDArray[np.complex64]

    @property
    def title(self) -> str:
        """Name, cost and scores."""
        scores = [f"{title} {self.scores[key]:.4g}" for key, title in SCORES.items()]
        name = TITLES.get(self.name, self.name)
        first = f"{name}, step {self.at + 1}, {self.cost.cpu_s:.2f} s CPU"
        return "\n".join([first, ", ".join(scores[:3]), ", ".join(scores[3:])])


def chosen_images(kept: Mapping[str, Sequence[Entry]]) -> dict[str, NDArray[np.complex64]]:
    """All of ours, the best of any engine, and the best of any at our CPU time, by title."""
    entries = [kept[name][0] for name in kept if name in OURS]
    engines = [kept[name] for name in kept if name in ENGINES]
    for which in zip(*engines, strict=True):
        entries.append(min(which, key=lambda entry: entry.scores["nrmse"]))
    return {entry.title: entry.image for entry in entries}


def keep_images(file: Path, images: Mapping[str, NDArray[Any]]) -> None:
    """The titles as JSON, and the images by number; with those of the same truth that are there."""
    known = read_images(file) if file.is_file() else {}
    if known and np.array_equal(known["truth"], images["truth"]):
        images = known | dict(images)
    titles = np.frombuffer(json.dumps(list(images)).encode(), dtype=np.uint8)
    arrays = {f"image{at}": image for at, image in enumerate(images.values())}
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        write_npz(stream, {"titles": titles, **arrays})


def read_images(file: Path) -> dict[str, Image]:
    """Images (H, W) by title; the first is the truth."""
    with np.load(file) as kept:
        titles = json.loads(bytes(kept["titles"]))
        return {title: kept[f"image{at}"] for at, title in enumerate(titles)}


def read_results(file: Path) -> list[Result]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[Result])
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{file}: {error}; name a file that is not there, or remove it"
        ) from error


class Store:
    """Results so far, in a file where there is one."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        known = read_results(file) if file is not None and file.is_file() else []
        # A regime that has been changed since is another one.
        self.results = [each for each in known if REGIMES.get(each.regime.name) == each.regime]

    def find(self, regime: Regime, seed: int) -> Result:
        for result in self.results:
            if (result.regime, result.seed) == (regime, seed):
                return result
        self.results.append(Result(regime, seed))
        return self.results[-1]

    def add(self, found: Result) -> None:
        """Take in what a contestant that was not there before came to."""
        result = self.find(found.regime, found.seed)
        result.outcomes |= found.outcomes
        result.left_out = found.left_out
        if self._file is not None:
            write_atomic(self._file, msgspec.json.encode(self.results))


# --- the tables ----------------------------------------------------------------------------------


class Row(NamedTuple):
    """A line of a table, of one seed."""

    title: str
    entry: int | None
    """Steps or epochs."""
    cpu_s: float | None
    scores: Mapping[str, float]


def rows_of(result: Result) -> list[Row]:
    """Ours as they end, engines at their best, the best of each score, and at our CPU time."""
    rows = []
    for name in CONTESTANTS:
        outcome = result.outcomes.get(name)
        if outcome is not None:
            at = shown_entry(name, outcome)
            cost, scores = outcome.curve.after[at]
            rows.append(Row(TITLES.get(name, name), at + 1, cost.cpu_s, scores))
    engines = engines_of(result)
    rows += [row for row in [as_good_row(result)] if row is not None]
    if engines:
        rows.append(Row("engines, each score's best", None, None, engines_best(engines)))
    if engines and our_cpu_s(result) is not None:
        equal = [each.curve.after[equal_entry(result, each)][1] for each in engines]
        rows.append(Row("engines, at our CPU time", None, our_cpu_s(result), best_scores(equal)))
    return rows


def as_good_row(result: Result) -> Row | None:
    """Where the first of ours has come to the least error of any engine; None where it has not."""
    mine = [result.outcomes[name] for name in OURS if name in result.outcomes]
    engines = engines_of(result)
    found = (
        mine[0].curve.reached("nrmse", engines_best(engines)["nrmse"]) if mine and engines else None
    )
    if found is None:
        return None
    at, cost = found
    return Row("  as good as any engine at", at + 1, cost.cpu_s, mine[0].curve.after[at][1])


def engines_of(result: Result) -> list[Outcome]:
    return [result.outcomes[name] for name in ENGINES if name in result.outcomes]


def engines_best(engines: Iterable[Outcome]) -> dict[str, float]:
    """The best score of each kind, of any engine after any epoch."""
    return best_scores(scores for each in engines for _, scores in each.curve.after)


def best_scores(every: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found = list(every)
    return {
        name: best_of(name, [scores[name] for scores in found if name in scores])
        for name in SCORES
        if any(name in scores for scores in found)
    }


def tell(results: Sequence[Result]) -> None:
    """Print the table of a regime: medians over its seeds."""
    regime = results[0].regime
    click.echo(f"\n{regime.name}: {described(regime)}; seeds {[each.seed for each in results]}")
    if regime.published:
        click.echo(f"  published for a scan like it, not measured here: {regime.published}")
    line("", "steps", "CPU s", "x ours", SCORES.values())
    rows = [rows_of(result) for result in results]
    titles = dict.fromkeys(row.title for each in rows for row in each)
    mine = [spent for spent in map(our_cpu_s, results) if spent is not None]
    for title in titles:
        tell_row(title, [row for each in rows for row in each if row.title == title], mine)
    tell_notes(results)


def tell_notes(results: Sequence[Result]) -> None:
    """Print what the rows of a table do not say: trainings, divergence, who was left out."""
    for name in CONTESTANTS:
        some = [each.outcomes[name] for each in results if name in each.outcomes]
        learned = [outcome.training.cpu_s for outcome in some]
        if any(learned):
            click.echo(f"  {TITLES[name]}: trained before, {median(learned):.3g} s CPU")
        ended = [outcome.ended for outcome in some]
        if DIVERGED in ended:
            click.echo(f"  {name} diverged with {ended.count(DIVERGED)} of {len(ended)} seeds")
        for reason in {each.left_out[name] for each in results if name in each.left_out}:
            click.echo(f"  {TITLES.get(name, name)} is left out: {reason}")


def tell_row(title: str, rows: Sequence[Row], mine: Sequence[float]) -> None:
    def middle(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return median(known) if known else None

    steps, cpu_s = middle(row.entry for row in rows), middle(row.cpu_s for row in rows)
    times = None if cpu_s is None or not mine else cpu_s / median(mine)
    scores = [middle(row.scores.get(name) for row in rows) for name in SCORES]
    line(title, shown(steps), shown(cpu_s), shown(times, 3), map(shown, scores))


def shown(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def line(title: str, steps: str, cpu_s: str, times: str, scores: Iterable[str]) -> None:
    cells = "".join(f" {score:>9}" for score in scores)
    click.echo(f"  {title:<28}{steps:>6}{cpu_s:>8}{times:>8} {cells}".rstrip())


def described(regime: Regime) -> str:
    modes = "" if regime.modes == 1 else f" of {regime.modes} modes"
    return (
        f"{regime.probe}{modes}, {regime.object}, {regime.phase:g} rad, {regime.photons:.0e} "
        f"photons, {regime.frames} frames of {regime.size} x {regime.size}, {regime.geometry}, "
        f"step {regime.step:g} radii"
    )


def tell_lost(results: Iterable[Result]) -> None:
    """Print where ours are not as good as the best of any engine, medians over seeds."""
    groups: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        if engines_of(result):
            kind = "at most" if result.regime.photons <= FEW_PHOTONS else "more than"
            group = groups.setdefault(f"{kind} {FEW_PHOTONS:.0e} photons", {})
            group.setdefault(result.regime.name, []).append(result)
    for kind, regimes in groups.items():
        for name in OURS:
            some = {
                regime: [each for each in results if name in each.outcomes]
                for regime, results in regimes.items()
            }
            tell_lost_by(name, kind, {regime: each for regime, each in some.items() if each})


def tell_lost_by(name: str, kind: str, regimes: Mapping[str, Sequence[Result]]) -> None:
    if not regimes:
        return
    fast = [median(times_less(name, each) for each in some) >= 10 for some in regimes.values()]
    click.echo(
        f"\n{TITLES[name]}, {kind}: {len(regimes)} regimes, 1/10 of the CPU time of the engine of "
        f"the least error in {sum(fast)}"
    )
    for score in DECIDING:
        pairs = {regime: versus(name, score, some) for regime, some in regimes.items()}
        lost = [
            f"{regime} ({pair[0]:.3g}, theirs {pair[1]:.3g})"
            for regime, pair in pairs.items()
            if pair is not None and not no_worse(score, *pair)
        ]
        names = f"; lost: {', '.join(lost)}" if lost else ""
        click.echo(f"  {SCORES[score]}: as good in {len(regimes) - len(lost)}{names}")


def versus(name: str, score: str, results: Sequence[Result]) -> tuple[float, float] | None:
    """Ours as it ended and the best of any engine after any epoch, medians over seeds."""
    pairs = [
        (
            each.outcomes[name].curve.after[-1][1].get(score),
            engines_best(engines_of(each)).get(score),
        )
        for each in results
    ]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return (median(a for a, _ in known), median(b for _, b in known)) if known else None


def times_less(name: str, result: Result) -> float:
    """CPU time of the engine of the least error, up to then, over that of ours."""
    cost, _ = min(
        (each.curve.after[each.best] for each in engines_of(result)),
        key=lambda entry: entry[1]["nrmse"],
    )
    return cost.cpu_s / result.outcomes[name].curve.cost.cpu_s


# --- the command ---------------------------------------------------------------------------------


@click.command()
@click.argument("names", nargs=-1)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), show_default=True)
@click.option(
    "--contestant", "chosen", multiple=True, type=click.Choice([*CONTESTANTS]), help="Of all."
)
@click.option("--threads", default=1, show_default=True)
@click.option("--engine-seconds", default=60.0, show_default=True, help="CPU time of an engine.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Keep figures in this file.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep images here, for look.py.")
@click.option("--list", "only_list", is_flag=True, help="List the regimes and end.")
def main(
    names: tuple[str, ...],
    seeds: tuple[int, ...],
    chosen: tuple[str, ...],
    threads: int,
    engine_seconds: float,
    file: Path | None,
    out: Path | None,
    only_list: bool,
) -> None:
    """Measure on the regimes NAMES; without names, on all."""
    regimes = wanted(names)
    if only_list:
        for regime in regimes:
            click.echo(f"{regime.name:<24}{described(regime)}")
        return
    with told_in_a_line():
        store = Store(file)
        for regime in regimes:
            for seed in seeds:
                known = store.find(regime, seed).outcomes
                some = chosen or CONTESTANTS
                lacking = [each for each in CONTESTANTS if each in some and each not in known]
                if lacking:
                    click.echo(f"{regime.name}, seed {seed} ...", err=True)
                    images = out and out / f"{regime.name}-seed{seed}{IMAGES}"
                    given = (regime, seed, lacking, threads, engine_seconds, images)
                    store.add(alone(measure, *given))
            tell([store.find(regime, seed) for seed in seeds])
        tell_lost(store.find(regime, seed) for regime in regimes for seed in seeds)


def wanted(names: Sequence[str]) -> list[Regime]:
    """The regimes of these names, or all; says what is left out."""
    unknown = [name for name in names if name not in REGIMES]
    if unknown:
        raise click.BadParameter(f"{unknown[0]}: expected one of {', '.join(REGIMES)}")
    regimes = [REGIMES[name] for name in names or REGIMES]
    lost = [regime.name for regime in regimes if not is_here(regime)]
    if lost:
        click.echo(f"left out, for the star's probe is not here: {', '.join(lost)}", err=True)
    return [regime for regime in regimes if is_here(regime)]


if __name__ == "__main__":
    main()

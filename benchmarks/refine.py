"""How much sooner an iterative engine is done that starts from a network's reconstruction.

    python benchmarks/refine.py                             # the sets in ../shared/data
    python benchmarks/refine.py --scans train.npz test.npz --target r_factor=0.01
    python benchmarks/refine.py --epochs 20 --seed 0 --seed 1 --bundles /tmp/bundles

The network is trained once a set beforehand; its time is told apart, since one training serves
many scans. Then pty-chi runs from a flat object and from the network's reconstruction in one
process, an epoch of each in turn, so that a busy machine slows both alike. Libraries are loaded
and warm. Scores are taken after every epoch, off the clock. The network's clock starts at its
inference.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import msgspec

from measuring import (
    FALLING,
    SHOWN,
    Cost,
    Curve,
    backend_named,
    clock,
    execution_of,
    halves,
    inference,
    median_cost,
    parsed,
    scored,
    steps,
    told_in_a_line,
    trained,
)
from ptycho_tasks.backend import Backend, Reconstruction
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks.results.bundle import Bundle, load_bundle
from ptycho_tasks.scan import ScanData, take_frames
from ptycho_tasks.scans.readers import read_scan

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SETS = (
    ("synth_disc_1e9_train.npz", "synth_disc_1e9_test.npz"),
    ("synth_siemens_1e4_train.npz", "synth_siemens_1e4_test.npz"),
    ("siemens_star_64.npz", "siemens_star_64.npz"),
)
ENGINES = ("LSQML", "rPIE")
TARGETS = ("amplitude_ssim", "phase_ssim", "r_factor")


@dataclass
class Pair:
    """One engine from both starts."""

    flat: Curve
    network: Curve


@click.command()
@click.option(
    "--scans",
    nargs=2,
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TRAIN TEST; may be repeated. Of one file the network learns from the upper half, and no "
    "truth is known.",
)
@click.option("--network", default="pinn", show_default=True, help="The backend to start from.")
@click.option("--set", "settings", multiple=True, help="KEY=VALUE of its options.")
@click.option("--bundles", type=click.Path(path_type=Path), help="Keep and take its bundles here.")
@click.option("--engine", "engines", multiple=True, default=ENGINES, show_default=True)
@click.option("--engine-set", multiple=True, help="KEY=VALUE of the engines' options.")
@click.option("--epochs", default=20, show_default=True, help="Of the engines.")
@click.option(
    "--few", default=3, show_default=True, help="Epochs of the refinement in the summary."
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    help=f"{' | '.join(TARGETS)}=VALUE; without any, the best of the first engine from flat.",
)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0,), show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(
    scans: tuple[tuple[Path, Path], ...],
    network: str,
    settings: tuple[str, ...],
    bundles: Path | None,
    engines: tuple[str, ...],
    engine_set: tuple[str, ...],
    epochs: int,
    few: int,
    targets: tuple[str, ...],
    seeds: tuple[int, ...],
    threads: int,
) -> None:
    """Time engines from a flat object and from a network's reconstruction, to equal scores."""
    engine_options = {"refine_probe": False, **parsed(engine_set)}
    wanted = parsed(targets)
    unfit = [key for key, value in wanted.items() if key not in TARGETS or not number(value)]
    if unfit:
        raise click.BadParameter(f"{unfit[0]}: expected one of {', '.join(TARGETS)}, as KEY=VALUE")
    sets = scans or [(DATA / train, DATA / test) for train, test in SETS]
    with told_in_a_line(), tempfile.TemporaryDirectory() as folder:
        backend = backend_named(network)
        for train, test in sets:
            bundle = bundle_of(backend, train, test, settings, bundles or Path(folder), threads)
            scan = read_scan(test)
            if train == test:
                # Measured, as a rule: its object is another reconstruction.
                scan = replace(scan, object=None)
            start, cost = inference(backend, bundle, scan, execution_of(backend, threads))()
            measured: dict[str, list[Pair]] = {}
            for engine in engines:
                options = {**engine_options, "algorithm": engine, "epochs": epochs}
                measured[engine] = [
                    measure(scan, start, cost, {**options, "seed": seed}, threads) for seed in seeds
                ]
            tell_network(test.stem, bundle, cost)
            report(measured, wanted, few)


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- the network ---------------------------------------------------------------------------------


def bundle_of(
    backend: Backend,
    train: Path,
    test: Path,
    settings: Sequence[str],
    bundles: Path,
    threads: int,
) -> Bundle:
    """A network trained on a scan, or the one that is there already."""
    folder = bundles / f"{backend.name}-{train.stem}"
    if not (folder / BUNDLE_NAME).exists():
        click.echo(f"train {backend.name} on {train.name} ...", err=True)
        scan = read_scan(train)
        if train == test:
            scan = take_frames(scan, halves(scan)[0])
        options = msgspec.convert(parsed(settings), backend.options_type)
        trained(backend, scan, options, execution_of(backend, threads), folder)
    return load_bundle(folder)


# --- the engines ---------------------------------------------------------------------------------


def measure(
    scan: ScanData, start: Reconstruction, inference: Cost, given: Mapping[str, Any], threads: int
) -> Pair:
    """Run an engine from both starts, an epoch of each in turn."""
    from ptycho_tasks_ptychi.library import contain_library
    from ptycho_tasks_ptychi.options import PtychiOptions
    from ptycho_tasks_ptychi.reconstruct import make_flat_start, read_counts, take_start

    options = msgspec.convert(dict(given), PtychiOptions)
    click.echo(f"{scan.name}: {options.algorithm}, seed {options.seed} ...", err=True)
    with contain_library(ExecutionOptions(accelerator="cpu", threads=threads)):
        warm = make_flat_start(scan, options, float(read_counts(scan).mean()))
        next(steps(scan, warm, options))
        flat, network = Curve(Cost(0, 0)), Curve(inference)
        network.after.append((inference, scored(start, scan)))
        read = clock()
        from_flat = make_flat_start(scan, options, float(read_counts(scan).mean()))
        flat.cost = read()
        flat.after.append((flat.cost, scored(from_flat, scan)))
        read = clock()
        from_network = take_start(start, scan, options)
        network.cost = network.cost.plus(read())
        runs = [
            (flat, steps(scan, from_flat, options)),
            (network, steps(scan, from_network, options)),
        ]
        for _ in range(options.epochs):
            for curve, run in runs:
                cost, made = next(run)
                curve.cost = curve.cost.plus(cost)
                curve.after.append((curve.cost, scored(made, scan)))
    return Pair(flat, network)


# --- the tables ----------------------------------------------------------------------------------


def targets_of(
    measured: Mapping[str, Sequence[Pair]], wanted: Mapping[str, float]
) -> Iterator[tuple[str, float]]:
    """The targets asked for, or the best that the first engine gets to from flat, with any seed."""
    if wanted:
        yield from wanted.items()
        return
    for name in TARGETS:
        found = [pair.flat.best(name) for pair in next(iter(measured.values()))]
        values = [value for value in found if value is not None]
        if values:
            yield name, (max if name in FALLING else min)(values)


def tell_network(name: str, bundle: Bundle, cost: Cost) -> None:
    wall, cpu = bundle.params["cost"]
    click.echo(
        f"\n{name}: {bundle.backend} trained in {wall:.0f} s ({cpu:.0f} s CPU), "
        f"infers in {cost.wall_s:.2f} s ({cost.cpu_s:.2f} s CPU)"
    )


def report(measured: Mapping[str, Sequence[Pair]], wanted: Mapping[str, float], few: int) -> None:
    """Print how soon each target is reached, and the scores; medians over the seeds."""
    row = "{:<7} {:<15} {:>8} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7} {:>7}".format
    click.echo(row("", "", "", "flat", "", "", "network", "", "", "sooner", ""))
    click.echo(row("engine", "target", "", *("epochs", "wall s", "CPU s") * 2, "wall", "CPU"))
    for engine, pairs in measured.items():
        for name, value in targets_of(measured, wanted):
            flat = median([pair.flat.reached(name, value) for pair in pairs])
            network = median([pair.network.reached(name, value) for pair in pairs])
            times = ["", ""]
            if flat and network:
                times = [
                    f"{ours / theirs:.1f} x"
                    for ours, theirs in zip(flat[1], network[1], strict=True)
                ]
            click.echo(row(engine, name, f"{value:.4g}", *told(flat), *told(network), *times))
    click.echo("\n" + line("", *SHOWN.values(), "wall s", "CPU s"))
    first = next(iter(measured.values()))
    summary("network alone", [pair.network for pair in first], 0)
    for engine, pairs in measured.items():
        summary(f"{engine} alone", [pair.flat for pair in pairs], -1)
        summary(f"{engine} alone", [pair.flat for pair in pairs], few)
        summary(f"network, {engine}", [pair.network for pair in pairs], few)
        summary(f"network, {engine}", [pair.network for pair in pairs], -1)


def median(reached: Sequence[tuple[int, Cost] | None]) -> tuple[float, Cost] | None:
    """Median epochs and cost; None where not every seed reached the target."""
    there = [one for one in reached if one is not None]
    if len(there) < len(reached):
        return None
    epochs = statistics.median(epoch for epoch, _ in there)
    return epochs, median_cost(cost for _, cost in there)


def told(reached: tuple[float, Cost] | None) -> tuple[str, ...]:
    if reached is None:
        return "never", "", ""
    epochs, cost = reached
    return f"{epochs:g}", *(f"{seconds:.2f}" for seconds in cost)


def summary(label: str, curves: Sequence[Curve], epoch: int) -> None:
    """One line of scores after an epoch."""
    at = [curve.after[epoch] for curve in curves]
    count = range(len(curves[0].after))[epoch]
    values = []
    for name in SHOWN:
        found = [scores[name] for _, scores in at if name in scores]
        values.append(f"{statistics.median(found):.4f}" if found else "")
    cost = (f"{side:.2f}" for side in median_cost(cost for cost, _ in at))
    click.echo(line(f"{label}, {count} epochs" if count else label, *values, *cost))


def line(label: str, *values: str) -> str:
    return f"{label:<26}" + "".join(f" {value:>9}" for value in values)


if __name__ == "__main__":
    main()

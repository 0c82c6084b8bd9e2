"""Try hostile and honest inputs on the program; none may be silently wrong or end in a traceback.

    python benchmarks/hostile.py
    python benchmarks/hostile.py --class hdf5 --count 500 --seed 1
    python benchmarks/hostile.py --class npz --case flip-17 --keep /tmp/kept

Prints a table of classes, and a line for each case that is not clean, with what came of it and how
to try it again. Exit 1 if there is one. What the outcomes mean: tests/hostile/__init__.py.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Before numpy: the processes that try the cases are many, and small.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import click  # noqa: E402
from hostile.battery import Battery  # noqa: E402
from hostile.classes import BATTERIES, preload  # noqa: E402
from hostile.running import KINDS, Outcome, run  # noqa: E402


@click.command()
@click.option("--class", "chosen", multiple=True, type=click.Choice(list(BATTERIES)))
@click.option("--count", default=2400, show_default=True, help="How many, over all classes.")
@click.option("--sample", type=int, help="Instead: a few, the same each time, of each class.")
@click.option("--case", "names", multiple=True, help="Instead: one of a class, by name.")
@click.option("--seed", default=0, show_default=True, help="Of the random ones.")
@click.option("--processes", default=2, show_default=True, help="How many at a time.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep inputs and outputs here.")
def main(
    chosen: tuple[str, ...],
    count: int,
    sample: int | None,
    names: tuple[str, ...],
    seed: int,
    processes: int,
    keep: Path | None,
) -> None:
    """Try hostile and honest inputs; exit 1 if one is not clean."""
    batteries = [BATTERIES[name] for name in chosen or BATTERIES]
    if names:
        cases = [(battery, name) for battery in batteries for name in names]
    elif sample:
        cases = [(battery, name) for battery in batteries for name in battery.sample(sample)]
    else:
        cases = [*_shared_out(batteries, count)]
    preload()
    begun = time.monotonic()
    outcomes = [*run(cases, seed=seed, processes=processes, keep=keep and keep.absolute())]
    _show(outcomes)
    click.echo(f"{len(outcomes)} inputs, {time.monotonic() - begun:.0f} s")
    unclean = sorted((o for o in outcomes if o.kind != "clean"), key=lambda o: KINDS.index(o.kind))
    for one in unclean:
        again = f"benchmarks/hostile.py --class {one.battery} --case {one.case} --seed {seed}"
        click.echo(f"{one.kind}: {one.battery} {one.case}: {one.why}; again: {again}")
    raise SystemExit(1 if unclean else 0)


def _shared_out(batteries: list[Battery], count: int) -> Iterator[tuple[Battery, str]]:
    """Every single case; what is left of the count goes to the families of all classes evenly."""
    left = max(0, count - sum(len(battery.makers) for battery in batteries))
    families = sum(len(battery.families) for battery in batteries) or 1
    for battery in batteries:
        more = -(-left * len(battery.families) // families)
        for name in battery.cases(len(battery.makers) + more):
            yield battery, name


def _show(outcomes: list[Outcome]) -> None:
    columns = ("class", "tried", *KINDS)
    click.echo("".join(f"{column:>12}" for column in columns))
    for name in (*dict.fromkeys(o.battery for o in outcomes), "all"):
        found = Counter(o.kind for o in outcomes if name in (o.battery, "all"))
        numbers = (found.total(), *(found[kind] for kind in KINDS))
        click.echo("".join(f"{value:>12}" for value in (name, *numbers)))


if __name__ == "__main__":
    main()

"""Make the scans that the benchmarks learn from and are tried on.

    python benchmarks/sets.py /tmp/sets                             # all of them
    python benchmarks/sets.py /tmp/sets siemens_1e9 --object-seed 7

A set is a folder: `train.npz` to learn from and, unseen meanwhile, `test.npz` and further
`test_*.npz`. With --object-seed, objects of one's own take the place of the shared ones under the
same probe, positions and dose, and the network that has learnt from lines is tried on blobs and a
Siemens star too. Without the shared data the sets `simulated_*` are left.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from measuring import halves, told_in_a_line
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.physics.simulate import make_object, simulate
from ptycho_tasks.scan import ScanData, take_frames
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.scans.readers import read_scan

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WHOLE = "test_whole"
"""All frames of a measured scan, those learnt from among them."""
NOISE_SEED = 20
OWN_TESTS = {"test": "lines", "test_blobs": "blobs", "test_siemens": "siemens"}


def shared(name: str, factor: float, folder: Path, seed: int | None) -> None:
    """Both scans of a simulated pair, at `factor` times its dose."""
    train, test = (read_scan(SHARED / f"synth_{name}_{part}.npz") for part in ("train", "test"))
    if seed is not None:
        for file, scan, kind in (
            ("train", train, "lines"),
            *((file, test, kind) for file, kind in OWN_TESTS.items()),
        ):
            generator = np.random.default_rng([seed, *file.encode()])
            own = make_object(SimulationOptions(object=kind, size=scan.size), generator)
            write_scan(folder / f"{file}.npz", measured(scan, own, factor, generator))
    elif factor == 1:
        for part in ("train", "test"):
            shutil.copyfile(SHARED / f"synth_{name}_{part}.npz", folder / f"{part}.npz")
    else:
        for part, scan in (("train", train), ("test", test)):
            assert scan.object is not None
            generator = np.random.default_rng([NOISE_SEED, *part.encode()])
            write_scan(folder / f"{part}.npz", measured(scan, scan.object, factor, generator))


def star(name: str, folder: Path, seed: int | None) -> None:
    """The upper half of a measured scan to learn from, the lower half, and all of it.

    The halves lack the object, which is an engine's and has seen both.
    """
    file = SHARED / f"siemens_{name}.npz"
    whole = read_scan(file)
    for part, frames in zip(("train", "test"), halves(whole), strict=True):
        write_scan(folder / f"{part}.npz", take_frames(replace(whole, object=None), frames))
    shutil.copyfile(file, folder / f"{WHOLE}.npz")


def simulated(photons: float, folder: Path, seed: int | None) -> None:
    """Everything by this package's own simulation, its probe too."""
    seed = seed or 0
    options = SimulationOptions(object="lines", photons=photons, seed=2 * seed)
    write_scan(folder / "train.npz", simulate(options))
    for file, kind in OWN_TESTS.items():
        unseen = SimulationOptions(object=kind, photons=photons, seed=2 * seed + 1)
        write_scan(folder / f"{file}.npz", simulate(unseen))


def measured(
    scan: ScanData, truth: NDArray[np.complex64], factor: float, generator: np.random.Generator
) -> ScanData:
    """Measure an object as a scan was measured, at `factor` times its dose, with new noise."""
    assert scan.object is not None
    before, after = (
        np.concatenate([each for _, each in expected_intensity(seen, scan.probe, scan.positions)])
        for seen in (scan.object, truth)
    )
    gain = factor * before.sum(dtype=np.float64) / after.sum(dtype=np.float64)
    counts = generator.poisson(gain * after.astype(np.float64))
    return replace(
        scan,
        diffraction=np.sqrt(counts).astype(np.float32),
        probe=(scan.probe * np.sqrt(gain)).astype(np.complex64),
        object=truth,
    )


MAKERS: dict[str, Callable[[Path, int | None], None]] = {
    "siemens_1e9": partial(shared, "siemens_1e4", 1e5),
    "siemens_1e4": partial(shared, "siemens_1e4", 1.0),
    "disc_1e9": partial(shared, "disc_1e9", 1.0),
    "disc_1e4": partial(shared, "disc_1e9", 1e-5),
    "star_64": partial(star, "star_64"),
    "star_128": partial(star, "star_128"),
    "simulated_1e9": partial(simulated, 1e9),
    "simulated_1e4": partial(simulated, 1e4),
}


def wanted(names: Sequence[str], seed: int | None) -> list[str]:
    """The names that can be made here; says what is left out."""
    unknown = [name for name in names if name not in MAKERS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]}: expected one of {', '.join(MAKERS)}")
    chosen = list(names or MAKERS)
    if not SHARED.is_dir():
        lost = [name for name in chosen if not name.startswith("simulated")]
        if lost:
            click.echo(f"left out, for there is no {SHARED}: {', '.join(lost)}", err=True)
        chosen = [name for name in chosen if name not in lost]
    if seed is not None:
        # Of a measured object there is one.
        chosen = [name for name in chosen if not name.startswith("star")]
    return chosen


def make(name: str, seed: int | None, folder: Path) -> Path:
    """The set's folder, made where it is not there."""
    made = folder / (name if seed is None else f"{name}-{seed}")
    if not made.is_dir():
        click.echo(f"make {made.name} ...", err=True)
        half = made.with_name(f".{made.name}")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        MAKERS[name](half, seed)
        half.rename(made)
    return made


def test_files(made: Path) -> list[Path]:
    """The scans to try a network on; `test.npz` comes first."""
    return sorted(made.glob("test*.npz"), key=lambda file: file.stem)


def read_test(file: Path) -> tuple[ScanData, NDArray[np.int64] | None]:
    """A scan to be tried on, and the frames of it that were not learnt from; None for all."""
    scan = read_scan(file)
    if file.stem != WHOLE:
        return scan, None
    return replace(scan, object=None), halves(scan)[1]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1)
@click.option("--object-seed", type=int, help="Objects of one's own; without, the shared ones.")
def main(folder: Path, names: tuple[str, ...], object_seed: int | None) -> None:
    """Make the sets NAMES in FOLDER; without names, all."""
    with told_in_a_line():
        for name in wanted(names, object_seed):
            click.echo(make(name, object_seed, folder))


if __name__ == "__main__":
    main()

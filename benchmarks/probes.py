"""What a wrong guess of the probe costs, with the probe kept as guessed and with it refined.

    python benchmarks/probes.py                             # siemens_1e9, every guess
    python benchmarks/probes.py disc_1e9 --guess wide --refine-set training.probe=refined

Training and unseen scan are given the same wrong guess. `unrolled` learns from the scan alone:
simulated frames would be measured with the wrong probe. The network and LSQML run as in bars.py,
once with the probe fixed and once with it refined; scores are taken after alignment. With --out,
look.py draws what came of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from bars import PLANS, Result, Task, measure, median, refuse_unknown
from measuring import SHOWN, parsed, told_in_a_line
from ptycho_tasks.physics.forward import fourier_shift
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.scans.readers import read_scan
from sets import make, wanted

Probe = NDArray[np.complex64]
WIDER = {"defocused": 1.15, "wide": 1.2}
"""By how much the spot's radius grows."""
SHIFT = np.sqrt(2.0)
"""Pixels along each axis, two together: scores allow two along an axis."""
WAYS = ("fixed", "refined")


def defocused(probe: Probe) -> Probe:
    """Fresnel-propagated until the spot has grown.

    The propagator is exp(-i pi d q^2), d the wavelength times the distance in square pixels
    (Goodman, Introduction to Fourier Optics, chapter 4).
    """
    from scipy.optimize import brentq

    q = np.fft.fftfreq(probe.shape[-1])
    q_squared = q[:, None] ** 2 + q[None, :] ** 2

    def at(distance: float) -> Probe:
        kernel = np.exp(-1j * np.pi * distance * q_squared)
        return np.asarray(np.fft.ifft2(np.fft.fft2(probe) * kernel), dtype=np.complex64)

    def short_of(distance: float) -> float:
        return radius(at(distance)) - WIDER["defocused"] * radius(probe)

    far = 1.0
    while short_of(far) < 0:
        far *= 1.5
    return at(brentq(short_of, 0.0, far))


def wide(probe: Probe) -> Probe:
    """Resampled about pixel (N//2, N//2), of the same flux."""
    from scipy.ndimage import affine_transform

    middle = probe.shape[-1] // 2
    scale = 1 / WIDER["wide"]
    modes = [
        affine_transform(mode, np.full(2, scale), middle * (1 - scale), order=3) for mode in probe
    ]
    made = np.stack(modes)
    return (made * np.linalg.norm(probe) / np.linalg.norm(made)).astype(np.complex64)


def shifted(probe: Probe) -> Probe:
    return fourier_shift(probe, (SHIFT, SHIFT))


def radius(probe: Probe) -> float:
    """Root of the mean square distance from the spot's centre, in pixels."""
    light = np.sum(np.abs(probe) ** 2, axis=0, dtype=np.float64)
    light /= light.sum()
    index = np.arange(len(light))
    along = (light.sum(axis=1), light.sum(axis=0))
    return float(np.sqrt(sum(np.sum(p * index**2) - np.sum(p * index) ** 2 for p in along)))


GUESSES: dict[str, Callable[[Probe], Probe]] = {
    "right": lambda probe: probe,
    "defocused": defocused,
    "wide": wide,
    "shifted": shifted,
    "bright": lambda probe: probe * np.float32(np.sqrt(3.0)),
}


@click.command()
@click.argument("name", default="siemens_1e9")
@click.option("--guess", "guesses", multiple=True, type=click.Choice([*GUESSES]), help="Of all.")
@click.option("--backend", default="unrolled", show_default=True)
@click.option("--set", "settings", multiple=True, help="KEY=VALUE of the backend, both ways.")
@click.option(
    "--refine-set",
    multiple=True,
    default=("training.probe=refined",),
    show_default=True,
    help="KEY=VALUE that has it refine the probe.",
)
@click.option("--engine-set", multiple=True, help="KEY=VALUE of LSQML's options.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0,), show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Keep everything in this folder.")
def main(
    name: str,
    guesses: tuple[str, ...],
    backend: str,
    settings: tuple[str, ...],
    refine_set: tuple[str, ...],
    engine_set: tuple[str, ...],
    seeds: tuple[int, ...],
    threads: int,
    out: Path | None,
) -> None:
    """Measure a backend and LSQML on the set NAME with wrong guesses of the probe."""
    engine = parsed(engine_set)
    if backend == "unrolled":
        settings = ("training.on=scan", *settings)
    tasks = {
        "fixed": Task(backend, settings, {**engine, "refine_probe": False}, threads),
        "refined": Task(
            backend, (*settings, *refine_set), {**engine, "refine_probe": True}, threads
        ),
    }
    with told_in_a_line(), tempfile.TemporaryDirectory() as temporary:
        chosen = wanted([name], None)
        for task in tasks.values():
            refuse_unknown(task, chosen)
        for own in chosen:
            made = make(own, None, (out or Path(temporary)) / "right")
            tell_head(own, backend)
            for guess in guesses or GUESSES:
                folders = guessed(made, guess)
                for way in WAYS:
                    tell(guess, way, measure(tasks[way], PLANS[own], seeds, folders[way]))


def guessed(made: Path, guess: str) -> Mapping[str, Path]:
    """The set with another guess of the probe, a folder for each way to go on from it."""
    folders = {way: made.parents[1] / f"{made.name}-{guess}-{way}" for way in WAYS}
    for part in ("train.npz", "test.npz"):
        scan = read_scan(made / part)
        wrong = replace(scan, probe=GUESSES[guess](scan.probe))
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
            write_scan(folder / part, wrong)
    return folders


def tell_head(name: str, backend: str) -> None:
    click.echo(f"\n{name}: {backend} and LSQML with wrong guesses of the probe")
    line("guess", "probe", "object by", SHOWN.values())


def tell(guess: str, way: str, result: Result) -> None:
    """Two lines: medians over the seeds of the network's scores, and of LSQML's last."""
    for seed, reason in result.failed.items():
        click.echo(f"{guess:<10} {way:<8} {result.backend}, seed {seed}, failed: {reason}")
    trials = result.trials.get("test", [])
    for by, found in trials and (
        (result.backend, [trial.scores for trial in trials]),
        ("LSQML", [trial.engine.after[-1][1] for trial in trials]),
    ):
        values = [
            f"{median(scores[score] for scores in found):.4g}" if score in found[0] else ""
            for score in SHOWN
        ]
        line(guess, way, by, values)


def line(guess: str, way: str, by: str, values: Iterable[str]) -> None:
    shown = "".join(f" {value:>9}" for value in values)
    click.echo(f"{guess:<10} {way:<8} {by:<10}{shown}")


if __name__ == "__main__":
    main()

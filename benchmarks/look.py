"""Pictures of what bars.py or regimes.py kept: truth, the network's object and the engines' side by
side, and, for bars.py, the error against CPU time.

    python benchmarks/bars.py --out /tmp/bars
    python benchmarks/look.py /tmp/bars                  # /tmp/bars/*/seed0/test.png ...
    python benchmarks/regimes.py --out /tmp/regimes
    python benchmarks/look.py /tmp/regimes               # /tmp/regimes/*.images.png

Images are aligned with the truth over the scanned box and share their colours. Of a measured scan
the object in its file stands for the truth: an engine made it, from all frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click
import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bars import RESULTS, Result, Trial, bundle_dir
from measuring import FALLING, SHOWN, told_in_a_line
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.physics.metrics import align, scanned_box
from ptycho_tasks.results.pictures import colour_limits
from ptycho_tasks.scans.npz import NpzFile
from ptycho_tasks.scans.readers import read_scan
from regimes import IMAGES, read_images
from sets import WHOLE

Image = NDArray[np.complex128]
KEPT = ("ours", "equal", "full")


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Of the training to show.")
def main(folder: Path, seed: int) -> None:
    """Draw what FOLDER, which bars.py or regimes.py made, holds."""
    with told_in_a_line():
        files, regimes = sorted(folder.glob(f"*/{RESULTS}")), sorted(folder.glob(f"*{IMAGES}"))
        if not files and not regimes:
            raise ConfigError(
                f"{folder}: holds neither */{RESULTS} nor *{IMAGES}; run bars.py or regimes.py "
                f"with --out {folder}"
            )
        for file in regimes:
            images = read_images(file)
            save(
                side_by_side(levelled(images), {title: title for title in images}),
                file.with_suffix(".png"),
            )
        for file in files:
            result = read_result(file)
            for stem, trials in result.trials.items():
                found = [trial for trial in trials if trial.seed == seed]
                if found:
                    draw(file.parent, result, stem, found[0])


def read_result(file: Path) -> Result:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Result)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{file}: {error}; run bars.py again") from error


def draw(made: Path, result: Result, stem: str, trial: Trial) -> None:
    """Both pictures of a scan."""
    kept = bundle_dir(made, trial.seed)
    images = aligned(made, kept / f"{stem}.npz", stem)
    if images:
        save(side_by_side(images, titles(result, trial)), kept / f"{stem}.png")
    save(against_time(result, trial), kept / f"{stem}_time.png")


def save(figure: Figure, file: Path) -> None:
    figure.savefig(file)
    click.echo(file)


# --- the images ----------------------------------------------------------------------------------


def aligned(made: Path, kept: Path, stem: str) -> dict[str, Image]:
    """The truth and what was kept, over the scanned box; nothing where there is no truth."""
    scan = read_scan(made / f"{stem}.npz")
    truth = scan.object
    if truth is None and (made / f"{WHOLE}.npz").is_file():
        truth = read_scan(made / f"{WHOLE}.npz").object
    if truth is None:
        return {}
    box = scanned_box(scan.positions, scan.size)
    images = {"truth": truth[box].astype(np.complex128)}
    npz = NpzFile(kept)
    for name in KEPT:
        row, column = npz[f"{name}_origin"].tolist()
        images[name] = align(npz[name], truth, box, (row, column))
    return levelled(images)


def levelled(images: Mapping[str, Image]) -> dict[str, Image]:
    """The truth's mean phase is grey, as the scores have it."""
    level = np.exp(-1j * np.angle(images["truth"].sum()))
    return {name: image * level for name, image in images.items()}


def titles(result: Result, trial: Trial) -> dict[str, str]:
    """What is above each column: what it is, its CPU time and its scores."""
    curve = trial.engine.after
    equal, full = curve[trial.equal], curve[-1]
    truth = "engine's, from all frames" if result.name.startswith("star") else "truth"
    return {
        "truth": truth,
        "ours": told(f"{result.backend}, {trial.cost.cpu_s:.2f} s CPU", trial.scores),
        "equal": told(f"LSQML, {equal[0].cpu_s:.2f} s CPU, epoch {trial.equal}", equal[1]),
        "full": told(f"LSQML, {full[0].cpu_s:.2f} s CPU, epoch {len(curve) - 1}", full[1]),
    }


def told(first: str, scores: Mapping[str, float]) -> str:
    shown = [f"{title} {scores[name]:.4g}" for name, title in SHOWN.items() if name in scores]
    return "\n".join([first, *(", ".join(shown[at : at + 2]) for at in range(0, len(shown), 2))])


def side_by_side(images: Mapping[str, Image], titles: Mapping[str, str]) -> Figure:
    """Rows amplitude and phase, a column an image, the colours of a row those of the truth."""
    height, width = images["truth"].shape
    side = 4.2
    figure = Figure((len(images) * side + 1, 2 * side * height / width + 1.2), dpi=110)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(2, len(images), squeeze=False)
    for row, (kind, part) in enumerate((("amplitude", np.abs), ("phase", np.angle))):
        low, high = colour_limits(part(images["truth"]), kind)
        for column, (name, image) in enumerate(images.items()):
            place = axes[row, column]
            shown = place.imshow(
                part(image), cmap="gray", vmin=low, vmax=high, interpolation="nearest"
            )
            place.set_xticks([])
            place.set_yticks([])
            if row == 0:
                place.set_title(titles[name], fontsize=9)
        label = "phase (rad)" if kind == "phase" else "amplitude"
        figure.colorbar(shown, ax=axes[row].tolist(), label=label, shrink=0.8, pad=0.01)
    return figure


# --- the time ------------------------------------------------------------------------------------


def against_time(result: Result, trial: Trial) -> Figure:
    """The error of reconstructions above, the loss of the training below, against CPU seconds."""
    figure = Figure((8, 8), dpi=110)
    figure.set_layout_engine("constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    draw_errors(above, result, trial)
    draw_training(below, result, trial)
    below.set_xlabel("CPU seconds")
    return figure


def draw_errors(axes: Axes, result: Result, trial: Trial) -> None:
    name = next(name for name in ("amplitude_ssim", "r_factor") if name in trial.scores)

    def error(scores: Mapping[str, float]) -> float:
        return scores[name] if name in FALLING else 1 - scores[name]

    curve = [(cost.cpu_s, error(scores)) for cost, scores in trial.engine.after[1:]]
    axes.loglog(*zip(*curve, strict=True), "o-", color="0.4", ms=3, label="LSQML, each epoch")
    ours = error(trial.scores)
    spent = result.trainings[trial.seed].cost.cpu_s
    axes.plot(trial.cost.cpu_s, ours, "C3*", ms=14, label=f"{result.backend}, inference")
    axes.plot(
        trial.cost.cpu_s + spent, ours, "C3*", ms=14, mfc="none", label="with its training, once"
    )
    axes.set_ylabel(SHOWN[name] if name in FALLING else f"1 - {SHOWN[name]}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()


def draw_training(axes: Axes, result: Result, trial: Trial) -> None:
    epochs = result.trainings[trial.seed].epochs
    for name, style in (("loss", "C0--"), ("val_loss", "C3-")):
        told = [(cost.cpu_s, metrics[name]) for _, cost, metrics in epochs if name in metrics]
        if told:
            axes.loglog(*zip(*told, strict=True), style, marker=".", label=name)
    if axes.lines:
        axes.legend(title=f"training of {result.backend}")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3, which="both")


if __name__ == "__main__":
    main()

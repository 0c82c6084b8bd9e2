"""`ptycho-tasks show`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from ptycho_tasks.system.graphics import Graphics, find_graphics
from ptycho_tasks.system.terminal import echo, print_text

if TYPE_CHECKING:
    from ptycho_tasks.results.result_folder import ResultFolder

_SIDE = 256
"""Most pixels of a picture's side."""
_MOST_BLOCKS = 64


@click.command("show")
@click.argument("folder", default="runs/default", type=click.Path(path_type=Path))
@click.option(
    "--pictures",
    type=click.Choice(["auto", *get_args(Graphics), "none"]),
    default="auto",
    show_default=True,
    help="How pictures are drawn; auto finds out what this terminal can, and draws none elsewhere.",
)
def show_command(folder: Path, pictures: str) -> None:
    """Show a result in the terminal: its scores, and pictures where the terminal can.

    The misfit is given as times that of photon noise too; scores are against the object in the
    scan's file, and a line says where that is a guess. FOLDER is a variant's, as runs/default,
    or holds a reconstruction.h5.
    """
    from ptycho_tasks.results.result_folder import read_result_folder

    result = read_result_folder(folder)
    _print_scores(result)
    graphics = find_graphics(sys.stdout) if pictures == "auto" else pictures
    if graphics in get_args(Graphics):
        _print_pictures(result, graphics)  # type: ignore[arg-type]


def _print_scores(result: ResultFolder) -> None:
    from ptycho_tasks.builds.identity import CHANGED, are_metrics_whole
    from ptycho_tasks.layout import METRICS
    from ptycho_tasks.physics.truth import doubt_scores
    from ptycho_tasks.report.comparison import NOISE_RATIO, read_noise_ratio

    rows, columns = result.object.shape
    echo(f"{'object':<10} {rows} x {columns} pixels, {len(result.positions)} frames")
    metrics = result.metrics
    numbers = {**metrics, NOISE_RATIO: read_noise_ratio(metrics), **(metrics.get("scores") or {})}
    for name, value in numbers.items():
        if isinstance(value, float):
            echo(f"{'score':<10} {name} {value:.4g}")
    changed = "" if are_metrics_whole(metrics) else f"{METRICS} {CHANGED}"
    for note in filter(None, [doubt_scores(metrics), changed]):
        echo(f"{'note':<10} {note}")
    for path in sorted(result.folder.glob("reconstructed_*.png")):
        echo(f"{'picture':<10} {path}")


def _print_pictures(result: ResultFolder, graphics: Graphics) -> None:
    from ptycho_tasks.results.terminal_pictures import draw_picture
    from ptycho_tasks.results.thumbnails import make_thumbnails

    columns = shutil.get_terminal_size().columns
    side = min(columns - 1, _MOST_BLOCKS) if graphics == "blocks" else _SIDE
    for kind, picture in make_thumbnails(result.object, result.seen, max(side, 1)).items():
        unit = " rad" if kind == "phase" else ""
        echo(f"{kind}, {picture.low:.3g} to {picture.high:.3g}{unit}")
        print_text(draw_picture(picture, graphics))

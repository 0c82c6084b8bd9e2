"""Progress on the terminal: a bar where someone watches, lines where a log is kept."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

import click

from ptycho_tasks.backend import Progress, no_progress

LINES = 10
"""How many lines a stage may write where the output is not a terminal."""


@contextmanager
def show_progress(
    label: str,
    *,
    quiet: bool = False,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Yield a `Progress` that shows steps, metrics and time left on `stream` (stderr)."""
    stream = stream or sys.stderr
    if quiet:
        yield no_progress
    elif stream.isatty():
        with _bar(label, stream) as progress:
            yield progress
    else:
        yield _line_writer(label, stream, clock)


@contextmanager
def _bar(label: str, stream: TextIO) -> Iterator[Progress]:
    # The number of steps is known at the first call only, so the bar starts with one.
    bar: Any = click.progressbar(
        length=1,
        label=label,
        file=stream,
        show_pos=True,
        item_show_func=lambda metrics: format_metrics(metrics or {}),
    )
    with bar:

        def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
            bar.length = total
            bar.update(done - bar.pos, metrics)

        yield progress


def _line_writer(label: str, stream: TextIO, clock: Callable[[], float]) -> Progress:
    start = clock()

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done != 1 and done != total and done * LINES // total == (done - 1) * LINES // total:
            return
        elapsed = clock() - start
        left = elapsed / done * (total - done) if done else 0.0
        parts = [f"{label} {done}/{total}", format_metrics(metrics)]
        parts.append(f"{duration(elapsed)} so far, {duration(left)} left")
        stream.write("  ".join(part for part in parts if part) + "\n")
        stream.flush()

    return progress


def format_metrics(metrics: Mapping[str, float]) -> str:
    """`loss 0.123  val_loss 0.127`."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def duration(seconds: float) -> str:
    """`2:05` for 125 seconds, `1:02:05` with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

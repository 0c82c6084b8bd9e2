"""Progress on the terminal: a bar where someone watches, lines where a log is kept."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from ptycho_tasks.backend import Progress, Show, no_progress, show_nothing
from ptycho_tasks.builds.live import follow_stage
from ptycho_tasks.config.payload import (
    Payload,
)
from ptycho_tasks.system.terminal import print_text

if TYPE_CHECKING:
    from ptycho_tasks.scan import ScanData


LINES = 10
"""How many lines a stage may write where the output is not a terminal, if it tells of how many
steps it is made."""
FIRST_LINE_S = 10.0
"""Seconds to the first line of another stage; each that follows comes after twice the time."""


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
    if quiet or stream is None:
        yield no_progress
    elif stream.isatty():
        with _bar(label, stream) as progress:
            yield progress
    else:
        yield _line_writer(label, stream, clock)


@contextmanager
def _bar(label: str, stream: TextIO) -> Iterator[Progress]:
    import click

    with ExitStack() as shown:
        bar: Any = None

        def progress(done: int, total: int | None, metrics: Mapping[str, float]) -> None:
            nonlocal bar
            if bar is None:
                bar = shown.enter_context(
                    click.progressbar(
                        itertools.count(),
                        length=total,
                        label=label,
                        file=stream,
                        show_pos=True,
                        item_show_func=lambda metrics: format_metrics(metrics or {}),
                    )
                )
                # What was done before, also by a training that was killed, took no time now.
                bar.pos = done
                bar.render_progress()
            bar.length = total
            bar.update(done - bar.pos, metrics)

        yield progress


def _line_writer(label: str, stream: TextIO, clock: Callable[[], float]) -> Progress:
    begun = clock()
    first: tuple[int, float] | None = None
    next_line = FIRST_LINE_S

    def is_due(done: int, total: int | None, seconds: float) -> bool:
        if total is None:
            return seconds >= next_line
        return done == total or done * LINES // total != (done - 1) * LINES // total

    def progress(done: int, total: int | None, metrics: Mapping[str, float]) -> None:
        nonlocal first, next_line
        now = clock()
        if first is None:
            first = (done, now)
        elif not is_due(done, total, now - first[1]):
            return
        # The start, with its imports, says nothing of the pace.
        steps, seconds = done - first[0], now - first[1]
        next_line = max(FIRST_LINE_S, 2 * seconds)
        parts = [f"{label} {done}" + ("" if total is None else f"/{total}")]
        parts += [format_metrics(metrics), f"{duration(now - begun)} so far"]
        if steps and total is not None and done < total:
            parts[-1] += f", {duration(seconds / steps * (total - done))} left"
        print_text("  ".join(part for part in parts if part) + "\n", stream)

    return progress


def format_metrics(metrics: Mapping[str, float]) -> str:
    """`loss 0.123  val_loss 0.127`."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def duration(seconds: float) -> str:
    """`2:05` for 125 seconds, `1:02:05` with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Shown(NamedTuple):
    """What a backend gets to say how far it is."""

    progress: Progress
    show: Show
    show_last: Show
    """Shows what the backend gave, however short ago it showed something."""


@contextmanager
def show_progress_of(label: str, payload: Payload, scan: ScanData | None = None) -> Iterator[Shown]:
    """Show a stage on the terminal, and on the page where one is asked for. Its `Progress` ends a
    stage whose scan was cut short meanwhile. With a scan, the frames that were read are let go of
    at each step, so that a backend need not do so to reconstruct one that is larger than memory."""
    from ptycho_tasks.scan import release_pages
    from ptycho_tasks.scans.mapping import refuse_cut

    with (
        show_progress(label, quiet=payload.execution.quiet) as shown,
        follow_stage(payload) as live,
    ):

        def progress(done: int, total: int | None, metrics: Mapping[str, float]) -> None:
            refuse_cut()
            if scan is not None:
                release_pages(scan.diffraction)
            shown(done, total, metrics)
            if live is not None:
                live.note(done, total, metrics)

        if live is None:
            yield Shown(progress, show_nothing, show_nothing)
        else:
            yield Shown(progress, live.show, live.show_last)

"""`ptycho-tasks watch`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import click


@click.command("watch")
@click.option("--variant", metavar="NAME", help="Reconstruct with this variant only.")
@click.option("--train/--no-train", default=True, help="Whether a stale training is run.")
@click.option("--once", is_flag=True, help="Do what is there, and end; exit 1 if a scan failed.")
@click.option(
    "--poll",
    is_flag=True,
    help="Look again and again, where the file system tells of no changes; by itself for folders "
    "that other machines may write to.",
)
@click.option("--page", is_flag=True, help="Show what is computed now on a page, live.html.")
@click.option("-v", "--verbose", is_flag=True, help="Show all that the stages say.")
def watch_command(
    variant: str | None, train: bool, once: bool, poll: bool, page: bool, verbose: bool
) -> None:
    """Reconstruct each scan as it comes.

    In a project whose `source.files` lists globs: builds what is stale, as `doit infer` would, then
    waits for scans. Ctrl-C ends it.
    """
    from ptycho_tasks.builds.watching import WatchOptions, watch
    from ptycho_tasks.report.live_page import show_on_page

    options = WatchOptions(variant, train, once, poll, verbose)
    with show_on_page(options.live, Path.cwd()) if page else nullcontext():
        tally = watch(options)
    if once and (tally.failed or tally.left_out):
        sys.exit(1)

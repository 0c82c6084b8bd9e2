"""`ptycho-tasks init`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ptycho_tasks.commands.completion import complete_backends
from ptycho_tasks.config.gitignore import GITIGNORE
from ptycho_tasks.layout import CONFIG_NAME
from ptycho_tasks.system.terminal import echo

MOST_BYTES = 2**29
"""Of a scan that is looked at on the way."""


@click.command("init")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    help="The scan to read: NPZ, CXI or another known format.",
)
@click.option(
    "--backend",
    default="unrolled",
    show_default=True,
    shell_complete=complete_backends,
    help="What trains and infers.",
)
@click.option("--name", help="Names the files that are made.  [default: the scan's name]")
def init_command(folder: Path, source: Path | None, backend: str, name: str | None) -> None:
    """Make a project in FOLDER.

    Writes ptycho.yaml, dodo.py, a JSON Schema for editors, and a .gitignore, or what one lacks.
    Without --source, the project simulates its scan.
    """
    from ptycho_tasks.commands.new_project import init_project

    has_gitignore = (folder / GITIGNORE).exists()
    for path in init_project(folder, source=source, backend=backend, name=name):
        is_extended = path.name == GITIGNORE and has_gitignore
        echo(f"{'extended' if is_extended else 'wrote'} {path}")
    if source is not None:
        _check(folder, source)
    echo(f"next: edit {folder / CONFIG_NAME}, then `doit infer` in {folder}")


def _check(folder: Path, source: Path) -> None:
    """Say what a short examination finds, which leaves out all that takes a reconstruction."""
    command = shlex.join(["ptycho-tasks", "check", str(source)])
    if source.stat().st_size > MOST_BYTES:
        echo(f"not checked, being large; `{command}` takes a while")
        return
    from ptycho_tasks.commands.scan_check import check_scan, list_lines

    report = check_scan(source, folder, None, tries=False)
    for finding in report.findings:
        if finding.is_wrong:
            echo(f"wrong  {finding.line}")
    for line in list_lines(report.settings) if report.is_wrong else []:
        echo(f"  {line}")
    echo(f"`{command}` tries orientation, centre and scale of the scan too")

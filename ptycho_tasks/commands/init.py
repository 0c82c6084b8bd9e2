"""`ptycho-tasks init`."""

from __future__ import annotations

from pathlib import Path

import click

from ptycho_tasks.commands.completion import complete_backends
from ptycho_tasks.layout import CONFIG_NAME
from ptycho_tasks.system.terminal import echo


@click.command("init")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option("--source", type=click.Path(path_type=Path), help="The scan to read (NPZ, CXI).")
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

    Writes ptycho.yaml, dodo.py and a JSON Schema for editors. Without --source, the project
    simulates its scan.
    """
    from ptycho_tasks.commands.new_project import init_project

    for path in init_project(folder, source=source, backend=backend, name=name):
        echo(f"wrote {path}")
    echo(f"next: edit {folder / CONFIG_NAME}, then `doit infer` in {folder}")

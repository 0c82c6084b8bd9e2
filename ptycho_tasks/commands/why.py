"""`ptycho-tasks why` and `ptycho-tasks dry-run`, which are commands of doit too."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ptycho_tasks.commands.completion import complete_tasks
from ptycho_tasks.errors import ConfigError


@click.command("why")
@click.argument("tasks", nargs=-1, shell_complete=complete_tasks)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def why_command(tasks: tuple[str, ...], as_json: bool) -> None:
    """Say why tasks are stale.

    Each reason: settings, files, code, or a task before them.
    """
    _run_doit("why", *(["--json"] if as_json else []), *tasks)


@click.command("dry-run")
@click.argument("tasks", nargs=-1, shell_complete=complete_tasks)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def dry_run_command(tasks: tuple[str, ...], as_json: bool) -> None:
    """Say what would run, in order; runs nothing."""
    _run_doit("dry-run", *(["--json"] if as_json else []), *tasks)


def _run_doit(*arguments: str) -> None:
    if not Path("dodo.py").exists():
        raise ConfigError(
            f"{Path.cwd()}: there is no dodo.py; go to a project's folder, or make one with "
            "`ptycho-tasks init`"
        )
    from doit.doit_cmd import DoitMain

    code = DoitMain().run(list(arguments))
    if code:
        # doit has said why, and calls a wrong task name 3.
        sys.exit(2 if code == 3 else code)

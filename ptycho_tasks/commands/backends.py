"""`ptycho-tasks backends`."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from ptycho_tasks.commands.completion import complete_backends
from ptycho_tasks.system.terminal import echo, print_text


@click.command("backends")
@click.argument("name", required=False, shell_complete=complete_backends)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def backends_command(name: str | None, as_json: bool) -> None:
    """List the backends that can be named here, or show one.

    The list says why one cannot be used. With NAME: what that backend offers, its options with
    their defaults and meanings. The list imports every backend to learn its version; with NAME,
    only that one is imported.
    """
    from ptycho_tasks.backends import describe, describe_all, find_backend

    here = Path.cwd()
    # What a module prints when it is imported is no part of the answer.
    with redirect_stdout(sys.stderr):
        descriptions = [describe(find_backend(name, here))] if name else describe_all(here)
    if as_json:
        print_text(json.dumps(descriptions[0] if name else descriptions, indent=1) + "\n")
        return
    for backend in descriptions:
        echo(backend.get("error") or "{name}  {origin}  version {version}".format(**backend))
    if name:
        _show_offers(descriptions[0])


def _show_offers(backend: dict[str, Any]) -> None:
    for method in ("train", "infer", "refine"):
        if backend[method] is not None:
            echo(f"{method:<10} {backend[method]}".rstrip())
    for section, options in (("training", "options"), ("execution", "execution")):
        echo(f"{section}:")
        rows = [f"  {o['name']}: {json.dumps(o['default'])}" for o in backend[options]]
        width = max(map(len, rows))
        for row, option in zip(rows, backend[options], strict=True):
            echo(f"{row:<{width}}  # {option['doc']}")

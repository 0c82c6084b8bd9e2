"""`ptycho-tasks config`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ptycho_tasks.config.document import read_config
from ptycho_tasks.layout import CONFIG_NAME
from ptycho_tasks.system.terminal import echo, print_text


@click.command("config")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of ptycho.yaml instead.")
def config_command(schema: bool) -> None:
    """Show every setting, and where it came from."""
    from ptycho_tasks.commands.new_project import project_schema
    from ptycho_tasks.config.factories import create_inference_payload, create_refinement_payload

    if schema:
        print_text(json.dumps(project_schema(Path.cwd()), indent=2) + "\n")
        return
    file = read_config(Path.cwd() / CONFIG_NAME)
    _check_project(Path.cwd())
    payload = create_refinement_payload(file) or create_inference_payload(file)
    rows = [(key, json.dumps(value), payload.origins[key]) for key, value in payload.values.items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for key, value, origin in rows:
        echo(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}")


def _check_project(root: Path) -> None:
    """Check all variants, and the evidence, of a project.

    Raises:
        ConfigError: something is wrong, in any of them.
    """
    from ptycho_tasks.builds.planning import make_plan
    from ptycho_tasks.layout import may_have_evidence, read_config_bytes

    path = root / CONFIG_NAME
    make_plan(path, read_config_bytes(path))
    if may_have_evidence(root):
        from ptycho_tasks.evidence.loading import load_evidence

        load_evidence(root, None)

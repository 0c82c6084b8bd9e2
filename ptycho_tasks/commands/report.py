"""`ptycho-tasks report`."""

from __future__ import annotations

from pathlib import Path

import click

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.layout import REPORT
from ptycho_tasks.system.terminal import echo


@click.command("report")
@click.argument("names", nargs=-1)
@click.option(
    "--output",
    default=REPORT,
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page.",
)
def report_command(names: tuple[str, ...], output: Path) -> None:
    """Write all results of the project as one HTML page; builds nothing.

    NAMES are variants, scans or VARIANT/SCAN, to show only those; then --output names the page.
    A table of all variants and scans, a viewer of objects, probes and residuals, curves of the
    training, what each result was made from, the graph, and the rows of the plan with their logs.
    It opens anywhere, without a network. `doit report` builds what is stale first.
    """
    from ptycho_tasks.evidence.row_records import list_row_records
    from ptycho_tasks.layout import absolute_path
    from ptycho_tasks.report.comparison import refuse_unknown
    from ptycho_tasks.report.page import write_report
    from ptycho_tasks.system.units import format_size

    path = absolute_path(output)
    if names and path == absolute_path(Path(REPORT)):
        refuse_unknown(names)
        raise ConfigError(f"{REPORT} shows all results; name another page with --output")
    write_report(path, list_row_records(Path.cwd()), names)
    echo(f"report     {output} ({format_size(path.stat().st_size)})")

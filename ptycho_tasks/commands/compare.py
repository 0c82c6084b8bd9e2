"""`ptycho-tasks compare`."""

from __future__ import annotations

import csv
import json
from io import StringIO
from typing import TYPE_CHECKING, Any

import click

from ptycho_tasks.commands.completion import complete_results
from ptycho_tasks.errors import ConfigError, one_line
from ptycho_tasks.report.wording import TITLES, format_measure, format_setting
from ptycho_tasks.system.terminal import echo, print_text

if TYPE_CHECKING:
    from ptycho_tasks.report.comparison import Comparison

_WIDE = 100_000
"""Columns of what is no terminal: a line stays one line."""
_GAP = "  "


@click.command("compare")
@click.argument("names", nargs=-1, shell_complete=complete_results)
@click.option(
    "--sort", default="r_factor", show_default=True, metavar="COLUMN", help="Smallest first."
)
@click.option("--reverse", is_flag=True, help="Largest first.")
@click.option("--baseline", metavar="NAME", help="Give differences to this result.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for programs.")
def compare_command(
    names: tuple[str, ...],
    sort: str,
    reverse: bool,
    baseline: str | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Compare the results of variants and scans; builds nothing.

    A line for each: the settings in which they differ, R-factor, Poisson deviance, how many
    times that of photon noise it is, scores against the object in the scan's file, how long
    training and inference took, and their peak memory. A line says where that object is a guess.
    NAMES are variants, scans, or VARIANT/SCAN; none means all.
    """
    from ptycho_tasks.report.comparison import compare_results, list_guesses, list_records

    if as_json and as_csv:
        raise ConfigError("--json and --csv exclude each other; give one")
    comparison = compare_results(names, sort=sort, is_reversed=reverse, baseline=baseline)
    if as_json:
        print_text(json.dumps(list_records(comparison), indent=1) + "\n")
    elif as_csv:
        print_text(_format_csv(list_records(comparison)))
    else:
        print_text(_format_table(comparison))
    for note in [*list_guesses(comparison), *comparison.notes]:
        echo(note, err=True)


def _format_csv(records: list[dict[str, Any]]) -> str:
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(one_line, records[0] if records else ()))
    for record in records:
        writer.writerow("" if v is None else one_line(format_setting(v)) for v in record.values())
    return stream.getvalue()


def _format_table(comparison: Comparison) -> str:
    """A table, which leaves out what matters less where the terminal is narrow; a paragraph for
    each result where it is too narrow for that too."""
    from ptycho_tasks.report.comparison import COST, DEVIANCE, MISFIT, R_FACTOR

    measures = comparison.measures
    for kept in (measures, (*MISFIT, *COST), MISFIT, (R_FACTOR, DEVIANCE)):
        shown = [name for name in measures if name in kept]
        table = _draw_table(comparison._replace(measures=shown))
        if table is not None:
            hidden = ", ".join(TITLES.get(name, name) for name in measures if name not in kept)
            return table + (f"too wide for this terminal, see --csv: {hidden}\n" if hidden else "")
    return _format_paragraphs(*_list_cells(comparison))


def _draw_table(comparison: Comparison) -> str | None:
    """A table, with colours on a terminal only; None where it is too wide."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    titles, lines = _list_cells(comparison)
    widths = [max(map(cell_len, column)) for column in zip(titles, *lines, strict=True)]
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDE, no_color=True)
    if sum(widths) + len(_GAP) * (len(widths) - 1) > console.width:
        return None
    table = Table(box=None, padding=(0, len(_GAP), 0, 0), pad_edge=False, header_style="bold")
    texts = len(comparison.labels) + 1 + len(comparison.settings)
    for index, (title, width) in enumerate(zip(titles, widths, strict=True)):
        table.add_column(Text(title), justify="left" if index < texts else "right", width=width)
    for cells in lines:
        table.add_row(*map(Text, cells))
    with console.capture() as capture:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _format_paragraphs(titles: list[str], lines: list[list[str]]) -> str:
    width = max(map(len, titles))
    paragraphs = []
    for cells in lines:
        pairs = zip(titles, cells, strict=True)
        paragraphs.append(
            "".join(f"{title:<{width}}  {cell}".rstrip() + "\n" for title, cell in pairs)
        )
    return "\n".join(paragraphs)


def _list_cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The titles of the columns, and the cells of each line."""
    from ptycho_tasks.config.variants import shorten_keys
    from ptycho_tasks.report.comparison import find_value

    labels = [*comparison.labels, "state"]
    titles = [*labels, *shorten_keys(comparison.settings)]
    titles += [TITLES.get(name, name) for name in comparison.measures]
    lines = []
    for result in comparison.results:
        cells = [find_value(result, name) for name in labels]
        cells += [format_setting(result.settings.get(key, "")) for key in comparison.settings]
        cells += [
            format_measure(name, result.measures.get(name), result.differences.get(name))
            for name in comparison.measures
        ]
        lines.append([one_line(cell) for cell in cells])
    return [one_line(title) for title in titles], lines

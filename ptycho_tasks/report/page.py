"""The report: one HTML file that opens anywhere, without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptycho_tasks.config.variants import shorten_keys
from ptycho_tasks.report.comparison import Comparison, Result, compare_results, find_value
from ptycho_tasks.report.contents import SETTINGS, collect_contents, name_result
from ptycho_tasks.report.filling import fill_template
from ptycho_tasks.report.graph import BOX, Graph, draw_graph
from ptycho_tasks.report.ownership import REPORT_GENERATOR, refuse_other_file
from ptycho_tasks.report.ranking import choose_first, sum_up
from ptycho_tasks.report.wording import (
    RESOLUTIONS,
    TITLES,
    format_measure,
    format_resolution,
    format_setting,
    natural_key,
)
from ptycho_tasks.system.files import real_path, write_atomic

_SCRIPTS = ("images.js", "charts.js", "table.js", "viewer.js", "page.js")


def write_report(
    path: Path, evidence: Sequence[Mapping[str, Any]] = (), names: Sequence[str] = ()
) -> None:
    """Write the report of the project in the current folder; builds nothing.

    Equal results, in equal states, give equal bytes.

    Args:
        path: the HTML file.
        evidence: the rows of its plan, as `evidence.row_records` gives them.
        names: the variants, scans or `VARIANT/SCAN` to show; empty for all.

    Raises:
        ConfigError: there is no project, a name is unknown, or another file is at the path.
        FileWriteError: the file cannot be written; an earlier one is unchanged.
        SystemExit: something in ptycho.yaml is wrong, and the user was told.
    """
    refuse_other_file(path)
    comparison = compare_results(names, sort="variant")
    results = sorted(comparison.results, key=lambda result: natural_key(name_result(result)))
    comparison = comparison._replace(results=results)
    contents = collect_contents(comparison, path.parent)
    text = render_page(comparison, contents, draw_graph(), evidence)
    write_atomic(real_path(path), text.encode("utf-8", "replace"))


def render_page(
    comparison: Comparison,
    contents: Mapping[str, Any],
    graph: Graph,
    evidence: Sequence[Mapping[str, Any]],
) -> str:
    """The page's HTML, in which every text is escaped.

    Args:
        comparison: the results.
        contents: of `collect_contents`, in the same order.
        graph: of the project.
        evidence: see `write_report`.
    """
    first = choose_first(contents["results"], [*map(_find_place, comparison.results)])
    whole = {**contents, "evidence": [*evidence], "titles": TITLES, "first": first}
    return fill_template(
        "page.html.j2",
        whole,
        scripts=_SCRIPTS,
        generator=REPORT_GENERATOR,
        title=_find_title(contents),
        summary=sum_up(contents["results"]),
        table=_make_table(comparison, contents),
        contents=contents,
        graph=graph,
        box=BOX,
        evidence=evidence,
        opens=False,
    )


def _find_place(result: Result) -> int:
    """The place of a result among the tasks of the project."""
    return 0 if result.files is None else result.files.table.rows.index(result.files.row)


def _find_title(contents: Mapping[str, Any]) -> str:
    settings = [contents["common"].get(SETTINGS, {})]
    settings += [result["settings"] for result in contents["results"]]
    names = {str(one["name"]) for one in settings if "name" in one}
    return ", ".join(sorted(names)) or "results"


def _make_table(comparison: Comparison, contents: Mapping[str, Any]) -> Mapping[str, Any]:
    """Titles, and for each result its cells: what is sorted by, and what is shown."""
    settings, measures = comparison.settings, comparison.measures
    heads = [("label", "result"), ("label", "state")]
    heads += [("setting", title) for title in shorten_keys(settings)]
    resolutions = [
        source
        for source in RESOLUTIONS
        if any(source in record["resolutions"] for record in contents["results"])
    ]
    heads += [("measure", RESOLUTIONS[source]) for source in resolutions]
    heads += [("measure", TITLES.get(name, name)) for name in measures]
    heads += [("measure", "steps done")]
    rows = []
    for result, record in zip(comparison.results, contents["results"], strict=True):
        cells: list[tuple[Any, str]] = [(name_result(result),) * 2, (result.state,) * 2]
        values = [result.settings.get(key, "") for key in settings]
        cells += [(v, format_setting(v)) for v in values]
        falls = map(record["resolutions"].get, resolutions)
        cells += [(_rank_resolution(fall), format_resolution(fall)) for fall in falls]
        found = [find_value(result, name) for name in measures]
        cells += [(v, format_measure(n, v, None)) for n, v in zip(measures, found, strict=True)]
        steps = record.get("steps")
        cells.append((steps, "" if steps is None else str(steps)))
        rows.append({"cells": [_make_cell(*cell) for cell in cells], "record": record})
    keys = [None] * (len(heads) - len(measures) - 1) + [*measures, "steps"]
    return {"heads": [(*h, key) for h, key in zip(heads, keys, strict=True)], "rows": rows}


def _rank_resolution(resolution: Mapping[str, Any] | None) -> float | None:
    """What results are sorted by: the half period in pixels."""
    return None if resolution is None or not resolution["fall"] else 1 / resolution["fall"]


def _make_cell(value: Any, text: str) -> tuple[str, str]:
    """What a cell is sorted by, and what it shows."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (repr(float(value)) if is_number else ""), text

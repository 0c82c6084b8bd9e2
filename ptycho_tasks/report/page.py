"""The report: one HTML file that opens anywhere, without a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptycho_tasks.config.variants import shorten_keys
from ptycho_tasks.report.comparison import R_FACTOR, Comparison, compare_results, find_value
from ptycho_tasks.report.contents import SETTINGS, collect_contents, name_result
from ptycho_tasks.report.filling import fill_template
from ptycho_tasks.report.graph import BOX, Graph, draw_graph
from ptycho_tasks.report.ownership import REPORT_GENERATOR, refuse_other_file
from ptycho_tasks.report.wording import TITLES, format_measure, format_resolution, format_setting
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
    comparison = comparison._replace(results=sorted(comparison.results, key=name_result))
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
    whole = {**contents, "evidence": [*evidence], "titles": TITLES}
    return fill_template(
        "page.html.j2",
        whole,
        scripts=_SCRIPTS,
        generator=REPORT_GENERATOR,
        title=_find_title(contents),
        summary=_sum_up(contents),
        table=_make_table(comparison, contents),
        contents=contents,
        graph=graph,
        box=BOX,
        evidence=evidence,
        opens=False,
    )


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
    heads += [("measure", "resolution"), *(("measure", TITLES.get(n, n)) for n in measures)]
    heads += [("measure", "steps done")]
    rows = []
    for result, record in zip(comparison.results, contents["results"], strict=True):
        cells: list[tuple[Any, str]] = [(name_result(result),) * 2, (result.state,) * 2]
        values = [result.settings.get(key, "") for key in settings]
        cells += [(v, format_setting(v)) for v in values]
        cells.append((_rank_resolution(record), format_resolution(record["resolution"])))
        found = [find_value(result, name) for name in measures]
        cells += [(v, format_measure(n, v, None)) for n, v in zip(measures, found, strict=True)]
        steps = record.get("steps")
        cells.append((steps, "" if steps is None else str(steps)))
        rows.append({"cells": [_make_cell(*cell) for cell in cells], "record": record})
    keys = [None] * (3 + len(settings)) + [*measures, "steps"]
    return {"heads": [(*h, key) for h, key in zip(heads, keys, strict=True)], "rows": rows}


def _rank_resolution(record: Mapping[str, Any]) -> float | None:
    """What results are sorted by: the half period in pixels."""
    resolution = record["resolution"]
    return None if resolution is None or not resolution["fall"] else 1 / resolution["fall"]


def _make_cell(value: Any, text: str) -> tuple[str, str]:
    """What a cell is sorted by, and what it shows."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (repr(float(value)) if is_number else ""), text


def _sum_up(contents: Mapping[str, Any]) -> list[str]:
    """What a reader wants to know first, a sentence each."""
    results = contents["results"]
    counts = Counter(result["state"] for result in results)
    sentences = [", ".join(f"{count} {state}" for state, count in sorted(counts.items()))]
    known = [result for result in results if result["measures"].get(R_FACTOR) is not None]
    # Less is easily explained: a result of some of the frames is not compared with one of all.
    most = max((result["frame_count"] for result in known), default=0)
    alike = [result for result in known if result["frame_count"] == most]
    if len(alike) > 1 and len({result["scan"] for result in alike}) == 1:
        best = min(alike, key=lambda result: result["measures"][R_FACTOR])
        same = [one["name"] for one in alike if _is_as_good(one, best)]
        value = format_measure(R_FACTOR, best["measures"][R_FACTOR], None)
        sentences.append(f"least R-factor: {value}, of {', '.join(same)}")
    return sentences


def _is_as_good(one: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    """Whether two results miss the data alike, by the digits that are shown."""
    first, second = (result["measures"][R_FACTOR] for result in (one, best))
    return format_measure(R_FACTOR, first, None) == format_measure(R_FACTOR, second, None)

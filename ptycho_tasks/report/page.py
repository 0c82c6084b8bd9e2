"""The report: one HTML file that opens anywhere, without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ptycho_tasks.config.variants import shorten_keys
from ptycho_tasks.report.comparison import (
    COST,
    MISFIT,
    Comparison,
    Result,
    compare_results,
    find_value,
)
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
    whole = {**contents, "evidence": [*evidence], "first": first}
    return fill_template(
        "page.html.j2",
        whole,
        scripts=_SCRIPTS,
        generator=REPORT_GENERATOR,
        title=_find_title(contents),
        summary=sum_up(contents["results"]),
        table=_make_table(comparison, contents),
        problems=_list_problems(contents["results"]),
        troubled=sum(any(one[key] for key in _TROUBLES) for one in contents["results"]),
        contents=contents,
        format_setting=format_setting,
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


_TROUBLES = ("problem", "reasons", "doubts")


class _Problem(NamedTuple):
    """What is not as it should be with results, alike for all of them."""

    names: str
    state: str
    problem: str | None
    reasons: Sequence[str]
    """Why they are not fresh, or what is to be doubted of them."""


def _list_problems(records: Sequence[Mapping[str, Any]]) -> list[_Problem]:
    """One for each cause, in the order of the first result that has it."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for record in records:
        reasons, doubts = tuple(record["reasons"]), tuple(record["doubts"])
        # Of what failed, that it is not there either says nothing more.
        problem = None if record["state"] == "failed" and reasons else record["problem"]
        # What is to be doubted has digits of its own: one cause is one line all the same.
        for key in ((problem, reasons), (None, doubts)):
            if any(key):
                groups.setdefault((record["state"], *key), []).append(record["name"])
    return [_Problem(", ".join(names), *key) for key, names in groups.items()]


class _Column(NamedTuple):
    """A column of the table of results."""

    kind: str
    """Classes of its cells: what they are, and of which group that may be hidden."""
    title: str
    key: str | None
    """The measure, of which there are differences; None of all else."""
    read: Callable[[Result, Mapping[str, Any]], tuple[Any, str]]
    """What a result, with its record in the contents, is sorted by and shows."""


def _make_table(comparison: Comparison, contents: Mapping[str, Any]) -> Mapping[str, Any]:
    """Columns, and for each result its cells: what is sorted by, and what is shown."""
    columns = [*_list_columns(comparison, contents["results"])]
    rows = [
        {"cells": [_make_cell(*c.read(result, record)) for c in columns], "record": record}
        for result, record in zip(comparison.results, contents["results"], strict=True)
    ]
    return {"columns": columns, "rows": rows}


def _list_columns(
    comparison: Comparison, records: Sequence[Mapping[str, Any]]
) -> Iterator[_Column]:
    """On a small screen the settings are hidden, and the first measures are all that is seen."""
    yield _Column("label", "result", None, lambda result, _: (name_result(result),) * 2)
    yield _Column("label", "state", None, lambda result, _: (result.state,) * 2)
    settings = comparison.settings
    for key, title in zip(settings, shorten_keys(settings), strict=True):
        yield _Column("setting", title, None, partial(_read_setting, key))
    misfits = [name for name in comparison.measures if name in MISFIT]
    others = [name for name in comparison.measures if name not in MISFIT]
    yield from map(_make_measure, misfits)
    for source in RESOLUTIONS:
        if any(source in record["resolutions"] for record in records):
            yield _Column("measure", RESOLUTIONS[source], None, partial(_read_resolution, source))
    yield from map(_make_measure, others)
    yield _Column("measure cost", "steps done", "steps", lambda _, record: _read_steps(record))


def _make_measure(name: str) -> _Column:
    title = TITLES.get(name, name)
    return _Column(f"measure {_find_group(name)}", title, name, partial(_read_measure, name))


def _read_setting(key: str, result: Result, _: Mapping[str, Any]) -> tuple[Any, str]:
    value = result.settings.get(key, "")
    return value, format_setting(value)


def _read_measure(name: str, result: Result, _: Mapping[str, Any]) -> tuple[Any, str]:
    value = find_value(result, name)
    return value, format_measure(name, value, None)


def _read_resolution(source: str, _: Result, record: Mapping[str, Any]) -> tuple[float | None, str]:
    """The half period, in pixels and as it is shown."""
    resolution = record["resolutions"].get(source)
    is_known = resolution is not None and resolution["fall"]
    return 1 / resolution["fall"] if is_known else None, format_resolution(resolution)


def _read_steps(record: Mapping[str, Any]) -> tuple[int | None, str]:
    steps = record.get("steps")
    return steps, "" if steps is None else str(steps)


def _find_group(measure: str) -> str:
    """Of which group of columns, that may be hidden, a measure is."""
    return "misfit" if measure in MISFIT else "cost" if measure in COST else "score"


def _make_cell(value: Any, text: str) -> tuple[str, str]:
    """What a cell is sorted by, and what it shows."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (repr(float(value)) if is_number else ""), text

"""The graph of a project as places on a drawing: a box for each task, a line for each input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ptycho_tasks.builds.asking import ask_project, read_tables
from ptycho_tasks.builds.failures import find_failure
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.why import Verdict, judge

STAGES = ("source", "fixture", "train", "infer", "refine")
BOX = 190, 30
"""Width and height of a box."""
_GAP_X, _GAP_Y, _MARGIN = 60, 12, 10
_LONGEST = 24
"""Characters of a name that a box has room for."""
_STATES = {"up to date": "fresh", "depends": "stale", "stale": "stale"}


@dataclass(frozen=True)
class Box:
    """A task on the drawing."""

    x: int
    y: int
    name: str
    label: str
    """The name, as much of it as there is room for."""
    state: str
    """`fresh`, `stale`, `stored`, `not built`, `failed`, `ignored`."""
    reasons: Sequence[str]


@dataclass(frozen=True)
class Graph:
    """A drawing; `lines` are paths of SVG."""

    width: int
    height: int
    boxes: Sequence[Box]
    lines: Sequence[str]


def draw_graph() -> Graph:
    """The graph of the project in the current folder, without one-off variants.

    Raises:
        SystemExit: something in ptycho.yaml is wrong, and the user was told.
    """
    rows = read_tables()[0].rows
    with ask_project() as (control, manager):
        control.process([row.name for row in rows])
        verdicts = {verdict.task: verdict for verdict in judge(control, manager)}
        failures = {row.name: find_failure(manager.backend, row) for row in rows}
    return place_tasks(rows, verdicts, failures)


def place_tasks(
    rows: Sequence[Row], verdicts: Mapping[str, Verdict], failures: Mapping[str, str]
) -> Graph:
    """Tasks in columns of their stages.

    Args:
        rows: the tasks.
        verdicts: what `doit why` says of each, by name.
        failures: why each failed when it last ran, if it did, by name.
    """
    width, height = BOX
    stages = [stage for stage in STAGES if any(row.stage == stage for row in rows)]
    places: dict[str, tuple[int, int]] = {}
    makers = {path: row.name for row in rows for path in row.outputs}
    for column, stage in enumerate(stages):
        for index, row in enumerate(row for row in rows if row.stage == stage):
            x, y = _MARGIN + column * (width + _GAP_X), _MARGIN + index * (height + _GAP_Y)
            places[row.name] = x, y
    boxes = [
        _make_box(row.name, places[row.name], verdicts, failures)
        for row in rows
        if row.name in places
    ]
    lines = [
        _draw_line(places[name], places[row.name])
        for row in rows
        for name in _list_before(row, makers)
        if row.name in places and name in places
    ]
    most = max((y for _, y in places.values()), default=0)
    total = len(stages) * (width + _GAP_X) - _GAP_X + 2 * _MARGIN
    return Graph(total, most + height + _MARGIN, boxes, lines)


def _list_before(row: Row, makers: Mapping[str, str]) -> Iterable[str]:
    """The tasks that have to run before one."""
    made = (makers[path] for path in row.inputs.values() if path in makers)
    return dict.fromkeys([*made, *([row.after] if row.after else [])])


def _make_box(
    name: str,
    place: tuple[int, int],
    verdicts: Mapping[str, Verdict],
    failures: Mapping[str, str],
) -> Box:
    verdict = verdicts.get(name, Verdict(name, "stale", ()))
    reasons = [reason.text for reason in verdict.reasons]
    state = _STATES.get(verdict.status, verdict.status)
    if state == "stale" and failures.get(name):
        state, reasons = "failed", [failures[name], *reasons]
    elif any(reason.kind == "new" for reason in verdict.reasons):
        state = "not built"
    label = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    return Box(*place, name, label, state, reasons)


def _draw_line(start: tuple[int, int], end: tuple[int, int]) -> str:
    width, height = BOX
    x1, y1, x2, y2 = start[0] + width, start[1] + height // 2, end[0], end[1] + height // 2
    middle = (x1 + x2) // 2
    return f"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}"

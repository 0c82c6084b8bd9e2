"""The graph of a project as places on a drawing: a box for each task, a line for each input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptycho_tasks.builds.asking import ask_project, read_tables
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.why import judge
from ptycho_tasks.layout import METRICS
from ptycho_tasks.report.verdicts import Described, Verdicts
from ptycho_tasks.report.wording import natural_key, shorten_reasons

STAGES = ("source", "fixture", "train", "infer", "refine")
BOX = 190, 30
"""Width and height of a box."""
_GAP_X, _GAP_Y, _MARGIN = 60, 12, 10
_LONGEST = 24
"""Characters of a name that a box has room for."""
_MOST_BOXES = 24
"""Of a stage, whose tasks have a box each."""
_MOST_NAMED = 20
"""Tasks of one box."""


@dataclass(frozen=True)
class Box:
    """A task on the drawing, or several of one stage in the same state."""

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
    rows = read_tables(skips_strays=True)[0].rows
    with ask_project(skips_strays=True) as (control, manager):
        control.process([row.name for row in rows])
        found = {verdict.task: verdict for verdict in judge(control, manager)}
        verdicts = Verdicts(found, manager.backend, rows)
        described = {row.name: _describe(row, verdicts) for row in rows}
    return place_tasks(rows, described)


def place_tasks(rows: Sequence[Row], described: Mapping[str, Described]) -> Graph:
    """Tasks in columns of their stages; of a stage with many, those in the same state as one box.

    Args:
        rows: the tasks.
        described: what is said of each, by name.
    """
    width, height = BOX
    makers = {path: row.name for row in rows for path in row.outputs}
    boxes: list[Box] = []
    found: dict[str, Box] = {}
    stages = [stage for stage in STAGES if any(row.stage == stage for row in rows)]
    for column, stage in enumerate(stages):
        names = sorted((row.name for row in rows if row.stage == stage), key=natural_key)
        for index, group in enumerate(_group_tasks(names, described)):
            x, y = _MARGIN + column * (width + _GAP_X), _MARGIN + index * (height + _GAP_Y)
            boxes.append(_make_box(x, y, stage, group, described))
            found |= dict.fromkeys(group, boxes[-1])
    lines = [
        _draw_line(found[name], found[row.name])
        for row in rows
        for name in _list_before(row, makers)
        if row.name in found and name in found
    ]
    most = max((box.y for box in boxes), default=0)
    total = len(stages) * (width + _GAP_X) - _GAP_X + 2 * _MARGIN
    return Graph(total, most + height + _MARGIN, boxes, [*dict.fromkeys(lines)])


def _group_tasks(names: Sequence[str], described: Mapping[str, Described]) -> list[list[str]]:
    """Tasks of a stage that share a box."""
    if len(names) <= _MOST_BOXES:
        return [[name] for name in names]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(described[name].state, []).append(name)
    return [*groups.values()]


def _list_before(row: Row, makers: Mapping[str, str]) -> Iterable[str]:
    """The tasks that have to run before one."""
    made = (makers[path] for path in row.inputs.values() if path in makers)
    return dict.fromkeys([*made, *([row.after] if row.after else [])])


def _describe(row: Row, verdicts: Verdicts) -> Described:
    # Of a reconstruction, the table looks at the same.
    outputs = [path for path in row.outputs if path.endswith(METRICS)] or row.outputs
    is_there = all(Path(path).is_file() for path in outputs)
    if not outputs:  # a scan that is only checked
        is_there = verdicts.is_known(row)
    return verdicts.describe(row, is_there=is_there)


def _make_box(
    x: int, y: int, stage: str, names: Sequence[str], described: Mapping[str, Described]
) -> Box:
    state, reasons = described[names[0]]
    if len(names) > 1:
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        listed = ", ".join(names[:_MOST_NAMED]) + more
        return Box(x, y, f"{len(names)} of {stage}", f"{len(names)} of {stage}", state, [listed])
    name = names[0]
    label = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    return Box(x, y, name, label, state, shorten_reasons(reasons))


def _draw_line(start: Box, end: Box) -> str:
    width, height = BOX
    x1, y1, x2, y2 = start.x + width, start.y + height // 2, end.x, end.y + height // 2
    middle = (x1 + x2) // 2
    return f"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}"

"""Positions from another file: an HDF5 or NPZ, or a text with a line a frame and columns apart by
commas, semicolons or blanks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.any_file import open_layout
from ptycho_tasks.scans.any_layout import read_positions
from ptycho_tasks.scans.product_scan import match_frames
from ptycho_tasks.scans.raw_scan import METRES, Keyed, RawScan, Reading
from ptycho_tasks.system.files import file_stamp

_NAMES = {"x": ("x", "xcoords"), "y": ("y", "ycoords"), "frame": ("frame", "index")}
_UNITS = {**METRES, "\u00b5m": 1e-6, "\u03bcm": 1e-6, "px": None, "pixel": None, "pixels": None}
_HEAD = re.compile(r"(?P<name>.*?)\s*[\[(]\s*(?P<unit>[^\s\])]+)\s*[\])]")
_ADVICE = (
    "name the columns x and y (and frame, where lines are in another order) in a first line, or "
    "say which they are, as in `source.datasets: {xcoords: NAME, ycoords: NAME}`, or give two "
    "columns: x and y"
)


class _Row(NamedTuple):
    number: int
    """Of the line, from 1."""
    cells: list[str]


class _Head(NamedTuple):
    """The name of a column, in small letters."""

    text: str
    """As it stands."""
    name: str
    unit: str | None


def apply_positions(raw: RawScan, path: Path, reading: Reading) -> None:
    """Take the positions of a scan from a file.

    Of a text, in the order of its column `frame` if it has one. `source.units` says their unit, or
    the file: an attribute in HDF5, the name of a column, as in `x [um]`.

    Args:
        raw: gets them.
        path: of the file.
        reading: its `datasets` say where in the file `xcoords` and `ycoords` are.

    Raises:
        ScanError: it cannot be read, or lacks positions.
    """
    if not path.is_file():
        raise ScanError(f"{path}: no such file; check source.positions")
    with open_layout(path, reading) as file:
        if file is None:
            return _apply_text(raw, path, reading.datasets or {})
        read_positions(file, raw, reading.datasets or {})
    return raw.note(f"positions taken from {path.name}")


def _apply_text(raw: RawScan, path: Path, names: Mapping[str, str]) -> None:
    stamp = file_stamp(path)
    lines = _read_lines(path)
    rows = [_Row(n, cells) for n, line in enumerate(lines, 1) if (cells := _split(line))]
    if not rows:
        raise ScanError(f"{path}: holds no positions; expected a line a frame; {_ADVICE}")
    rows = _with_comment(lines, rows, names)
    places, unit_m, rows = _choose_columns(raw, path, rows, names)
    columns = {name: _column(path, rows, place) for name, place in places.items()}
    raw.positions_are_pixels, raw.unit_m, raw.rows = False, unit_m, None
    if "frame" in columns:
        raw.rows, order = match_frames(raw, path, "frame", _number_frames(raw, path, columns))
        columns = {name: values[order] for name, values in columns.items()}
    raw.x, raw.y = (Keyed(path, name, columns[name]) for name in ("x", "y"))
    if stamp is not None:
        by_frame = ", by their column `frame`" if "frame" in columns else ""
        raw.note(f"positions taken from {path.name}{by_frame}")


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ScanError(
            f"{path}: no text; expected text, CSV, HDF5 or NPZ with positions"
        ) from None
    except OSError as error:
        raise ScanError(f"{path}: cannot be read: {error.strerror or error}; check it") from error


def _split(line: str) -> list[str]:
    """The cells of a line; none of a comment."""
    line = line.strip()
    return [] if line.startswith(";") else _split_cells(re.split("[#%]", line, maxsplit=1)[0])


def _split_cells(text: str) -> list[str]:
    text = text.strip().rstrip(",; ")
    for separator in (";", ",", "\t"):
        if separator in text:
            return [cell.strip().strip("\"'").strip() for cell in text.split(separator)]
    # A unit belongs to the name before it.
    return re.sub(r"\s+(?=[\[(])", "", text).split()


def _with_comment(lines: list[str], rows: list[_Row], names: Mapping[str, str]) -> list[_Row]:
    """The lines, with the last comment before the first that names its columns x and y; in
    SPEC's files, names follow `#L`."""
    first = rows[0]
    if not _is_number(first.cells[0].replace(",", ".")):
        return rows
    for number in range(first.number - 1, 0, -1):
        cells = _split_cells(re.sub(r"^\s*[#%;]+(L\s)?", "", lines[number - 1]))
        if len(cells) == len(first.cells):
            heads = [_parse_head(cell) for cell in cells]
            if {"x", "y"} <= _find_columns(heads, names).keys() or len(_list_pairs(heads)) == 1:
                return [_Row(number, cells), *rows]
    return rows


def _parse_head(text: str) -> _Head:
    """`x [um]`, `x (um)` and `x_um`."""
    folded = text.casefold()
    match = _HEAD.fullmatch(folded)
    if match:
        return _Head(folded, match["name"], match["unit"])
    name, _, unit = folded.rpartition("_")
    return _Head(folded, name, unit) if name and unit in _UNITS else _Head(folded, folded, None)


def _choose_columns(
    raw: RawScan, path: Path, rows: list[_Row], names: Mapping[str, str]
) -> tuple[dict[str, int], float | None, list[_Row]]:
    """Which columns are x, y and frame, their unit in metres, and the lines below those that name
    them."""
    number, head = rows[0]
    if _is_number(head[0].replace(",", ".")):
        if len(head) != 2 or names.keys() & {"xcoords", "ycoords"}:
            raise ScanError(f"{path}:{number}: {len(head)} columns without names; {_ADVICE}")
        return {"x": 0, "y": 1}, None, rows
    heads = [_parse_head(name) for name in head]
    places = _find_columns(heads, names) or _find_pair(raw, path, heads)
    for axis in "xy":
        if len(found := places.get(axis, [])) != 1:
            called = names.get(f"{axis}coords", axis)
            raise ScanError(
                f"{path}:{number}: {len(found) or 'no'} columns called {called} "
                f"({', '.join(head)}); {_ADVICE}"
            )
    columns = {axis: found[0] for axis, found in places.items()}
    units = {heads[columns[axis]].unit for axis in "xy"}
    unit = units.pop()
    if units or (unit is not None and unit not in _UNITS):
        raise ScanError(
            f"{path}:{number}: units of x and y that differ or are unknown ({', '.join(head)}); "
            f"expected one of {', '.join(_UNITS)}; correct the line"
        )
    return columns, None if unit is None else _UNITS[unit], rows[1:]


def _find_columns(heads: list[_Head], names: Mapping[str, str]) -> dict[str, list[int]]:
    """The columns of each axis, by the names that are said, or else usual; none where neither x
    nor y has one and none is said."""
    found = {}
    for axis, known in _NAMES.items():
        said = names.get(f"{axis}coords")
        wanted = known if said is None else (said.casefold(),)
        found[axis] = [i for i, one in enumerate(heads) if {one.text, one.name} & {*wanted}]
    is_said = bool(names.keys() & {"xcoords", "ycoords"})
    return {a: c for a, c in found.items() if c} if is_said or found["x"] or found["y"] else {}


def _find_pair(raw: RawScan, path: Path, heads: list[_Head]) -> dict[str, list[int]]:
    """The only two columns whose names differ in nothing but that one has x where the other has
    y, as samx and samy do."""
    pairs = _list_pairs(heads)
    if len(pairs) != 1:
        return {}
    x, y = pairs[0]
    raw.note(f"{path.name}: columns {heads[x].text} and {heads[y].text} taken as x and y")
    frames = [i for i, one in enumerate(heads) if one.name in _NAMES["frame"]]
    return {"x": [x], "y": [y]} | ({"frame": frames[:1]} if frames else {})


def _list_pairs(heads: list[_Head]) -> list[tuple[int, int]]:
    """Columns of which the name of one has x where that of the other has y."""
    names = [one.name for one in heads]
    return [
        (i, j)
        for i, name in enumerate(names)
        for j, other in enumerate(names)
        if any(
            letter == "x" and other == f"{name[:k]}y{name[k + 1 :]}"
            for k, letter in enumerate(name)
        )
    ]


def _number_frames(
    raw: RawScan, path: Path, columns: dict[str, NDArray[np.float64]]
) -> NDArray[np.int64]:
    """(K,) frames of the lines, from 0; a file that counts all of them from 1 is taken so."""
    values = columns["frame"]
    if (values != np.rint(values)).any():
        raise ScanError(f"{path}: frame has fractions; expected whole numbers; correct the file")
    numbers = values.astype(np.int64)
    total = raw.frames.array.shape[0]
    if raw.numbers is None and numbers.min() == 1 and numbers.max() == total:
        raw.note(f"{path.name}: frames counted from 1")
        return numbers - 1
    return numbers


def _column(path: Path, rows: list[_Row], place: int) -> NDArray[np.float64]:
    values = []
    for number, cells in rows:
        if place >= len(cells) or not _is_number(cells[place]):
            shown = " ".join(cells)[:40]
            comma = place < len(cells) and _is_number(cells[place].replace(",", "."))
            advice = "write points and not commas in numbers" if comma else _ADVICE
            raise ScanError(f"{path}:{number}: {shown!r} holds no positions; {advice}")
        values.append(float(cells[place]))
    return np.array(values)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

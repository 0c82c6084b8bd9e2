"""Positions from a text file: a line a frame, columns apart by commas, semicolons or blanks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.product_scan import match_frames
from ptycho_tasks.scans.raw_scan import METRES, Keyed, RawScan
from ptycho_tasks.system.files import file_stamp

_NAMES = {"x": ("x", "xcoords"), "y": ("y", "ycoords"), "frame": ("frame", "index")}
_UNITS = {**METRES, "\u00b5m": 1e-6, "\u03bcm": 1e-6, "px": None, "pixel": None, "pixels": None}
_HEAD = re.compile(r"(?P<name>[a-z]+)\s*(?:[\[(_]\s*(?P<unit>[^\s\])]+)\s*[\])]?)?")
_ADVICE = (
    "name the columns x and y (and frame, where lines are in another order) in a first line, or "
    "give two: x and y"
)


class _Row(NamedTuple):
    number: int
    """Of the line, from 1."""
    cells: list[str]


def apply_positions(raw: RawScan, path: Path) -> None:
    """Take the positions of a scan from a file, in the order of its column `frame` if it has one;
    `source.units` says their unit, or the names of the columns, as in `x [um]`.

    Raises:
        ScanError: it cannot be read, or a line of it holds no positions.
    """
    stamp = file_stamp(path)
    rows = [
        _Row(n, cells) for n, line in enumerate(_read_lines(path), 1) if (cells := _split(line))
    ]
    if not rows:
        raise ScanError(f"{path}: holds no positions; expected a line a frame; {_ADVICE}")
    places, unit_m, rows = _choose_columns(path, rows)
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
    except FileNotFoundError:
        raise ScanError(f"{path}: no such file; check source.positions") from None
    except UnicodeDecodeError:
        raise ScanError(f"{path}: no text; expected text or CSV with positions") from None
    except OSError as error:
        raise ScanError(f"{path}: cannot be read: {error.strerror or error}; check it") from error


def _split(line: str) -> list[str]:
    text = line.partition("#")[0].strip()
    for separator in (";", ","):
        if separator in text:
            return [cell.strip() for cell in text.split(separator)]
    return text.split()


def _choose_columns(
    path: Path, rows: list[_Row]
) -> tuple[dict[str, int], float | None, list[_Row]]:
    """Which columns hold what, their unit in metres, and the lines below those that name them."""
    number, head = rows[0]
    if _is_number(head[0].replace(",", ".")):
        if len(head) != 2:
            raise ScanError(f"{path}:{number}: {len(head)} columns without names; {_ADVICE}")
        return {"x": 0, "y": 1}, None, rows
    found = [_HEAD.fullmatch(name.casefold()) for name in head]
    names = [match["name"] if match else "" for match in found]
    places: dict[str, int] = {}
    for axis, known in _NAMES.items():
        columns = [i for i, name in enumerate(names) if name in known]
        if len(columns) > 1 or not (columns or axis == "frame"):
            shown = ", ".join(head)
            raise ScanError(
                f"{path}:{number}: {len(columns) or 'no'} columns called {axis} ({shown}); "
                f"{_ADVICE}"
            )
        if columns:
            places[axis] = columns[0]
    units = {match["unit"] for axis in "xy" if (match := found[places[axis]])}
    unit = units.pop()
    if units or (unit is not None and unit not in _UNITS):
        raise ScanError(
            f"{path}:{number}: units of x and y that differ or are unknown ({', '.join(head)}); "
            f"expected one of {', '.join(_UNITS)}; correct the line"
        )
    return places, None if unit is None else _UNITS[unit], rows[1:]


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

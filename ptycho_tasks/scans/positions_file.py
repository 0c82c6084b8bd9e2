"""Positions from a text file: a line a frame, columns apart by commas or blanks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.raw_scan import Keyed, RawScan
from ptycho_tasks.system.files import file_stamp

_NAMES = {"x": ("x", "xcoords"), "y": ("y", "ycoords")}
_ADVICE = "name the columns x and y in a first line, or give two: x and y"


def apply_positions(raw: RawScan, path: Path) -> None:
    """Take the positions of a scan from a file; `source.units` says their unit.

    Raises:
        ScanError: it cannot be read, or a line of it holds no positions.
    """
    stamp = file_stamp(path)
    lines = _read_lines(path)
    numbered = [(n, _split(line)) for n, line in enumerate(lines, 1)]
    rows = [(n, cells) for n, cells in numbered if cells]
    if not rows:
        raise ScanError(f"{path}: holds no positions; expected a line a frame; {_ADVICE}")
    x, y, rows = _choose_columns(path, rows)
    raw.x, raw.y = (Keyed(path, name, _column(path, rows, i)) for name, i in (("x", x), ("y", y)))
    raw.positions_are_pixels, raw.unit_m, raw.rows = False, None, None
    if stamp is not None:
        raw.note(f"positions taken from {path.name}")


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
    text = line.partition("#")[0].replace(",", " ").replace(";", " ")
    return text.split()


def _choose_columns(
    path: Path, rows: list[tuple[int, list[str]]]
) -> tuple[int, int, list[tuple[int, list[str]]]]:
    """Which columns hold x and y, and the lines below those that name them."""
    number, head = rows[0]
    if _is_number(head[0]):
        if len(head) != 2:
            raise ScanError(f"{path}:{number}: {len(head)} columns without names; {_ADVICE}")
        return 0, 1, rows
    names = [name.casefold() for name in head]
    places = {
        axis: [i for i, name in enumerate(names) if name in known] for axis, known in _NAMES.items()
    }
    for axis, found in places.items():
        if len(found) != 1:
            shown = ", ".join(head)
            raise ScanError(
                f"{path}:{number}: {len(found) or 'no'} columns called {axis} ({shown}); {_ADVICE}"
            )
    return places["x"][0], places["y"][0], rows[1:]


def _column(path: Path, rows: list[tuple[int, list[str]]], place: int) -> NDArray[np.float64]:
    values = []
    for number, cells in rows:
        if place >= len(cells) or not _is_number(cells[place]):
            shown = " ".join(cells)[:40]
            raise ScanError(f"{path}:{number}: {shown!r} holds no positions; {_ADVICE}")
        values.append(float(cells[place]))
    return np.array(values)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

"""A plan's checklist in Markdown: find its rows, and edit them without touching any other byte.

Two kinds of rows count, anywhere in the file but in fenced code:

    | C4.D1 | Run targeted CLI tests | [ ] | may hold \\| escaped pipes and `[x]` in code |
    - [ ] **C4.D:** All CLI tests GREEN
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from ptycho_tasks.errors import PlanError
from ptycho_tasks.options import ID_PATTERN

OPEN, DONE, BLOCKED = " ", "x", "P"
STATES = {OPEN: "open", DONE: "done", BLOCKED: "blocked"}
"""State markers, as they stand between brackets, and what they mean."""

_MARKER = re.compile(r"(?P<tick>`?)\[(?P<state>[ xXP])\](?P=tick)")
_LIKE_A_MARKER = (
    r"(?P<tick>`?)\[(?:[ \t]*[^]\[`0-9]{0,2}[ \t]*|(?i:done|todo|open|wip|blocked|partial|skipped))"
    r"\](?P=tick)"
)
"""What stands where a state does, and may be none, as `[D]`."""
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_QUOTE = r"(?:[ \t]*>)*[ \t]*"
_LIST_ROW = re.compile(
    rf"{_QUOTE}(?:[-*+]|[0-9]{{1,9}}[.)])[ \t]+"
    rf"(?:(?P<marker>{_LIKE_A_MARKER})[ \t]+)?(?P<text>.*)"
)
_ODD_CELL = re.compile(_LIKE_A_MARKER)
_LONGEST_MARKER = 16
_CELL_END = re.compile(r"(?<!\\)(?:\\\\)*\|")
_ID = re.compile(rf"(?P<mark>\*\*|`|)(?P<id>{ID_PATTERN})(?P<colon>:?)(?P=mark)")


class Change(NamedTuple):
    """What a row is to become."""

    state: str
    """One of `STATES`."""
    note: str | None = None
    """Goes to the end of a table row's last cell, in place of an earlier one; no line ends. None
    leaves the cell as it is."""


class PlanRow(NamedTuple):
    """One row of a checklist."""

    id: str
    line: int
    """Counted from 1."""
    state: str | None
    """One of `STATES`; None where the row has no state."""
    text: str
    """What is to be done, as written."""
    marker: int = -1
    """Where in the line the state's character stands."""
    note: tuple[int, int] | None = None
    """Where in the line the last cell's text ends and where the cell does; None where no note can
    stand, as in a list."""
    odd: str = ""
    """What stands in the place of the state and is none, as `[D]`."""


class Plan:
    """A plan as it was read."""

    def __init__(self, content: bytes, name: str) -> None:
        """Find the rows.

        Args:
            content: of the file; bytes that are no UTF-8 are kept as they are.
            name: of the file, for messages.
        """
        self.content = content
        self.name = name
        # Not `splitlines`, for which a form feed ends a line too.
        self._lines = content.decode("utf-8", "surrogateescape").split("\n")
        self.rows = list(_find_rows(self._lines))
        self._by_id: dict[str, list[PlanRow]] = {}
        for row in self.rows:
            self._by_id.setdefault(row.id, []).append(row)

    def row(self, id: str) -> PlanRow:
        """The row of an id.

        Raises:
            PlanError: there is none, more than one, or one without a state.
        """
        rows = self._by_id.get(id, [])
        with_state = [row for row in rows if row.state is not None]
        if not rows:
            known = ", ".join(dict.fromkeys(row.id for row in self.rows if row.state is not None))
            raise PlanError(f"{self.name}: has no row `{id}`; rows: {known or 'none'}")
        if not with_state and rows[0].odd:
            raise PlanError(self.describe_odd_state(rows[0]))
        if not with_state:
            raise PlanError(
                f"{self.name}:{rows[0].line}: row `{id}` has no state; write `[ ]` into it"
            )
        if len(with_state) > 1:
            raise PlanError(
                f"{self.name}:{with_state[1].line}: row `{id}` stands in line "
                f"{with_state[0].line} already; give one of them another id"
            )
        return with_state[0]

    @property
    def odd_rows(self) -> list[PlanRow]:
        """Rows with something in the place of a state that is none."""
        return [row for row in self.rows if row.odd]

    def describe_odd_state(self, row: PlanRow) -> str:
        """What is wrong with one of `odd_rows`, in one line."""
        known = ", ".join(f"`[{state}]`" for state in STATES)
        return (
            f"{self.name}:{row.line}: row `{row.id}` has the state {row.odd.strip('`')}, which is "
            f"none of {known}; write one of them"
        )

    def apply(self, changes: Mapping[str, Change]) -> bytes:
        """The file's content with some rows changed, and no other byte.

        Args:
            changes: by id.

        Raises:
            PlanError: as `row`.
        """
        lines = list(self._lines)
        for id, change in changes.items():
            row = self.row(id)
            lines[row.line - 1] = _edit(lines[row.line - 1], row, change)
        return "\n".join(lines).encode("utf-8", "surrogateescape")


_LAST_NOTE = re.compile(r"[ \t]*\(evidence [0-9T:Z-]+ (?:green|red): [^()|]*\)$")
"""A note as `format_note` writes it, at the end of a cell."""


def format_note(time: str, outcome: str, log: str) -> str:
    """The pointer to a log that a row gets.

    Args:
        time: of the report.
        outcome: `green` or `red`.
        log: its path, and what else is to be said.
    """
    return f"(evidence {time} {outcome}: {log})"


def _edit(line: str, row: PlanRow, change: Change) -> str:
    if row.note is not None and change.note is not None:
        first, last = row.note
        text = line[first:last]
        body = _LAST_NOTE.sub("", text.rstrip(" \t"))
        blank = text[len(text.rstrip(" \t")) :] or " "
        line = f"{line[:first]}{body} {change.note}{blank}{line[last:]}"
    # The marker stands before the last cell.
    return line[: row.marker] + change.state + line[row.marker + 1 :]


def _find_rows(lines: list[str]) -> Iterator[PlanRow]:
    fence = ""
    for number, line in enumerate(lines, start=1):
        # A look at how a line begins spares most lines of a long plan the patterns.
        head = line.lstrip(" \t>")[:1]
        line = line.removesuffix("\r")
        opened = _FENCE.match(line) if head in ("`", "~") else None
        if fence:
            closes = opened and opened[1].startswith(fence) and not line[opened.end() :].strip()
            fence = "" if closes else fence
        elif opened and "`" not in line[opened.end() :]:
            fence = opened[1]
        elif head:
            row = _read_table_row(line, number) if head == "|" else _read_list_row(line, number)
            if row is not None:
                yield row


def _read_list_row(line: str, number: int) -> PlanRow | None:
    """The row in an item of a list; None where it is none."""
    item = _LIST_ROW.fullmatch(line)
    if item is None:
        return None
    id = _ID.match(item["text"])
    if id is None:
        return None
    after = item["text"][id.end() :]
    # Else the first word of any sentence would be an id.
    is_marked = id["colon"] or id["mark"] or after.startswith(":") or re.search("[0-9]", id["id"])
    if not is_marked or (after and after[0] not in " \t:"):
        return None
    text = after.lstrip(": \t").rstrip()
    marker = _MARKER.fullmatch(item["marker"] or "")
    if marker is None:
        return PlanRow(id["id"], number, None, text, odd=item["marker"] or "")
    begin = item.start("marker") + marker.start("state")
    return PlanRow(id["id"], number, marker["state"].replace("X", "x"), text, begin)


def _read_table_row(line: str, number: int) -> PlanRow | None:
    """The row in a line of a table; None where it is none."""
    cells = _split_cells(line)
    if len(cells) < 2:
        return None
    id = _ID.fullmatch(line[slice(*cells[0])].strip())
    if id is None:
        return None
    last = len(cells) - 1
    text = line[slice(*cells[1])].strip()
    odd = ""
    for index, (begin, end) in enumerate(cells[1:], start=1):
        content = line[begin:end].strip()
        if "[" not in content or len(content) > _LONGEST_MARKER:
            continue
        marker = _MARKER.fullmatch(content)
        if marker:
            return PlanRow(
                id["id"],
                number,
                marker["state"].replace("X", "x"),
                text if index != 1 else "",
                begin + line[begin:end].index("[") + 1,
                cells[last] if index < last else None,
            )
        odd = odd or (content if _ODD_CELL.fullmatch(content) else "")
    return PlanRow(id["id"], number, None, text, odd=odd)


def _split_cells(line: str) -> list[tuple[int, int]]:
    """Begin and end of each cell of a table row, between its pipes; none where it is no row."""
    first = line.index("|") + 1
    if "\\" in line:
        ends = [end.end() - 1 for end in _CELL_END.finditer(line, first)]
    else:
        ends = [*accumulate(map(len, line[first:].split("|")), lambda end, more: end + 1 + more)]
        ends = [first + end for end in ends[:-1]]
    if line[ends[-1] + 1 if ends else 0 :].strip(" \t"):
        return []  # it has no closing pipe
    return [*zip([first, *(end + 1 for end in ends)], ends, strict=False)]

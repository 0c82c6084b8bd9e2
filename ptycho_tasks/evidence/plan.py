"""A plan's checklist in Markdown: find its rows, and edit them without touching any other byte.

Two kinds of rows count, anywhere in the file but in fenced code; one without an id goes by a slug
of its text:

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
_ODD_LIST_ROW = re.compile(
    rf"{_QUOTE}(?:[-*+]|[0-9]{{1,9}}[.)])[ \t]*"
    rf"(?P<odd>(?P<bold>\*\*|__){_LIKE_A_MARKER}(?P=bold)|[☐☑☒✅✔✓✗✘❌]\ufe0f?"
    r"|\[(?:[xXPD~]|[ \t])\](?![](\[:]))[ \t]*(?P<text>.*)"
)
"""A state that a person sees at the head of a list's row, and that is written in another way."""
_ODD_AFTER = re.compile(rf"(?:|[^|]*[ \t])(?P<odd>{_LIKE_A_MARKER})[ \t]*")
_MARKER_AFTER_ID = re.compile(rf"[ \t:]*(?P<odd>{_LIKE_A_MARKER})(?![^ \t])")
_HEADING = re.compile(r"[ \t]*#{1,6}[ \t]+(?P<text>.*?)[ \t#]*")
_BARE_CELL = re.compile(rf"\|[ \t]*(?P<odd>{_LIKE_A_MARKER})[ \t]*(?:\||$)")
_LONGEST_MARKER = 16
_CELL_END = re.compile(r"(?<!\\)(?:\\\\)*\|")
_BOLD_ID = re.compile(
    rf"(?P<mark>\*\*|__)(?=[A-Za-z]*[.0-9])(?P<id>{ID_PATTERN}):[ \t]+(?P<text>.*?)(?P=mark)"
)
"""An id and a title that are bold together."""
_EMPTY = "(none)"
"""Said of a cell that holds no state."""
_TABLE_RULE = re.compile(r"[ \t>|:-]*-[ \t|:-]*")
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
    marker: tuple[int, int] = (-1, -1)
    """Where in the line the state begins and ends."""
    note: tuple[int, int] | None = None
    """Where in the line the last cell, or the text of a list's row, begins and ends; None where no
    note can stand."""
    odd: str = ""
    """What stands in the place of the state and is none, as `[D]`."""
    adopted: str = ""
    """Who says that it was done before there was evidence, and when; empty where nobody does."""
    has_id: bool = True
    """Whether the plan itself names it; else its id is made of its text."""
    is_mapped: bool = False
    """Whether its state is written as the project's own `states` do."""


class Plan:
    """A plan as it was read."""

    def __init__(self, content: bytes, name: str, states: tuple[tuple[str, str], ...] = ()) -> None:
        """Find the rows.

        Args:
            content: of the file; bytes that are no UTF-8 are kept as they are.
            name: of the file, for messages.
            states: other markers than `STATES`, to those.
        """
        self.content = content
        self.name = name
        # Not `splitlines`, for which a form feed ends a line too.
        self._lines = content.decode("utf-8", "surrogateescape").split("\n")
        found = _find_odd_cells(self._lines, [*_find_rows(self._lines, dict(states))])
        self.rows = list(_number_slugs(found))
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
            raise PlanError(self._describe_no_state(rows[0]))
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
        if row.odd == _EMPTY:
            return self._describe_no_state(row)
        known = ", ".join(f"`[{state}]`" for state in STATES)
        return (
            f"{self.name}:{row.line}: row `{row.id}` has the state {row.odd.strip('`')}, which is "
            f"none of {known}; write one of them, or map it in `states`"
        )

    def _describe_no_state(self, row: PlanRow) -> str:
        return f"{self.name}:{row.line}: row `{row.id}` has no state; write `[ ]` into it"

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


_LAST_NOTE = re.compile(
    r"[ \t]*\((?:evidence [0-9T:Z-]+ (?:green|red): |adopted [0-9T:Z-]+ by )[^()|]*\)$"
)
"""A note as `format_note` or `format_adoption` writes it, at the end of a cell."""
_ADOPTION = re.compile(r"\(adopted ([0-9T:Z-]+ by [^()|]*)\)$")


def format_adoption(time: str, name: str) -> str:
    """The note of a row that was done before there was evidence.

    Args:
        time: when it was adopted.
        name: of who says so.
    """
    return f"(adopted {time} by {name})"


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
        blank = text[len(text.rstrip(" \t")) :] or (" " if line[last : last + 1] == "|" else "")
        line = f"{line[:first]}{body} {change.note}{blank}{line[last:]}"
    if row.is_mapped and change.state == row.state:
        return line
    # The marker stands before the note.
    begin, end = row.marker
    return line[:begin] + change.state + line[end:]


def _number_slugs(rows: Iterator[PlanRow]) -> Iterator[PlanRow]:
    """Rows of which those without an id, and with equal texts, are told apart."""
    seen: dict[str, int] = {}
    for row in rows:
        count = seen[row.id] = seen.get(row.id, 0) + 1
        yield row if row.has_id or count == 1 else row._replace(id=f"{row.id}-{count}")


def _find_rows(lines: list[str], states: Mapping[str, str]) -> Iterator[PlanRow]:
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
            read = _read_table_row if head == "|" else _read_list_row
            row = read(line, number, states)
            if row is not None:
                yield row


class _State(NamedTuple):
    """A state as it stands in a line."""

    state: str
    begin: int
    end: int
    is_mapped: bool


def _read_state(text: str, begin: int, states: Mapping[str, str]) -> _State | None:
    """The state that a text is, which begins at a place of its line; None where it is none."""
    inner = text.strip("`")[1:-1]
    at = begin + text.index("[") + 1
    if inner in states or inner.strip() in states:
        state = states.get(inner) or states[inner.strip()]
        return _State(state, at, at + len(inner), is_mapped=True)
    if _MARKER.fullmatch(text) is None:
        return None
    return _State(inner.replace("X", "x"), at, at + 1, is_mapped=False)


def make_slug(text: str) -> str:
    """What a row without an id is called: the words before a colon, or the first of its text."""
    text = re.sub(r"`[^`]*`(?=.*\w)|[*_]{2}", "", text).lstrip(" \t([")
    words = re.findall("[a-z0-9]+", re.split(r"[:.(|]", text)[0].casefold())
    return "-".join(words[:_LONGEST_SLUG])


_LONGEST_SLUG = 6


def is_like_a_state(text: str) -> bool:
    """Whether a text stands where a state does, as `[D]`, whether it is one or not."""
    return _ODD_CELL.fullmatch(text) is not None


def _read_adoption(text: str) -> str:
    match = _ADOPTION.search(text.rstrip(" \t"))
    return match[1] if match else ""


def _read_list_row(line: str, number: int, states: Mapping[str, str]) -> PlanRow | None:
    """The row in an item of a list; None where it is none."""
    item = _LIST_ROW.fullmatch(line)
    if item is None or not item["marker"]:
        odd = _read_odd_list_row(line, number)
        if odd is not None:
            return odd
    if item is None:
        return None
    name, after = _read_list_id(item["text"])
    text = _LAST_NOTE.sub("", after.lstrip(": \t").rstrip())
    state = _read_state(item["marker"], item.start("marker"), states) if item["marker"] else None
    id = name
    if item["marker"]:
        id = name or make_slug(_LAST_NOTE.sub("", item["text"].rstrip()))
    if not id:
        return None
    if state is None:
        return PlanRow(id, number, None, text, odd=item["marker"] or "", has_id=bool(name))
    return PlanRow(
        id,
        number,
        state.state,
        text,
        (state.begin, state.end),
        item.span("text"),
        adopted=_read_adoption(after),
        has_id=bool(name),
        is_mapped=state.is_mapped,
    )


def _read_odd_list_row(line: str, number: int) -> PlanRow | None:
    """The row in an item of a list whose state is written as none is; None where it is none."""
    head = _ODD_LIST_ROW.fullmatch(line)
    if head is not None:
        name, after = _read_list_id(head["text"])
        id = name or make_slug(head["text"])
        return PlanRow(id, number, None, after, odd=head["odd"], has_id=bool(name)) if id else None
    item = _LIST_ROW.fullmatch(line) or _HEADING.fullmatch(line)
    name, after = _read_list_id(item["text"] if item else line.strip())
    odd = _MARKER_AFTER_ID.match(after) or _ODD_AFTER.fullmatch(after) if item else None
    odd = odd or (None if item else _BARE_CELL.search(after))
    return PlanRow(name, number, None, after, odd=odd["odd"]) if odd and name else None


def _read_list_id(text: str) -> tuple[str, str]:
    """The id that the text of a list's row begins with, and the rest; empty where with none."""
    both = _BOLD_ID.match(text)
    if both is not None:
        return both["id"], f" {both['text']}{text[both.end() :]}"
    id = _ID.match(text)
    if id is None:
        return "", text
    after = text[id.end() :]
    # Else the first word of any sentence would be an id.
    is_marked = id["colon"] or id["mark"] or after.startswith(":") or re.search("[0-9]", id["id"])
    return (id["id"], after) if is_marked and after[:1] in ("", " ", "\t", ":") else ("", text)


def _read_table_row(line: str, number: int, states: Mapping[str, str]) -> PlanRow | None:
    """The row in a line of a table; None where it is none."""
    cells = _split_cells(line)
    if len(cells) < 2:
        return None
    named = int(_ODD_CELL.fullmatch(line[slice(*cells[0])].strip()) is not None)
    first = line[slice(*cells[named])].strip()
    id = _ID.fullmatch(first)
    name = id["id"] if id else make_slug(first)
    last = len(cells) - 1
    text = line[slice(*cells[min(named + 1, last)])].strip()
    odd = ""
    for index, (begin, end) in enumerate(cells):
        if index == named:
            continue
        content = line[begin:end].strip()
        if "[" not in content or len(content) > _LONGEST_MARKER:
            continue
        if not _ODD_CELL.fullmatch(content):
            continue
        state = _read_state(content, begin + line[begin:end].index(content), states)
        if state is not None:
            if not name:
                return None
            return PlanRow(
                name,
                number,
                state.state,
                text if index != named + 1 else "",
                (state.begin, state.end),
                cells[last] if index < last else None,
                adopted=_read_adoption(line[slice(*cells[last])]),
                has_id=id is not None,
                is_mapped=state.is_mapped,
            )
        odd = odd or content
    has_id = id is not None
    is_row = has_id or bool(odd and name)
    return PlanRow(name, number, None, text, odd=odd, has_id=has_id) if is_row else None


def _find_odd_cells(lines: list[str], rows: list[PlanRow]) -> Iterator[PlanRow]:
    """The rows, and those of tables that have something else where others have their state."""
    by_line = {row.line: row for row in rows}
    found = dict(by_line)
    seen = 0
    for row in rows:
        if row.state is None or row.line <= seen or not _is_of_table(lines[row.line - 1]):
            continue
        cells = _split_cells(lines[row.line - 1])
        column = next(at for at, (_, end) in enumerate(cells) if row.marker[0] < end)
        for seen in _list_table(lines, row.line):
            known = by_line.get(seen)
            if known is None or not (known.state or known.odd):
                odd = _read_odd_cell(lines[seen - 1], seen, column)
                if odd is not None:
                    found[seen] = odd
    yield from (found[number] for number in sorted(found))


def _is_of_table(line: str) -> bool:
    return line.lstrip(" \t>")[:1] == "|"


def _list_table(lines: list[str], number: int) -> Iterator[int]:
    """The lines of a table below its rule, from the one of them that is known."""
    first = number
    while first > 1 and _is_of_table(lines[first - 2]):
        first -= 1
    last = number
    while last < len(lines) and _is_of_table(lines[last]):
        last += 1
    rules = [at for at in range(first, number) if _TABLE_RULE.fullmatch(lines[at - 1].rstrip())]
    return iter(range(rules[0] + 1 if rules else first, last + 1))


def _read_odd_cell(line: str, number: int, column: int) -> PlanRow | None:
    """The row of a line of a table whose state is none; None where that cell is empty."""
    cells = [line[slice(*cell)].strip() for cell in _split_cells(line)]
    if len(cells) < 2 or not any(cells[1:]):  # a title within the table
        return None
    named = int(column == 0)
    id = _ID.fullmatch(cells[named])
    name = id["id"] if id else make_slug(cells[named])
    odd = (cells[column] if column < len(cells) else "") or _EMPTY
    return PlanRow(name, number, None, "", odd=odd, has_id=id is not None) if name else None


def _split_cells(line: str) -> list[tuple[int, int]]:
    """Begin and end of each cell of a table row, between its pipes; the last one needs none."""
    first = line.index("|") + 1
    if "\\" in line:
        ends = [end.end() - 1 for end in _CELL_END.finditer(line, first)]
    else:
        ends = [*accumulate(map(len, line[first:].split("|")), lambda end, more: end + 1 + more)]
        ends = [first + end for end in ends[:-1]]
    if line[ends[-1] + 1 if ends else first :].strip(" \t"):
        ends.append(len(line))  # it has no closing pipe
    return [*zip([first, *(end + 1 for end in ends)], ends, strict=False)]

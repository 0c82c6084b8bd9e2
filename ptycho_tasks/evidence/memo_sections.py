"""The sections of a memo, by their titles, however these are written; and the entries in them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from ptycho_tasks.evidence.memo_asking import last_sentence
from ptycho_tasks.evidence.memo_ids import find_ids
from ptycho_tasks.evidence.memo_layout import ITEM, ORDER, Line, is_name, names_row, read_lines

_KINDS = {
    "summary": ["summary", "goal", "objective", "tl;dr"],
    "phase": ["phase"],
    "focus": ["focus", "initiative", "focus item", "active focus"],
    "tests": ["mapped tests", "mapped test", "mapped selectors", "tests", "test", "selectors"],
    "artifacts": [
        "artifacts", "artefacts", "artifact", "artifact folder", "artifacts folder",
        "artifact target", "artifacts target", "artifact path", "artifacts path",
        "artifacts directory", "artifact directory", "artifact hub", "artifacts hub", "hub",
        "artifacts root", "artifact root", "reports", "reports folder", "report folder",
    ],
    "do now": ["do now", "tasks", "todo", "to do", "actions", "action items", "steps", "now",
               "what to do", "next actions", "next action", "next steps",
               "task list", "work items", "assignment", "this turn", "this loop"],
    "if blocked": ["if blocked", "if stuck", "when blocked", "on failure", "blocked"],
    "how-to": [
        "how-to map", "how to map", "how-to", "how to", "howto", "how to run", "commands",
        "runbook", "recipes", "execution",
    ],
    "code": [
        "priorities & rationale", "priorities and rationale", "priorities", "rationale",
        "pointers", "references", "links", "see also",
    ],
    "plan": ["plan", "checklist", "plan file"],
    "ledger": ["ledger", "fix plan"],
    "mode": ["mode"],
    "branch": ["branch"],
    "pitfalls": ["pitfalls to avoid", "pitfalls", "do not", "don'ts", "avoid"],
    "next up": ["next up", "next", "later", "out of scope"],
}  # fmt: skip
_KIND_OF = {title: kind for kind, titles in _KINDS.items() for title in titles}
_TITLES = "|".join(re.escape(title) for title in sorted(_KIND_OF, key=len, reverse=True))
_TITLE = re.compile(
    rf"(?P<mark>#{{1,6}}\s+|[-*]\s+(?=\*\*)|)(?P<bold>\*\*|__|)(?P<title>{_TITLES})"
    r"(?P<qualifier>\s*(?:\([^)]*\)|\[[^]]*\]))?"
    r"(?:(?P<colon>\s*(?:\*\*|__)?\s*:\s*(?:\*\*|__)?)|(?P<comma>,)"
    r"|(?P<dash>(?:\*\*|__)?\s+[-=\u2013\u2014](?=\s|$))|\s*(?:\*\*|__)?\s*$)"
    r"\s*(?P<rest>.*)",
    re.IGNORECASE,
)
_OTHER_TITLE = re.compile(
    r"(?:#{1,6}\s+(?P<heading>.*)|(?:\*\*|__)?(?P<title>[A-Z][A-Za-z0-9 &/_'-]{1,40}|[a-z_]{3,20})"
    r"(?:\s*\([^)]*\))?(?:\*\*|__)?:(?:\*\*|__)?(?:\s+(?P<rest>.*))?)"
)
_STANDS_ALONE = re.compile(
    r"(?:\*\*|__)(?P<bold>[^*_`|]+?)(?:\*\*|__)|(?P<capitals>[A-Z][A-Z &/'-]{2,40})"
)
"""A line that is a title by nothing but how it is written: in bold, or in capitals."""
_ALONE = 7
"""The level of what is no heading but stands alone, in bold or in capitals: below all of them."""
_LONGEST_TEXT = 4000


@dataclass
class Section:
    """A part of a memo."""

    kind: str
    """One of the known ones; empty for others, and for what stands before the first."""
    title: str
    lines: list[Line] = field(default_factory=list)
    is_inline: bool = False
    """Whether its first line stands beside the title."""
    level: int = 0
    """Of its heading; 0 where it has none."""
    above: tuple[str, ...] = ()
    """The titles of the headings that it stands below, save the text's own."""
    is_record: bool = False
    """Whether it holds rows as lines of `ID: ...`, `Test: ...`, `Log: ...`."""


def read_sections(text: str) -> list[Section]:
    """The sections of a memo, in its order."""
    is_bulleted = bool(re.search(r"^[-*+] (?:\*\*)?do now\b", text, re.IGNORECASE | re.MULTILINE))
    sections = [Section("", "")]
    for line in itertools.chain.from_iterable(map(_split_labels, read_lines(text))):
        section = None
        if not (line.indent or line.is_fence):
            section = _read_title(line.text, line.number, sections)
            if section is None and is_bulleted:
                section = _read_title(line.text.lstrip("-*+ "), line.number, sections)
        if section is None:
            _add(sections[-1].lines, line)
        elif section is not sections[-1]:
            section.above = section.above or _find_above(sections, section.level)
            sections.append(section)
    for section in sections:
        _note_neighbours(section.lines)
        section.lines = [line for line in section.lines if line.text]
    return sections


_PLACES = "|".join(
    re.escape(title)
    for kind in ("plan", "ledger", "focus", "phase", "artifacts", "branch", "mode")
    for title in sorted(_KINDS[kind], key=len, reverse=True)
)
_NEXT_LABEL = re.compile(rf"[\s;,|\u00b7]+(?=(?:\*\*|__)?(?i:{_PLACES})(?:\*\*|__)?:\s)")


_MOST_PARTS = 8


def _split_labels(line: Line) -> list[Line]:
    """The parts of a line that says several things, as `Plan: x.md  Ledger: y.md`."""
    if line.is_fence:
        return [line]
    rows = _NEXT_ROW.split(line.text)
    if len(rows) > 1 and "`" in rows[0]:
        bullet = (ITEM.fullmatch(line.text) or {"bullet": "- "})["bullet"]
        return [replace(line, text=rows[0])] + [
            replace(line, text=f"{bullet}{o}") for o in rows[1:]
        ]
    is_place = _NEXT_LABEL.match(f" {line.text}")
    head, *others = (_NEXT_LABEL if is_place else _NEXT_TYPED).split(
        line.text, maxsplit=_MOST_PARTS
    )
    if others and not is_place:
        return [replace(line, text=head)] + [Line(line.number, line.indent + 4, o) for o in others]
    return [replace(line, text=head), *(Line(line.number, line.indent, other) for other in others)]


_OPEN_END = re.compile(r".*[^.:;!?)\s]")


def _find_above(sections: list[Section], level: int) -> tuple[str, ...]:
    """The titles of the headings that a section of a level stands below; 0 is below all."""
    titles: list[str] = []
    headings = [section for section in sections if section.level]
    for section in reversed(headings[1:]):
        if level == 0 or section.level < level:
            titles.append(section.title)
            level = section.level
    return tuple(titles)


def _note_neighbours(lines: list[Line]) -> None:
    """Note of each line what stands above and below it and may be about it."""
    heads: list[Line] = []
    """Lines that end with a colon, each within the one before."""
    before, is_apart = Line(0, 0, ""), True
    for line in lines:
        if not line.text:
            is_apart = True
            continue
        line.begins_row = _begins_row(line, before, is_apart=is_apart)
        while heads and not line.is_fence and not _is_below(line, heads[-1], before):
            heads.pop()
        if heads and heads[-1].is_item and not heads[-1].text.endswith(":"):
            while heads and heads[-1].indent >= line.indent and heads[-1].is_item:
                heads.pop()
        if not is_apart and _goes_on(before, line):
            line.lead = last_sentence(f"{before.lead} {before.text}")
        elif heads:
            line.lead = last_sentence(heads[-1].text)
        if not line.is_fence and line.text.endswith(":"):
            heads.append(line)
        elif line.is_item and not line.begins_row and not find_ids(line.text):
            heads.append(line)  # what is listed below it is part of it
        is_about = not line.is_item or line.indent > before.indent
        if is_about and not line.is_fence and (before.is_fence or not is_apart):
            before.sequel = line.text
        before, is_apart = line, False


def _begins_row(line: Line, before: Line, *, is_apart: bool) -> bool:
    """Whether a line begins with the name of a row, and not only a sentence goes on with it."""
    if line.is_fence:
        return False
    if names_row(line.text) or names_ids(line.text):
        return True
    word = line.text.split()[0].strip("[]*`")
    is_apart = is_apart or before.is_fence or before.indent > line.indent or not before.text
    return is_apart and not line.is_item and find_ids(word) == [word]


def _goes_on(before: Line, line: Line) -> bool:
    """Whether a line goes on with the sentence of the one before."""
    if line.is_item or line.is_fence or before.is_fence or before.indent < 0:
        return False
    return bool(_OPEN_END.fullmatch(before.text)) and not line.text[0].isupper()


def _is_below(line: Line, head: Line, before: Line) -> bool:
    """Whether a line is among those that a head leads to."""
    is_listed = line.is_item and not head.is_item
    return line.indent > head.indent or (line.indent == head.indent and is_listed) or before is head


def _read_title(raw: str, number: int, sections: list[Section]) -> Section | None:
    current = sections[-1]
    if names_ids(raw) and current.kind != "do now":
        if not current.is_record:
            current = Section("", current.title if not current.kind else "", is_record=True)
        current.lines.append(Line(number, 0, raw))
        return current
    kind, value = read_typed(raw) if current.is_record else ("", "")
    if kind in ("tests", "red") or (kind == "log" and value):
        return None
    alone = _STANDS_ALONE.fullmatch(raw)
    if not (current.kind or alone) and raw and raw[0] != "#" and names_row(raw):
        return None
    match = _TITLE.fullmatch(raw)
    if match and match["comma"] and _KIND_OF[match["title"].casefold()] != "if blocked":
        match = None
    if match and match["mark"][:1] in ("-", "*") and current.kind in ("do now", "how-to"):
        match = None
    if match:
        kind = _KIND_OF[match["title"].casefold()]
        rest = match["rest"]
        # A heading's dash begins a remark.
        is_remark = match["dash"] and (match["mark"] or match["bold"]) and kind != "focus"
        section = Section(kind, match["title"], is_inline=bool(rest) and not is_remark)
        section.level = match["mark"].count("#")
        if section.is_inline:
            # `1) one; 2) two` are two entries.
            numbered = kind == "do now" and re.match(r"\(?1[.)]\s", rest)
            parts = re.split(r"[;.]?\s+(?=\(?[2-9][.)]\s)", rest) if numbered else [rest]
            for part in parts:
                _add(section.lines, Line(number, 0, part))
        if kind == "artifacts" and "/" in (match["qualifier"] or ""):
            _add(section.lines, Line(number, 0, match["qualifier"].strip("()[] ")))
        return section
    if alone and (alone["bold"] or not find_ids(raw)):
        title = (alone["bold"] or raw).strip().rstrip(":")
        kind = _KIND_OF.get(title.casefold(), "")
        return Section(kind, title) if kind else _read_heading(title, number, _ALONE, sections)
    other = _OTHER_TITLE.fullmatch(raw)
    if other is None:
        return None
    if other["heading"] is not None:
        return _read_heading(other["heading"], number, len(raw) - len(raw.lstrip("#")), sections)
    is_label = current.is_record and other["rest"] and current.lines[-1].text
    if current.kind == "how-to" or is_label or (current.kind == "do now" and _is_of_entry(raw)):
        return None
    section = Section("", other["title"])
    if other["rest"]:
        _add(section.lines, Line(number, 0, other["rest"]))
    return section


def _read_heading(text: str, number: int, level: int, sections: list[Section]) -> Section:
    """The section that a heading begins, or goes on with; the name of a row is its first line."""
    current = sections[-1]
    numbered = ITEM.fullmatch(text)
    title = numbered["text"] if numbered else text
    is_row = bool(title) and (names_row(title) or is_name(title.split()[0]))
    is_below = current.level < level and (current.level or level == _ALONE)
    is_within = current.kind in ("do now", "how-to") or (current.is_record and level == _ALONE)
    goes_on = current.level == level and current.lines and current.lines[0].indent < 0
    if (is_below and is_within) or (is_row and goes_on):
        section = current
    else:
        # What a row's lines ask for, the headings above say.
        above = next(iter(_find_above(sections, level)), "")
        section = Section("", above if is_row else text, is_record=is_row)
        section.level = 0 if level == _ALONE else level
    if is_row:
        section.lines.append(Line(number, -1, title, is_item=True))
    elif section is current:
        section.lines.append(Line(number, 0, f"{title}:"))
    return section


def names_ids(text: str) -> bool:
    """Whether a line says which row the lines below it are of, as `ID: C4.D1`."""
    kind, value = read_typed(text)
    return kind == "ids" and bool(find_ids(value))


def _is_of_entry(text: str) -> bool:
    """Whether a line that ends a clause with a colon is an entry, or leads to its commands."""
    return bool(ORDER.match(text) or ITEM.fullmatch(text)) or names_row(text)


def _add(lines: list[Line], line: Line) -> None:
    """Add a line, to the one before where it goes on with it."""
    item = None if line.is_fence else ITEM.fullmatch(line.text)
    last = lines[-1] if lines else Line(0, 0, "")
    is_open = last.text.endswith("\\") or _has_open_span(last.text)
    is_open = is_open and len(last.text) < _LONGEST_TEXT and not last.is_fence
    if is_open and line.text and not (item or line.is_fence):
        last.text = f"{last.text.removesuffix(chr(92)).rstrip()} {line.text}"
        return
    if item:
        line.text, line.is_item = item["text"], True
        line.box = (re.findall(r"\[(.?)\]", item["bullet"]) or [""])[0]
    lines.append(line)


def _has_open_span(text: str) -> bool:
    return text.count("`") % 2 == 1


# ---------------------------------------------------------------------------------------------
# Inside a section

_TYPED = {
    "ids": ["checklist ids", "checklist id", "checklist rows", "checklist row", "checklist items",
            "plan ids", "plan rows", "ids", "id", "rows", "row", "items", "covers", "closes"],
    "tests": ["tests", "test", "validate", "validation", "verify", "verification", "selector",
              "selectors", "mapped tests", "pytest", "run", "command", "commands", "execute",
              "test command", "green", "cmd"],
    "red": ["red"],
    "artifacts": [title for title in _KINDS["artifacts"] if "artifact" in title]
    + ["hub", "reports", "reports folder", "report folder"],
    "log": ["log", "logs", "save log to", "log file", "log to", "save to", "save as", "store as",
            "store in", "keep as", "write to", "output", "output file", "log name", "logfile",
            "out"],
    "expect": ["expect", "expected", "expected outcome", "outcome"],
    "plan": ["plan", "plan file", "checklist"],
    "ledger": ["ledger"],
    "env": ["env", "environment", "with env"],
}  # fmt: skip
_TYPE_OF = {key: kind for kind, keys in _TYPED.items() for key in keys}
_KEYS = "|".join(re.escape(key) for key in sorted(_TYPE_OF, key=len, reverse=True))
_TYPED_LINE = re.compile(
    rf"(?:\*\*|__)?(?P<key>{_KEYS})(?:\s*\([^)]*\))?"
    r"(?:\*\*|__)?\s*(?::|[-=\u2013\u2014](?=\s))(?:\*\*|__)?\s*(?P<value>.*)",
    re.IGNORECASE,
)

_NEXT_ROW = re.compile(
    r"(?<=[`)]),?\s+(?:and\s+)?(?=[A-Z][\w.]*[0-9]\w*(?:\s[-\u2013\u2014]\s|:\s))"
)
"""Where the next row begins in a line that is about several."""
_NEXT_TYPED = re.compile(
    r"(?:[.;]|\s[|\u00b7])\s+"
    r"(?=(?:Command|Tests?|Run|Logs?|Log file|Output|Output file|Env|Environment):\s)"
)


def read_typed(text: str) -> tuple[str, str]:
    """What kind a line of an entry is of, as `Test: ...`, and its value; empty where of none."""
    match = _TYPED_LINE.fullmatch(text)
    return (_TYPE_OF[match["key"].casefold()], match["value"]) if match else ("", "")


def group_entries(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """The entries of a section, each with the lines below it; what only says of what kind it is
    goes on with the entry before, unless it begins the next one's ids."""
    group: list[Line] = []
    kinds: set[str] = set()
    for line in lines:
        base = group[0].indent if group else 0
        kind = "" if line.is_fence else read_typed(line.text)[0]
        is_head = line.is_item or not group or line.begins_row
        is_first_row = line.begins_row and line.is_item and not (group and group[0].begins_row)
        is_new = not line.is_fence and is_head and (line.indent <= base or is_first_row)
        is_typed = bool(group) and bool(kind)
        is_typed = is_typed and not (kind == "ids" and (kinds or names_ids(group[0].text)))
        other = _OTHER_KEY.match(line.text) if kinds and not kind and line.is_item else None
        follows_typed = other is not None and not find_ids(line.text[other.end() :].split(" ")[0])
        if is_new and group and not is_typed and not follows_typed:
            yield group
            group, kinds = [], set()
        group.append(line)
        if line.indent <= base and kind:
            kinds.add(kind)
    if group:
        yield group


_OTHER_KEY = re.compile(r"(?:\*\*|__)?[A-Z][A-Za-z-]+(?: [A-Za-z-]+){0,2}(?:\*\*|__)?:\s")
"""As `Implement: ...`, which is of no kind that matters here."""

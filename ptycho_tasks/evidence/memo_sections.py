"""The sections of a memo, by their titles, however these are written; and the entries in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ptycho_tasks.evidence.memo_ids import find_ids

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
               "what to do", "task list", "work items", "assignment", "this turn", "this loop"],
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
    r"|(?P<dash>(?:\*\*|__)?\s+[-\u2013\u2014](?=\s|$))|\s*(?:\*\*|__)?\s*$)"
    r"\s*(?P<rest>.*)",
    re.IGNORECASE,
)
_OTHER_TITLE = re.compile(
    r"(?:#{1,6}\s+(?P<heading>.*)|(?:\*\*|__)?(?P<title>[A-Z][A-Za-z0-9 &/_'-]{1,40})"
    r"(?:\s*\([^)]*\))?(?:\*\*|__)?:(?:\*\*|__)?(?:\s+(?P<rest>.*))?)"
)
_ORDER = re.compile(
    r"(?:Run|Rerun|Execute|Then|Next|Finally|First|Capture|Verify|Validate|Check|Use|Call|Do)\b"
)
"""How a line begins that leads to commands, and is no title, though it ends as one."""
_FENCE = re.compile(r"\s*(?:[-*]\s+)?(?P<fence>`{3,}|~{3,})\s*(?P<language>\w*)\s*$")
_ITEM = re.compile(
    r"(?P<bullet>(?:[0-9]{1,3}[.)]|(?:Step|Task|Item|Action|Entry)\s+[0-9]{1,3}\b[.:)]?|\(?(?:[0-9]{1,3}|[a-zA-Z]|[ivx]{2,4})\)|[-*+\u2022])\s+"
    r"(?:\[[ xXP]?\]\s+)?)(?P<text>.*)"
)
_LONGEST_TEXT = 4000
_SHELLS = ("", "bash", "sh", "shell", "console", "zsh", "text", "terminal")


@dataclass
class Line:
    """A line of a section, with those that go on with it; or a fence."""

    number: int
    """Counted from 1."""
    indent: int
    text: str
    """Without its bullet; of a fence, what stands in it."""
    is_item: bool = False
    """Whether a bullet or a number begins it."""
    is_fence: bool = False
    is_shell: bool = False
    """Whether what stands in the fence may be read by a shell."""
    lead: str = ""
    """The sentence above that it ends, or that leads to it, as `Never run these:`."""
    sequel: str = ""
    """The line below, which may be about it."""


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


def read_sections(text: str) -> list[Section]:
    """The sections of a memo, in its order."""
    text = _unquote(text)
    is_bulleted = bool(re.search(r"^[-*+] (?:\*\*)?do now\b", text, re.IGNORECASE | re.MULTILINE))
    sections = [Section("", "")]
    fence: Line | None = None
    end = ""
    for number, raw in enumerate(text.splitlines(), start=1):
        raw = raw.expandtabs(4)
        opened = _FENCE.match(raw)
        if fence is not None:
            if opened and opened["fence"].startswith(end) and not opened["language"]:
                fence = None
            else:
                fence.text += f"{raw}\n"
            continue
        indent = len(raw) - len(raw.lstrip())
        if opened:
            is_shell = opened["language"].casefold() in _SHELLS
            fence, end = Line(number, indent, "", False, True, is_shell), opened["fence"]
            sections[-1].lines.append(fence)
            continue
        section = None if indent else _read_title(raw.rstrip(), number, sections[-1])
        if section is None and is_bulleted and not indent:
            section = _read_title(raw.rstrip().lstrip("-*+ "), number, sections[-1])
        if section is not None:
            if section is not sections[-1]:
                sections.append(section)
        elif raw.strip():
            _add(sections[-1].lines, number, indent, raw.strip())
        else:
            sections[-1].lines.append(Line(number, 0, ""))
    for section in sections:
        _note_neighbours(section.lines)
        section.lines = [line for line in section.lines if line.text]
    return sections


_OPEN_END = re.compile(r".*[^.:;!?)\s]")


def _unquote(text: str) -> str:
    """A text without the marks of a quotation, where all of it is one."""
    lines = text.splitlines()
    is_quotation = all(line.startswith(">") for line in lines if line.strip())
    return "\n".join(re.sub("^> ?", "", line) for line in lines) if is_quotation else text


def _note_neighbours(lines: list[Line]) -> None:
    """Note of each line what stands above and below it and may be about it."""
    heads: list[Line] = []
    """Lines that end with a colon, each within the one before."""
    before, is_apart = Line(0, 0, ""), True
    for line in lines:
        if not line.text:
            is_apart = True
            continue
        while heads and not line.is_fence and not _is_below(line, heads[-1], before):
            heads.pop()
        if not is_apart and _goes_on(before, line):
            line.lead = _last_sentence(f"{before.lead} {before.text}")
        elif heads:
            line.lead = _last_sentence(heads[-1].text)
        if not line.is_fence and line.text.endswith(":"):
            heads.append(line)
        is_about = not line.is_item or line.indent > before.indent
        if is_about and not line.is_fence and (before.is_fence or not is_apart):
            before.sequel = line.text
        before, is_apart = line, False


def _goes_on(before: Line, line: Line) -> bool:
    """Whether a line goes on with the sentence of the one before."""
    if line.is_item or line.is_fence or before.is_fence or before.indent < 0:
        return False
    return bool(_OPEN_END.fullmatch(before.text)) and not line.text[0].isupper()


def _is_below(line: Line, head: Line, before: Line) -> bool:
    """Whether a line is among those that a head leads to."""
    is_listed = line.is_item and not head.is_item
    return line.indent > head.indent or (line.indent == head.indent and is_listed) or before is head


def _last_sentence(text: str) -> str:
    return re.split(r"[.;]\s", text)[-1].strip()


def _read_title(raw: str, number: int, current: Section) -> Section | None:
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
                _add(section.lines, number, 0, part)
        return section
    other = _OTHER_TITLE.fullmatch(raw)
    if other is None or (
        other["heading"] is None
        and (current.kind == "how-to" or (current.kind == "do now" and _is_of_entry(raw)))
    ):
        return None
    level = len(raw) - len(raw.lstrip("#"))
    if 0 < current.level < level and current.kind in ("do now", "how-to"):
        item = _ITEM.fullmatch(other["heading"])
        text = item["text"] if item else other["heading"]
        current.lines.append(Line(number, -1, text, is_item=True))
        return current
    section = Section("", other["heading"] or other["title"])
    if other["rest"]:
        _add(section.lines, number, 0, other["rest"])
    return section


def _is_of_entry(text: str) -> bool:
    """Whether a line that ends a clause with a colon is an entry, or leads to its commands."""
    return bool(_ORDER.match(text) or _ITEM.fullmatch(text)) or names_row(text)


def _add(lines: list[Line], number: int, indent: int, text: str) -> None:
    """Add a line, to the one before where it goes on with it."""
    item = _ITEM.fullmatch(text)
    last = lines[-1] if lines else None
    goes_on = last is not None and 0 < len(last.text) < _LONGEST_TEXT and not last.is_fence
    goes_on = goes_on and not item
    if last is not None and goes_on and (last.text.endswith("\\") or _has_open_span(last.text)):
        last.text = f"{last.text.removesuffix(chr(92)).rstrip()} {text}"
    else:
        lines.append(Line(number, indent, item["text"] if item else text, bool(item)))


def _has_open_span(text: str) -> bool:
    return text.count("`") % 2 == 1


# ---------------------------------------------------------------------------------------------
# Inside a section

_TYPED = {
    "ids": ["checklist ids", "checklist id", "checklist rows", "checklist row", "checklist items",
            "plan ids", "plan rows", "ids", "id", "rows", "row", "items", "covers", "closes"],
    "tests": ["tests", "test", "validate", "validation", "verify", "verification", "selector",
              "selectors", "mapped tests", "pytest", "run", "command", "commands", "execute",
              "test command", "green"],
    "red": ["red"],
    "artifacts": [title for title in _KINDS["artifacts"] if "artifact" in title]
    + ["hub", "reports", "reports folder", "report folder"],
    "log": ["log", "logs", "save log to", "log file", "log to", "save to", "save as", "store as",
            "store in", "keep as", "write to", "output"],
    "plan": ["plan", "plan file", "checklist"],
    "ledger": ["ledger"],
}  # fmt: skip
_TYPE_OF = {key: kind for kind, keys in _TYPED.items() for key in keys}
_KEYS = "|".join(re.escape(key) for key in sorted(_TYPE_OF, key=len, reverse=True))
_TYPED_LINE = re.compile(
    rf"(?:\*\*|__)?(?P<key>{_KEYS})(?:\s*\([^)]*\))?"
    r"(?:\*\*|__)?\s*(?::|[-\u2013\u2014](?=\s))(?:\*\*|__)?\s*(?P<value>.*)",
    re.IGNORECASE,
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
        is_head = line.is_item or not group or names_row(line.text)
        is_new = not line.is_fence and line.indent <= base and is_head
        is_typed = bool(group) and bool(kind) and not (kind == "ids" and kinds)
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


def names_row(text: str) -> bool:
    """Whether a text begins with the name of a row, as `C4.D1: ...` or `| C4.D1 | ...`."""
    word, _, rest = text.strip("| *`").partition(" ")
    is_apart = word.endswith((":", "**")) or bool(re.match(r"[|@:(\u2013\u2014-]", rest.strip()))
    return is_apart and bool(find_ids(word.strip("[]:*`")))


_OTHER_KEY = re.compile(r"(?:\*\*|__)?[A-Z][A-Za-z-]+(?: [A-Za-z-]+){0,2}(?:\*\*|__)?:\s")
"""As `Implement: ...`, which is of no kind that matters here."""

"""The lines of a memo, laid out in one way, however its writer did: titles are headings or end with
a colon, tables have their bars, fences are one line each, and what is not to be read is gone."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from ptycho_tasks.evidence.memo_ids import find_ids
from ptycho_tasks.evidence.memo_shell import is_plain_command

ITEM = re.compile(
    r"(?P<bullet>(?:[0-9]{1,3}[.)]|(?:Step|Task|Item|Action|Entry)\s+[0-9]{1,3}\b(?:\s+of\s+[0-9]+)?"
    r"[.:)]?|\(?(?:[0-9]{1,3}|[a-zA-Z]|[ivx]{2,4})\)|[-*+\u2022]"
    r"|[A-Z][0-9]{1,2}\.(?=\s+[A-Z]+[0-9]*\.[0-9A-Za-z]))\s+"
    r"(?:\[[ xXP]?\]\s+)?|\[[ xXP]?\]\s+)(?P<text>.*)"
)
ORDER = re.compile(
    r"(?:Run|Rerun|Execute|Then|Next|Finally|First|Capture|Verify|Validate|Check|Use|Call|Do)\b"
)
"""How a line begins that leads to commands, and is no title, though it ends as one."""
_UNSEEN = re.compile(r"<!--.*?-->|~~(?!~)[^~\n]+~~(?!~)", re.DOTALL)
"""What a reader of Markdown does not see, or sees struck out."""
_FENCE = re.compile(r"\s*(?:[-*]\s+)?(?P<fence>`{3,}|~{3,})\s*(?P<language>\w*)\s*$")
_SHELLS = ("", "bash", "sh", "shell", "console", "zsh", "text", "terminal")
_UNDERLINE = re.compile(r"(?:={3,}|-{3,})\s*")
_ITALIC_LABEL = re.compile(r"(?<![\w*])\*([A-Z][A-Za-z ]{2,30}:)\*(?!\*)")
_SHORT = re.compile(r"[A-Z][^\s`|:.;,()]*(?: [^\s`|:.;,()]+){0,4}")


@dataclass
class Line:
    """A line of a memo, with those that go on with it; or a fence."""

    number: int
    """Counted from 1."""
    indent: int
    text: str
    """Without its bullet; of a fence, what stands in it."""
    is_item: bool = False
    """Whether a bullet or a number begins it."""
    box: str = ""
    """What stands between its brackets: a space, `x`, `P`; empty where it has none."""
    begins_row: bool = False
    """Whether it begins with the name of a row, of which it and the lines below it are."""
    is_fence: bool = False
    is_shell: bool = False
    """Whether what stands in the fence may be read by a shell."""
    lead: str = ""
    """The sentence above that it ends, or that leads to it, as `Never run these:`."""
    sequel: str = ""
    """The line below, which may be about it."""


def drop_unseen(text: str) -> tuple[str, dict[int, str]]:
    """A text without what is not to be read, and by line what that was; each line stays in its
    place."""
    left = {
        text.count("\n", 0, match.start()) + 1: (
            "is a comment" if match[0].startswith("<") else "is struck out"
        )
        for match in _UNSEEN.finditer(text)
    }
    return _UNSEEN.sub(lambda match: "\n" * match[0].count("\n"), text), left


def read_lines(text: str) -> list[Line]:
    """The lines of a text, empty ones too; those that are no fence have their bullets still."""
    lines: list[Line] = []
    fence: Line | None = None
    end = ""
    for number, raw in enumerate(_unquote(text).splitlines(), start=1):
        raw = raw.expandtabs(4)
        opened = _FENCE.match(raw)
        indent = len(raw) - len(raw.lstrip())
        if fence is not None and opened and opened["fence"][:3] == end and not opened["language"]:
            fence = None
        elif fence is not None:
            fence.text += f"{raw}\n"
        elif opened:
            is_shell = opened["language"].casefold() in _SHELLS
            fence, end = Line(number, indent, "", is_fence=True, is_shell=is_shell), opened["fence"]
            lines.append(fence)
        else:
            lines.append(Line(number, indent, raw.strip()))
    for line in lines:
        if not line.is_fence:
            line.text = _ITALIC_LABEL.sub(r"\1", line.text)
        # A table may lack its outer bars.
        if " | " in line.text and not line.is_fence and is_name(split_cells(line.text)[0]):
            line.text = f"| {line.text.strip('| ')} |"
    _unfold(lines)
    _mark_titles(lines)
    return lines


def _unquote(text: str) -> str:
    """A text without the marks of a quotation, where all of it is one."""
    lines = text.splitlines()
    is_quotation = all(line.startswith(">") for line in lines if line.strip())
    return "\n".join(re.sub("^> ?", "", line) for line in lines) if is_quotation else text


def _unfold(lines: list[Line]) -> None:
    """Where all is one list, each of whose bullets is a title for those below it, make titles of
    these."""
    outer = [n for n, line in enumerate(lines) if line.text and not line.indent]
    bullets = [n for n in outer if lines[n].text[0] != "#"]
    is_outline = len(bullets) > 1 and all(
        re.fullmatch(r"[-*+] [\w*][^`:|]*", lines[n].text)
        and not names_row(lines[n].text[2:])
        and lines[n + 1 : n + 2]
        and lines[n + 1].indent
        for n in bullets
    )
    if is_outline:
        for line in lines:
            line.indent = max(0, line.indent - 2)
        for n in bullets:
            lines[n].text = f"{lines[n].text[2:]}:"


def _mark_titles(lines: list[Line]) -> None:
    """Make headings of titles that are underlined, and end those with a colon that stand apart
    above what is indented; the marks around what stands in front are none."""
    marks = [n for n, line in enumerate(lines) if line.text == "---"]
    if marks[:1] == [0]:
        for n in marks[:2]:
            lines[n].text = ""
    before = Line(0, 0, "")
    for line, below in itertools.pairwise(lines):
        is_title = not (line.indent or line.is_fence or ITEM.fullmatch(line.text))
        is_apart, before = not before.text, line
        if is_title and _UNDERLINE.fullmatch(below.text) and _may_be_title(line.text):
            line.text = f"{'#' if below.text[0] == '=' else '##'} {line.text}"
            below.text = ""
        elif is_title and is_apart and below.indent > 1 and _SHORT.fullmatch(line.text):
            is_other = ORDER.match(line.text) or names_row(line.text)
            line.text += "" if is_other else ":"


def _may_be_title(text: str) -> bool:
    return bool(re.fullmatch(r"\w[^|`]{0,78}[^|`.;,:]", text))


def names_row(text: str) -> bool:
    """Whether a text begins with the name of a row, as `C4.D1: ...` or `| C4.D1 | ...`."""
    if text.startswith("|"):
        return any(is_name(cell) for cell in split_cells(text)[:3])
    word, _, rest = text.strip("*` ").partition(" ")
    named = _NAMED_BEHIND.match(text) or _ORDERED_ROW.match(text)
    if named and is_name(named["ids"]):
        return True
    is_apart = word.endswith((":", "**")) or bool(_APART.match(rest.strip()))
    is_apart = is_apart or is_plain_command(rest)
    return is_apart and bool(find_ids(word.strip("[]:*`")))


_APART = re.compile(r"(?:[|@:(=\u2013\u2014\u2190\u2192]|<-|->?|=>)")
_NAMED_BEHIND = re.compile(
    r"[A-Z][^`:.;()]{1,60}\((?P<ids>[^()]{1,40})\)\s*(?::|[\u2013\u2014-]\s|$)"
)
"""How a line begins that names its rows behind what it calls them, as `Step 1 (C4.D1): ...`."""
_ORDERED_ROW = re.compile(
    r"(?i:(?:(?:first|then|next|finally|also|now|second(?:ly)?|third(?:ly)?|last(?:ly)?),?\s+)?"
    r"(?:for|prove|close|verify|check|show|finish|do|run|cover|complete|demonstrate|tackle)\s+(?:the\s+)?"
    r"(?:rows?\s+|items?\s+)?)(?P<ids>[A-Z]\S*[0-9A-Z](?:(?:,\s*|\s+and\s+|\s*\+\s*)[A-Z]\S*[0-9A-Z])*)"
    r"(?=[\s,:;.]|$)"
)
"""How a line begins that orders work on rows, as `First prove C4.D1 with ...`."""


def split_cells(text: str) -> list[str]:
    """The cells of a row of a table; a bar within a code span, or behind a backslash, is text."""
    marked = re.sub(r"`[^`]*`", lambda span: span[0].replace("|", "\0"), text.strip())
    marked = marked.replace("\\|", "\0").replace("\\\0", "\0").removeprefix("|").removesuffix("|")
    marked = re.sub(r"\|(?=&?\s*tee\s)", "\0", marked)
    return [cell.replace("\0", "|").strip() for cell in marked.split("|")]


def is_name(text: str) -> bool:
    """Whether a text is nothing but the names of rows."""
    words = re.split(r"[\s,+&/]+|\band\b", text.strip("*`[] "))
    return all(find_ids(word) for word in words if word) and any(words)

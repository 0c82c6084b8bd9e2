"""A ledger in Markdown: attempts are added, in their initiative's section where there is one, and
nothing else of it changes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# The last part: `Attempt 2025-01-01` is a date, and no number.
_ATTEMPT = re.compile(rb"\bAttempt\s+#?([0-9]{1,9})\b(?!-[0-9])")


_HEADING = re.compile(rb" {0,3}(#{1,6})[ \t]+(.*)")
_HEADED = re.compile(rb"[ \t]*#{1,6}[ \t]+[*_]*Attempt\b")
_LISTED = re.compile(
    rb"(?P<bullet>[ \t]*[-*+][ \t]+)(?P<before>(?:\[[^]]*\][ \t]*)?)(?P<mark>\*\*|__|)"
    rb"Attempt[ \t]+(?P<hash>#?)[0-9]+"
)
_FENCE = re.compile(rb" {0,3}(`{3,}|~{3,})")


def append_attempt(content: bytes, title: str, lines: Sequence[str], initiative: str = "") -> bytes:
    """A ledger with one more attempt: at the end of its initiative's section, numbered there and in
    the form of the attempts there; without such a section at its own end.

    Args:
        content: of the ledger, of which no byte changes.
        title: stands after the attempt's number.
        lines: of the attempt, as Markdown.
        initiative: whose section it goes into.
    """
    section = _find_section(content, initiative) if initiative else None
    if section is not None:
        return _add_to_section(content, section, title, lines)
    end = b"\r\n" if content.count(b"\r\n") * 2 > content.count(b"\n") else b"\n"
    number = max((int(digits) for digits in _ATTEMPT.findall(content)), default=0) + 1
    text = [f"### Attempt {number}: {title}", "", *lines]
    gap = b"" if not content else end if content.endswith(b"\n") else end * 2
    return content + gap + b"".join(line.encode() + end for line in text)


def has_line(content: bytes, line: str) -> bool:
    """Whether a ledger has a line already."""
    return line.strip().encode() in (one.strip() for one in content.split(b"\n"))


class _Section(NamedTuple):
    """Lines of a ledger that belong to an initiative."""

    first: int
    last: int
    """The first line that does not belong to it."""
    level: int
    """Of its heading."""


def _find_section(content: bytes, initiative: str) -> _Section | None:
    """The section whose heading names an initiative; None where there is none."""
    name = re.compile(rb"(?<![\w-])" + re.escape(initiative.encode()) + rb"(?![\w-])")
    found: tuple[int, int] | None = None
    fence = b""
    lines = content.split(b"\n")
    for number, line in enumerate(lines):
        opened = _FENCE.match(line)
        if opened and (not fence or opened[1].startswith(fence)):
            fence = b"" if fence else opened[1]
        heading = None if fence or opened else _HEADING.match(line)
        if heading is None:
            continue
        level = len(heading[1])
        if found is not None and level <= found[1]:
            return _Section(found[0], number, found[1])
        if found is None and name.search(heading[2]) and not _HEADED.match(line):
            found = (number, level)
    return None if found is None else _Section(found[0], len(lines), found[1])


def _add_to_section(content: bytes, section: _Section, title: str, texts: Sequence[str]) -> bytes:
    lines = content.split(b"\n")
    end = b"\r" if content.count(b"\r\n") * 2 > content.count(b"\n") else b""
    inside = lines[section.first : section.last]
    number = max((int(n) for line in inside for n in _ATTEMPT.findall(line)), default=0) + 1
    at = section.last
    while not lines[at - 1].strip():
        at -= 1
    listed = [match for line in inside if (match := _LISTED.match(line))]
    if listed and not any(map(_HEADED.match, inside)):
        at = _find_end_of_list(lines, section, at)
        last = listed[-1]
        indent = " " * len(last["bullet"].expandtabs(4))
        mark, bullet = last["mark"].decode(), last["bullet"].decode()
        entry = [f"{bullet}{mark}Attempt {last['hash'].decode()}{number}{mark}: {title}"]
        entry += [f"{indent}{text}" for text in texts]
    else:
        marks = "#" * min(section.level + 1, 6)
        entry = ["", f"{marks} Attempt {number}: {title}", "", *texts]
    if at == len(lines):  # its last line does not end
        entry = [*entry, ""]
        lines[-1] += end
    return b"\n".join([*lines[:at], *_end_lines(entry, end, at == len(lines)), *lines[at:]])


def _end_lines(entry: Sequence[str], end: bytes, is_last: bool) -> list[bytes]:
    lines = [line.encode() + end for line in entry]
    return [*lines[:-1], b""] if is_last else lines


def _find_end_of_list(lines: Sequence[bytes], section: _Section, last: int) -> int:
    """The line after the last listed attempt, with what belongs to it."""
    begins = [n for n in range(section.first, last) if _LISTED.match(lines[n])]
    at = begins[-1] + 1
    while at < last and (lines[at][:1] in (b" ", b"\t") or not lines[at].strip()):
        at += 1
    while not lines[at - 1].strip():
        at -= 1
    return at


def lock_file(ledger: Path) -> Path:
    """The file beside a ledger to lock while one appends to it: projects may share a ledger."""
    return ledger.with_name(f".{ledger.name}.lock")

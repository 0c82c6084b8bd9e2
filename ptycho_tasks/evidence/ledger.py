"""A ledger in Markdown: attempts are appended, and nothing else of it changes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

# The last part: `Attempt 2025-01-01` is a date, and no number.
_ATTEMPT = re.compile(rb"\bAttempt\s+#?([0-9]{1,9})\b(?!-[0-9])")


def append_attempt(content: bytes, title: str, lines: Sequence[str]) -> bytes:
    """A ledger with one more attempt at its end.

    Args:
        content: of the ledger, of which no byte changes.
        title: stands after the attempt's number.
        lines: of the attempt, as Markdown.
    """
    end = b"\r\n" if content.count(b"\r\n") * 2 > content.count(b"\n") else b"\n"
    number = max((int(digits) for digits in _ATTEMPT.findall(content)), default=0) + 1
    text = [f"### Attempt {number}: {title}", "", *lines]
    gap = b"" if not content else end if content.endswith(b"\n") else end * 2
    return content + gap + b"".join(line.encode() + end for line in text)


def has_line(content: bytes, line: str) -> bool:
    """Whether a ledger has a line already."""
    return line.encode() in content.replace(b"\r\n", b"\n").split(b"\n")


def lock_file(ledger: Path) -> Path:
    """The file beside a ledger to lock while one appends to it: projects may share a ledger."""
    return ledger.with_name(f".{ledger.name}.lock")

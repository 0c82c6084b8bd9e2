"""A picture in one line of how much of a plan is proved, for the page of a project."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.evidence.checklist import BY_HAND, VALID, CheckedRow
from ptycho_tasks.evidence.plan import DONE, STATES
from ptycho_tasks.layout import EVIDENCE

_RED, _AMBER, _GREEN = "#c62828", "#8a6100", "#2e7d32"
_HEAD = 300
"""Bytes at the head of a badge, in which it says what it is."""
_CHARACTER = 6.5
"""Width of one, pixels: of the mean letter of the font below."""
_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" \
aria-label="{label}: {text}">
<rect width="{width}" height="20" rx="3" fill="#424242"/>
<path d="M{left} 0h{right}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{right}z" fill="{colour}"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="8" y="14">{label}</text>
<text x="{text_at}" y="14">{text}</text>
</g>
</svg>
"""


def refuse_other_picture(path: Path) -> None:
    """Refuse to write a badge over what is none.

    Raises:
        ConfigError: one line that names the path.
    """
    if not os.path.lexists(path):
        return
    with suppress(OSError), path.open("rb") as file:
        if f'aria-label="{EVIDENCE}: '.encode() in file.read(_HEAD):
            return
    raise ConfigError(f"{path} is there and is no badge; choose another path")


def draw_badge(rows: Sequence[CheckedRow], problems: Sequence[str]) -> str:
    """An SVG file that says how many rows are done and proved, or how many problems there are.

    Args:
        rows: of the plan, as they were checked.
        problems: that the check must not pass.
    """
    proved = sum(row.state == STATES[DONE] and row.evidence in (VALID, BY_HAND) for row in rows)
    text, colour = f"{proved} of {len(rows)} proved", _AMBER
    if problems:
        text, colour = f"{len(problems)} problem{'s' * (len(problems) > 1)}", _RED
    elif proved == len(rows):
        colour = _GREEN
    left, right = (round(len(word) * _CHARACTER) + 16 for word in (EVIDENCE, text))
    return _SVG.format(
        width=left + right,
        left=left,
        right=right - 3,
        text_at=left + 8,
        label=EVIDENCE,
        text=text,
        colour=colour,
    )

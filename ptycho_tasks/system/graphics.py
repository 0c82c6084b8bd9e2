"""What a terminal can show beside text, asked so that no terminal shows garbage.

What is known by the names that terminals set is taken from these. Any other is asked what it is
(DA1, to which all terminals answer that one meets), and has a moment to say that it knows sixels.
"""

from __future__ import annotations

import os
import re
import select
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal, TextIO

Graphics = Literal["kitty", "sixel", "blocks"]
_KITTY_PROGRAMS = ("ghostty", "WezTerm")
_PATIENCE_S = 1.0
"""How long a terminal may take to say what it is; an answer that comes later is shown as text."""
_QUESTION = b"\x1b[c"
_ANSWER = re.compile(rb"\x1b\[\?([\d;]*)c")
_SIXEL = "4"


def find_graphics(stream: TextIO, environment: Mapping[str, str] = os.environ) -> Graphics | None:
    """How a stream shows pictures; None where it does not, or nobody looks.

    Args:
        stream: as stdout.
        environment: variables.
    """
    kind = environment.get("TERM", "")
    is_wanted = not (environment.get("NO_COLOR") or environment.get("CI"))
    if not (is_wanted and stream.isatty() and kind not in ("", "dumb")):
        return None
    # These hand on what they know, and a variable may be of a terminal further out.
    is_inside = environment.get("TMUX") or environment.get("STY")
    is_kitty = kind == "xterm-kitty" or environment.get("TERM_PROGRAM") in _KITTY_PROGRAMS
    if is_kitty and not is_inside:
        return "kitty"
    if _SIXEL in _ask_attributes(stream):
        return "sixel"
    has_colours = environment.get("COLORTERM") in ("truecolor", "24bit")
    is_utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
    return "blocks" if has_colours and is_utf8 else None


def _ask_attributes(stream: TextIO) -> list[str]:
    """What the terminal of a stream says that it is; nothing where it cannot be asked."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return []
    with suppress(OSError, ValueError, termios.error):
        source, target = sys.stdin.fileno(), stream.fileno()
        if not _is_ours(source, target):
            return []
        before = termios.tcgetattr(source)
        try:
            tty.setcbreak(source, termios.TCSADRAIN)
            # What was typed already would be lost.
            if not select.select([source], [], [], 0)[0]:
                os.write(target, _QUESTION)
                return _read_answer(source)
        finally:
            termios.tcsetattr(source, termios.TCSADRAIN, before)
    return []


def _is_ours(source: int, target: int) -> bool:
    """Whether input comes from the terminal that is written to, and this program may read it."""
    is_same = os.isatty(source) and os.ttyname(source) == os.ttyname(target)
    return is_same and os.tcgetpgrp(source) == os.getpgrp()


def _read_answer(source: int) -> list[str]:
    answer, deadline = b"", time.monotonic() + _PATIENCE_S
    while select.select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
        answer += os.read(source, 64)
        found = _ANSWER.search(answer)
        if found:
            return found[1].decode().split(";")
    return []

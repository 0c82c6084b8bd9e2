"""What a program of ours sets for its process; nothing that is imported into another's does so."""

from __future__ import annotations

import atexit
import gc

_whole_process = False


def begin_program(*, is_whole: bool) -> None:
    """Call it before others register what is to be done at the end.

    Thousands of objects are made at the start and all of them are kept: to look for garbage among
    them after every few hundred is a quarter of the time of a run with nothing to do. At the end,
    garbage is left to the system: to look for it once more takes, with torch, a quarter of the time
    that its import took.

    Args:
        is_whole: whether the process runs nothing but our program, such as tasks of the user.
    """
    global _whole_process
    _whole_process = is_whole
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)


def is_whole_process() -> bool:
    """Whether this process runs nothing but our program, so that what no part of it needs may be
    left out."""
    return _whole_process

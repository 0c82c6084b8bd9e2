"""Output of which only some lines are shown."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO

from ptycho_tasks.system.terminal import print_text


class _Sieve(io.TextIOBase):
    """A text stream that hands on whole lines, as they are to be shown."""

    def __init__(self, stream: TextIO, show: Callable[[str], str | None]) -> None:
        self._stream, self._show, self._part = stream, show, ""

    def write(self, text: str) -> int:
        *lines, self._part = (self._part + text).split("\n")
        for line in map(self._show, lines):
            if line is not None:
                print_text(f"{line}\n", self._stream)
        return len(text)


@contextmanager
def sift_output(show: Callable[[str], str | None], stream: TextIO) -> Iterator[None]:
    """In the block, write to `stream` what `show` makes of each line that is written to stdout or
    stderr; None shows nothing."""
    with redirect_stdout(_Sieve(stream, show)), redirect_stderr(_Sieve(stream, show)):
        yield

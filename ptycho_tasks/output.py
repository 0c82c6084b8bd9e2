"""Writing to the terminal, or to whatever stands in its place."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def say(text: str, stream: TextIO | None = None) -> None:
    """Write a text and flush it; whoever stops reading (`| head`) stops no work."""
    stream = stream or sys.stdout
    if stream is None:  # closed by who started the program
        return
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        # Else the interpreter would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

"""Writing to the terminal, or to whatever stands in its place."""

from __future__ import annotations

import atexit
import errno
import functools
import os
import sys
from contextlib import suppress
from typing import TextIO

from ptycho_tasks.errors import one_line

BROKEN_PIPE_STATUS = 141
"""Exit status of a command that stopped since nobody read on, as of one that SIGPIPE ended."""

WRITE_ERRORS = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG, getattr(errno, "EDQUOT", -1))
"""Errors of a stream that cannot be written any more."""

_lost = False
"""Whether something could not be written; the exit status is then 1."""


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a line. Characters that would control a terminal or begin a new line are escaped."""
    print_text(f"{one_line(str(text))}\n", sys.stderr if err else None)


def print_text(text: str, stream: TextIO | None = None) -> None:
    """Print a text as it is, and flush it. No error here stops the work: neither a reader that is
    gone (`| head`) nor a full disk."""
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
        _silence(stream)
    except OSError as error:
        give_up_output(error, stream)


def give_up_output(error: OSError, stream: TextIO | None = None) -> None:
    """Say once that a stream (by default stdout) cannot be written, and write nothing more to it.

    The program then ends with an error, even if all else goes well.
    """
    global _lost
    _lost = True
    stream = stream or sys.stdout
    _silence(stream)
    if stream is not sys.stderr:
        echo(f"error: the output cannot be written: {error.strerror or error}", err=True)


@functools.cache
def flush_at_exit() -> None:
    """At the end of this process, flush stdout. If that fails, the user sees one line and the exit
    status is 1; a reader that is gone is no failure."""
    # Else the next file to be opened would take the place of a closed stream, and get its text.
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)
    atexit.register(_flush)


def silence_stdout() -> None:
    """Write nothing more to stdout: its reader is gone."""
    _silence(sys.stdout)


def _flush() -> None:
    print_text("")
    if _lost:
        # The interpreter has its exit status already.
        os._exit(1)


def _silence(stream: TextIO) -> None:
    """Send a stream to nowhere; the interpreter would complain about it once more at its end."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)

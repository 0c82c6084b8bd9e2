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
"""How a stream says that it takes no more."""

_lost = False
"""Whether something could not be written, which the exit status says then."""


def echo(text: object = "", *, err: bool = False) -> None:
    """Write a line of ours; what would steer a terminal, or begin another line, is escaped."""
    print_text(f"{one_line(str(text))}\n", sys.stderr if err else None)


def print_text(text: str, stream: TextIO | None = None) -> None:
    """Write a text as it is and flush it; who stops reading (`| head`), and a disk that is full,
    stop no work."""
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
    """Say once that a stream, by default stdout, cannot be written, and write nothing more to it;
    the program then ends with an error, whatever else it came to."""
    global _lost
    _lost = True
    stream = stream or sys.stdout
    _silence(stream)
    if stream is not sys.stderr:
        echo(f"error: the output cannot be written: {error.strerror or error}", err=True)


@functools.cache
def flush_at_exit() -> None:
    """At the end of this process, write what is left to write; where that fails, it is one line
    and exit status 1, unless only nobody reads on."""
    # Else the next file to be opened would take the place of a closed stream, and get its text.
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)
    atexit.register(_flush)


def silence_stdout() -> None:
    """Write nothing more to stdout, of which the reader is gone."""
    _silence(sys.stdout)


def _flush() -> None:
    print_text("")
    if _lost:
        # The interpreter has its exit status already.
        os._exit(1)


def _silence(stream: TextIO) -> None:
    """Else the interpreter would complain once more when it ends."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)

"""Unforeseen exceptions: one line for the user, and a file with the traceback to report."""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from ptycho_tasks.errors import DEBUG, PtychoTasksError, one_line
from ptycho_tasks.system.lock import STATE_DIR
from ptycho_tasks.system.terminal import (
    BROKEN_PIPE_STATUS,
    WRITE_ERRORS,
    echo,
    give_up_output,
    silence_stdout,
)

FOLDER = f"{STATE_DIR}/faults"
"""Where the tracebacks of a project lie."""
_STAMP = "%Y-%m-%dT%H%M%SZ"
_LONGEST = 300
_OURS = "ptycho_tasks"
_LOCAL = "ptycho_tasks_local_"
"""What the names of our packages, and of modules that hold a project's own backends, begin with."""
_PASSES_ON = "ptycho_tasks.builds.running"
"""Our module which all of doit's run is below, and which has no part in its faults."""


def show_fault(error: BaseException, culprit: str = "") -> str:
    """Show an unforeseen error in one line, which names the file of its traceback.

    Args:
        error: as caught.
        culprit: what failed, as "backend `x`"; empty where it is our fault.

    Returns:
        The line.
    """
    text = one_line(f"{type(error).__name__}: {error}")
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    if isinstance(error, MemoryError):
        asked = f": {one_line(str(error))}" if str(error) else ""
        line = f"memory ran out{asked}; take fewer or smaller frames, or a machine with more"
    elif culprit:
        line = f"{culprit} failed: {text}; the traceback is in {_save(error)}"
    else:
        place = _save(error)
        line = f"a fault of ptycho-tasks: {text}; the traceback is in {place}: please report it"
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    echo(f"error: {line}", err=True)
    return line


def _save(error: BaseException) -> str:
    """Save the traceback of an error, in the project or else in a temporary folder; gives the
    path."""
    text = "".join(
        [
            f"{' '.join(map(repr, sys.argv))}\nin {os.environ.get('PWD', '?')!r}\n"
            f"Python {sys.version}\n{sys.platform}\n\n",
            *traceback.format_exception(error),
        ]
    ).encode("utf-8", "backslashreplace")
    stamp = time.strftime(_STAMP, time.gmtime())
    folders = [FOLDER] if any(map(os.path.lexists, ("ptycho.yaml", STATE_DIR))) else []
    for folder in map(Path, [*folders, tempfile.gettempdir()]):
        prefix = "" if folder == Path(FOLDER) else "ptycho-tasks-"
        for ending in ("", *(f".{n}" for n in range(1, 100))):
            path = folder / f"{prefix}{stamp}{ending}.txt"
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file:
                    file.write(text)
                return str(path)
    return "no file, for none can be written (PTYCHO_TASKS_DEBUG=1 shows it)"


def find_owner(error: BaseException) -> Literal["us", "user", "library"]:
    """Whose code an exception comes from: the code that ran last and is no library's; a library's
    if no other ran."""
    import sysconfig

    paths = sysconfig.get_paths()
    installed = tuple(f"{paths[name]}{os.sep}" for name in ("stdlib", "purelib", "platlib"))
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = frame.f_globals.get("__name__", "")
        if module == _PASSES_ON:
            continue
        if module.startswith(_OURS):
            return "user" if module.startswith(_LOCAL) else "us"
        if not frame.f_code.co_filename.startswith(("<", *installed)):
            return "user"
    return "library"


def is_raised_by(error: BaseException, thing: object) -> bool:
    """Whether an exception was raised in, or below, the package that `thing`'s class belongs to."""
    package = type(thing).__module__.partition(".")[0]
    return any(
        frame.f_globals.get("__name__", "").partition(".")[0] == package
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


class DoitTraceback:
    """Stands in for the module `traceback` where doit shows an exception that ends a command."""

    def format_exc(self) -> str:
        """The traceback of the current exception, if it is what a user needs.

        Raises:
            SystemExit: one line was enough.
        """
        error = sys.exc_info()[1]
        assert error is not None
        status = _exit_status(error)
        if status is None:
            return traceback.format_exc()
        raise SystemExit(status)


def _exit_status(error: BaseException) -> int | None:
    """Show an exception that ended a command of doit in one line, and give the exit status; None,
    and nothing is shown, for an exception of the dodo.py's own."""
    from doit.dependency import DatabaseException

    if isinstance(error, BrokenPipeError):
        silence_stdout()
        return BROKEN_PIPE_STATUS
    if isinstance(error, PtychoTasksError):
        echo(f"error: {error}", err=True)
        return error.exit_code
    if sys.stdout is None and isinstance(error, AttributeError):
        echo("error: the output cannot be written: it is closed", err=True)
        return 1
    owner = find_owner(error)
    if isinstance(error, (DatabaseException, sqlite3.Error)) and owner == "library":
        echo(
            f"error: {STATE_DIR} holds what was built, in a form that doit's other backends cannot "
            "read; leave out --backend, and `backend` in a configuration of doit",
            err=True,
        )
        return 2
    if isinstance(error, OSError) and error.errno in WRITE_ERRORS and owner != "us":
        give_up_output(error)
        return 1
    if owner == "user" and not isinstance(error, MemoryError):
        return None
    show_fault(error, "" if owner == "us" else "doit")
    return 1


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the program, with one line, at a user's error or a fault of ours in the block. doit would
    show a traceback."""
    try:
        yield
    except PtychoTasksError as error:
        show_error(error)
        raise SystemExit(error.exit_code) from error
    except Exception as error:
        if find_owner(error) != "us":
            raise
        show_fault(error)
        raise SystemExit(1) from error


def show_error(error: PtychoTasksError) -> None:
    """Show an error in one line; with PTYCHO_TASKS_DEBUG, its traceback too."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    echo(f"error: {error}", err=True)

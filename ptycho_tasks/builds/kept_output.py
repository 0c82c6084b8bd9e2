"""What a task printed when it last ran, which is kept for those who look at it later."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ptycho_tasks.system.lock import STATE_DIR

_FOLDER = f"{STATE_DIR}/output"
_RUNNING, _MADE, _FAILED = "running", "made", "failed"


@dataclass
class KeptOutput:
    """The copy of what a block prints."""

    file: TextIO
    is_failed: bool = False
    """Whether the block failed, which says so here."""


class _Copied:
    """A text stream, of which a file gets a copy."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self._stream, self._file = stream, file

    def write(self, text: str) -> int:
        with suppress(OSError):  # a full disk costs the copy alone
            self._file.write(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def keep_output(task: str) -> Iterator[KeptOutput]:
    """Keep what the block prints, in place of what the task printed when it last made something; or
    beside that, when it fails."""
    kept = KeptOutput(_open(_place(task, _RUNNING)))
    out, err = (stream and _Copied(stream, kept.file) for stream in (sys.stdout, sys.stderr))
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield kept
    finally:
        with suppress(OSError):  # the last of it did not fit
            kept.file.close()
    with suppress(OSError):
        _place(task, _RUNNING).replace(_place(task, _FAILED if kept.is_failed else _MADE))


def _open(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8", errors="backslashreplace")
    except OSError:  # no task fails for want of a copy
        return io.StringIO()


def read_output(task: str, *, is_failed: bool = False) -> str:
    """What a task printed when it last made something, or when it last failed; empty where that is
    not kept."""
    with suppress(OSError):
        return _place(task, _FAILED if is_failed else _MADE).read_text("utf-8", "replace")
    return ""


def _place(task: str, kind: str) -> Path:
    name = re.sub("[^A-Za-z0-9_.-]", lambda match: f"%{ord(match[0]):02x}", task)
    return Path(_FOLDER, f"{name}.{kind}.log")

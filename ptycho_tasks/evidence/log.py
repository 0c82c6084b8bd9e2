"""The log of an item: a head, the output, and a foot, in plain ASCII."""

from __future__ import annotations

import codecs
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ptycho_tasks.evidence.item import Item
from ptycho_tasks.evidence.provenance import Provenance
from ptycho_tasks.evidence.records import Counts
from ptycho_tasks.system.files import despite_removal, is_file_at, replace_file, report_write_errors
from ptycho_tasks.system.terminal import print_text

RULE = "-" * 72
"""The line between head and output, and between output and foot."""
_TAIL_BYTES = 1 << 16
_LONGEST_LINE = 1 << 16
"""A longer one goes on in the next line of the log."""
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_NO_SUCH_TEST = re.compile(r"ERROR: (?:file or directory )?not found: (.*)")
_NOISE = re.compile("Traceback|while loading conftest|ERROR: usage:")
"""What is in a line that only says that the error follows."""
_ERROR = re.compile(r"\b(?:error|fatal|exception)\b|\b\w+(?:Error|Exception)\b", re.IGNORECASE)


# ---------------------------------------------------------------------------------------------
# Text


def escape(text: str) -> str:
    """A text without colours, in ASCII: any other character is escaped."""
    plain = _ANSI.sub("", text).encode("ascii", "backslashreplace").decode("ascii")
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", plain)


def escape_line(text: str) -> str:
    """A text as `escape` gives it, in one line: its line ends are escaped too."""
    return escape(text.strip()).replace("\n", "\\n")


def format_head(item: Item, started: str, provenance: Provenance) -> str:
    """What stands in a log before the output, with the rule that ends it."""
    changes = ", with changes" if provenance.dirty else ""
    packages = ", ".join(f"{name} {version}" for name, version in provenance.packages.items())
    cuda = provenance.cuda_visible_devices
    lines = (
        f"# command: {item.command}",
        "# directory: . (the project)",
        f"# start: {started}",
        f"# commit: {provenance.commit or 'none'}{changes}",
        f"# python: {provenance.python}; {packages}",
        f"# CUDA_VISIBLE_DEVICES: {'not set' if cuda is None else repr(cuda)}",
        *(f"# environment: {name}={value}" for name, value in item.env.items()),
    )
    return "\n".join([*map(escape_line, lines), RULE, ""])


def format_foot(
    ended: str, duration_s: float, counts: Counts | None, problem: str, outcome: str
) -> str:
    """What stands in a log after the output, with the rule that begins it.

    Args:
        ended: how the command ended.
        duration_s: how long it took.
        counts: of its tests; None where none was counted.
        problem: of a red one; else empty.
        outcome: `green`, `red`, or `none` of a run that was stopped.
    """
    lines = [RULE, f"# ended: {ended}", f"# duration: {duration_s:.1f} s"]
    if counts is not None:
        lines.append(f"# tests: {counts}")
    if problem:
        lines.append(f"# problem: {escape_line(problem)}")
    return "\n".join([*lines, f"# outcome: {outcome}", ""])


# ---------------------------------------------------------------------------------------------
# Writing


@contextmanager
def open_log(log: Path) -> Iterator[TextIO]:
    """A log to write, and to read again; missing folders are made.

    Raises:
        FileWriteError: it cannot be written.
    """

    def open_file() -> TextIO:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("w+", encoding="ascii", newline="\n")

    with report_write_errors(log), despite_removal(open_file) as file:
        yield file


def keep_log(file: TextIO, log: Path) -> None:
    """Write what is left of an open log; and all of it again, if a command has removed the file.

    Raises:
        FileWriteError: it cannot be written.
    """
    file.flush()
    if not is_file_at(file, log):
        file.seek(0)
        with replace_file(log) as again, again.open("w", encoding="ascii", newline="\n") as copy:
            shutil.copyfileobj(file, copy)


class Tee:
    """Hands a command's output to the terminal as it comes, and to the log line by line. What
    could explain a failure is kept: where no test says more, it is what people are shown."""

    def __init__(self, log: TextIO, *, is_shown: bool = True) -> None:
        """Nothing came yet.

        Args:
            log: of the item.
            is_shown: whether the terminal gets the output.
        """
        self._log, self._is_shown = log, is_shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._part = ""
        """The line that has not ended yet."""
        self.first_error = ""
        """The first line that looks like an error."""
        self.last_line = ""
        self.no_such_test = ""
        """What pytest says of a selector that selects nothing."""

    def take(self, data: bytes, *, is_last: bool = False) -> None:
        """Hand on some output, which may begin and end anywhere."""
        text = self._decoder.decode(data, is_last)
        self._show(text)
        # A line that is drawn anew in its place is one of its own in the log.
        *lines, self._part = re.split(r"\r*\n|\r+(?!\Z)", self._part + text)
        if is_last or len(self._part) > _LONGEST_LINE:
            lines, self._part = [*lines, *filter(None, [self._part.rstrip("\r")])], ""
        for line in map(escape, lines):
            self._log.write(f"{line}\n")
            self._note(line)
        self._log.flush()

    def finish(self) -> None:
        """Hand on what is left: no more output will come."""
        if self._part:
            self._show("\n")  # else what is said next would go on in its line
        self.take(b"", is_last=True)

    def _show(self, text: str) -> None:
        if self._is_shown:
            print_text(text)

    def _note(self, line: str) -> None:
        self.last_line = line.strip() or self.last_line
        missing = _NO_SUCH_TEST.fullmatch(line)
        if missing:
            self.no_such_test = self.no_such_test or f"there is no {missing[1]}"
        if not self.first_error and _ERROR.search(line) and not _NOISE.search(line):
            self.first_error = line.strip().removeprefix("E   ")


# ---------------------------------------------------------------------------------------------
# Reading


def find_output(log: str) -> list[str]:
    """The lines of a log between its head and its foot."""
    lines = log.splitlines()
    rules = [number for number, line in enumerate(lines) if line == RULE]
    return lines[rules[0] + 1 : rules[-1]] if len(rules) > 1 else lines


def read_end_of_output(log: Path) -> list[str]:
    """The last lines of a log before its foot. No more of the file is read than its end."""
    with log.open("rb") as file:
        begin = max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES)
        file.seek(begin)
        text = file.read().decode("ascii", "replace")
    if begin == 0:
        return find_output(text)
    lines = text.splitlines()
    rules = [number for number, line in enumerate(lines) if line == RULE]
    return lines[: rules[-1]] if rules else lines

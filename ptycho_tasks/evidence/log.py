"""Logs of items: head, output, foot."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ptycho_tasks.evidence.item import Item
from ptycho_tasks.evidence.junit import TestReport
from ptycho_tasks.evidence.records import Record
from ptycho_tasks.system.files import report_write_errors
from ptycho_tasks.system.terminal import print_text

_TAIL_BYTES = 1 << 16
RULE = "-" * 72
"""Stands in a log between its head, the output, and its foot."""

_NO_SUCH_TEST = re.compile(r"ERROR: (?:file or directory )?not found: (.*)")

_LONGEST_LINE = 1 << 16


# ---------------------------------------------------------------------------------------------
# The log

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")

_NOISE = re.compile("Traceback|while loading conftest|ERROR: usage:")
"""Says that a line with the error follows."""

_ERROR = re.compile(r"\b(?:error|fatal|exception)\b|\b\w+(?:Error|Exception)\b", re.IGNORECASE)


@contextmanager
def _opened(log: Path) -> Iterator[TextIO]:
    with report_write_errors(log), log.open("w+", encoding="ascii", newline="\n") as file:
        yield file


def as_ascii(text: str) -> str:
    """A text without colours, in ASCII: what is none of it is escaped."""
    plain = _ANSI.sub("", text).encode("ascii", "backslashreplace").decode("ascii")
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", plain)


def in_one_line(text: str) -> str:
    """A text as `as_ascii`, its line ends escaped."""
    return as_ascii(text.strip()).replace("\n", "\\n")


class _Tee:
    """Hands a command's output to the terminal as it comes, and to the log by lines."""

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._part = ""
        self.first_error = ""
        self.last_line = ""
        self.no_such_test = ""

    def take(self, data: bytes, *, final: bool = False) -> None:
        text = self._decoder.decode(data, final)
        print_text(text)
        # A line that is drawn anew in its place is one of its own in the log.
        *lines, self._part = re.split(r"\r*\n|\r+(?!\Z)", self._part + text)
        if final or len(self._part) > _LONGEST_LINE:
            lines, self._part = [*lines, *filter(None, [self._part.rstrip("\r")])], ""
        for line in map(as_ascii, lines):
            self._log.write(f"{line}\n")
            if line.strip():
                self.last_line = line.strip()
            missing = _NO_SUCH_TEST.fullmatch(line)
            if missing:
                self.no_such_test = self.no_such_test or f"there is no {missing[1]}"
            if not self.first_error and _ERROR.search(line) and not _NOISE.search(line):
                self.first_error = line.strip().removeprefix("E   ")
        self._log.flush()

    def finish(self) -> None:
        """No more will come."""
        if self._part:
            print_text("\n")  # else what is said next would go on in its line
        self.take(b"", final=True)


def _head(item: Item, begun: str, around: Record) -> Iterator[str]:
    dirty = {True: ", with changes", False: "", None: ""}[around["dirty"]]
    packages = ", ".join(f"{name} {version}" for name, version in around["packages"].items())
    cuda = around["cuda_visible_devices"]
    yield from map(
        in_one_line,
        (
            f"# command: {item.command}",
            "# directory: . (the project)",
            f"# start: {begun}",
            f"# commit: {around['commit'] or 'none'}{dirty}",
            f"# python: {around['python']}; {packages}",
            f"# CUDA_VISIBLE_DEVICES: {'not set' if cuda is None else repr(cuda)}",
            *(f"# environment: {name}={value}" for name, value in item.env.items()),
        ),
    )


def _foot(ended: str, took: float, tests: TestReport | None, problem: str, outcome: str) -> str:
    lines = [RULE, f"# ended: {ended}", f"# duration: {took:.1f} s"]
    if tests is not None:
        lines.append(f"# tests: {tests.counts}")
    if problem:
        lines.append(f"# problem: {in_one_line(problem)}")
    return "\n".join([*lines, f"# outcome: {outcome}", ""])


def end_of_output(log: Path) -> list[str]:
    """The last lines of a log before its foot, however long the log is."""
    with log.open("rb") as file:
        begin = max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES)
        file.seek(begin)
        text = file.read().decode("ascii", "replace")
    if begin == 0:
        return output_of(text)
    lines = text.splitlines()
    rules = [number for number, line in enumerate(lines) if line == RULE]
    return lines[: rules[-1]] if rules else lines


def output_of(log: str) -> list[str]:
    """The lines of a log between its head and its foot."""
    lines = log.splitlines()
    rules = [number for number, line in enumerate(lines) if line == RULE]
    return lines[rules[0] + 1 : rules[-1]] if len(rules) > 1 else lines

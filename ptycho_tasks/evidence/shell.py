"""What a command does, by its words: whether it runs pytest, on which tests, with which scripts;
and how a shell is asked to run it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

_OPERATOR = re.compile(r"[();<>|&]+|\n")
_ASSIGNMENT = re.compile("[A-Za-z_][A-Za-z0-9_]*=")
_PYTHON = re.compile(r"(?:.*/)?python[0-9.]*")
_PYTEST = re.compile(r"(?:.*/)?(?:pytest|py\.test)")
_SCRIPT = re.compile(r"[^-].*\.(?:py|sh|bash|zsh|pl|rb|r|jl|m|js|mk|ipynb)", re.IGNORECASE)
_WITH_VALUE = {"-k", "-m", "-n", "-p", "-c", "-o", "-W", "-r", "--tb", "--maxfail", "--deselect",
               "--ignore", "--rootdir", "--cov", "--durations", "--timeout", "--dist"}  # fmt: skip
"""Options of pytest whose value is a word of its own, which is no path."""


class PytestCalls(NamedTuple):
    """The calls of pytest in a command."""

    mentions: int
    """How often pytest is named."""
    is_plain: bool
    """Whether the command is one call of pytest and nothing else."""
    arguments: list[str]
    """Of that one call."""


def split_words(command: str) -> list[str]:
    """The words and operators of a command.

    Raises:
        ValueError: a quote is not closed.
    """
    reader = shlex.shlex(command, posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    try:
        return list(reader)
    except ValueError as error:
        raise ValueError("a quote is opened and not closed; close it") from error


def split_assignments(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The variables that a simple command sets before it, and the rest."""
    env: dict[str, str] = {}
    for index, word in enumerate(words):
        if not _ASSIGNMENT.match(word):
            return env, words[index:]
        name, _, value = word.partition("=")
        env[name] = value
    return env, []


def find_pytest(command: str) -> PytestCalls:
    """Whether, and how plainly, a command runs pytest."""
    try:
        words = split_words(command)
    except ValueError:  # as in the text of a here-document
        return PytestCalls(0, False, [])
    mentions = sum(bool(_PYTEST.fullmatch(word)) for word in words)
    is_simple = "\n" not in command.strip() and not any(map(_OPERATOR.fullmatch, words))
    rest = split_assignments(words)[1]
    if rest and _PYTHON.fullmatch(rest[0]) and rest[1:2] == ["-m"]:
        rest = rest[2:]
    is_plain = is_simple and mentions == 1 and bool(rest) and bool(_PYTEST.fullmatch(rest[0]))
    return PytestCalls(mentions, is_plain, rest[1:] if is_plain else [])


def find_scripts(command: str) -> Iterator[str]:
    """Paths of the scripts that a command may run: what ends as a script does, or is the first
    word; but not what the command itself writes."""
    try:
        words = split_words(command)
    except ValueError:
        return
    written = {word for before, word in pairwise(words) if ">" in before}
    before = ";"
    for word in words:
        is_first = bool(_OPERATOR.fullmatch(before))
        path = word.partition("::")[0]
        if _OPERATOR.fullmatch(word) or (is_first and _ASSIGNMENT.match(word)):
            before = word if _OPERATOR.fullmatch(word) else before
            continue
        if before == "-m":
            yield from (f"{path.replace('.', '/')}{end}" for end in (".py", "/__main__.py"))
        elif word not in written and ((is_first and "/" in word) or _SCRIPT.fullmatch(path)):
            yield path
        before = word


def format_pytest_command(arguments: Iterable[str]) -> str:
    """The command that runs pytest, as it is shown."""
    return shlex.join(["python", "-m", "pytest", *arguments])


def find_test_paths(arguments: Iterable[str]) -> Iterator[str]:
    """The files and folders that pytest's arguments select from: the project where none does."""
    has_path = False
    before = ""
    for word in arguments:
        is_number = word.replace(".", "").isdigit()  # of an option that a conftest.py adds
        if not (word.startswith("-") or is_number) and before not in _WITH_VALUE:
            has_path = True
            yield word.partition("::")[0]
        before = word
    if not has_path:
        yield "."


def make_environment() -> dict[str, str]:
    """The environment of every item, in which `python` is the one whose versions the logs name."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if sys.prefix != sys.base_prefix:  # a virtual environment, which need not be activated
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    return env


def make_shell_command(command: str) -> list[str]:
    """The words that have a shell run a command. `failing | tee log` fails, where bash is there."""
    bash = shutil.which("bash")
    return [bash, "-o", "pipefail", "-c", command] if bash else ["/bin/sh", "-c", command]

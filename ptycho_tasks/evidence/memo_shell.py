"""The commands of a memo: what plainly is one, what it sets and logs; a sentence never is one.

A command is what stands as one: a code span, a line of a fence, what follows `tests:`, or a line
that no sentence looks like. Whatever is not plain is left, and a finding says so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Protocol

from ptycho_tasks.evidence.memo_asking import (
    ORDERED,
    asks_for,
    is_asked_for,
    is_doubtful,
    last_sentence,
)
from ptycho_tasks.evidence.memo_calls import BY_PEOPLE, is_left_to_people, list_written
from ptycho_tasks.evidence.shell import split_assignments, split_words
from ptycho_tasks.layout import CONFIG_NAME, DODO_NAME, EVIDENCE_NAME

_TEE = re.compile(r"\s*(?:2>&1\s*)?\|&?\s*tee\s+(?:-a\s+)?(?P<log>\"[^\"]*\"\S*|\S+)\s*$")
_REDIRECT = re.compile(r"\s*(?:&>>?|>>?)\s*(?P<log>\S+\.(?:log|txt|out))\"?\s*(?:2>&1)?\s*$")
_ARROW = re.compile(r"(?<!`)\s+(?:->|=>|\u2192)\s*`?(?P<log>[\w./${}-]+\.log)`?\.?$")
"""How people write that the output goes to a log."""
_USUAL = re.compile(
    r"(?:.*/)?(?:python[0-9.]*|pytest|py\.test|bash|sh|make|doit|ptycho-tasks|uv|poetry|tox|nox|"
    r"ruff|mypy|coverage|torchrun|mpirun|srun|timeout|julia|Rscript|matlab)"
)
"""Programs that memos have run."""
_WITH_TARGETS = {"make": 1, "just": 1, "doit": 2, "nox": 2, "tox": 2, "ruff": 3, "mypy": 3,
                 "ptycho-tasks": 3, "coverage": 3}  # fmt: skip
"""Programs whose arguments are bare words, to the most that no sentence has."""
_SETUP = {"mkdir", "set", "echo", "true", "printf", "date", "pwd", "umask", "trap", "export"}
_SCRIPTED = re.compile(r"\s*(?:for|while|until|if|case|function|do|done|then|else|fi|esac|[({])\b")
_BARE_SELECTOR = re.compile(
    r"(?P<path>(?:[\w.-]+/)*(?:test_[\w.-]*|[\w-]+_test)\.py(?:::[\w:.\[\]-]+)?|tests?/(?:[\w.-]+/)*)"
    r"(?P<options>(?:\s+.*)?)"
)
_SENTENCE = {
    "a", "an", "and", "are", "as", "be", "before", "but", "by", "for", "if", "in", "is", "it",
    "not", "of", "on", "once", "or", "should", "so", "the", "them", "then", "this", "to", "until",
    "when", "which", "while", "with",
}  # fmt: skip
"""Words that no command has, unless quoted."""
_ARGUMENT = re.compile(r"-\S*|\S*(?:/|::|=)\S*|\S+\.\w+")
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<plain>[A-Za-z_]\w*))")
_ASSIGNED = re.compile(
    r"(?:^|[\s`;&])(?P<export>export\s+)?(?P<name>[A-Za-z_]\w*)="
    r"(?P<value>\"[^\"`]*\"[^\s`;&]*|'[^'`]*'[^\s`;&]*|\$\([^)]*\)|[^\s`;&]*)"
)
_FORBIDDING = {"never", "forbidden", "obsolete", "deprecated", "superseded"}
"""Words of a person that no command has, save as a value of an option, which is not worth it."""
_JOINT = re.compile(r"[\s,]*(?:and|or)?\s*")
_PROMPT = re.compile(
    r"(?:\([\w.-]+\)\s*)?(?:[$%\u276f\u279c]|\[?[\w.-]+@[\w.-]+[^$#%>`]*[$#%>]|"
    r"(?:PS )?[A-Z]:\\[^>`]*>|[~/\w][~/\w.-]*[$])\s+(?=\S)"
)
"""What a shell shows before a command."""
_CHANGE_FOLDER = re.compile(r"^\s*cd\s+\S+\s*(?:&&|;)\s*")
_SETTINGS = (CONFIG_NAME, EVIDENCE_NAME, DODO_NAME)
STAMP = "TIMESTAMP"
"""Stands for what a shell would make the time of."""


class Leave(Protocol):
    """Notes what was not taken, and why."""

    def at(self, line: int) -> Leave:
        """The same of another line."""

    def __call__(self, text: str) -> None:
        """Note it."""


@dataclass(frozen=True)
class Command:
    """A command of the memo."""

    line: int
    text: str
    """Without the variables before it and the `tee` after it."""
    env: dict[str, str]
    log: str = ""
    """The file that `tee` writes."""
    context: str = ""
    """What stands beside it, which may name what it is for."""
    must_fail: bool = False
    """Whether the memo says so."""

    @property
    def is_red(self) -> bool:
        """Whether it is to be red, as the name of its log says, or the memo."""
        outcome = re.search(r"_(red|green)(?:\.\w+)?$", self.log)
        return outcome[1] == "red" if outcome else self.must_fail

    @property
    def key(self) -> tuple[str, tuple[tuple[str, str], ...], bool]:
        """The same for commands that do the same, and are to have the same outcome."""
        return self.text, tuple(sorted(self.env.items())), self.is_red

    def __str__(self) -> str:
        """As it is shown."""
        env = "".join(f", {name}={json.dumps(value)}" for name, value in self.env.items())
        log = f", log {PurePath(self.log).name}" if self.log else ""
        return f"`{self.text}`{env}{log}{', to be red' if self.is_red else ''}"


@dataclass
class Shell:
    """What a memo sets, by which its commands are read."""

    variables: dict[str, str] = field(default_factory=dict)
    used: frozenset[str] = frozenset()
    """Variables that the memo itself refers to."""
    root: Path | None = None
    """The project, in which a program may lie."""
    exported: dict[str, str] = field(default_factory=dict)
    """What commands from here on have in their environment."""

    @classmethod
    def of(cls, text: str, root: Path | None) -> Shell:
        """With every variable that a memo assigns."""
        used = (match["braced"] or match["plain"] for match in _VARIABLE.finditer(text))
        shell = cls(used=frozenset(used), root=root)
        for match in _ASSIGNED.finditer(text):
            value = re.sub(r"\$\([^)]*\)", STAMP, match["value"]).replace('"', "").replace("'", "")
            shell.variables.setdefault(match["name"], value)
        return shell

    def resolve(self, text: str) -> str:
        """A text with the memo's own variables replaced; others stay as they are."""
        for _ in range(3):
            text = re.sub(r"\$(?:\{PWD\}|PWD\b)/?", "", text)
            text = _VARIABLE.sub(self._replace, text)
        return text

    def _replace(self, match: re.Match[str]) -> str:
        return self.variables.get(match["braced"] or match["plain"], match[0])

    def is_there(self, program: str) -> bool:
        """Whether a program can be found, in the project or on this machine."""
        if "/" in program:
            return os.path.lexists((self.root or Path()) / program)
        return shutil.which(program) is not None

    # --- what stands as a command ----------------------------------------------------------

    def read_script(self, text: str, line: int, leave: Leave, context: str = "") -> list[Command]:
        """The commands of what a shell would read, as a fence or a code span holds it."""
        found: list[Command] = []
        folder = comment = ""
        first = line
        for offset, logical in _join_lines(text):
            line, leave = first + offset, leave.at(first + offset)
            if logical.startswith("#"):
                context = comment = logical  # it may say what the next command is for
                continue
            logical, _, note = logical.partition(" # ")
            is_left = is_doubtful(note) or not is_asked_for(comment)
            comment = ""
            if is_left:
                leave(f"`{_shorten(logical)}`: its comment does not ask to run it; nothing runs it")
                continue
            if _SCRIPTED.match(logical) or "<<" in logical:
                leave(f"`{_shorten(logical)}`: is a script; save it as a file, and call that")
                return found
            taken: list[Command] = []
            parts = _split_list(logical)
            for part in parts:
                words = _split(part)
                if words[:1] == ["cd"] and len(words) == 2 and "$" not in self.resolve(words[1]):
                    folder = "" if words[1] in (".", "") else f"cd {self.resolve(words[1])} && "
                    continue
                own = (
                    f"{context if context[:1] == '#' else ''}\n{part} # {note}" if note else context
                )
                command = self._read_part(part, line, leave, own, folder)
                if command is not None:
                    taken.append(replace(command, text=f"{folder}{command.text}"))
            found += self._join(taken)
        return found

    @staticmethod
    def _join(commands: list[Command]) -> list[Command]:
        """The commands of one line: each by itself where each has a log, or all call pytest."""
        if len(commands) < 2 or all(command.log for command in commands):
            return commands
        first = commands[0]
        if all("pytest" in c.text and c.env == first.env and not c.log for c in commands):
            return commands
        text = " && ".join(_prefix_env(command) for command in commands)
        return [Command(first.line, text, {}, commands[-1].log, first.context)]

    def _read_part(
        self, part: str, line: int, leave: Leave, context: str, folder: str
    ) -> Command | None:
        whole = text = self.resolve(part.strip())
        log = ""
        for pattern in (_TEE, _REDIRECT):
            match = pattern.search(text)
            if match and not log:
                log, text = match["log"].replace('"', ""), text[: match.start()]
        words = _split(text)
        if not words:
            leave(f"`{_shorten(text)}`: a quote is opened and not closed")
            return None
        if _drop_env(words) is not words:
            text, words = text.removeprefix(words[0]).strip(), words[1:]
        if words[0] == "export":
            self.exported.update(
                {
                    name: value
                    for name, value in split_assignments(words[1:])[0].items()
                    if name not in self.used and STAMP not in value
                }
            )
            return None
        env, rest = split_assignments(words)
        if not rest or rest[0] in _SETUP:
            return None
        if is_left_to_people(whole):
            leave(f"`{_shorten(text)}`: is left to people; nothing runs it")
            return None
        if spoilt := self._find_spoilt(whole, text, folder):
            leave(
                f"`{_shorten(whole)}`: would overwrite {spoilt}, which is no log; nothing runs it"
            )
            return None
        unknown = [name for name in self._list_variables(text) if name not in os.environ]
        if unknown or STAMP in text:
            what = f"${unknown[0]} is set nowhere" if unknown else "it names a time yet to come"
            leave(f"`{_shorten(text)}`: {what}; nothing runs it")
            return None
        if not (_USUAL.fullmatch(rest[0]) or self.is_there(rest[0])):
            leave(f"`{_shorten(text)}`: there is no program `{rest[0]}` here; nothing runs it")
            return None
        text = _without_assignments(text, len(env))
        return Command(line, text, {**self.exported, **env}, log, context)

    def _find_spoilt(self, whole: str, text: str, folder: str) -> str:
        """Which file a command would overwrite that is no log; empty where none is.

        Args:
            whole: the command with all that it logs.
            text: the command as it would run.
            folder: the change of folder before it.
        """
        place = (self.root or Path()) / folder.removeprefix("cd ").removesuffix(" && ")
        written = [*list_written(text)]
        for name in list_written(whole):
            suffix = PurePath(name).suffix.casefold()
            # A plan need not be there yet.
            is_document = name in written and suffix in (".md", ".markdown")
            # What is taken for the log is not written by the command.
            logs = (".log", ".out") if name in written else (".log", ".out", ".txt")
            is_log = suffix in logs or name.startswith("/dev/")
            is_there = not is_log and os.path.lexists(place / name)
            if is_document or is_there or PurePath(name).name in _SETTINGS:
                return name
        return ""

    def only_sets(self, text: str) -> bool:
        """Whether a script only sets variables, and makes folders: it runs nothing."""
        parts = [
            part
            for _, line in _join_lines(text)
            if not line.startswith("#")
            for part in _split_list(line)
        ]
        words = [split_assignments(_split(part.partition(" # ")[0])) for part in parts]
        return bool(parts) and all(
            (rest[0] in _SETUP if rest else bool(env)) for env, rest in words
        )

    def _list_variables(self, text: str) -> list[str]:
        outside = re.sub(r"'[^']*'", "", text)
        return [match["braced"] or match["plain"] for match in _VARIABLE.finditer(outside)]

    def is_sensible(self, text: str) -> bool:
        """Whether a code span is a command with an argument, and not a name in a sentence."""
        words = split_assignments(_drop_env(_split(_CHANGE_FOLDER.sub("", text))))[1]
        if len(words) < 2:
            return False
        if words[0] in {"export", "mkdir", *BY_PEOPLE}:
            return words[0] == "export"
        calls_all = words[0] == "pytest" and not any(map(_points_at, words[1:]))
        calls_all = calls_all and "--collect-only" not in words
        if _USUAL.fullmatch(words[0]):
            return not calls_all or bool(_TEE.search(text))
        return bool(_TEE.search(text) or _REDIRECT.search(text)) or (
            "/" in words[0] and words[0].endswith((".sh", ".py"))
        )

    def read_spans(
        self, text: str, line: int, leave: Leave, lead: str = "", sequel: str = ""
    ) -> list[Command]:
        """The commands in the code spans of a sentence that asks to run them.

        Args:
            text: the line.
            line: its number.
            leave: notes what was not taken.
            lead: what stands above, and the line goes on with.
            sequel: what stands below.
        """
        found: list[Command] = []
        end, is_taken = 0, True
        for match in re.finditer(r"(`+)(?P<span>[^`]+)\1", text):
            span = match["span"].strip()
            between, end = text[end : match.start()], match.end()
            # One of several is asked for as the first is.
            is_other = end and not is_taken and _JOINT.fullmatch(between)
            is_taken = False
            before = last_sentence(text[: match.start()])
            if not self.is_sensible(span):
                self._tell_of_span(span, before, leave)
                continue
            if is_other or not asks_for(text[: match.start()], text[match.end() :], lead, sequel):
                leave(f"`{_shorten(span)}`: the sentence does not ask to run it; nothing runs it")
                continue
            is_taken = True
            found += self.read_script(span, line, leave, text)
        return found

    def _tell_of_span(self, span: str, before: str, leave: Leave) -> None:
        """Say of a code span that looks like a command why it is none."""
        program, *arguments = split_assignments(_drop_env(_split(span)))[1] or [""]
        is_name = bool(re.fullmatch(r"[a-z./][\w./+-]*", program)) and "(" not in span
        is_like_one = is_name and (
            any(re.match(r"--?[A-Za-z]", word) for word in arguments)
            or (bool(arguments) and bool(ORDERED.search(before)))
        )
        if program in BY_PEOPLE and arguments:
            leave(f"`{_shorten(span)}`: is left to people; nothing runs it")
        elif is_like_one and not (_USUAL.fullmatch(program) or self.is_there(program)):
            leave(f"`{_shorten(span)}`: there is no program `{program}` here; nothing runs it")
        elif is_like_one:
            leave(f"`{_shorten(span)}`: nothing says that it is to be run; nothing runs it")

    def read_plain(self, text: str, line: int, leave: Leave, context: str = "") -> list[Command]:
        """The commands of a text that is nothing but commands, code spans with notes between them,
        or selectors of pytest; none of any other text, of which a finding says so."""
        text = text.strip()
        if is_none(text):
            return []
        spans = re.findall("`([^`]+)`", text)
        outside = re.sub("`[^`]+`", " ", text)
        if spans and not is_plain_command(text):
            if all(self.is_sensible(s) or _make_pytest(s) for s in spans if " " in s or "/" in s):
                wanted = [s for s in spans if self.is_sensible(s) or _make_pytest(s)]
                if is_asked_for(outside, outside):
                    return [
                        command
                        for span in wanted
                        for command in self.read_script(
                            _make_pytest(span) or span, line, leave, context
                        )
                    ]
            leave(f"`{_shorten(text)}`: is not plainly a command; nothing runs it")
            return []
        # No call of pytest reads what another one prints, or has it as a word: these separate.
        text = re.sub(r"(?:\s\||,)\s+(?=(?:\w+=\S*\s+)*(?:python\S* -m )?pytest\s)", " ; ", text)
        parts = [_trim(part) for part in _split_at_semicolons(text) if _trim(part)]
        commands: list[Command] = []
        for part in parts:
            if _FORBIDDING & {word.strip("().,!").casefold() for word in _split(part)}:
                leave(f"`{_shorten(part)}`: does not ask to run it; nothing runs it")
                continue
            if is_plain_command(part) or _calls_target(part):
                commands += self.read_script(part.strip("`"), line, leave, context)
                continue
            selectors = [*map(_make_pytest, re.split(r"\s*,\s+|\s+and\s+", _drop_notes(part)))]
            if not all(selectors):
                leave(f"`{_shorten(part)}`: is not plainly a command; nothing runs it")
                return []
            for selector in selectors:
                commands += self.read_script(selector, line, leave, context)
        return commands


def drop_prompt(line: str) -> str:
    """A line without what a shell shows before a command."""
    return _PROMPT.sub("", line, count=1) if _PROMPT.match(line) else line


def is_none(text: str) -> bool:
    """Whether a text says that there are no tests."""
    return bool(re.match(r"(?i:(?:none|n/?a|nothing)\b[^`]*$)|[-\u2013\u2014. ]*$", text.strip()))


def _points_at(word: str) -> bool:
    """Whether a word of a call of pytest selects something."""
    return "/" in word or "::" in word or word.endswith(".py") or word in ("-k", "-m", "--lf")


def _make_pytest(text: str) -> str:
    """The call of pytest that a bare selector means; empty where it is none."""
    match = _BARE_SELECTOR.fullmatch(_drop_notes(text.strip().strip("`")).strip())
    if match is None or any(word in _SENTENCE for word in match["options"].split()):
        return ""
    command = f"pytest {match['path']}{match['options']}"
    return command if is_plain_command(command) else ""


def is_plain_command(text: str, *, is_marked: bool = False) -> bool:
    """Whether a text is a command, and cannot be a sentence.

    Args:
        text: that may be one.
        is_marked: whether what stands before it says that it is one, as a prompt does.
    """
    text = _trim(text).strip()
    is_span = is_marked or bool(_TEE.search(text)) or (len(text) > 2 and text[0] == text[-1] == "`")
    text = text.strip("`").strip()
    if "`" in text or "$(" in text:
        return False
    words = _split(text)
    if not words:
        return bool(text) and bool(_USUAL.match(text.split()[0]))  # it is said where it is read
    simple: list[list[str]] = [[]]
    for before, word in zip(["", *words], words, strict=False):
        if re.fullmatch(r"[();|&]+", word):
            simple.append([])
        elif not re.fullmatch(r"[<>&|]*[<>][<>&|]*", word) and not re.search("[<>]", before):
            simple[-1].append(word)
    return any(simple) and all(_calls_program(part, is_span=is_span) for part in simple if part)


def _calls_program(words: list[str], *, is_span: bool) -> bool:
    rest = split_assignments(_drop_env(words))[1]
    if not rest:
        return bool(words)
    program, *arguments = rest
    if program in {"tee", *_SETUP} and arguments:
        return not any(word in _SENTENCE for word in arguments) or program == "echo"
    if not _USUAL.fullmatch(program):
        return is_span and ("/" in program or shutil.which(program) is not None)
    if is_span:
        return bool(arguments)
    # `make sure` and `python is slow` are sentences.
    return not arguments or (
        bool(_ARGUMENT.fullmatch(arguments[0]) or program == "uv" or program == "poetry")
        and not any(word in _SENTENCE for word in arguments)
    )


def _calls_target(text: str) -> bool:
    """Whether a text that stands for a command is the bare name of a target: `make check`."""
    program, *words = split_assignments(_split(text))[1] or [""]
    bare = [word for word in words if not _ARGUMENT.fullmatch(word)]
    return (
        0 < len(bare) <= _WITH_TARGETS.get(program, 0)
        and all(re.fullmatch(r"[a-z][\w:-]*", word) for word in bare)
        and not {"sure", "certain", *_SENTENCE} & {*bare}
        and shutil.which(program) is not None
    )


def _drop_env(words: list[str]) -> list[str]:
    return words[1:] if words[:1] in (["env"], ["/usr/bin/env"]) else words


def _drop_notes(text: str) -> str:
    """A text without the notes that people put after a selector."""
    return re.sub(r"\s+(?:\([^()]*\)|#\s.*|[\u2014\u2013-]+\s+.*)$", "", text.strip())


def _trim(text: str) -> str:
    """A part of a line without bullets, notes, and the full stop of its sentence."""
    text, mark, comment = _ARROW.sub(r" > \g<log>", text.strip()).partition(" # ")
    if is_doubtful(comment):
        return f"{text}{mark}{comment}"
    # Nothing that a shell reads ends so, unless an operator stands before it.
    note = re.search(r"[^\s;|&(]\s+\((?P<note>[^()]*)\)[.;]?$", text)
    if note and not is_doubtful(note["note"]):
        text = text[: note.start() + 1]
    if text.endswith(".") and not text.endswith((" .", "..")):
        text = text[:-1]
    return text.strip()


def _shorten(text: str) -> str:
    text = " ".join(text.replace("`", "").split())
    return text if len(text) <= 70 else f"{text[:67]}..."


def _split(text: str) -> list[str]:
    """The words of a command; none where it cannot be read."""
    try:
        return split_words(text)
    except ValueError:
        return []


def _prefix_env(command: Command) -> str:
    env = "".join(f"{name}={json.dumps(value)} " for name, value in command.env.items())
    return f"{env}{command.text}"


def _without_assignments(text: str, count: int) -> str:
    """The command as written, after the variables that are set before it."""
    for _ in range(count):
        text = re.sub(r"""^[A-Za-z_]\w*=(?:"[^"]*"|'[^']*'|[^\s"'])*\s+""", "", text)
    return text.strip()


def _split_at_semicolons(line: str) -> list[str]:
    """The parts of a line between semicolons; those in quotes separate nothing."""
    return re.findall(r"""(?:"[^"]*"|'[^']*'|`[^`]*`|\([^()`"']*\)|[^;])+""", line)


def _join_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that a shell would read, and comments, each with the number of those above it:
    continued ones are one, without prompts."""
    joined: list[tuple[int, str]] = []
    is_open = False
    for offset, raw in enumerate(text.splitlines(keepends=True)):
        goes_on = re.fullmatch(r"(?P<line>.*?)[ \t]*\\\r?\n", raw)
        line = f"{goes_on['line']} " if goes_on else raw
        if is_open:
            begin, before = joined.pop()
            joined.append((begin, before + line.lstrip(" \t")))
        else:
            joined.append((offset, line))
        is_open = bool(goes_on)
    lines = [(offset, line.strip()) for offset, line in joined if line.strip()]
    # Where some lines have a prompt, the others are what these printed.
    has_prompts = any(_PROMPT.match(line) for _, line in lines)
    for offset, line in lines:
        if not has_prompts or _PROMPT.match(line) or line.startswith("#"):
            yield offset, re.sub(r"\s+#\s", " # ", drop_prompt(line))


def _split_list(line: str) -> list[str]:
    """The commands of one line, as `&&` and `;` separate them; those in quotes do not."""
    quoted = r"\"(?:\\.|[^\"\\])*\"|'[^']*'|\$\([^)]*\)"
    pieces = re.split(rf"({quoted})", line)
    parts = [""]
    for index, piece in enumerate(pieces):
        if index % 2:
            parts[-1] += piece
            continue
        first, *others = re.split(r"&&|;", piece)
        parts[-1] += first
        parts += others
    return [part.strip() for part in parts if part.strip()]


_AROUND = re.compile(
    r"^(?:(?:timeout(?:\s+-\S+)*\s+[0-9.]+[smhd]?|time|nice(?:\s+-\S+)*|"
    r"(?:uv|poetry|pdm|hatch|pixi)\s+run(?!\s+-))\s+)+"
)
"""What stands before a command and does not change what it does."""


def is_same_test(one: Command, other: Command) -> bool:
    """Whether two calls of pytest select the same, however much they say of it."""
    words = [
        [word for word in _split(text) if not re.fullmatch("-[qvxs]+|--maxfail=.*", word)]
        for text in (_AROUND.sub("", command.text) for command in (one, other))
    ]
    return "pytest" in words[0] and words[0] == words[1]


def list_selectors(command: Command) -> Iterable[str]:
    """The words of a command by which a sentence may name it: tests, scripts and files."""
    for word in _split(command.text):
        if "::" in word or (word.endswith(".py") and "/" in word):
            yield word
            yield word.rpartition("::")[2]

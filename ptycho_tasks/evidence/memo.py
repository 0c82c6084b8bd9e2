"""Read a memo as groups in this field write them. `importing` makes an evidence.yaml of it.

Focus: [ADR-003] Standardize the backend API
Mapped tests: CUDA_VISIBLE_DEVICES="" pytest tests/test_cli.py -vv; ...
Artifacts: plans/reports/2025-10-20T050500Z/phase_c4/{pytest_cli.log,summary.md}
Do Now:
1. ADR-003 C4.D1+C4.D2 validation @ plans/plan.md - run the selectors; tests: pytest ...
If Blocked: ... log the blocker in docs/fix_plan.md
How-To Map:
- `python make_fixture.py --output data.npz 2>&1 | tee plans/.../fixture.log`
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.evidence.item import RUN_FOLDER
from ptycho_tasks.evidence.shell import split_assignments, split_words
from ptycho_tasks.evidence.summaries import BLOCKER, REPORT_FILES
from ptycho_tasks.system.files import find_file_problem

_TITLE = re.compile(r"(?P<title>[A-Z][A-Za-z0-9 &/_-]{1,40}):(?:\s+(?P<rest>.*))?")
_TEE = re.compile(r"\s*(?:2>&1\s*)?\|&?\s*tee\s+(?:-a\s+)?(?P<log>\S+)\s*$")
_PLAN_ID = re.compile(r"[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*\.[A-Za-z0-9]+")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*\.[A-Za-z0-9]+")
_PROGRAMS = re.compile(r"(?:python[0-9.]*|pytest|py\.test|bash|sh|make|doit|ptycho-tasks)")

_IGNORED = {
    "mode": "the evidence has no place for a way of working",
    "branch": "each log names the commit that it was run on",
    "pitfalls to avoid": "advice to people",
    "next up": "is not part of this work",
}
"""Sections that imply nothing, and why."""


@dataclass(frozen=True)
class Finding:
    """What became of a line, or a part of one."""

    line: int
    """Counted from 1; 0 is about no line."""
    is_taken: bool
    """Whether the evidence.yaml holds it."""
    text: str

    def __str__(self) -> str:
        """As it is shown."""
        where = f"line {self.line}" if self.line else "written"
        return f"{where:<8}  {'took' if self.is_taken else 'left'}  {self.text}"


@dataclass(frozen=True)
class Command:
    """A command of the memo."""

    line: int
    text: str
    """Without the variables before it and the `tee` after it."""
    env: dict[str, str]
    log: str = ""
    """The file that `tee` writes."""

    @property
    def key(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The same for commands that do the same."""
        return self.text, tuple(sorted(self.env.items()))


@dataclass
class Entry:
    """An entry under Do Now."""

    line: int
    ids: list[str]
    text: str
    commands: list[Command]


@dataclass
class Memo:
    """What a memo says."""

    summary: str = ""
    initiative: str = ""
    reports: str = ""
    phase: str = ""
    files: list[str] = field(default_factory=list)
    """Of the artefact folder."""
    plan: str = ""
    ledger: str = ""
    mapped_tests: list[Command] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    how_to: list[Command] = field(default_factory=list)
    code: dict[str, int] = field(default_factory=dict)
    """Python files that it is about, to the line that names them."""
    findings: list[Finding] = field(default_factory=list)

    def take(self, line: int, text: str) -> None:
        """Note what a line gave."""
        self.findings.append(Finding(line, True, text))

    def leave(self, line: int, text: str) -> None:
        """Note what was not taken, and why."""
        self.findings.append(Finding(line, False, text))


def read_text(path: Path) -> str:
    """The text of a memo.

    Raises:
        ConfigError: it cannot be read, or is no text.
    """
    problem = find_file_problem(path)
    if problem:
        raise ConfigError(f"{path}: {problem}; expected a memo in text")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; correct the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error


# ---------------------------------------------------------------------------------------------
# Reading


def read_memo(text: str) -> Memo:
    """What a memo says, section by section."""
    memo = Memo()
    readers = {
        "summary": _read_summary,
        "focus": _read_focus,
        "mapped tests": _read_mapped_tests,
        "artifacts": _read_artifacts,
        "artefacts": _read_artifacts,
        "do now": _read_entry,
        "if blocked": _read_ledger,
        "how-to map": _read_how_to,
        "priorities & rationale": _read_code,
        "pointers": _read_code,
    }
    title = ""
    for number, line in enumerate(text.splitlines(), start=1):
        match = _TITLE.fullmatch(line)
        if match:
            title, line = match["title"], match["rest"] or ""
        line = line.strip()
        if not line:
            continue
        reader = readers.get(title.casefold())
        if reader is not None:
            reader(memo, number, line)
        elif title:
            why = _IGNORED.get(title.casefold(), "no such section is known")
            memo.leave(number, f"{title}: {why}")
        else:
            memo.leave(number, "stands before the first section")
    return memo


def _read_summary(memo: Memo, number: int, line: str) -> None:
    memo.summary = f"{memo.summary} {line}".strip()
    memo.take(number, "the summary, as a comment")


def _read_focus(memo: Memo, number: int, line: str) -> None:
    match = re.search(r"\[([^]]+)\]", line)
    if match is None:
        memo.leave(number, "Focus: names no initiative in brackets")
        return
    memo.initiative = memo.initiative or match[1]
    memo.take(number, f"initiative {match[1]}")


def _read_mapped_tests(memo: Memo, number: int, line: str) -> None:
    for command in _read_plain_commands(memo, number, line):
        memo.mapped_tests.append(command)
        memo.take(number, f"command `{command.text}`{_show_env(command.env)}")


def _read_artifacts(memo: Memo, number: int, line: str) -> None:
    match = re.fullmatch(r"`?(?P<folder>[^{`]*?)/*(?:\{(?P<files>[^}]*)\})?`?", line)
    if match is None or not re.fullmatch(r"\S*/\S*", match["folder"] + "/"):
        memo.leave(number, "Artifacts: expected FOLDER/{FILE,FILE}")
        return
    if memo.phase:
        memo.leave(number, f"Artifacts: {memo.reports} came first")
        return
    folder = PurePath(match["folder"])
    if RUN_FOLDER.fullmatch(folder.name):  # it says when, and not what
        name = re.sub("[^A-Za-z0-9_.-]+", "_", memo.initiative).strip("_.-")
        folder /= name or "evidence"
    stamped = RUN_FOLDER.fullmatch(folder.parent.name)
    memo.phase = folder.name
    memo.reports = str(folder.parent.parent if stamped else folder.parent)
    memo.take(number, f"artefact folder {folder}: reports {memo.reports}, phase {memo.phase}")
    if stamped:
        memo.leave(number, f"{folder.parent.name}: each run makes a folder of its own time")
    memo.files = [name.strip() for name in (match["files"] or "").split(",") if name.strip()]
    for name in memo.files:
        if name in REPORT_FILES:
            memo.take(number, f"file {name}: every report has it")
        elif name.endswith(".log"):
            memo.take(number, f"file {name}: a log")
        else:
            memo.leave(number, f"file {name}: nothing says what writes it")


def _read_entry(memo: Memo, number: int, line: str) -> None:
    match = re.fullmatch(
        r"(?:[0-9]+[.)]|[-*])\s*(?P<head>.*?)\s+@\s+(?P<plan>\S+)(?P<rest>.*)", line
    )
    words = match["head"].split() if match else []
    ids = [id for word in words if word != memo.initiative for id in _find_ids(memo, number, word)]
    if match is None or not ids:
        memo.leave(number, "Do Now: expected `N. INITIATIVE ID+ID what @ PLAN - text; tests: ...`")
        return
    text, tests = _split_tests(match["rest"])
    commands = _read_plain_commands(memo, number, tests)
    plan = re.sub(r"(?::[0-9-]+)?[,;.]*$", "", match["plan"].strip("`,;.")).strip("`")
    if memo.plan and plan != memo.plan:
        memo.leave(number, f"plan {plan}: {memo.plan} came first, and the evidence has one plan")
    else:
        memo.take(number, f"plan {plan}")
    memo.plan = memo.plan or plan
    memo.entries.append(Entry(number, ids, text, commands))
    memo.take(
        number,
        f"items {', '.join(ids)}: "
        + (
            "; ".join(f"`{command.text}`{_show_env(command.env)}" for command in commands)
            or "no tests, so that a person marks them"
        ),
    )
    _note_code(memo, number, text)


_TESTS = re.compile(r"(?P<text>.*?)(?P<opened>\(?)\s*\btests?:(?P<tests>.*)", re.IGNORECASE)


def _split_tests(rest: str) -> tuple[str, str]:
    """What an entry says after the plan, and what it names as its tests."""
    match = _TESTS.fullmatch(rest)
    text, tests = (match["text"], match["tests"]) if match else (rest, "")
    tests = tests.strip().removesuffix(".").strip()
    if match and match["opened"]:
        tests = tests.removesuffix(")").strip()
    tests = "" if tests.casefold() == "none" else tests
    return text.strip(" \t;-\u2014\u2013") or rest.strip(" \t;-\u2014\u2013"), tests


_ID_RANGE = re.compile(
    r"(?P<stem>.*\.[A-Za-z]*)(?P<first>[0-9]{1,3})-(?P=stem)?(?P<last>[0-9]{1,3})"
)
_LONGEST_RANGE = 100


def _find_ids(memo: Memo, number: int, word: str) -> list[str]:
    """The rows that a word names: `C4.D1`, `E2.C1+C2` and `R.1-R.4` name one, two and four."""
    first, *more = re.split("[+,]", word.strip("`,;:()"))
    if not _PLAN_ID.fullmatch(first):
        return []
    stem = first.rpartition(".")[0]
    ids: list[str] = []
    for part in [first, *filter(None, more)]:
        part = part if "." in part else f"{stem}.{part}"
        spread = _ID_RANGE.fullmatch(part)
        if spread is None:
            ids.append(part)
            continue
        begin, end = int(spread["first"]), int(spread["last"])
        if not begin <= end < begin + _LONGEST_RANGE:
            memo.leave(number, f"{part}: is no range of ids")
            continue
        ids += [f"{spread['stem']}{index}" for index in range(begin, end + 1)]
    return [id for id in ids if _PLAN_ID.fullmatch(id)]


def _read_ledger(memo: Memo, number: int, line: str) -> None:
    for name in _FILE.findall(line):
        ours = PurePath(name).stem in ("blocker", "summary", "plan_updates")
        if name.endswith(".md") and name != memo.plan and not memo.ledger and not ours:
            memo.ledger = name
            memo.take(number, f"ledger {name}")
    if BLOCKER in line:
        memo.take(number, f"{BLOCKER} and `[P]`: every red run does this")
    elif not memo.ledger:
        memo.leave(number, "If Blocked: names no ledger (a Markdown file)")


def _read_how_to(memo: Memo, number: int, line: str) -> None:
    spans = [span for span in re.findall("`([^`]+)`", line) if _is_command(span)]
    for span in spans:
        for command in _read_commands(memo, number, span):
            memo.how_to.append(command)
            log = f", log {PurePath(command.log).name}" if command.log else ""
            memo.take(number, f"command `{command.text}`{_show_env(command.env)}{log}")
    if not spans:
        is_known = any(name in line for name in REPORT_FILES)
        memo.leave(number, "every report has these" if is_known else "How-To Map: no command in it")


def _read_code(memo: Memo, number: int, line: str) -> None:
    if not _note_code(memo, number, line):
        memo.leave(number, "names no Python file that a test could depend on")


def _note_code(memo: Memo, number: int, line: str) -> bool:
    """Note the Python files in a line; gives whether there is one."""
    names = [
        name
        for name in dict.fromkeys(_FILE.findall(line))
        if name.endswith(".py") and not PurePath(name).name.startswith("test_")
    ]
    for name in names:
        if name not in memo.code:
            memo.code[name] = number
            memo.take(number, f"code {name}: the tests depend on it")
        elif memo.code[name] != number:
            memo.take(number, f"code {name}, as in line {memo.code[name]}")
    return bool(names)


def _read_plain_commands(memo: Memo, number: int, line: str) -> list[Command]:
    """The commands of a text that is nothing but commands; none of any other text, of which a
    finding says so: prose must never be run."""
    parts = [part.strip() for part in _split_at_semicolons(line) if part.strip()]
    for part in parts:
        if not _is_plainly_a_command(part):
            memo.leave(number, f"`{part.strip('`')}`: is not plainly a command; nothing runs it")
            return []
    return [command for part in parts for command in _read_commands(memo, number, part)]


_ARGUMENT = re.compile(r"-\S*|\S*(?:/|::)\S*|\S+\.py")


def _is_plainly_a_command(part: str) -> bool:
    """Whether a text is a command and cannot be a sentence."""
    spanned = len(part) > 2 and part[0] == part[-1] == "`"
    text = part.strip("`").strip()
    if "`" in text or "$(" in text:
        return False
    try:
        words = split_words(text)
    except ValueError:
        return True  # what is wrong with it is said where it is read
    simple: list[list[str]] = [[]]
    for before, word in zip(["", *words], words, strict=False):
        if re.fullmatch(r"[();|&]+", word):
            simple.append([])
        elif not re.fullmatch(r"[<>&|]*[<>][<>&|]*", word) and not re.search("[<>]", before):
            simple[-1].append(word)
    return any(simple) and all(_calls_a_program(p, spanned=spanned) for p in simple if p)


def _calls_a_program(words: list[str], *, spanned: bool) -> bool:
    rest = split_assignments(words)[1]
    if not rest:
        return False
    program, *arguments = rest
    usual = bool(_PROGRAMS.fullmatch(program)) or program == "tee"
    if spanned:
        return usual or "/" in program or shutil.which(program) is not None
    # `make sure` and `python is slow` are sentences.
    return usual and (not arguments or bool(_ARGUMENT.fullmatch(arguments[0])))


def _read_commands(memo: Memo, number: int, line: str) -> Iterator[Command]:
    for part in _split_at_semicolons(line):
        text = part.strip().strip("`").strip()
        tee = _TEE.search(text)
        log = tee["log"] if tee else ""
        text = text[: tee.start()] if tee else text
        try:
            words = split_words(text)
            env, rest = split_assignments(words)
        except ValueError as error:
            memo.leave(number, f"`{text}`: {error}")
            continue
        if rest:
            yield Command(number, _without_assignments(text, len(env)), env, log)


def _without_assignments(text: str, count: int) -> str:
    """The command as written, after the variables that are set before it."""
    for _ in range(count):
        text = re.sub(r"""^[A-Za-z_]\w*=(?:"[^"]*"|'[^']*'|[^\s"'])*\s+""", "", text)
    return text


def _split_at_semicolons(line: str) -> list[str]:
    """The parts of a line between semicolons; those in quotes separate nothing."""
    return re.findall(r"""(?:"[^"]*"|'[^']*'|`[^`]*`|[^;])+""", line)


def _is_command(span: str) -> bool:
    try:
        words = split_assignments(split_words(span))[1]
    except ValueError:
        return False
    return len(words) > 1 and (bool(_TEE.search(span)) or bool(_PROGRAMS.fullmatch(words[0])))


def _show_env(env: dict[str, str]) -> str:
    return "".join(f", {name}={json.dumps(value)}" for name, value in env.items())

"""Write the evidence.yaml that a memo implies."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from ptycho_tasks.config.document import parse_config
from ptycho_tasks.config.dodo import EVIDENCE_DODO
from ptycho_tasks.config.gitignore import OF_EVIDENCE, extend_gitignore
from ptycho_tasks.errors import ConfigError, PtychoTasksError
from ptycho_tasks.evidence.documents import leads_outside
from ptycho_tasks.evidence.imported import ImportedItem, format_file, name_of, update_file
from ptycho_tasks.evidence.inputs import files_on_disk, find_rows
from ptycho_tasks.evidence.item import GREEN, RED, Item
from ptycho_tasks.evidence.ledger import lock_file
from ptycho_tasks.evidence.loading import load_evidence
from ptycho_tasks.evidence.memo import BY_PERSON, Entry, Finding, Memo, read_memo, read_text
from ptycho_tasks.evidence.memo_calls import list_stages
from ptycho_tasks.evidence.memo_ids import find_ids
from ptycho_tasks.evidence.memo_shell import Command, is_same_test, list_selectors
from ptycho_tasks.evidence.options import parse_evidence
from ptycho_tasks.evidence.preflight import check_writable
from ptycho_tasks.evidence.shell import find_pytest, split_assignments, split_words
from ptycho_tasks.evidence.summaries import REPORT_FILES
from ptycho_tasks.layout import CONFIG_NAME, DODO_NAME, EVIDENCE, EVIDENCE_NAME
from ptycho_tasks.system.files import find_file_problem, write_files

_LOG_IN_PROSE = re.compile(
    r"(?:(?i:\b(?:logs?|logged|tee|captur\w+|sav\w+|stor\w+|ke(?:ep|pt)|output|writ\w+|put|record\w*|"
    r"goes|file\w*|redirect\w*|collect\w*)\b)[\s:(]*"
    r"(?:(?!not\b|never\b|from\b|than\b|instead\b|old\b|compar)[a-z]+\s+){0,7}"
    r"|(?:[-=]>|\u2192)\s*|`\s+(?:into|to|as|in)\s+|`\s*\()`?(?P<log>[\w.-]+\.log)\b"
)
_EXIT_STATUS = re.compile(
    r"(?i:\b(?:expect(?:ed|s)?|must|should|to)\s+(?:to\s+)?(?:exit|return)s?\s+"
    r"(?:with\s+)?(?:status\s+|code\s+)?(?P<status>[1-9][0-9]{0,2})\b)"
)
_OUTPUT_OPTION = re.compile(r"--?(?:o|out|output)(?:[_-][a-z_-]+)?")
"""An option whose value is a file that the command writes."""


@dataclass(frozen=True)
class Supplied:
    """What the user says where a memo does not, or says something else."""

    plan: str = ""
    ledger: str = ""
    initiative: str = ""
    phase: str = ""


def import_memo(
    path: Path, root: Path, supplied: Supplied | None = None, *, is_dry_run: bool = False
) -> list[Finding]:
    """Write the evidence.yaml that a memo implies into a project; gives what became of each line.
    One that an earlier import wrote is updated; what a person changed in it stays.

    Args:
        path: the memo.
        root: the project's folder; it gets a dodo.py too, if it has none, and what its .gitignore
            lacks.
        supplied: what the user says.
        is_dry_run: whether nothing is to be written; the last finding then is the file's text.

    Raises:
        ConfigError: the memo cannot be read, or names nothing to prove; or the project has evidence
            that no import wrote. Nothing was written.
        FileWriteError: the project cannot be written; nothing was.
    """
    target = root / EVIDENCE_NAME
    is_first = not os.path.lexists(target)
    if is_first and os.path.lexists(root / CONFIG_NAME) and load_evidence(root) is not None:
        raise ConfigError(f"{CONFIG_NAME}: has a section `{EVIDENCE}` already; nothing was written")
    supplied = supplied or Supplied()
    _check_supplied(supplied, root)
    memo = read_memo(read_text(path), root, supplied.plan, str(path), supplied.ledger)
    _supply(memo, supplied)
    if memo.plan and os.path.realpath(root / memo.plan) == os.path.realpath(root / memo.ledger):
        raise ConfigError(
            f"ledger {memo.ledger}: is the plan itself; give each a file of its own, by --plan and "
            "--ledger; nothing was written"
        )
    items = _make_items(memo, root)
    if not items:
        raise ConfigError(
            f"{path}: names no row of a plan and no command; expected `Do Now:` with entries as "
            "`1. INITIATIVE C4.D1 ... tests: COMMAND`"
        )
    _fill_gaps(memo, path)
    title = f"From {path.name}: {memo.summary}".rstrip(": ")
    values = {key: _quote(getattr(memo, key)) for key in _KEYS if getattr(memo, key)}
    if not is_first:
        problem = find_file_problem(target)
        if problem:
            raise ConfigError(f"{target}: {problem}; nothing was written")
        text = update_file(target.read_text("utf-8", "replace"), title, values, items, memo)
    else:
        text = format_file(title, values, items)
    evidence = parse_evidence(None, parse_config(target, text.encode()))
    assert evidence is not None
    memo.findings.sort(key=lambda finding: finding.line or 1 << 30)
    for item in evidence.items:
        rows = ", ".join(item.ids) or "no row"
        lacks = _list_missing(item, root)
        more = f"; not here: {', '.join(lacks)}" if lacks else ""
        to_be = f", to be {item.expect}" if item.expect != GREEN else ""
        _add(memo, "will run", f"{rows}: {item.command}, log {item.name}{to_be}{more}")
    _mention_code(memo, evidence.items, root)
    files = {target: text.encode()}
    dodo = root / DODO_NAME
    if not os.path.lexists(dodo):
        files[dodo] = EVIDENCE_DODO.encode()
    elif "task_evidence" not in dodo.read_text("utf-8", "replace"):
        memo.leave(0, f"{DODO_NAME} lacks `task_evidence`; import it from ptycho_tasks.tasks there")
    locks = [lock_file(evidence.ledger_file).name] if evidence.ledger else []
    files |= extend_gitignore(root, [*OF_EVIDENCE, *locks])
    if is_dry_run:
        _add(memo, "dry run", f"nothing was written; {EVIDENCE_NAME} would be:\n{text}")
        return memo.findings
    if not is_first and target.read_bytes() == files[target]:
        del files[target]
        _add(memo, "unchanged", f"{EVIDENCE_NAME}: says all this already")
    for file in files:
        check_writable(file)
    write_files(files)
    for file in files:
        memo.take(0, file.name)
    return memo.findings


def _mention_code(memo: Memo, items: Iterable[Item], root: Path) -> None:
    """Say once which tests hold whatever becomes of the code that they test."""
    names = [
        item.name
        for item in items
        if (item.has_pytest or item.is_pytest or "unittest" in split_words(item.command))
        and not any(_has_code(root / name) for name in item.depends)
    ]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        text = (
            f"{', '.join(names[:3])}{more}: no code in `depends`: a change of what is tested is "
            "not seen; add `depends: [FILE.py, FOLDER]`, or Python files to the memo's Pointers"
        )
        _add(memo, "note", text)


def _has_code(path: Path) -> bool:
    return path.is_dir() or (path.suffix == ".py" and path.is_file())


def _list_missing(item: Item, root: Path) -> list[str]:
    """The program, scripts and tests of an item that are not there."""
    files = [name for name in (*item.scripts, *item.tests) if name in item.command]
    lacks = [name for name in files if not (root / name).exists()]
    program = next(iter(split_assignments(split_words(item.command))[1]), "")
    is_there = "/" in program or program in ("cd", "python") or shutil.which(program) is not None
    return lacks if is_there else [program, *lacks]


_KEYS = ("initiative", "phase", "plan", "ledger", "reports")


def _add(memo: Memo, verb: str, text: str) -> None:
    memo.findings.append(Finding(0, False, text, verb))


def _supply(memo: Memo, supplied: Supplied) -> None:
    """Set what the user says in place of what the memo does."""
    for key in ("plan", "ledger", "initiative", "phase"):
        value = getattr(supplied, key)
        if value:
            setattr(memo, key, value)
            memo.take(0, f"{key} {value}, by --{key}")


def _check_supplied(supplied: Supplied, root: Path) -> None:
    """Refuse a plan or a ledger that no run could use."""
    given = {key: getattr(supplied, key) for key in ("plan", "ledger") if getattr(supplied, key)}
    for key, name in given.items():
        place = root / name
        problem = find_file_problem(place)
        if ".." in PurePath(name).parts or PurePath(name).is_absolute():
            problem = "expected a path inside the project"
        elif leads_outside(root, name):
            problem = "is a link out of the project"
        elif PurePath(name).suffix.casefold() not in (".md", ".markdown"):
            problem = problem or "expected a Markdown file (.md)"
        elif not place.exists():
            problem = "no such file; make one, or correct it"
        if problem:
            raise ConfigError(f"--{key} {name}: {problem}; nothing was written")


def _fill_gaps(memo: Memo, path: Path) -> None:
    """Say all that the memo lacks, with the option that supplies each."""
    why = "nothing runs until it is there"
    for key, kind in (("plan", "FILE"), ("ledger", "FILE")):
        if not getattr(memo, key):
            _add(memo, "missing", f"{key}: the memo names none; --{key} {kind} supplies it; {why}")
    if not memo.initiative:
        memo.initiative = path.stem
        _add(memo, "missing", f"initiative: none; {path.stem} for now; --initiative NAME")
    if not memo.phase:
        name = re.sub("[^A-Za-z0-9_.-]+", "_", memo.initiative).strip("_.-") or EVIDENCE
        _add(memo, "missing", f"phase: none; {name} for now; --phase NAME supplies it")
        memo.phase = name
    memo.phase = re.sub("[^A-Za-z0-9_.-]+", "_", memo.phase).strip("_.-") or EVIDENCE
    if not memo.reports:
        memo.reports = "reports"
        _add(memo, "missing", "artefact folder: none; reports for now; edit `reports`")


# ---------------------------------------------------------------------------------------------
# Items


def _make_items(memo: Memo, root: Path) -> list[ImportedItem]:
    """What is to be run or done, each with its rows."""
    _join_how_to(memo)
    own = [command for entry in memo.entries for command in entry.commands]
    others: list[Command] = []
    for command in [*memo.how_to, *memo.mapped_tests]:
        known = (_is_same(command, c) for c in [*own, *others])
        if not any(known):
            others.append(command)
    # What the memo says how to run, and is no test, makes files that the tests may read.
    outputs = [p for c in others if not find_pytest(c.text).mentions for p in _find_paths(c)[1]]
    make = functools.partial(_make_item, _LogNames(memo), [*memo.code, *outputs], root)
    by_entry: dict[int, list[Command]] = {}
    free: list[Command] = []
    for command in others:
        index = _find_entry(memo, command)
        by_entry.setdefault(index, []).append(command) if index is not None else free.append(
            command
        )
    items: list[ImportedItem] = []
    for index, entry in enumerate(memo.entries):
        more = by_entry.get(index, [])
        for command in more:
            aims = _list_aimed(command, entry, memo) or entry.ids
            rows, outcome = ", ".join(aims), RED if command.is_red else GREEN
            memo.take(
                command.line, f"`{command.text}`: {rows} of line {entry.line} need it {outcome}"
            )
        commands = list({c.key: c for c in [*more, *entry.commands]}.values())
        if len(commands) == 1 and not commands[0].log:
            log = memo.row_logs.get(", ".join(entry.ids), "")
            commands = [replace(commands[0], log=log)]
        named = [_list_aimed(c, entry, memo) for c in commands]
        is_said = all(named) and {*itertools.chain(*named)} == {*entry.ids}
        for command, ids in zip(commands, named, strict=True):
            items.append(make(ids if is_said else entry.ids, command))
        if not is_said and len(entry.ids) > 1 and len(entry.commands) > 1:
            memo.take(
                entry.line,
                f"each of {', '.join(entry.ids)} needs all {len(entry.commands)} commands: the "
                "memo does not say which proves which",
            )
        # Prose that no command is for is done by a person, whatever else proves the row.
        if entry.ids and not (entry.commands or any(_is_for(c, entry, memo) for c in more)):
            text = (
                f"  - ids: {_quote(entry.ids)}\n    by_hand: {_quote(entry.text or 'see the memo')}"
            )
            items.append(ImportedItem(text, tuple(entry.ids), "", entry.text))
        elif more and not entry.commands:
            memo.findings[:] = [
                f for f in memo.findings if f.line != entry.line or not f.text.endswith(BY_PERSON)
            ]
    for command in free:
        memo.take(command.line, f"`{command.text}`: is run, and proves no row: the memo names none")
        items.append(make([], command))
    return [item for n, item in enumerate(items) if item not in items[:n]]


def _is_same(one: Command, other: Command) -> bool:
    """Whether one command is the other, as far as it says itself."""
    is_same_work = one.text == other.text or is_same_test(one, other)
    return is_same_work and (one.is_red == other.is_red or not (one.log or one.must_fail))


_RED = re.compile(
    r"\bRED\b|(?i:\b(?:write|add|author|create)\s+(?:(?:a|the)\s+)?failing\b"
    r"|\b(?:must|should|expected\s+to)\s+(?:still\s+)?fail\b|\bfailing\s+tests?\s+first\b)"
)


def _join_how_to(memo: Memo) -> None:
    """Give the entries' commands the logs, and the environment, that the how-to has for them; and
    tell those that are to be red."""
    for entry in memo.entries:
        is_red = bool(_RED.search(entry.text))
        outcomes = {is_red, is_red and not re.search(r"\bGREEN\b", entry.text)}
        joined: list[Command] = []
        for command in entry.commands:
            is_said = bool(command.log) or command.must_fail
            asked = [command] if is_said else [replace(command, must_fail=o) for o in outcomes]
            joined += [_join(one, memo) for one in asked]
        entry.commands[:] = joined


def _join(command: Command, memo: Memo) -> Command:
    """A command of an entry with what the how-to says of it."""
    alike = [c for c in memo.how_to if c.is_red == command.is_red or not (c.log or command.log)]
    same = [c for c in alike if c.text == command.text]
    same = same or [c for c in alike if is_same_test(c, command)]
    exact = [c for c in same if c.key == command.key] or same
    if not exact or len({c.key for c in exact}) > 1:
        return command
    env, log = {**command.env, **exact[0].env}, command.log or exact[0].log
    return replace(exact[0], env=env, log=log, must_fail=command.must_fail)


def _find_entry(memo: Memo, command: Command) -> int | None:
    """Which entry a command belongs to that stands elsewhere; None where nothing says so."""
    # Where a test is to be red and then green, each has its entry.
    entries = {
        index: entry
        for index, entry in sorted(
            enumerate(memo.entries),
            key=lambda pair: bool(_RED.search(pair[1].text)) != command.is_red,
        )
        if entry.ids
    }
    for index, entry in entries.items():
        if _is_for(command, entry, memo):
            return index
    for index, entry in entries.items():
        if any(path in entry.text for path in _find_paths(command)[1]):
            return index
        if any(_has_word(entry.text, word) for word in list_selectors(command)):
            return index
    label = re.match(r"\W*(?P<label>[A-Za-z][\w -]*?)\W*:\W", command.context)
    if label and label["label"].casefold() not in _USUAL_WORDS:
        called = rf"(?i:\b{re.escape(label['label'])}\s+(?:tests?|selectors?|commands?|checks?)\b)"
        asked = [index for index, entry in entries.items() if re.search(called, entry.text)]
        if len(asked) == 1:
            return asked[0]
    asked = [
        index
        for index, entry in entries.items()
        if command in memo.mapped_tests
        and re.search(r"(?i:mapped\s+(?:tests?|selectors?|commands?))", entry.text)
    ]
    if len(asked) == 1:
        return asked[0]
    alone = next(iter(entries), None)
    return (
        alone
        if len(memo.entries) == 1 and alone is not None and not memo.entries[0].has_tests
        else None
    )


def _is_for(command: Command, entry: Entry, memo: Memo) -> bool:
    """Whether what stands before a command names a row of an entry."""
    label, _, _ = command.context.partition(command.text[:20])
    named = _list_aims(command, memo)
    return bool(named & {*entry.ids}) or any(_has_word(label, id) for id in entry.ids)


def _list_aimed(command: Command, entry: Entry, memo: Memo) -> list[str]:
    """The rows of an entry that are named beside one of its commands, or beside the same among the
    mapped tests."""
    same = [c for c in memo.mapped_tests if _is_same(c, command)]
    aims = {id for one in [command, *same] for id in _list_aims(one, memo)}
    return [id for id in entry.ids if id in aims]


def _list_aims(command: Command, memo: Memo) -> set[str]:
    """The rows that are named beside a command."""
    label, _, behind = command.context.partition(command.text[:20])
    aim = re.search(r"(?:\u2192|->|=>|\(|#|\bfor\b|\bproves?\b)\s*(?P<ids>[^`]*)$", behind)
    return {*find_ids(label, memo.initiative), *find_ids(aim["ids"] if aim else "")}


def _has_word(text: str, word: str) -> bool:
    return bool(word) and bool(re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", text))


def _make_item(
    log_names: _LogNames, code: Iterable[str], root: Path, ids: list[str], command: Command
) -> ImportedItem:
    calls = find_pytest(command.text)
    log = log_names.choose(command)
    lines = [f"  - ids: {_quote(ids)}"]
    if calls.is_plain:
        lines.append(f"    pytest: {_quote(calls.arguments)}")
    else:
        lines.append(f"    command: {_quote(command.text)}")
    lines.append(f"    log: {_quote(log)}")
    if {"--collect-only", "--co"} & {*calls.arguments}:
        lines.append("    expect: collected")
    elif command.is_red:
        lines.append("    expect: red")
    elif status := _EXIT_STATUS.search(command.context):
        lines.append(f"    expect: {{exit: {status['status']}}}")
    if command.env:
        env = ", ".join(f"{name}: {_quote(value)}" for name, value in command.env.items())
        lines.append(f"    env: {{{env}}}")
    depends = [*dict.fromkeys(code)] if calls.mentions else _list_present(command, root)
    depends += _list_known_stages(command, root)
    if depends:
        lines.append(f"    depends: {_quote(depends)}")
    work = calls.arguments if calls.is_plain else command.text
    return ImportedItem("\n".join(lines), tuple(ids), name_of(log), str(work))


def _list_known_stages(command: Command, root: Path) -> list[str]:
    """The stages of the project that a command has doit bring up to date: what it proves holds only
    while they are."""
    known: list[str] = []
    for stage in list_stages(command.text):
        with suppress(PtychoTasksError):  # what reads ptycho.yaml for its own sake tells
            find_rows(files_on_disk(root).read_rows(), stage)
            known.append(stage)
    return known


def _list_present(command: Command, root: Path) -> list[str]:
    """The files that a command reads, and folders that are there: others may be what it makes, or a
    name, and would keep every item from running."""
    return [
        path for path in _find_paths(command)[0] if PurePath(path).suffix or (root / path).exists()
    ]


def _find_paths(command: Command) -> tuple[list[str], list[str]]:
    """The files that a command reads, and those that it makes, by its words."""
    words = split_words(command.text)
    reads: list[str] = []
    makes: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if "/" in word and not word.startswith("-"):
            (makes if _OUTPUT_OPTION.fullmatch(before) else reads).append(word)
    return reads, makes


_USUAL_WORDS = {"log", "pytest", "test", "tests", "py", "green", "red", "python", "txt", "run"}


class _LogNames:
    """Names the logs: as `tee` does in the memo, or as fits the artefacts, each once."""

    def __init__(self, memo: Memo) -> None:
        commands = [c for entry in memo.entries for c in entry.commands]
        commands += [*memo.how_to, *memo.mapped_tests]
        teed = {PurePath(c.log).name for c in commands if c.log}
        logs = [name for name in memo.files if name.endswith(".log") and name not in REPORT_FILES]
        self._candidates = [name for name in logs if name not in teed]
        self._used: set[str] = set()
        self._only_one_left = self._find_last_pair(commands)

    def _find_last_pair(self, commands: Sequence[Command]) -> dict[str, str]:
        """The one command for which no name is like it, to the one name that is left."""
        others = [
            c for c in commands if not (c.log or any(o.log and _is_same(c, o) for o in commands))
        ]
        best = [(c.text, self._find_likest(c)) for c in others]
        nameless = [*dict.fromkeys(text for text, name in best if not name)]
        left = {*self._candidates}.difference(name for _, name in best)
        return dict(zip(nameless, left, strict=True)) if len(nameless) == len(left) == 1 else {}

    def choose(self, command: Command) -> str:
        name = PurePath(command.log).name if command.log else self._guess(command)
        name = re.sub("[^A-Za-z0-9_.-]+", "_", name).strip("_.-")[:90] or "command.log"
        stem, number = re.sub("_red$", "", PurePath(name).stem), 2
        ending = "_red.log" if command.is_red else ".log"
        name = f"{stem}{ending}" if command.is_red else name
        while name_of(name) in self._used:
            name, number = f"{stem}_{number}{ending}", number + 1
        self._used.add(name_of(name))
        return name

    def _guess(self, command: Command) -> str:
        said = _LOG_IN_PROSE.search(command.context)
        if said and name_of(said["log"]) not in self._used:
            return said["log"]
        name = self._find_likest(command) or self._only_one_left.get(command.text, "")
        if name and name_of(name) not in self._used:
            return name
        stems = [PurePath(path.partition("::")[0]).stem for path in _find_paths(command)[0]]
        program = next(iter(split_words(command.text)), "command")
        return f"{stems[0] if stems else PurePath(program).name}.log"

    def _find_likest(self, command: Command) -> str:
        """The name, of those that are free, that is made of most of a command's words."""
        words = _list_words(command.text)
        # What stands beside it says which of those with a word of its own it is.
        beside = {word for word in _list_words(command.context) if not word.isdigit()}
        scores = {
            name: len(own & (words | beside)) if (own := _list_words(name)) & words else 0
            for name in self._candidates
            if name_of(name) not in self._used
            and (PurePath(name).stem.endswith("_red") == command.is_red)
        }
        best = max(scores, key=lambda name: scores[name], default="")
        return best if best and scores[best] else ""


def _list_words(text: str) -> set[str]:
    return {*map(str.casefold, re.findall("[A-Z]?[a-z]+|[A-Z]+|[0-9]+", text))} - _USUAL_WORDS


def _quote(value: object) -> str:
    """A value in YAML, which reads JSON."""
    return json.dumps(value, ensure_ascii=False)

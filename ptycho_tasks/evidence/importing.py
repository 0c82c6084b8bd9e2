"""Write the evidence.yaml that a memo implies."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from ptycho_tasks.config.document import parse_config
from ptycho_tasks.config.dodo import EVIDENCE_DODO
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.evidence.loading import load_evidence
from ptycho_tasks.evidence.memo import Command, Entry, Finding, Memo, read_memo, read_text
from ptycho_tasks.evidence.options import parse_evidence
from ptycho_tasks.evidence.shell import find_pytest, split_words
from ptycho_tasks.evidence.summaries import REPORT_FILES
from ptycho_tasks.layout import CONFIG_NAME, DODO_NAME, EVIDENCE, EVIDENCE_NAME
from ptycho_tasks.system.files import write_files

_OUTPUT_OPTION = re.compile(r"--?(?:o|out|output)(?:[_-][a-z_-]+)?")
"""An option whose value is a file that the command writes."""


def import_memo(path: Path, root: Path) -> list[Finding]:
    """Write the evidence.yaml that a memo implies into a project; gives what became of each line.

    Args:
        path: the memo.
        root: the project's folder; it gets a dodo.py too, if it has none.

    Raises:
        ConfigError: the memo cannot be read, or names no plan, no ledger, no artefact folder or no
            item; or the project has evidence already. Nothing was written.
        FileWriteError: the project cannot be written; nothing was.
    """
    target = root / EVIDENCE_NAME
    if os.path.lexists(target):
        raise ConfigError(f"{target}: is already there; nothing was written")
    if os.path.lexists(root / CONFIG_NAME) and load_evidence(root) is not None:
        raise ConfigError(f"{CONFIG_NAME}: has a section `{EVIDENCE}` already; nothing was written")
    memo = read_memo(read_text(path))
    _refuse_incomplete(path, memo)
    text = "\n".join(
        [f"# From {path.name}: {memo.summary}".rstrip(": "), *_format_evidence(memo), ""]
    )
    parse_evidence(None, parse_config(target, text.encode()))
    files = {target: text.encode()}
    dodo = root / DODO_NAME
    if not os.path.lexists(dodo):
        files[dodo] = EVIDENCE_DODO.encode()
    elif "task_evidence" not in dodo.read_text("utf-8", "replace"):
        memo.leave(0, f"{DODO_NAME} lacks `task_evidence`; import it from ptycho_tasks.tasks there")
    write_files(files)
    for file in files:
        memo.take(0, file.name)
    return sorted(memo.findings, key=lambda finding: finding.line or 1 << 30)


def _refuse_incomplete(path: Path, memo: Memo) -> None:
    wanted = {
        "a plan, as `@ path/plan.md` under `Do Now:`": memo.plan,
        "an item with an id, as `1. INITIATIVE C4.D1 ...` under `Do Now:`": memo.entries,
        "an artefact folder, as `Artifacts: reports/STAMP/PHASE/{...}`": memo.phase,
        "a ledger, as `log it in docs/fix_plan.md` under `If Blocked:`": memo.ledger,
        "an initiative, as `Focus: [NAME] ...`": memo.initiative,
    }
    missing = [what for what, value in wanted.items() if not value]
    if missing:
        raise ConfigError(f"{path}: the memo names no {missing[0].partition(' ')[2]}")


# ---------------------------------------------------------------------------------------------
# Writing


def _format_evidence(memo: Memo) -> Iterator[str]:
    for key in ("initiative", "phase", "plan", "ledger", "reports"):
        yield f"{key}: {_quote(getattr(memo, key))}"
    yield "items:"
    log_names = _LogNames(memo)
    tests = {command.key for entry in memo.entries for command in entry.commands}
    # What the memo says how to run, and is no test, makes files that the tests may read.
    extra = [command for command in memo.how_to if command.key not in tests]
    outputs = [path for command in extra for path in _find_paths(command)[1]]
    written: dict[object, Command] = {}
    for entry in memo.entries:
        others = [command for command in extra if _makes_file_of(command, entry)]
        for command in [*others, *entry.commands]:
            what = (command.key, tuple(entry.ids))
            if what in written:
                continue
            written[what] = command
            depends = _find_paths(command)[0] if command in others else [*memo.code, *outputs]
            yield from _format_item(entry, command, log_names.choose(command), depends)
        if len(entry.ids) > 1 and len(entry.commands) > 1:
            memo.take(
                entry.line,
                f"each of {', '.join(entry.ids)} needs all {len(entry.commands)} commands: the "
                "memo does not say which proves which",
            )
        if not entry.commands:
            yield f"  - ids: {_quote(entry.ids)}"
            yield f"    by_hand: {_quote(entry.text)}"
        for command in others:
            memo.take(
                command.line,
                f"it makes what line {entry.line} names: {', '.join(entry.ids)} need it green",
            )
    _note_unused(memo, {command.key for command in written.values()})


def _format_item(entry: Entry, command: Command, log: str, depends: Iterable[str]) -> Iterator[str]:
    calls = find_pytest(command.text)
    yield f"  - ids: {_quote(entry.ids)}"
    if calls.is_plain:
        yield f"    pytest: {_quote(calls.arguments)}"
    else:
        yield f"    command: {_quote(command.text)}"
    yield f"    log: {_quote(log)}"
    if command.env:
        env = ", ".join(f"{name}: {_quote(value)}" for name, value in command.env.items())
        yield f"    env: {{{env}}}"
    if depends:
        yield f"    depends: {_quote(list(depends))}"


def _note_unused(memo: Memo, used: set[object]) -> None:
    noted: set[object] = set()
    for command in [*memo.mapped_tests, *memo.how_to]:
        if command.key not in used | noted:
            noted.add(command.key)
            memo.leave(command.line, f"`{command.text}`: no item under Do Now names it")


def _makes_file_of(command: Command, entry: Entry) -> bool:
    """Whether a command makes a file that an entry names."""
    return any(path in entry.text for path in _find_paths(command)[1])


def _find_paths(command: Command) -> tuple[list[str], list[str]]:
    """The files that a command reads, and those that it makes, by its words."""
    words = split_words(command.text)
    reads: list[str] = []
    makes: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if "/" in word and not word.startswith("-"):
            (makes if _OUTPUT_OPTION.fullmatch(before) else reads).append(word)
    return reads, makes


class _LogNames:
    """Names the logs: as `tee` does in the memo, or as fits the artefacts, each once."""

    def __init__(self, memo: Memo) -> None:
        self._by_tee = {c.key: PurePath(c.log).name for c in memo.how_to if c.log}
        self._candidates = [n for n in memo.files if n.endswith(".log") and n not in REPORT_FILES]
        self._used: dict[str, object] = {}

    def choose(self, command: Command) -> str:
        name = self._by_tee.get(command.key) or self._guess(command)
        stem, number = PurePath(name).stem, 2
        while self._used.setdefault(name.casefold(), command) is not command:
            name, number = f"{stem}_{number}.log", number + 1
        return name

    def _guess(self, command: Command) -> str:
        words = set(re.findall("[a-z0-9]+", command.text.casefold()))
        unnamed = [name for name in self._candidates if name not in self._by_tee.values()]
        scores = {n: len(words & {*re.findall("[a-z0-9]+", n.casefold())}) for n in unnamed}
        best = max(scores, key=lambda name: scores[name], default="")
        if best and scores[best] > 1:
            return best
        stems = [PurePath(path.partition("::")[0]).stem for path in _find_paths(command)[0]]
        return f"{re.sub('[^A-Za-z0-9_.-]+', '_', stems[0] if stems else 'command')}.log"


def _quote(value: object) -> str:
    """A value in YAML, which reads JSON."""
    return json.dumps(value, ensure_ascii=False)

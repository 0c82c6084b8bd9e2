"""An evidence.yaml from a memo."""

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
from ptycho_tasks.evidence.memo import (
    _MADE,
    _OUTPUTS,
    Command,
    Finding,
    Memo,
    Task,
    _text,
    read_memo,
)
from ptycho_tasks.evidence.options import parse_evidence
from ptycho_tasks.evidence.shell import pytest_calls, words_of
from ptycho_tasks.layout import CONFIG_NAME, DODO_NAME, EVIDENCE, EVIDENCE_NAME
from ptycho_tasks.system.files import write_all


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
    memo = read_memo(_text(path))
    _refuse_incomplete(path, memo)
    text = "\n".join([f"# From {path.name}: {memo.summary}".rstrip(": "), *_yaml(memo), ""])
    parse_evidence(None, parse_config(target, text.encode()))
    files = {target: text.encode()}
    dodo = root / DODO_NAME
    if not os.path.lexists(dodo):
        files[dodo] = EVIDENCE_DODO.encode()
    elif "task_evidence" not in dodo.read_text("utf-8", "replace"):
        memo.left(0, f"{DODO_NAME} lacks `task_evidence`; import it from ptycho_tasks.tasks there")
    write_all(files)
    for file in files:
        memo.took(0, file.name)
    return sorted(memo.findings, key=lambda finding: finding.line or 1 << 30)


def _refuse_incomplete(path: Path, memo: Memo) -> None:
    wanted = {
        "a plan, as `@ path/plan.md` under `Do Now:`": memo.plan,
        "an item with an id, as `1. INITIATIVE C4.D1 ...` under `Do Now:`": memo.tasks,
        "an artefact folder, as `Artifacts: reports/STAMP/PHASE/{...}`": memo.phase,
        "a ledger, as `log it in docs/fix_plan.md` under `If Blocked:`": memo.ledger,
        "an initiative, as `Focus: [NAME] ...`": memo.initiative,
    }
    missing = [what for what, found in wanted.items() if not found]
    if missing:
        raise ConfigError(f"{path}: the memo names no {missing[0].partition(' ')[2]}")


# ---------------------------------------------------------------------------------------------
# Writing


def _yaml(memo: Memo) -> Iterator[str]:
    for key in ("initiative", "phase", "plan", "ledger", "reports"):
        yield f"{key}: {_quoted(getattr(memo, key))}"
    yield "items:"
    logs = _Logs(memo)
    tested = {command.key for task in memo.tasks for command in task.commands}
    extra = [command for command in memo.how_to if command.key not in tested]
    made = [path for command in extra for path in _paths(command)[1]]
    written: dict[object, Command] = {}
    for task in memo.tasks:
        others = [command for command in extra if _makes_what(command, task)]
        for command in [*others, *task.commands]:
            what = (command.key, tuple(task.ids))
            if what in written:
                continue
            written[what] = command
            depends = _paths(command)[0] if command in others else [*memo.code, *made]
            yield from _item(task, command, logs.of(command), depends)
        if len(task.ids) > 1 and len(task.commands) > 1:
            memo.took(
                task.line,
                f"each of {', '.join(task.ids)} needs all {len(task.commands)} commands: the memo "
                "does not say which proves which",
            )
        if not task.commands:
            yield f"  - ids: {_quoted(task.ids)}"
            yield f"    by_hand: {_quoted(task.text)}"
        for command in others:
            memo.took(
                command.line,
                f"it makes what line {task.line} names: {', '.join(task.ids)} need it green",
            )
    _tell_unused(memo, {command.key for command in written.values()})


def _item(task: Task, command: Command, log: str, depends: Iterable[str]) -> Iterator[str]:
    calls = pytest_calls(command.text)
    yield f"  - ids: {_quoted(task.ids)}"
    if calls.plain:
        yield f"    pytest: {_quoted(calls.arguments)}"
    else:
        yield f"    command: {_quoted(command.text)}"
    yield f"    log: {_quoted(log)}"
    if command.env:
        env = ", ".join(f"{name}: {_quoted(value)}" for name, value in command.env.items())
        yield f"    env: {{{env}}}"
    if depends:
        yield f"    depends: {_quoted(list(depends))}"


def _tell_unused(memo: Memo, used: set[object]) -> None:
    told: set[object] = set()
    for command in [*memo.mapped, *memo.how_to]:
        if command.key not in used | told:
            told.add(command.key)
            memo.left(command.line, f"`{command.text}`: no item under Do Now names it")


def _makes_what(command: Command, task: Task) -> bool:
    """Whether a command makes a file that an entry names."""
    return any(path in task.text for path in _paths(command)[1])


def _paths(command: Command) -> tuple[list[str], list[str]]:
    """The files that a command reads, and those that it makes, by its words."""
    words = words_of(command.text)
    reads: list[str] = []
    makes: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if "/" in word and not word.startswith("-"):
            (makes if _OUTPUTS.fullmatch(before) else reads).append(word)
    return reads, makes


class _Logs:
    """Names the logs: as `tee` does in the memo, or as fits the artefacts, each once."""

    def __init__(self, memo: Memo) -> None:
        self._named = {c.key: PurePath(c.log).name for c in memo.how_to if c.log}
        self._free = [n for n in memo.files if n.endswith(".log") and n not in _MADE]
        self._taken: dict[str, object] = {}

    def of(self, command: Command) -> str:
        name = self._named.get(command.key) or self._guessed(command)
        stem, number = PurePath(name).stem, 2
        while self._taken.setdefault(name.casefold(), command) is not command:
            name, number = f"{stem}_{number}.log", number + 1
        return name

    def _guessed(self, command: Command) -> str:
        words = set(re.findall("[a-z0-9]+", command.text.casefold()))
        unnamed = [name for name in self._free if name not in self._named.values()]
        scores = {n: len(words & {*re.findall("[a-z0-9]+", n.casefold())}) for n in unnamed}
        best = max(scores, key=lambda name: scores[name], default="")
        if best and scores[best] > 1:
            return best
        stems = [PurePath(path.partition("::")[0]).stem for path in _paths(command)[0]]
        return f"{re.sub('[^A-Za-z0-9_.-]+', '_', stems[0] if stems else 'command')}.log"


def _quoted(value: object) -> str:
    """A value in YAML, which reads JSON."""
    return json.dumps(value, ensure_ascii=False)

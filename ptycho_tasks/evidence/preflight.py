"""Checks before a run: what can only fail is refused before anything runs."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path, PurePath

from ptycho_tasks.errors import ConfigError, FileWriteError, PlanError, one_line
from ptycho_tasks.evidence.documents import read_ledger, read_plan
from ptycho_tasks.evidence.inputs import exists, files_on_disk
from ptycho_tasks.evidence.item import RED, Evidence, Item
from ptycho_tasks.evidence.ledger import lock_file
from ptycho_tasks.evidence.plan import Plan
from ptycho_tasks.evidence.shell import (
    make_environment,
    make_shell_command,
    split_assignments,
    split_words,
)
from ptycho_tasks.options import STAGES
from ptycho_tasks.system.files import find_file_problem, report_write_errors, temporary_file
from ptycho_tasks.system.terminal import echo


def check_ready(evidence: Evidence, items: Iterable[Item]) -> None:
    """Refuse evidence that cannot be gathered.

    Args:
        evidence: the project's.
        items: those that may run.

    Raises:
        PlanError: the plan lacks a row, has it twice or without a state, or plan or ledger is no
            file, or a link out of the project.
        ConfigError: a command or a test file is not there, or what an item depends on is a stage
            misspelt. A file that is missing is only mentioned: it blocks the item's own rows.
        FileWriteError: plan, ledger or the report folder cannot be written.
    """
    plan = read_plan(evidence)
    check_rows(evidence, plan)
    ledger = evidence.ledger_file
    if not evidence.ledger or ledger.is_file():
        read_ledger(evidence)
    if not ledger.is_file():
        problem = (
            find_file_problem(ledger) or "no such file; make one, which may be empty, or correct it"
        )
        raise PlanError(f"{evidence.file}: ledger: {evidence.ledger}: {problem}")
    if ledger == evidence.plan_file:
        raise PlanError(f"{evidence.file}: ledger: is the plan itself; give each a file of its own")
    reports = (evidence.reports_dir / "new", evidence.manifest_file("new"))
    for place in (evidence.plan_file, ledger, *reports):
        check_writable(place)
    lock = lock_file(ledger)
    if lock.exists() and not os.access(lock, os.W_OK):
        raise FileWriteError(f"cannot write {lock}: Permission denied; allow writing there")
    mention_odd_rows(plan)
    for item in items:
        _check_command(evidence, item)
        _check_named_files(evidence, item)


def check_rows(evidence: Evidence, plan: Plan) -> None:
    """Refuse rows that are not there, stand twice, or have no state.

    Raises:
        PlanError: one line that names the plan, its line and the row.
    """
    count = Counter(row.id for row in plan.rows if row.state is not None)
    # What has no letter or no digit need not be meant as an id: `1`, `Note:`.
    twice = [
        id for id in count if count[id] > 1 and re.search("[A-Za-z].*[0-9]|[0-9].*[A-Za-z]", id)
    ]
    for id in [*evidence.ids, *twice]:
        plan.row(id)


def mention_odd_rows(plan: Plan) -> None:
    """Say in one line which rows have a state that is none; those that are listed are refused."""
    if plan.odd_rows:
        first, *others = plan.odd_rows
        more = f"; so has line {', '.join(str(row.line) for row in others)}" if others else ""
        echo(f"warning: {one_line(plan.describe_odd_state(first))}{more}", err=True)


def check_writable(path: Path) -> None:
    """Refuse a file that must not be written, though it could be replaced.

    Raises:
        FileWriteError: it, or its folder, cannot be written.
    """
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    with temporary_file(folder / path.name), report_write_errors(path), suppress(FileNotFoundError):
        # One that must not be written could not be replaced either, or should not.
        path.open("r+b").close()


def _check_command(evidence: Evidence, item: Item) -> None:
    if item.stage:
        return
    if item.arguments:
        if find_spec("pytest") is None:
            raise ConfigError(
                f"{evidence.file}: {item.name}: pytest is not installed; `pip install pytest`"
            )
        return
    # With `-n` a shell reads a command and does not run it.
    syntax = _run(evidence, [*make_shell_command(item.command)[:-2], "-n", "-c", item.command])
    if syntax.returncode != 0:
        problem = (syntax.stderr.splitlines() or ["it is none"])[0]
        raise ConfigError(
            f"{evidence.file}: {item.name}: the shell cannot read the command: {problem}"
        )
    try:
        env, words = split_assignments(split_words(item.command))
    except ValueError:
        return
    # What the shell has yet to make a word of, it must judge itself.
    if not words or set(words[0]) & set("$`*?[{(<>|&;)~"):
        return
    # They may set PATH.
    more = {**item.env, **{name: value for name, value in env.items() if "$" not in value}}
    lookup = _run(evidence, ["/bin/sh", "-c", 'command -v -- "$1"', "sh", words[0]], more)
    if lookup.returncode != 0:
        raise ConfigError(
            f"{evidence.file}: {item.name}: there is no command `{words[0]}`; correct it, or "
            "install what it belongs to"
        )


def _run(
    evidence: Evidence, command: list[str], env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=evidence.root,
        env={**make_environment(), **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _check_named_files(evidence: Evidence, item: Item) -> None:
    for test in item.tests:
        if not (evidence.root / test).exists():
            raise ConfigError(
                f"{evidence.file}: {item.name}: there is no test file or folder {test}; correct "
                "the selector"
            )
    for name in _list_missing(evidence, item):
        close = difflib.get_close_matches(name, STAGES, n=1)
        if close:
            raise ConfigError(
                f"{evidence.file}: {item.name}: {_describe_missing(name)}; did you mean "
                f"`{close[0]}`?"
            )
    problem = find_missing_file(evidence, item)
    if problem:
        text = f"{item.name}: {one_line(problem)}; {item.label} is blocked until then"
        echo(f"warning: {evidence.file}: {text}", err=True)


def find_missing_file(evidence: Evidence, item: Item) -> str:
    """Which file that an item depends on is not there, in one line; empty where all are."""
    name = next(_list_missing(evidence, item), None)
    return f"{_describe_missing(name)}; make it first, or correct it" if name else ""


def _describe_missing(name: str) -> str:
    return f"depends: `{name}` is neither a stage nor a file"


def _list_missing(evidence: Evidence, item: Item) -> Iterator[str]:
    if item.expect == RED or item.has_red_twin:
        return  # the code of a test that is to be red need not be there yet
    for name in item.depends:
        if not (exists(evidence, name) or _is_made(evidence, item, name)):
            yield name


def _is_made(evidence: Evidence, item: Item, name: str) -> bool:
    """Whether a stage, or another item by its command, makes what an item depends on."""
    files = files_on_disk(evidence.root)
    words = [path for stage in item.stages for path in files.list_outputs(stage)]
    for other in evidence.items:
        if other is not item:
            words += re.split(r"[\s\"'=;]+", other.command)
    paths = map(PurePath, words)
    return any(part.match(name) for path in paths for part in (path, *path.parents))

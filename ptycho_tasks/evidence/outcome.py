"""Whether a run of an item was green or red, and what to say of a red one."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from ptycho_tasks.evidence.item import COLLECTED, GREEN, RED, Item
from ptycho_tasks.evidence.junit import PytestReport
from ptycho_tasks.evidence.log import Tee, escape

_NOT_FOUND = (126, 127)
"""A shell's exit status where there is no such command, or none that can be run."""
_NO_TESTS = 5
"""pytest's exit status where what was selected has no test."""
_LAST_LINE = re.compile(r"^=+ (.*?)(?: in [0-9.]+s.*)? =+$")
"""pytest's last line."""
LONGEST_PROBLEM = 1000
"""Characters of a problem that a record holds; the log has all."""


class Judgement(NamedTuple):
    """What a run came to."""

    outcome: Literal["green", "red"]
    problem: str
    """Of a red one, in one line."""
    mistake: str
    """What is wrong with the configuration, if the problem is that; else empty."""


def judge_run(
    item: Item, status: int, ended: str, tests: PytestReport | None, tee: Tee
) -> Judgement:
    """What a run of an item came to.

    Args:
        item: the item.
        status: exit status of its command.
        ended: how it ended, of `follow`.
        tests: what pytest wrote; None where it wrote nothing.
        tee: what the output said.
    """
    mistake = _find_mistake(item, status, ended, tests, tee)
    problem = mistake or _find_problem(item, status, ended, tests, tee)
    return Judgement(
        outcome=RED if problem else GREEN,
        problem=escape(problem[:LONGEST_PROBLEM]),
        mistake=escape(mistake[:LONGEST_PROBLEM]),
    )


def _find_mistake(item: Item, status: int, ended: str, tests: PytestReport | None, tee: Tee) -> str:
    """What is wrong with the item itself, so that its run proves nothing; empty if nothing is."""
    # How a command ends that we ended says nothing about it.
    if _hit_limit(ended):
        return ""
    if status in _NOT_FOUND and not item.arguments:
        return f"the command was not found or cannot be run: {tee.last_line}"
    has_run = tests is not None and tests.counts.passed + tests.counts.failed > 0
    if item.has_pytest and not has_run and (status == _NO_TESTS or tee.no_such_test):
        last_line = _LAST_LINE.sub(r"\1", tee.last_line)
        return f"selects no test: {tee.no_such_test or last_line}"
    return ""


def _find_problem(item: Item, status: int, ended: str, tests: PytestReport | None, tee: Tee) -> str:
    """What makes a run red; empty where it is green."""
    if _hit_limit(ended):
        return ended
    if item.expect.startswith("exit "):
        return "" if item.expect == f"exit {status}" else f"{ended}, and not {item.expect}"
    if item.expect == RED:
        return "is expected to be red, and is green" if status == 0 else ""
    if status != 0:
        first_failure = tests.first_failure if tests is not None else ""
        return first_failure or tee.first_error or tee.last_line or ended
    if item.expect == COLLECTED:
        return ""
    if tests is None and item.is_pytest:
        return "pytest wrote no JUnit XML, so that nothing says what ran"
    if tests is not None and not tests.counts.passed:
        return f"no test ran: {tests.counts}"
    return ""


def _hit_limit(ended: str) -> bool:
    return ended.startswith("time limit")

"""Run an item of the evidence: to the terminal and into a log at once, with what it came to."""

from __future__ import annotations

import errno
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TextIO

from ptycho_tasks.evidence.backup import forget, keep_files
from ptycho_tasks.evidence.item import GREEN, RED, Evidence, Item
from ptycho_tasks.evidence.junit import TestReport, read_junit
from ptycho_tasks.evidence.log import RULE, _foot, _head, _opened, _Tee, as_ascii
from ptycho_tasks.evidence.provenance import surroundings
from ptycho_tasks.evidence.records import Record
from ptycho_tasks.evidence.shell import environment, shell_command
from ptycho_tasks.layout import spelled
from ptycho_tasks.system import warden
from ptycho_tasks.system.clock import SYSTEM, Clock
from ptycho_tasks.system.files import (
    is_at,
    remove_leftovers,
    sha256_file,
    staged,
    write_atomic,
    writing,
)
from ptycho_tasks.system.processes import handling, in_worker

_LOOK_S = 0.1
"""How often is looked whether a command that says nothing has ended."""
_GRACE_S = 3.0
"""How long a command that is asked to end may take."""
_NOT_FOUND = (126, 127)
"""A shell's exit status where there is no such command, or none that can be run."""
_NO_TESTS = 5
"""pytest's exit status where what was selected has no test."""
_NOT_RUN = "not run"
_ENDING = re.compile(r"^=+ (.*?)(?: in [0-9.]+s.*)? =+$")
"""pytest's last line."""
_LONGEST_PROBLEM = 1000


def run_item(
    evidence: Evidence, item: Item, inputs: Mapping[str, str | None], clock: Clock = SYSTEM
) -> Record:
    """Run an item; its log and result then lie under `.ptycho/`, and wait for publication.

    Args:
        evidence: the project's.
        item: one of its items.
        inputs: path to sha256 of every file that the outcome may hang on.
        clock: tells the time.

    Raises:
        FileWriteError: the log or the result cannot be written.
        BaseException: whatever ended the run from outside, after the log says so.
    """
    log = evidence.pending_log(item)
    begun, seconds = clock.stamp(), clock.seconds()
    around = surroundings(evidence.root, item)
    _make_room(evidence, item)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = stack.enter_context(_opened(log))
        tee = _Tee(file)
        file.write("\n".join([*_head(item, begun, around), RULE, ""]))
        file.flush()
        process, channel = _started(evidence, item, folder / "junit.xml")
        stack.callback(os.close, channel)
        stack.enter_context(process)
        try:
            ended = _followed(process, channel, tee, item.time_limit_s, clock)
        except BaseException as error:
            # No second signal may interrupt this. Not a mask, which is a thread's own: another
            # thread would take the signal.
            with handling(_ignore):
                _end_all(process)
                tee.finish()
                took = clock.seconds() - seconds
                file.write(_foot(f"stopped by {_cause(error)}", took, None, "", "none"))
                _put_back(file, log)
            print(f"stopped: {spelled(evidence.root, log)} says so", file=sys.stderr, flush=True)
            raise
        took = clock.seconds() - seconds
        tests = read_junit(folder / "junit.xml") if item.countable else None
        verdict = _judged(item, process.returncode, ended, tests, tee)
        file.write(_foot(ended, took, tests, verdict["problem"], verdict["outcome"]))
        _put_back(file, log)
    outcome = {
        "inputs": dict(inputs),
        "started": begun,
        "duration_s": round(took, 3),
        "ended": ended,
        "exit_status": process.returncode,
        "counts": None if tests is None else tests.counts._asdict(),
        **verdict,
    }
    return _kept(evidence, item, outcome, around)


def block_item(
    evidence: Evidence,
    item: Item,
    inputs: Mapping[str, str | None],
    problem: str,
    clock: Clock = SYSTEM,
) -> Record:
    """Note an item as red that is not run; log and result as those of `run_item`.

    Args:
        evidence: the project's.
        item: one of its items.
        inputs: as for `run_item`.
        problem: why it cannot be run, in one line.
        clock: tells the time.

    Raises:
        FileWriteError: the log or the result cannot be written.
    """
    begun, around = clock.stamp(), surroundings(evidence.root, item)
    text = as_ascii(problem)
    shown = text[:_LONGEST_PROBLEM]
    _make_room(evidence, item)
    with _opened(evidence.pending_log(item)) as file:
        file.write("\n".join([*_head(item, begun, around), RULE, text, ""]))
        file.write(_foot(_NOT_RUN, 0, None, shown, RED))
    outcome = {
        "inputs": dict(inputs),
        "started": begun,
        "duration_s": 0.0,
        "ended": _NOT_RUN,
        "exit_status": None,
        "counts": None,
        "outcome": RED,
        "problem": shown,
        "mistake": "",
    }
    return _kept(evidence, item, outcome, around)


def _make_room(evidence: Evidence, item: Item) -> None:
    """Remove the last result of an item that was not published."""
    log, result = evidence.pending_log(item), evidence.pending_file(item)
    with writing(log):
        forget(result)
        remove_leftovers([result])
        log.parent.mkdir(parents=True, exist_ok=True)


def _kept(evidence: Evidence, item: Item, outcome: Record, around: Record) -> Record:
    """Write what an item came to beside its log; gives it."""
    log = evidence.pending_log(item)
    record = {
        "item": item.name,
        "ids": list(item.ids),
        "command": item.command,
        "env": dict(item.env),
        "settings": item.settings,
        **outcome,
        "log": spelled(evidence.root, log),
        "sha256": sha256_file(log),
        **around,
    }
    result = evidence.pending_file(item)
    write_atomic(result, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    keep_files([result, log])
    return record


# ---------------------------------------------------------------------------------------------
# The process


def _started(evidence: Evidence, item: Item, junit: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The command, under a warden, and where its output is read: stdout and stderr together, so
    that their order is kept."""
    env = {**environment(), **item.env}
    if item.arguments:
        command = [sys.executable, "-m", "pytest", *item.arguments, f"--junitxml={junit}"]
    else:
        if item.countable:
            env["PYTEST_ADDOPTS"] = f"{env.get('PYTEST_ADDOPTS', '')} --junitxml={junit}".strip()
        command = shell_command(item.command)
    terminal = sys.stdout.isatty() and not in_worker()
    reading, writing = _terminal() if terminal else os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", warden.__file__, *command],
            cwd=evidence.root,
            env=env,
            stdin=subprocess.PIPE,
            stdout=writing,
            stderr=writing,
            start_new_session=True,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return process, reading


def _terminal() -> tuple[int, int]:
    """A terminal for the command, as it has none of ours: programs then colour what they say,
    and write it line by line."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    modes = termios.tcgetattr(theirs)
    modes[1] &= ~termios.OPOST  # line ends stay as they are written
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    with suppress(OSError):
        columns, lines = os.get_terminal_size()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    return ours, theirs


def _followed(
    process: subprocess.Popen[bytes],
    channel: int,
    tee: _Tee,
    limit_s: float | None,
    clock: Clock,
) -> str:
    """Hand on what the command says until it ends; gives how it ended."""
    until = None if limit_s is None else clock.seconds() + limit_s
    ended = ""
    open_channels = [channel]
    while True:
        if not ended and until is not None and clock.seconds() > until:
            _end_all(process)
            ended = f"time limit of {limit_s:g} s"
        ready = select.select(open_channels, [], [], _LOOK_S)[0]
        data = _read(channel) if ready else b""
        if data:
            tee.take(data)
        elif process.poll() is not None:
            break
        elif ready:
            open_channels = []  # it may work on in silence
    tee.finish()
    if ended:
        return ended
    code = process.returncode
    return f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _read(channel: int) -> bytes:
    try:
        return os.read(channel, 1 << 16)
    except OSError as error:
        if error.errno == errno.EIO:  # the other side of a terminal was closed
            return b""
        raise


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started: asked first, then forced."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(b"T")
        process.stdin.flush()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.wait()


def _ignore(number: int, frame: object) -> None:
    """Not SIG_IGN, which the processes that are started meanwhile would inherit."""


def _cause(error: BaseException) -> str:
    code = getattr(error, "code", None)
    if isinstance(code, int) and code > 128:
        return signal.Signals(code - 128).name
    return "SIGINT" if isinstance(error, KeyboardInterrupt) else type(error).__name__


def _put_back(file: TextIO, log: Path) -> None:
    """Write a log again that the command has removed."""
    file.flush()
    if not is_at(file, log):
        file.seek(0)
        with staged(log) as again, again.open("w", encoding="ascii", newline="\n") as copy:
            shutil.copyfileobj(file, copy)


# ---------------------------------------------------------------------------------------------
# The outcome


def _judged(
    item: Item, status: int, ended: str, tests: TestReport | None, tee: _Tee
) -> dict[str, str]:
    """`outcome`, the `problem` of a red one, and the user's `mistake` behind it, if it is one."""
    mistake = problem = ""
    ending = _ENDING.sub(r"\1", tee.last_line)
    ran = 0 if tests is None else tests.counts.passed + tests.counts.failed
    if ended.startswith("time limit"):
        problem = ended
    elif status in _NOT_FOUND and not item.arguments:
        problem = mistake = f"the command was not found or cannot be run: {tee.last_line}"
    elif item.countable and not ran and (status == _NO_TESTS or tee.no_such_test):
        problem = mistake = f"selects no test: {tee.no_such_test or ending}"
    elif status != 0:
        found = tests.first_failure if tests is not None else ""
        problem = found or tee.first_error or tee.last_line or ended
    elif tests is None and item.counted:
        problem = "pytest wrote no JUnit XML, so that nothing says what ran"
    elif tests is not None and not tests.counts.passed:
        problem = f"no test ran: {tests.counts}"
    outcome = RED if problem else GREEN
    said = {"problem": problem[:_LONGEST_PROBLEM], "mistake": mistake[:_LONGEST_PROBLEM]}
    return {"outcome": outcome, **{key: as_ascii(text) for key, text in said.items()}}

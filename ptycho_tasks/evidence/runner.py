"""Run an item: its output goes to the terminal and into its log, its result beside the log."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

import msgspec

from ptycho_tasks.evidence.backup import back_up, delete
from ptycho_tasks.evidence.item import GREEN, RED, Evidence, Item
from ptycho_tasks.evidence.junit import read_junit
from ptycho_tasks.evidence.log import (
    Tee,
    escape,
    format_foot,
    format_head,
    keep_log,
    open_log,
)
from ptycho_tasks.evidence.outcome import LONGEST_PROBLEM, Judgement, judge_run
from ptycho_tasks.evidence.process import follow, start_command
from ptycho_tasks.evidence.provenance import Provenance, read_provenance
from ptycho_tasks.evidence.records import Counts, Record, format_json
from ptycho_tasks.layout import project_path
from ptycho_tasks.system.clock import SYSTEM_CLOCK, Clock
from ptycho_tasks.system.files import (
    despite_removal,
    remove_leftovers,
    report_write_errors,
    sha256_file,
    write_atomic,
)
from ptycho_tasks.system.processes import handle_signals
from ptycho_tasks.system.warded import end_warded

_NOT_RUN, _UP_TO_DATE = "not run", "up to date"


def run_item(
    evidence: Evidence, item: Item, inputs: Mapping[str, str | None], clock: Clock = SYSTEM_CLOCK
) -> Record:
    """Run an item; its log and result then lie under `.ptycho/`, and wait for publication.

    Args:
        evidence: the project's.
        item: one of its items.
        inputs: path to sha256 of every file that the outcome may depend on.
        clock: tells the time.

    Raises:
        FileWriteError: the log or the result cannot be written.
        BaseException: whatever ended the run from outside, after the log says so.
    """
    log = evidence.log_file(item)
    started, begin_s = clock.stamp(), clock.seconds()
    provenance = read_provenance(evidence.root, item)
    _clear_last_result(evidence, item)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = stack.enter_context(open_log(log))
        file.write(format_head(item, started, provenance))
        file.flush()
        tee = Tee(file)
        process, channel = start_command(evidence, item, folder / "junit.xml")
        stack.callback(os.close, channel)
        stack.enter_context(process)
        try:
            ended = follow(process, channel, tee, item.time_limit_s, clock)
        except BaseException as error:
            # No second signal may interrupt this. Not a mask, which is a thread's own: another
            # thread would take the signal.
            with handle_signals(_ignore_signal):
                end_warded(process)
                tee.finish()
                ended, took_s = f"stopped by {_name_cause(error)}", clock.seconds() - begin_s
                file.write(format_foot(ended, took_s, None, "", "none"))
                despite_removal(partial(keep_log, file, log))
            print(
                f"stopped: {project_path(evidence.root, log)} says so", file=sys.stderr, flush=True
            )
            raise
        took_s = clock.seconds() - begin_s
        tests = read_junit(folder / "junit.xml") if item.has_pytest else None
        counts = None if tests is None else tests.counts
        judgement = judge_run(item, process.returncode, ended, tests, tee)
        file.write(format_foot(ended, took_s, counts, judgement.problem, judgement.outcome))
        run = _Run(started, round(took_s, 3), ended, process.returncode, counts)
        return _keep_result(evidence, item, file, inputs, provenance, run, judgement)


def note_item(
    evidence: Evidence,
    item: Item,
    inputs: Mapping[str, str | None],
    output: str,
    problem: str = "",
    clock: Clock = SYSTEM_CLOCK,
) -> Record:
    """Note an item that is not run: one that is about a stage's output; or, as red, one that cannot
    be. Log and result are like those of `run_item`.

    Args:
        evidence: the project's.
        item: one of its items.
        inputs: as for `run_item`.
        output: of the stage.
        problem: why it cannot be run, in one line.
        clock: tells the time.

    Raises:
        FileWriteError: the log or the result cannot be written.
    """
    started, provenance = clock.stamp(), read_provenance(evidence.root, item)
    outcome: Literal["red", "green"] = RED if problem else GREEN
    judgement = Judgement(outcome, problem=escape(problem)[:LONGEST_PROBLEM], mistake="")
    ended = _NOT_RUN if problem else _UP_TO_DATE
    _clear_last_result(evidence, item)
    with open_log(evidence.log_file(item)) as file:
        file.write(format_head(item, started, provenance))
        tee = Tee(file, is_shown=False)
        tee.take("\n".join(filter(None, [output.rstrip(), problem])).encode())
        tee.finish()
        file.write(format_foot(ended, 0, None, judgement.problem, outcome))
        run = _Run(started, 0.0, ended, None, None)
        return _keep_result(evidence, item, file, inputs, provenance, run, judgement)


class _Run(NamedTuple):
    """The part of a record that a clock and a process give."""

    started: str
    duration_s: float
    ended: str
    exit_status: int | None
    counts: Counts | None


def _clear_last_result(evidence: Evidence, item: Item) -> None:
    """Remove the last result of an item that was not published."""
    result = evidence.result_file(item)
    with report_write_errors(result):
        delete(result)
        despite_removal(partial(remove_leftovers, [result]))


def _keep_result(
    evidence: Evidence,
    item: Item,
    file: TextIO,
    inputs: Mapping[str, str | None],
    provenance: Provenance,
    run: _Run,
    judgement: Judgement,
) -> Record:
    """Keep the log of an item, which is complete, and write beside it what the item came to; gives
    that."""
    log, result = evidence.log_file(item), evidence.result_file(item)

    def write() -> Record:
        keep_log(file, log)
        with report_write_errors(log):
            record = Record(
                item=item.name,
                ids=list(item.ids),
                command=item.command,
                env=dict(item.env),
                settings=item.settings,
                inputs=dict(inputs),
                log=project_path(evidence.root, log),
                sha256=sha256_file(log),
                **run._asdict(),
                **judgement._asdict(),
                **msgspec.structs.asdict(provenance),
            )
            write_atomic(result, format_json(record).encode())
            back_up([result, log])
            for path in (result, log):
                path.stat()  # one that was removed before may not have been copied
        return record

    return despite_removal(write)


def _ignore_signal(number: int, frame: object) -> None:
    """Not SIG_IGN, which the processes that are started meanwhile would inherit."""


def _name_cause(error: BaseException) -> str:
    code = getattr(error, "code", None)
    if isinstance(code, int) and code > 128:
        return signal.Signals(code - 128).name
    return "SIGINT" if isinstance(error, KeyboardInterrupt) else type(error).__name__

"""Progress: a bar for someone who watches, few whole lines for a log, nothing when quiet."""

from __future__ import annotations

import io
import re
from functools import partial
from itertools import count

import pytest

from ptycho_tasks.builds.progress import duration, show_progress
from ptycho_tasks.system.terminal import print_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream, steps: int, begin: int = 0, **options) -> str:
    ticks = iter(range(0, 10**6, 10))
    with show_progress("train", stream=stream, clock=lambda: float(next(ticks)), **options) as tell:
        tell(begin, steps, {})
        for step in range(begin + 1, steps + 1):
            tell(step, steps, {"loss": 1 / step})
    return stream.getvalue()


def test_a_log_gets_few_whole_lines():
    lines = run(io.StringIO(), 400).splitlines()
    assert 10 <= len(lines) <= 12
    assert lines[0] == "train 0/400  0:10 so far"
    assert lines[1] == "train 40/400  loss 0.025  6:50 so far, 1:00:00 left"
    assert lines[-1].startswith("train 400/400  loss 0.0025")
    assert all("\r" not in line and "\x1b" not in line for line in lines)


def test_time_left_counts_from_where_the_work_began():
    assert run(io.StringIO(), 10, begin=8).splitlines()[1].endswith("0:20 so far, 0:10 left")


def test_a_terminal_gets_a_bar_with_steps_and_loss():
    text = run(Terminal(), 3)
    assert "3/3" in text
    assert "loss 0.333" in text


def test_work_may_end_before_it_was_thought_to():
    for stream in (io.StringIO(), Terminal()):
        with show_progress("infer", stream=stream) as tell:
            tell(0, 110, {})
            tell(34, 34, {})
        assert "34/34" in stream.getvalue()


def run_without_a_total(stream) -> str:
    ticks = iter(range(10**6))
    with show_progress("infer", stream=stream, clock=lambda: float(next(ticks))) as tell:
        tell(0, None, {})
        for step in range(1, 66):
            tell(step, None, {"misfit": 0.5})
        tell(66, 66, {})
    return stream.getvalue()


def test_a_log_of_work_whose_end_nobody_knows_gets_lines_ever_less_often():
    assert run_without_a_total(io.StringIO()).splitlines() == [
        "infer 0  0:01 so far",
        "infer 10  misfit 0.5  0:11 so far",
        "infer 20  misfit 0.5  0:21 so far",
        "infer 40  misfit 0.5  0:41 so far",
        "infer 66/66  1:07 so far",
    ]


def test_a_bar_of_work_whose_end_nobody_knows_tells_of_no_time_left(monkeypatch):
    monkeypatch.setattr("time.time", partial(next, count(0.0, 10.0)))
    text = run_without_a_total(Terminal())
    assert "  65  misfit 0.5" in text
    assert "66/66" in text
    assert not re.search(r"\d\d:\d\d", text)


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet_says_nothing(stream):
    assert run(stream, 5, quiet=True) == ""


def test_durations():
    assert [duration(s) for s in (0, 59.6, 125, 3725)] == ["0:00", "1:00", "2:05", "1:02:05"]


def test_a_stream_that_was_closed_ends_no_work(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    monkeypatch.setattr("sys.stdout", None)
    with show_progress("train") as progress:
        progress(0, 1, {})
    print_text("done\n")


def test_what_the_terminal_cannot_spell_is_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_text("scän ł1\n", stream)
    assert stream.buffer.getvalue() == b"sc\\xe4n \\u01421\n"

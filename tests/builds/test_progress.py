"""Progress: a bar for someone who watches, few whole lines for a log, nothing when quiet."""

from __future__ import annotations

import io

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

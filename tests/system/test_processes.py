"""A block that lasts too long is ended, whatever it catches, and other alarms stay set."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress

import pytest

from ptycho_tasks.system.processes import Overdue, limit_time


def hang() -> None:
    while True:
        with suppress(Exception):
            sum(range(100))


def test_what_catches_every_exception_is_ended_too() -> None:
    with pytest.raises(Overdue), limit_time(0.01):
        hang()


def test_an_alarm_that_was_set_is_set_again() -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 1000.0)
    try:
        with limit_time(500.0):
            pass
        assert 500.0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_in_another_thread_nothing_is_limited() -> None:
    done = []

    def work() -> None:
        with limit_time(1e-6):
            done.append(signal.getitimer(signal.ITIMER_REAL)[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(done) == 1

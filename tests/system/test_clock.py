"""What time it is, also where the clock is far off."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.system.clock import Clock, now_ns, utc_now


@pytest.fixture
def set_clock(monkeypatch):
    """Set the system's clock to a year, as Python sees it then."""
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)

    def set_(year: int) -> None:
        moment = time.struct_time((year, 2, 3, 4, 5, 6, 0, 34, 0))
        monkeypatch.setattr("ptycho_tasks.system.clock.time.gmtime", lambda: moment)

        def overflow() -> int:
            raise OverflowError("timestamp too large to convert to C _PyTime_t")

        monkeypatch.setattr("ptycho_tasks.system.clock.time.time_ns", overflow)

    return set_


def test_a_clock_centuries_ahead_tells_its_time(set_clock):
    set_clock(2276)
    assert Clock().stamp() == "2276-02-03T04:05:06Z"
    assert now_ns() == int(utc_now().timestamp()) * 10**9 > 1 << 63


def test_a_clock_beyond_any_calendar_is_refused_in_a_line(set_clock):
    set_clock(11533)
    for ask in (utc_now, now_ns):
        with pytest.raises(ConfigError, match="says the year 11533; set it"):
            ask()


def test_the_time_is_utc_and_can_be_set(monkeypatch):
    assert utc_now().utcoffset() == timedelta()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1760936700")
    assert Clock().stamp() == "2025-10-20T05:05:00Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "noon")
    with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH: expected seconds since 1970"):
        utc_now()

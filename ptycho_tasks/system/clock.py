"""What time it is: UTC, and what SOURCE_DATE_EPOCH says where that is set."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import MAXYEAR, datetime, timezone
from typing import NamedTuple

from ptycho_tasks.errors import ConfigError

EPOCH = "SOURCE_DATE_EPOCH"
STAMP = "%Y-%m-%dT%H:%M:%SZ"
FOLDER_STAMP = "%Y-%m-%dT%H%M%SZ"
"""Likewise, as it names folders."""


def utc_now() -> datetime:
    """The time in UTC.

    Raises:
        ConfigError: SOURCE_DATE_EPOCH is no number of seconds, or the clock is far off.
    """
    text = os.environ.get(EPOCH)
    if not text:
        return _system_now()
    try:
        moment = datetime.fromtimestamp(int(text), timezone.utc)
        # Stamps have four digits for the year, and a folder may take one of the next seconds.
        if not 1000 <= moment.year < MAXYEAR:
            raise ValueError(text)
        return moment
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(
            f"{EPOCH}: expected seconds since 1970, got {text[:40]!r}; correct it or unset it"
        ) from error


def _system_now() -> datetime:
    now = time.gmtime()  # past 2262, `datetime.now` says 2262
    try:
        return datetime(*now[:6], tzinfo=timezone.utc)
    except ValueError as error:
        raise ConfigError(f"the system's clock says the year {now.tm_year}; set it") from error


def now_ns() -> int:
    """The time in ns since 1970, as files have it; SOURCE_DATE_EPOCH does not count.

    Raises:
        ConfigError: the clock is far off.
    """
    try:
        return time.time_ns()
    except OverflowError:
        return int(_system_now().timestamp()) * 1_000_000_000


class Clock(NamedTuple):
    """The time, as an argument of all that needs it, so that a test can set it."""

    now: Callable[[], datetime] = utc_now
    seconds: Callable[[], float] = time.monotonic
    """For durations."""

    def stamp(self) -> str:
        """The time as plans, ledgers and logs write it."""
        return self.now().strftime(STAMP)


SYSTEM_CLOCK = Clock()


def parse_stamp(stamp: str) -> datetime:
    """Parse a time that `Clock.stamp` wrote.

    Raises:
        ValueError: it is none.
    """
    return datetime.strptime(stamp, STAMP).replace(tzinfo=timezone.utc)


def is_stamp(text: str) -> bool:
    """Whether a text is a time as `Clock.stamp` writes it."""
    try:
        parse_stamp(text)
    except ValueError:
        return False
    return True

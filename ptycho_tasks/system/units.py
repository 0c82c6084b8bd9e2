"""Sizes and times as people write them."""

from __future__ import annotations

import re

_BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_NUMBER = r"(\d+(?:\.\d+)?) ?([A-Za-z]+)"


def format_size(count: float) -> str:
    """Write a number of bytes: `12.3 MB`."""
    unit = next((unit for unit in reversed(_BYTES) if abs(count) >= _BYTES[unit]), "B")
    return f"{count / _BYTES[unit]:.3g} {unit}"


def format_seconds(seconds: float) -> str:
    """Write a duration: `0.25 s`, `12 s`, `2 min 5 s`, `1 h 2 min`."""
    if seconds < 59.5:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def parse_size(text: str) -> float:
    """Bytes of a text as `50GB`.

    Raises:
        ValueError: it is none; the message says what is expected.
    """
    units = {unit.casefold(): count for unit, count in _BYTES.items()}
    match = re.fullmatch(_NUMBER, text)
    if match is None or match[2].casefold() not in units:
        raise ValueError(f"expected a size as 50GB or 500MB, got `{text}`")
    return float(match[1]) * units[match[2].casefold()]


def parse_duration(text: str) -> float:
    """Seconds of a text as `30d` or `12h`.

    Raises:
        ValueError: it is none; the message says what is expected.
    """
    match = re.fullmatch(_NUMBER, text)
    if match is None or match[2] not in _SECONDS:
        raise ValueError(f"expected a time as 30d, 12h or 2w, got `{text}`")
    return float(match[1]) * _SECONDS[match[2]]

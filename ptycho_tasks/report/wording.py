"""How settings and measures of results are written for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ptycho_tasks.system.units import format_seconds, format_size

TITLES = {
    "r_factor": "R-factor",
    "poisson_deviance": "deviance",
    "noise_ratio": "times noise",
    "training_seconds": "training",
    "inference_seconds": "inference",
    "memory_bytes": "memory",
    "frc50": "FRC at 0.5, of Nyquist",
}
"""Of columns, where they are not the measure's own name."""
RESOLUTIONS = {"truth": "resolution", "halves": "resolution of halves"}
"""Titles of columns: by the truth, and by two halves of the frames."""
_MOST_REASONS = 3
_WRITERS = {"seconds": format_seconds, "bytes": format_size}


def natural_key(text: str) -> list[tuple[bool, int, str]]:
    """What texts are sorted by, so that `steps2` comes before `steps10`."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return [_rank_number(p.lstrip("0")) if p[0] in "0123456789" else (True, 0, p) for p in parts]


def _rank_number(digits: str) -> tuple[bool, int, str]:
    """A number by its digits: a name may have more of them than an int takes."""
    return False, len(digits), digits


def format_setting(value: Any) -> str:
    """A setting: texts as they stand, `unset` where there is none, all else as JSON."""
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value)


def format_measure(name: str, value: float | None, difference: float | None) -> str:
    """A measure in its unit, and its difference to that of a baseline; empty where unknown."""
    if value is None:
        return ""
    write = _WRITERS.get(name.rpartition("_")[2])
    if difference is None:
        return f"{value:.4g}" if write is None else write(value)
    if write is None:
        return f"{value:.4g} ({difference:+.2g})"
    return f"{write(value)} ({'-' if difference < 0 else '+'}{write(abs(difference))})"


def format_resolution(resolution: Mapping[str, Any] | None) -> str:
    """The half period of the finest that is resolved: `12.5 nm`, or pixels where their size is not
    known; empty where nothing is known of it.

    Args:
        resolution: `fall`, a fraction of Nyquist, and `pixel_size_m`, see `contents`.
    """
    if resolution is None:
        return ""
    fall, size = resolution["fall"], resolution["pixel_size_m"]
    if not fall:
        return "none"
    sign = "\u2264 " if fall >= 1 else ""
    return sign + (f"{1 / fall:.3g} px" if size is None else format_length(max(size) / fall))


def format_length(metres: float) -> str:
    """A length with three digits."""
    units = ((1.0, "m"), (1e-3, "mm"), (1e-6, "µm"), (1e-9, "nm"), (1e-12, "pm"))
    scale, unit = next((one for one in units if metres >= one[0]), units[-1])
    return f"{metres / scale:.3g} {unit}"


def shorten_reasons(reasons: Sequence[str]) -> list[str]:
    """The first of some reasons, and how many more there are: a new version changes many files."""
    more = len(reasons) - _MOST_REASONS
    return [*reasons[:_MOST_REASONS], *([f"and {more} more"] if more > 0 else [])]

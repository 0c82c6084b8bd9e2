"""How settings and measures of results are written for people."""

from __future__ import annotations

import json
from typing import Any

from ptycho_tasks.system.units import format_seconds, format_size

TITLES = {
    "r_factor": "R-factor",
    "poisson_deviance": "deviance",
    "training_seconds": "training",
    "inference_seconds": "inference",
    "memory_bytes": "memory",
}
"""Of columns, where they are not the measure's own name."""
_WRITERS = {"seconds": format_seconds, "bytes": format_size}


def format_setting(value: Any) -> str:
    """A setting: texts as they stand, all else as JSON."""
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

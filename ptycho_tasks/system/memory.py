"""How much memory is free, and whether an array fits into it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_SMALL_BYTES = 1 << 28
"""What every machine has; not worth asking."""


def has_memory_for(count: float) -> bool:
    """Whether this process can get so many bytes."""
    return count <= _SMALL_BYTES or count <= available_bytes()


def available_bytes() -> float:
    """Memory that this process could still get: of the machine, and of its container."""
    import psutil

    machine = float(psutil.virtual_memory().available)
    return min(machine, *(_left(Path(place), *names) for place, *names in _GROUPS))


_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Of control groups, version 2 and 1: folder, limit, usage, and which of it are files that were
read, whose memory is given back when it is needed."""


def _left(folder: Path, limit: str, usage: str, files: str) -> float:
    with suppress(OSError, ValueError):
        most, used = (int((folder / name).read_text()) for name in (limit, usage))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return float(most - used + int(stat.get(files, 0)))
    return float("inf")


def format_gb(count: float) -> str:
    """Write a number of bytes in GB."""
    return f"{count / 1e9:.3g} GB"

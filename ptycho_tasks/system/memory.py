"""How much memory is free, whether an array fits into it, and how much a process takes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


_SAMPLE_S = 0.05
"""How often it is looked how large a process is that was larger before."""


@contextmanager
def measure_peak() -> Iterator[Callable[[], int]]:
    """Gives what tells the most memory that this process had in the block so far, bytes.

    The system knows the most that it ever had: exact where the block set that, and otherwise the
    largest of samples. (To have Linux forget it, by /proc/self/clear_refs, would mislead others
    that measure this process.)
    """
    import psutil

    process, before, is_over = psutil.Process(), _highest_bytes(), threading.Event()
    largest = 0

    def look() -> int:
        nonlocal largest
        largest = max(largest, int(process.memory_info().rss))
        highest = _highest_bytes()
        return highest if highest > before else largest

    def watch() -> None:
        while not is_over.wait(_SAMPLE_S):
            look()

    look()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield look
    finally:
        is_over.set()
        thread.join()


def _highest_bytes() -> int:
    import resource

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest * (1 if sys.platform == "darwin" else 1024)


def format_gb(count: float) -> str:
    """Write a number of bytes in GB."""
    return f"{count / 1e9:.3g} GB"

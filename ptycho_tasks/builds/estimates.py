"""What a job will take, where the user does not say: from what the same stage took before with the
same backend, and otherwise from the frames alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ptycho_tasks.builds.frames import list_frames
from ptycho_tasks.builds.notes import parse_mapping
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.store import Record, Store
from ptycho_tasks.config.payload import Payload
from ptycho_tasks.options import Resources
from ptycho_tasks.system.cache import cached

_FACTOR = 2
"""More than what is expected, as a job that has too little is lost."""
_MOST_MADE = 200
"""Results that are looked at, the last ones."""
_LEAST_GB, _LEAST_MINUTES = 4, Resources().minutes
_FORESEEN_GB = 8
"""At least, where nothing is known: libraries for GPUs alone take some."""
_MOST_MINUTES = 24 * 60
"""What most partitions give; a job that takes longer goes on in a new one."""


def estimate_resources(row: Row, payload: Payload, store: Store) -> dict[str, Any]:
    """`memory_gb` and `minutes` for a stage, generous.

    Args:
        row: the task.
        payload: of the stage.
        store: holds what was made before, and what that took.
    """
    frames = list_frames(payload)
    settings = parse_mapping(row.settings)
    before = _list_made(store, row.stage, settings.get(_key(row.stage)))
    memory, seconds = 0.0, 0.0
    for record in before:
        # What is smaller may take as much: libraries do, and a start.
        times = _more(sum(one.pixels for one in frames), record.pixels)
        epochs = _more(_epochs(settings), _epochs(parse_mapping(record.identity.settings)))
        memory = max(memory, times * record.memory_bytes)
        seconds = max(seconds, times * epochs * record.seconds)
    if not before and frames:
        from ptycho_tasks.builds.cost import foresee_memory

        memory = max(foresee_memory(*one) for one in frames)
    least = _LEAST_GB if before else _FORESEEN_GB
    minutes = min(math.ceil(_FACTOR * seconds / 60), _MOST_MINUTES)
    return {
        "memory_gb": max(least, math.ceil(_FACTOR * memory / 1e9)),
        "minutes": max(_LEAST_MINUTES, minutes),
    }


def double(had: Resources, lacked: str) -> dict[str, Any]:
    """Twice as much of what a job had too little of, and as much as it had of the other."""
    memory, minutes = had.memory_gb or _FORESEEN_GB, had.minutes
    if lacked == "memory":
        return {"memory_gb": 2 * memory, "minutes": minutes}
    return {"memory_gb": memory, "minutes": max(minutes, min(2 * minutes, _MOST_MINUTES))}


def _key(stage: str) -> str:
    return "refine.backend" if stage == "refine" else "backend"


@cached
def _list_made(store: Store, stage: str, backend: Any) -> list[Record]:
    """Late results of a stage that were seen made, with the same backend and a known number of
    frames; read once a run, however many jobs it submits."""
    times = {folder: moment for root in store.roots for folder, moment in _list_times(root / stage)}
    made = []
    for folder in sorted(times, key=times.__getitem__)[-_MOST_MADE:]:
        entry = store.read(stage, folder.name, folder.parents[1])
        if entry is not None and _is_telling(entry.record, stage, backend):
            made.append(entry.record)
    return made


def _is_telling(record: Record, stage: str, backend: Any) -> bool:
    settings = parse_mapping(record.identity.settings)
    return bool(record.pixels and record.seconds) and settings.get(_key(stage)) == backend


def _list_times(place: Path) -> Iterator[tuple[Path, float]]:
    """The folders of entries, and when each was made."""
    for folder in place.glob("[0-9a-f]" * 64):
        with suppress(OSError):  # another program removes it
            yield folder, folder.stat().st_mtime


def _more(now: float, then: float) -> float:
    return max(1.0, now / then) if then > 0 else 1.0


def _epochs(settings: Mapping[str, Any]) -> float:
    keys = ("training.epochs", "refine.epochs")
    return float(next((settings[key] for key in keys if settings.get(key)), 1))

"""Turns: which of the tasks of a parallel run compute at the same time, however many `-n` asks for.

A training has a GPU to itself, and no task begins before there is memory for it. What is taken is
known by locks and process numbers, so that nothing of a process that died is kept.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from ptycho_tasks.backend import Backend, TrainRequest
from ptycho_tasks.builds.cost import Request, estimate_cost
from ptycho_tasks.system.gpus import choose_gpu, list_gpus
from ptycho_tasks.system.lock import STATE_DIR, is_alive, take_flock
from ptycho_tasks.system.memory import available_bytes, format_gb
from ptycho_tasks.system.processes import is_worker
from ptycho_tasks.system.terminal import echo

FOLDER = Path(STATE_DIR, "turns")
_LOOK_S = 0.2
_own_gpu: int | None = None
"""Which GPU of several this process computes on."""


@contextmanager
def take_turn(backend: Backend, request: Request) -> Iterator[None]:
    """Wait until a request may be worked on; in a run of one task at a time, that is at once.

    Args:
        backend: what will work on it.
        request: to train, of which `execution.at_once` may run together, or to infer or refine.
    """
    if not is_worker() or os.name != "posix":  # no locks
        yield
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ExitStack() as turn:
        gpus = _list_gpus(backend, request)
        if isinstance(request, TrainRequest):
            turn.enter_context(_take_place(_count_places(backend, request, gpus), gpus))
        elif gpus and _own_gpu is None:
            _settle_gpu(gpus, os.getpid())
        turn.enter_context(_take_memory(estimate_cost(backend, request).memory_bytes))
        yield


def _list_gpus(backend: Backend, request: Request) -> tuple[str, ...]:
    """The GPUs of which each task gets one; none where there is no choice."""
    may_use = hasattr(backend, "uses_gpu") and request.execution.accelerator != "cpu"
    if not may_use or getattr(request.execution, "devices", 1) != 1:
        return ()
    gpus = list_gpus()
    return gpus if len(gpus) > 1 else ()


def _settle_gpu(gpus: Sequence[str], number: int) -> None:
    """Choose the GPU of this process, which it keeps: a library that has begun on one stays."""
    global _own_gpu
    _own_gpu = number % len(gpus)
    choose_gpu(gpus[_own_gpu])


def _count_places(backend: Backend, request: TrainRequest, gpus: Sequence[str] = ()) -> int | None:
    """How many trainings may run at once; None for any number."""
    asked = request.execution.at_once
    if asked is not None or gpus:
        return asked or len(gpus)
    uses_gpu: Any = getattr(backend, "uses_gpu", None)
    return 1 if uses_gpu is not None and uses_gpu(request.execution) else None


@contextmanager
def _take_place(count: int | None, gpus: Sequence[str] = ()) -> Iterator[None]:
    if count is None:
        yield
        return
    has_waited = False
    while True:
        for number in range(count):
            if 1 < len(gpus) <= count and _own_gpu not in (None, number % len(gpus)):
                continue  # of another GPU
            with (FOLDER / f"train-{number}").open("a") as file:
                if take_flock(file):
                    if gpus and _own_gpu is None:
                        _settle_gpu(gpus, number)
                    yield
                    return
        if not has_waited:
            echo(f"waits for its turn: {count} training{'s' * (count > 1)} at once")
        has_waited = True
        time.sleep(_LOOK_S)


@contextmanager
def _take_memory(count: float) -> Iterator[None]:
    has_waited = False
    while not _reserve(count):
        if not has_waited:
            echo(f"waits for memory: it needs about {format_gb(count)}")
        has_waited = True
        time.sleep(_LOOK_S)
    try:
        yield
    finally:
        _release()


def _reserve(count: float) -> bool:
    """Reserve memory; False while others need what there is. One task alone is not kept waiting:
    whether it fits at all is decided elsewhere."""
    with _reservations() as taken:
        left = available_bytes() - sum(_not_yet_used(int(pid), n) for pid, n in taken.items())
        if taken and count > left:
            return False
        taken[str(os.getpid())] = count
        return True


def _release() -> None:
    with _reservations() as taken:
        taken.pop(str(os.getpid()), None)


@contextmanager
def _reservations() -> Iterator[dict[str, float]]:
    """What living processes reserved, bytes by process number; changes are kept."""
    import fcntl

    with (FOLDER / "memory.json").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        taken = _living(file.read())
        yield taken
        file.seek(0)
        file.truncate()
        file.write(json.dumps(taken))


def _living(text: str) -> dict[str, float]:
    try:
        taken = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(taken, Mapping):
        return {}
    return {pid: n for pid, n in taken.items() if pid.isdecimal() and is_alive(int(pid))}


def _not_yet_used(pid: int, reserved: float) -> float:
    """What a process will still ask for of what it reserved."""
    try:
        return max(0.0, reserved - float(psutil.Process(pid).memory_info().rss))
    except psutil.Error:
        return 0.0

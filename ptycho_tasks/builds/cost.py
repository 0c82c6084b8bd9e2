"""What a reconstruction costs in memory, foreseen from positions and frames before it begins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptycho_tasks.backend import Backend, InferRequest, RefineRequest, TrainRequest
from ptycho_tasks.errors import ScanError, TrainingError
from ptycho_tasks.scan import ScanData, canvas_sides
from ptycho_tasks.system.memory import available_bytes, format_gb

Request = TrainRequest | InferRequest | RefineRequest
CANVASES, BASE_BYTES = 20, 600_000_000
"""Complex64 copies of the object that a backend is taken to hold at a time, and what its libraries
take besides, where it does not say (measured on `unrolled`)."""
SPARSE, SMALL_PIXELS = 8, 2**20
"""A canvas of more than `SMALL_PIXELS` pixels which is that many times what all frames together
could cover holds a stray position rather than a scan."""


@dataclass(frozen=True)
class Cost:
    """What a scan asks for."""

    rows: float
    columns: float
    """The canvas that holds every patch, pixels."""
    memory_bytes: float
    text: str
    """The canvas in words, and which frame lies farthest out."""

    @contextmanager
    def explain_memory_errors(self) -> Iterator[None]:
        """Turn a MemoryError in the block into a line that says what was needed.

        Raises:
            TrainingError: memory ended.
        """
        try:
            yield
        except MemoryError as error:
            raise TrainingError(
                f"memory ended: {self.text} needs about {format_gb(self.memory_bytes)}, and "
                f"{format_gb(available_bytes())} are there now; take fewer frames, or a larger "
                "machine"
            ) from error


def check_cost(backend: Backend, request: Request, name: str) -> Cost:
    """Refuse what will not fit into memory, or is spread so wide that a position must be wrong.

    The bound is `execution.memory_gb`; without it, what the machine, or the container that this
    process is in, has left. With it, a sparse canvas is taken as meant. `name` is what the message
    calls the scan.

    Raises:
        ScanError: how much is needed, how much there is, and which frame lies farthest out.
    """
    bound = request.execution.memory_gb
    cost = estimate_cost(backend, request)
    for scan in scans_of(request):
        rows, columns = canvas_sides(scan)
        times = rows * columns / (scan.frame_count * scan.size**2)
        if bound is None and times > SPARSE and rows * columns > SMALL_PIXELS:
            raise ScanError(
                f"{name}: {describe_canvas(scan, request)} is {times:.0f} times what all frames "
                f"together could cover and would need about {format_gb(cost.memory_bytes)}; "
                "correct the positions, or set execution.memory_gb where they are right"
            )
    there = available_bytes() if bound is None else bound * 1e9
    if cost.memory_bytes > there:
        raise ScanError(
            f"{name}: {cost.text} needs about {format_gb(cost.memory_bytes)} of memory, but "
            f"{format_gb(there)} are there; correct the positions, take fewer frames, or raise "
            "execution.memory_gb"
        )
    return cost


def estimate_cost(backend: Backend, request: Request) -> Cost:
    """What a request asks of a backend; nothing of that size is made to find out."""
    # Of several scans to learn from, one is worked on at a time.
    scan = max(scans_of(request), key=lambda scan: math.prod(canvas_sides(scan)))
    rows, columns = canvas_sides(scan)
    estimate: Any = getattr(backend, "memory", None)
    default = CANVASES * 8 * rows * columns + BASE_BYTES
    memory = float(estimate(request)) if estimate else default
    return Cost(rows, columns, memory, describe_canvas(scan, request))


def foresee_memory(frames: int, size: int) -> float:
    """Bytes that a scan of a usual kind will ask for of a backend that says nothing, by its frames
    alone: steps of a quarter of a frame, and three copies of all frames as float32."""
    side = size * (1 + (math.sqrt(frames) - 1) / 4)
    return CANVASES * 8 * side**2 + 3 * 4 * frames * size**2 + BASE_BYTES


def scans_of(request: Request) -> Sequence[ScanData]:
    """The scans that a request is about."""
    return request.scans if isinstance(request, TrainRequest) else [request.scan]


def describe_canvas(scan: ScanData, request: Request) -> str:
    """The canvas of a scan in words, and which frame lies farthest out; of several scans, whose."""
    positions = scan.positions
    rows, columns = canvas_sides(scan)
    away = np.abs(positions - np.median(positions, axis=0)).max(axis=1)
    frame = int(np.argmax(away))
    y, x = positions[frame]
    whose = f"{scan.name}: " if len(scans_of(request)) > 1 else ""
    return (
        f"{whose}a canvas of {rows:.0f} x {columns:.0f} pixels (frame {frame} at (y, x) = "
        f"({y:.0f}, {x:.0f}) lies farthest out)"
    )

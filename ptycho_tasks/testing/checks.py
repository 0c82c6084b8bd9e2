"""Checks that the conformance suite makes."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.backend import InferRequest, Reconstruction, checked_reconstruction
from ptycho_tasks.backends import execution_type, find_backend
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.physics.metrics import data_misfit
from ptycho_tasks.results.bundle import load_bundle
from ptycho_tasks.scan import ScanData, canvas_of
from ptycho_tasks.scans.readers import read_scan
from ptycho_tasks.testing.given import _Placed

_SCAN, _RESULT = "scan.npz", "result.npz"
TOLERANCE = 1e-3
"""Largest difference of two objects that differ in the order of sums only, over their rms.

Single precision rounds a number by 6e-8. Error reduction on the suite's scan, whose sums over
frames were taken in another order, differs by 2e-6 after 4 iterations and by 1e-5 after 100; two
neighbouring frames taken for each other change the object of a small network by 0.15.
"""

EXPLAINED = 0.75
"""Largest R-factor of a reconstruction, over that of an empty object. On the suite's scan four
epochs of ePIE, error reduction or a small network reach 0.3 to 0.55; with the axes of the positions
swapped none gets below 0.88.
"""

GRACE_S = 5.0
"""How long threads and processes may take to end once an exception has come out."""


def infer_from_disk() -> None:
    """In a process of its own: infer what lies in a folder, and write the result there."""
    name, folder, execution = sys.argv[1:]
    place = Path(folder)
    backend, bundle = find_backend(name, Path.cwd()).load(), load_bundle(place)
    scan = replace(read_scan(place / _SCAN), object=None)
    request = InferRequest(
        scan,
        bundle.model,
        msgspec.convert(bundle.params["training"], backend.options_type),
        msgspec.json.decode(execution, type=execution_type(backend)),
    )
    made = checked_reconstruction(backend.infer(request), scan, name)
    np.savez(
        place / _RESULT,
        object=made.object,
        origin=np.array(made.origin),
        probe=made.probe,
        positions=made.positions,
    )


class _Cancelled(Exception):  # noqa: N818  it is no error
    """What a user's cancelling may look like to a backend."""


class _Told:
    """A `Progress` that keeps what it is told, and raises an exception at one of the calls."""

    def __init__(self, at: int = 0, error: BaseException | None = None) -> None:
        self.calls: list[tuple[Any, Any, Any]] = []
        self._at, self._error = at, error

    def __call__(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        self.calls.append((done, total, metrics))
        if self._error is not None and len(self.calls) == self._at:
            raise self._error


def _check_progress(
    method: str, calls: list[tuple[Any, Any, Any]], *, resumed: bool = False
) -> None:
    if not calls:
        return
    done, total = ([call[part] for call in calls] for part in (0, 1))
    told = f"`{method}` told `progress` of {done} of {total}"
    assert done[0] == 0 or resumed, f"{told}; the first call tells where the work begins: at 0"
    assert all(a < b for a, b in pairwise(done)), f"{told}; it must rise"
    assert len(set(total)) == 1, f"{told}; the total must stay"
    assert done[-1] == total[-1], f"{told}; the last call tells of all"
    values = [value for *_, metrics in calls for value in metrics.values()]
    assert np.isfinite(np.array(values, dtype=float)).all(), f"`{method}` told NaN or Inf"


def _r_factor(scan: ScanData, made: Reconstruction) -> float:
    return data_misfit(
        made.object, made.origin, made.probe, made.positions, scan.diffraction
    ).r_factor


def _check_explains(made: Reconstruction, scan: ScanData) -> None:
    flat = np.ones_like(made.object)
    expected = sum(
        counts.sum(dtype=np.float64)
        for _, counts in expected_intensity(flat, made.probe, made.positions, made.origin)
    )
    measured = np.square(scan.diffraction, dtype=np.float64).sum()
    flat *= np.float32(np.sqrt(measured / expected))
    ours, empty = (_r_factor(scan, one) for one in (made, replace(made, object=flat)))
    assert ours <= EXPLAINED * empty, (
        f"the frames are not explained: R-factor {ours:.3g}, of an empty object {empty:.3g}; "
        f"expected at most {EXPLAINED:g} of that"
    )


def _check_better(made: Reconstruction, start: Reconstruction, scan: ScanData) -> None:
    ours, begun = (_r_factor(scan, one) for one in (made, start))
    assert ours < begun, (
        f"the frames are explained no better than before: R-factor {ours:.3g}, of the start "
        f"{begun:.3g}"
    )


def _difference(one: _Placed, two: _Placed) -> float:
    """Largest difference of two objects where both were seen, over the rms of the second."""
    (first, first_seen), (second, second_seen) = _window(*one), _window(*two)
    seen = first_seen & second_seen
    assert seen.any(), "the object does not lie where the scan was"
    rms = np.sqrt(np.mean(np.abs(second[seen]) ** 2))
    return float(np.abs(first - second)[seen].max() / rms)


def _window(made: Reconstruction, scan: ScanData) -> tuple[NDArray[Any], NDArray[Any]]:
    """The object in the smallest window that holds the scan's patches, and where it was seen."""
    canvas = canvas_of(scan.positions, scan.size)
    low = np.subtract(canvas.origin, made.origin)
    before = np.maximum(0, -low)
    after = np.maximum(0, low + canvas.shape - made.object.shape)
    (y, x), (height, width) = low + before, canvas.shape
    padding = [(int(b), int(a)) for b, a in zip(before, after, strict=True)]
    image, seen = (np.pad(array, padding) for array in (made.object, made.seen))
    window = np.s_[y : y + height, x : x + width]
    return image[window], seen[window]


def _check_close(one: _Placed, two: _Placed, what: str) -> None:
    difference = _difference(one, two)
    assert difference <= TOLERANCE, (
        f"{what} change the object by {difference:.2g} of its rms; rounding alone stays below "
        f"{TOLERANCE:g}"
    )


def _check_same(one: Reconstruction, two: Reconstruction, what: str) -> None:
    assert one.origin == two.origin, f"{what} gave another origin"
    for name in ("object", "probe", "positions"):
        same = getattr(one, name).tobytes() == getattr(two, name).tobytes()
        assert same, f"{what} gave another {name}"


def _refused_or_fine(act: Callable[[], object]) -> None:
    try:
        act()
    except PtychoTasksError as error:
        _check_one_line(error)


def _check_one_line(error: PtychoTasksError) -> None:
    said = Exception.__str__(error)  # as it was raised; that of the class escapes line ends
    assert said.strip(), "an error without a text"
    assert "\n" not in said, f"an error of more than one line: {error}"


def _running() -> set[str]:
    """Threads of Python and processes below this one, by name."""
    children = {f"process {child.pid}" for child in multiprocessing.active_children()}
    for task in Path(f"/proc/{os.getpid()}/task").glob("*/children"):  # where there is such a place
        children |= {f"process {number}" for number in task.read_text().split()}
    return children | {f"thread {t.name} ({t.ident})" for t in threading.enumerate()}


def _left_running(before: set[str]) -> list[str]:
    deadline = time.monotonic() + GRACE_S
    while (left := _running() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return sorted(left)

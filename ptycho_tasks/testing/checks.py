"""What the conformance suite measures and compares."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.backend import Reconstruction
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.scan import ScanData, canvas_of
from ptycho_tasks.testing.examples import PlacedReconstruction

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

LOST = 1.5
"""Largest R-factor of a reconstruction from frames with bad pixels, over that from whole frames,
both on whole frames. On the suite's scan it is 1.03 to 1.14 for ePIE, LSQML and error reduction,
and 3 to 6 where bad pixels count as dark.
"""

GRACE_S = 60.0
"""How long threads and processes may take to end once an exception has come out."""


class Cancelled(Exception):  # noqa: N818  it is no error
    """What a user's cancelling may look like to a backend."""


class ProgressRecorder:
    """A `Progress` that keeps its calls, and raises an exception at one of them."""

    def __init__(self, at: int = 0, error: BaseException | None = None) -> None:
        """Raise `error` at call `at`, counted from 1; never where it is None."""
        self.calls: list[tuple[Any, Any, Any]] = []
        self._at, self._error = at, error

    def __call__(self, done: int, total: int | None, metrics: Mapping[str, float]) -> None:
        """Keep a call."""
        self.calls.append((done, total, metrics))
        if self._error is not None and len(self.calls) == self._at:
            raise self._error


def check_progress(
    method: str, calls: list[tuple[Any, Any, Any]], *, resumed: bool = False
) -> None:
    """Check that calls of `progress` rise from 0, or from anywhere if resumed, to the total, or to
    fewer in the end; nobody need know it before."""
    if not calls:
        return
    done, total = ([call[part] for call in calls] for part in (0, 1))
    start = f"`{method}` told `progress` of {done} of {total}"
    assert done[0] == 0 or resumed, f"{start}; the first call tells where the work begins: at 0"
    assert all(a < b for a, b in pairwise(done)), f"{start}; it must rise"
    assert len({*total[:-1]}) < 2, f"{start}; the total must stay"
    assert total[-1] is not None, f"{start}; the last call tells the total"
    assert total[0] is None or total[-1] <= total[0], (
        f"{start}; the last total may be smaller, and not larger"
    )
    assert done[-1] == total[-1], f"{start}; the last call tells of all"
    values = [value for *_, metrics in calls for value in metrics.values()]
    assert np.isfinite(np.array(values, dtype=float)).all(), f"`{method}` told NaN or Inf"


def r_factor(scan: ScanData, result: Reconstruction) -> float:
    """How badly a reconstruction predicts the frames of a scan; see `data_misfit`."""
    return result.measure_misfit(scan.diffraction).r_factor


def check_explains(result: Reconstruction, scan: ScanData) -> None:
    """Check that a reconstruction predicts the frames far better than an empty object."""
    flat = np.ones_like(result.object)
    expected = sum(
        counts.sum(dtype=np.float64, where=np.isfinite(scan.diffraction[frames]))
        for frames, counts in expected_intensity(
            flat, result.probe, result.positions, result.origin
        )
    )
    measured = np.nansum(np.square(scan.diffraction, dtype=np.float64))
    flat *= np.float32(np.sqrt(measured / expected))
    ours, empty = (r_factor(scan, one) for one in (result, replace(result, object=flat)))
    assert ours <= EXPLAINED * empty, (
        f"the frames are not explained: R-factor {ours:.3g}, of an empty object {empty:.3g}; "
        f"expected at most {EXPLAINED:g} of that"
    )


def check_leaves_out(result: Reconstruction, whole: Reconstruction, scan: ScanData) -> None:
    """Check that what was made of frames with bad pixels predicts the scan's whole frames about as
    well as what was made of these."""
    ours, best = (r_factor(scan, one) for one in (result, whole))
    assert ours <= LOST * best, (
        f"bad pixels (NaN) are not left out: R-factor {ours:.3g} on whole frames, {best:.3g} where "
        f"none was bad; expected at most {LOST:g} times that"
    )


def check_better(result: Reconstruction, start: Reconstruction, scan: ScanData) -> None:
    """Check that a reconstruction predicts the frames better than its start."""
    ours, before = (r_factor(scan, one) for one in (result, start))
    assert ours < before, (
        f"the frames are explained no better than before: R-factor {ours:.3g}, of the start "
        f"{before:.3g}"
    )


def measure_difference(one: PlacedReconstruction, two: PlacedReconstruction) -> float:
    """Largest difference of two objects where both were seen, over the rms of the second."""
    (first, first_seen), (second, second_seen) = _window(*one), _window(*two)
    seen = first_seen & second_seen
    assert seen.any(), "the object does not lie where the scan was"
    rms = np.sqrt(np.mean(np.abs(second[seen]) ** 2))
    return float(np.abs(first - second)[seen].max() / rms)


def _window(result: Reconstruction, scan: ScanData) -> tuple[NDArray[Any], NDArray[Any]]:
    """The object in the smallest window that holds the scan's patches, and where it was seen."""
    canvas = canvas_of(scan.positions, scan.size)
    low = np.subtract(canvas.origin, result.origin)
    before = np.maximum(0, -low)
    after = np.maximum(0, low + canvas.shape - result.object.shape)
    (y, x), (height, width) = low + before, canvas.shape
    padding = [(int(b), int(a)) for b, a in zip(before, after, strict=True)]
    image, seen = (np.pad(array, padding) for array in (result.object, result.seen))
    window = np.s_[y : y + height, x : x + width]
    return image[window], seen[window]


def check_close(one: PlacedReconstruction, two: PlacedReconstruction, what: str) -> None:
    """Check that two objects differ by rounding only; `what` says in the message why they might."""
    difference = measure_difference(one, two)
    assert difference <= TOLERANCE, (
        f"{what} change the object by {difference:.2g} of its rms; rounding alone stays below "
        f"{TOLERANCE:g}"
    )


def check_same(one: Reconstruction, two: Reconstruction, what: str) -> None:
    """Check that two reconstructions have the same bytes."""
    assert one.origin == two.origin, f"{what} gave another origin"
    for name in ("object", "probe", "positions"):
        same = getattr(one, name).tobytes() == getattr(two, name).tobytes()
        assert same, f"{what} gave another {name}"


def check_no_crash(act: Callable[[], object]) -> None:
    """Check that what is done works, or is refused in one line."""
    try:
        act()
    except PtychoTasksError as error:
        check_one_line(error)


def check_one_line(error: PtychoTasksError) -> None:
    """Check that an error has a text of one line."""
    text = Exception.__str__(error)  # as it was raised; that of the class escapes line ends
    assert text.strip(), "an error without a text"
    assert "\n" not in text, f"an error of more than one line: {error}"


def list_running() -> set[str]:
    """Threads of Python and processes below this one, by name."""
    children = {f"process {child.pid}" for child in multiprocessing.active_children()}
    for task in Path(f"/proc/{os.getpid()}/task").glob("*/children"):  # where there is such a place
        children |= {f"process {number}" for number in task.read_text().split()}
    return children | {f"thread {t.name} ({t.ident})" for t in threading.enumerate()}


def list_left_running(before: set[str]) -> list[str]:
    """What still runs after `GRACE_S` that did not run before; see `list_running`."""
    deadline = time.monotonic() + GRACE_S
    while (left := list_running() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return sorted(left)

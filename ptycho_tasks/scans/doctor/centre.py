"""Where the zero frequency lies.

The mean frame is about the far field of the probe, a little blurred by the object: where both
match, is the centre. The centre of the light's mass is not: the object moves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.physics.forward import far_light
from ptycho_tasks.scans.doctor.case import Case
from ptycho_tasks.scans.doctor.examination import Examination
from ptycho_tasks.scans.doctor.findings import Finding
from ptycho_tasks.scans.doctor.trials import is_better

BETTER, CONFIRMED = 0.97, 0.98
"""R-factor with another centre, over that as given, at most; and on another patch."""
FAR = 0.25
"""Of N, from the centre: in the corner."""
NEAR, LEAST = 0.1, 0.15
"""Without a probe, of N, how near to the corner the middle of the light is; and how much of the
light must be on one side for it to have a middle."""


def check_centre(exam: Examination) -> Iterator[Finding]:
    """Find frames whose zero frequency is not at pixel (N//2, N//2)."""
    case = exam.case
    if case.is_probe_estimated or case.is_hidden:
        return
    found = find_shifts(case)
    shifts = {shift for shift in found if shift != (0, 0)}
    if not shifts:
        return
    takes = {shift: replace(case, roll=(-shift[0], -shift[1])) for shift in shifts}
    if exam.trials is not None:
        given = exam.trials.run(case)
        tried = {shift: exam.trials.run(take) for shift, take in takes.items()}
        shift = min(tried, key=lambda one: float(tried[one].residuals.sum()))
        is_wrong = is_better(given, tried[shift], BETTER)
        is_wrong = is_wrong and exam.trials.confirm(case, takes[shift], CONFIRMED)
    else:
        shift = max(shifts, key=lambda one: max(map(abs, one)))
        is_wrong = not _is_near(case, shift)  # without a trial, only what cannot be mistaken
    if is_wrong:
        yield exam.compare(_describe(case, shift, takes[shift]))
    elif len(found) == 1 and _is_near(case, shift):
        yield from _note(exam, shift)


def _is_near(case: Case, shift: tuple[int, int]) -> bool:
    return max(map(abs, shift)) <= FAR * case.size


def _note(exam: Examination, shift: tuple[int, int]) -> Iterator[Finding]:
    """Say where the centre seems to be another one, which explains the frames no better."""
    if any(one.kind == "centre" for one in exam.findings):
        return
    y, x = (exam.case.size // 2 + part for part in shift)
    yield Finding(
        "centre",
        f"the mean frame lies beside the probe's far field by ({shift[0]}, {shift[1]}) pixels "
        "(y, x), which does no harm but for a ramp in the object's phase",
        is_wrong=False,
        advice=f"set source.centre to [{y}, {x}] to take it off",
    )


def _describe(case: Case, shift: tuple[int, int], mended: Case) -> Finding:
    N = case.size
    y, x = ((N // 2 + part) % N for part in shift)
    if _is_near(case, shift):
        told = (
            f"the frames are off centre by ({shift[0]}, {shift[1]}) pixels (y, x): the zero "
            f"frequency lies at ({y}, {x}), not at ({N // 2}, {N // 2})"
        )
        return Finding("centre", told, settings={"source.centre": [y, x]}, mended=mended)
    told = f"the zero frequency lies in the corner, at ({y}, {x}), not at ({N // 2}, {N // 2})"
    if (y, x) != (0, 0):
        return Finding("centre", told, advice="shift the frames (numpy.roll)", mended=mended)
    return Finding("centre", told, settings={"source.centre": "corner"}, mended=mended)


def find_shifts(case: Case) -> set[tuple[int, int]]:
    """Pixels (y, x) by which the frames lie beside the probe's far field, by two measures.

    Without a probe, only whether they lie in the corner.
    """
    mean = case.mean
    if case.probe is None:
        half = case.size // 2
        return {(-half, -half)} if _is_in_corner(mean) else set()
    light = far_light(case.probe)
    return {_match(mean, light), _match(np.sqrt(mean), np.sqrt(light))}


def _match(image: NDArray[np.float64], model: NDArray[np.float64]) -> tuple[int, int]:
    """Whole pixels by which the image is rolled against the model, by their correlation."""
    together = np.fft.ifft2(np.fft.fft2(image) * np.fft.fft2(model).conj()).real
    place = np.unravel_index(int(np.argmax(together)), together.shape)
    half = len(image) // 2
    y, x = ((int(part) + half) % len(image) - half for part in place)
    return y, x


def _is_in_corner(mean: NDArray[np.float64]) -> bool:
    """Whether an (N, N) mean frame, without end along both axes, has its light about pixel 0."""
    turns = np.exp(2j * np.pi * np.arange(len(mean)) / len(mean))
    wave = [complex((mean.sum(axis=1 - axis) * turns).sum()) / mean.sum() for axis in (0, 1)]
    return all(abs(np.angle(one)) < 2 * np.pi * NEAR and abs(one) > LEAST for one in wave)

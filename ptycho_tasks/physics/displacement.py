"""How far from their positions the frames of a scan fit its object better.

An object gives way to wrong positions, and then explains the frames well enough to look right. The
frames still pull at it: each would fit it better a part of a pixel away.

Axis letters: n pixels of a frame, N patch side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.physics.forward import patch_corners, probe_at, propagate
from ptycho_tasks.physics.metrics import find_unit
from ptycho_tasks.scan import evenly_spaced, release_pages

MISPLACED = 0.12
"""Pixels from which on somebody is told: of right positions and a right probe there are hardly any,
of a good stage a tenth."""
SAMPLE_PIXELS, LEAST_FRAMES = 2**19, 16
"""Detector pixels of the frames that are looked at, and how many frames these are at least."""
ANSCOMBE = 0.375
"""Counts that are added to predicted and measured ones: the root of the sum has a variance of 1/4
(Anscombe, Biometrika 35, 246, 1948)."""
LEAST_VARIANCE = 0.25
"""Of these roots."""
EXPECTED, MOST = 1.0, 4.0
"""Pixels that positions are expected to be wrong by: so little light tells nothing else; and along
an axis, at most, as far as slopes tell anything."""


def measure_displacement(
    object: NDArray[np.complex64],
    origin: tuple[int, int],
    probe: NDArray[np.complex64],
    positions: NDArray[np.float64],
    diffraction: NDArray[np.float32],
    flux: NDArray[np.float32] | None = None,
    background: NDArray[np.float32] | None = None,
) -> float:
    """Root mean square pixels from the places of frames to where each fits the object better,
    beyond what noise makes of it.

    A Gauss-Newton step along the position of each frame lowers the sum of squares of what roots of
    counts differ by, over their variance, plus the squared displacement over the expected one. What
    is common to all frames belongs to the object.

    Args:
        object, origin, probe, positions, diffraction, flux, background: as of `data_misfit`.

    Raises:
        ScanError: a patch reaches outside the object.
    """
    N = probe.shape[-1]
    count = min(len(positions), max(LEAST_FRAMES, SAMPLE_PIXELS // N**2))
    some = evenly_spaced(len(positions), count)
    # What is no count of photons has another noise.
    unit = find_unit(diffraction)
    corners, fractions = patch_corners(positions[some], N, origin, object.shape)
    besides = ANSCOMBE + (0 if background is None else background.reshape(-1) / unit)
    steps, variances = np.zeros((count, 2)), np.zeros(count)
    for index, (frame, (row, column)) in enumerate(zip(some, corners, strict=True)):
        shifted = probe_at(probe, fractions[index])
        patch = object[row : row + N, column : column + N]
        fields = (patch, *np.gradient(patch))
        far, *changed = (propagate(shifted * field).reshape(-1, N * N) for field in fields)
        light = (1.0 if flux is None else float(flux[frame])) / unit
        measured = np.square(np.asarray(diffraction[frame], dtype=np.float64)).reshape(-1) / unit
        intensity = light * np.square(np.abs(far), dtype=np.float64).sum(axis=0)
        modulus = np.sqrt(intensity + besides)
        missed = np.sqrt(measured + ANSCOMBE) - modulus
        good = np.isfinite(missed)
        derivatives = np.stack(
            [light * (far.conj() * change).real.sum(axis=0) / modulus for change in changed]
        )[:, good]
        steps[index], variances[index] = _solve(derivatives, missed[good])
    release_pages(diffraction)
    square = np.square(steps - steps.mean(axis=0)).sum(axis=1).mean() - variances.mean()
    return float(np.sqrt(max(square, 0.0)))


def _solve(derivatives: NDArray[Any], missed: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """(2,) the step of a frame, pixels, and its variance by noise, from (2, n) and (n,) of its
    pixels."""
    matrix = (derivatives @ derivatives.T).astype(np.float64)
    inverse = np.linalg.inv(matrix + np.eye(2) * (LEAST_VARIANCE / EXPECTED**2))
    # A detector may have noise of its own.
    variance = max(LEAST_VARIANCE, float(np.square(missed).sum()) / max(missed.size, 1))
    step = (inverse @ (derivatives @ missed)).clip(-MOST, MOST)
    return step, variance * float(np.trace(inverse @ matrix @ inverse))

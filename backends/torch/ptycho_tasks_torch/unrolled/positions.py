"""Refine scan positions: move each to where its frame fits the object best.

A stage is rarely where it says it is. In a round, the object is reconstructed, and one Gauss-Newton
step along the position of each frame lowers the misfit of its amplitudes; the derivative of the far
field is the far field of the probe times the derivative of the object. After six rounds an error of
a pixel is a tenth of a pixel. A shift of all positions together belongs to the object, and is
removed.

Axis letters: M frames of a scan, C frames of a chunk, P probe modes, S, T rows and columns of the
canvas, N detector pixels along one side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks.backend import say_nothing
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.physics.exposure import Chunk, Exposure
from ptycho_tasks_torch.physics.mapped import expose_scan
from ptycho_tasks_torch.physics.tiles import Expose
from ptycho_tasks_torch.unrolled.background import suspect_background
from ptycho_tasks_torch.unrolled.network import reconstruct

ROUNDS, STEPS = 8, 12
"""Rounds, and steps of each."""
MOST_COUNTS = 1e12
"""Photons of a pixel from which on noise is none."""
MOST, MOST_A_ROUND = 4.0, 1.0
"""Pixels along an axis that a position may move: altogether, and in a round."""
EXPECTED = 1.0
"""Pixels that positions are expected to be wrong by. With few photons, a position stays near its
place."""


def refine_positions(
    scan: ScanData,
    modes: Tensor,
    scale: float,
    photon: float,
    expose: Expose = expose_scan,
    say: Callable[[str], None] = say_nothing,
) -> ScanData:
    """Give a scan positions that explain its frames better, if there are such; without gradients.

    Args:
        scan: its frames may lie on disk.
        modes: (P, N, N) complex64 probe, divided by `scale`.
        scale: amplitude that is divided out.
        photon: see `find_photon`.
        expose: as `spread_frames` gives it.
        say: is told in a line how far they moved.
    """
    background: Tensor | None = None

    def explain(scan: ScanData) -> tuple[Exposure, Tensor]:
        exposure = expose(scan, modes, scale, photon)
        if background is not None:
            exposure = exposure.cover(background)
        return exposure, reconstruct(exposure, STEPS).canvas

    start, moved = scan, np.zeros_like(scan.positions)
    exposure, canvas = explain(scan)
    misfit = exposure.measure_misfit(canvas)
    for _ in range(ROUNDS):
        step = find_displacements(exposure, canvas, moved)
        moved = moved + step.clip(-MOST_A_ROUND, MOST_A_ROUND)
        moved = (moved - moved.mean(axis=0)).clip(-MOST, MOST)
        scan = replace(scan, positions=start.positions + moved)
        # The object of few steps tells it well; that of wrong positions too.
        found = suspect_background(exposure, canvas)
        background = background if found is None else found
        exposure, canvas = explain(scan)
    if background is not None:
        beside, begun = explain(start)
        misfit = beside.measure_misfit(begun)
    if not exposure.measure_misfit(canvas) < misfit:
        say("positions: kept as they are; frames are explained no better at others")
        return start
    distance = math.sqrt(float(np.square(moved).sum(axis=1).mean()))
    say(f"positions: moved by {distance:.2f} pixels, root mean square")
    return scan


def find_displacements(
    exposure: Exposure, canvas: Tensor, moved: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(M, 2) pixels (y, x) from the place of each frame to where it fits the object better.

    Minimizes, frame by frame, the squared error of the amplitudes over their variance, which is a
    quarter count, plus the squared displacement over the expected one.

    Args:
        exposure: M frames on one canvas.
        canvas: (1, S, T) complex64 object.
        moved: (M, 2) pixels that the frames have moved already.
    """
    slopes = [(canvas.roll(-1, axis) - canvas.roll(1, axis)) / 2 for axis in (-2, -1)]
    matrices, vectors = [], []
    for chunk in exposure.chunks():
        far = _far(canvas, chunk)
        modulus = (far.real.square() + far.imag.square()).sum(dim=1).add(exposure.floor).sqrt()
        changes = torch.stack(
            [(far.conj() * _far(slope, chunk)).real.sum(dim=1) / modulus for slope in slopes], dim=1
        ).flatten(2)
        excess = (chunk.amplitude - modulus).flatten(1)
        if exposure.has_bad_pixels:
            changes = changes.masked_fill(excess.isnan()[:, None], 0.0)
            excess = excess.nan_to_num(nan=0.0)
        matrices.append(torch.einsum("cap,cbp->cab", changes, changes))
        vectors.append(torch.einsum("cap,cp->ca", changes, excess))
    matrix, vector = (torch.cat(parts).cpu().double().numpy() for parts in (matrices, vectors))
    prior = 0.25 / min(exposure.counts, MOST_COUNTS) / EXPECTED**2
    step = np.linalg.solve(matrix + prior * np.eye(2), (vector - prior * moved)[..., None])
    return np.asarray(step[..., 0])


def _far(canvas: Tensor, chunk: Chunk) -> Tensor:
    """(C, P, N, N) complex64 far field of the frames of a canvas."""
    far: Tensor = torch.fft.fft2(chunk.probes * chunk.cut(canvas), norm="ortho")
    return far

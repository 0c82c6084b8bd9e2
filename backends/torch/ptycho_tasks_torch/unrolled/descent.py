"""Object and probe moved together, by L-BFGS.

Where one is moved after the other, each follows what is wrong of the other: hundreds of rounds
where they are hard to tell apart. A method of second order sees how they hang together (R. H. Byrd
et al., SIAM J. Sci. Comput. 16, 1190, 1995).

Axis letters: M frames, P probe modes, N detector pixels along one side, S, T rows and columns of
the canvas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks_torch.physics.mapped import MappedExposure

LOOK, MEMORY = 5, 20
"""Iterations between two looks, and how many of those before an iteration goes by."""
DIM = 0.01
"""Share of the strongest light, and of the strongest |O|^2, that is added to it: pixels that are
hardly lit would move far for little."""
Vector = NDArray[np.float64]


def descend(
    frames: MappedExposure,
    canvas: Tensor,
    modes: Tensor,
    is_enough: Callable[[Tensor, Tensor], bool],
    looks: int,
) -> None:
    """Move object and modes, so that the misfit of frames falls, until that is enough.

    Args:
        frames: on one canvas, with any probe.
        canvas: (1, S, T) complex64 object to begin with.
        modes: (P, N, N) complex64 to begin with.
        is_enough: is shown both after every few iterations.
        looks: how often, at most.
    """
    from scipy.optimize import minimize  # costs more to import than many a scan to reconstruct

    light = replace(frames, probes=modes).light
    density = frames.cut(canvas).abs().square().sum(dim=0)
    # In units in which the misfit is about as curved along each.
    scales = [(values + DIM * values.max()).sqrt() for values in (light, density)]
    shapes, border = (canvas.shape, modes.shape), 2 * canvas.numel()
    iterations = 0

    def write(fields: tuple[Tensor, Tensor]) -> Vector:
        parts = [torch.view_as_real(field).flatten() for field in fields]
        return torch.cat(parts).cpu().double().numpy()

    def read(vector: Vector) -> tuple[Tensor, Tensor]:
        values = torch.from_numpy(vector).to(modes.real)
        parts = zip((values[:border], values[border:]), shapes, scales, strict=True)
        canvas, probe = (
            torch.view_as_complex(part.view(*shape, 2)) / scale for part, shape, scale in parts
        )
        return canvas, probe

    def measure(vector: Vector) -> tuple[float, Vector]:
        canvas, probe = read(vector)
        square, *asked = replace(frames, probes=probe).joint_correction(canvas, frames.fractions)
        changes = (-change / scale for change, scale in zip(asked, scales, strict=True))
        return square / 2, write((next(changes), next(changes)))

    def look(vector: Vector) -> None:
        nonlocal iterations
        iterations += 1
        if iterations % LOOK == 0 and is_enough(*read(vector)):
            raise StopIteration

    options = {"maxiter": LOOK * looks, "maxcor": MEMORY, "ftol": 0, "gtol": 0}
    start = write((canvas * scales[0], modes * scales[1]))
    minimize(measure, start, jac=True, method="L-BFGS-B", callback=look, options=options)

"""How far an object is from another one.

Axis letters: B canvases, S, T rows and columns of a canvas.
"""

from __future__ import annotations

import torch
from torch import Tensor


def align_phase(truth: Tensor, canvas: Tensor, weight: Tensor) -> Tensor:
    """(B, S, T) truth with the global phase of the canvas, which diffraction does not fix."""
    overlap = (weight * truth.conj() * canvas.detach()).sum(dim=(-2, -1), keepdim=True)
    return torch.sgn(overlap) * truth


def sum_pixels(field: Tensor, weight: Tensor) -> Tensor:
    """(B,) weighted sum of |field|^2, of a (B, S, T) complex field."""
    total: Tensor = (weight * _square(field)).sum(dim=(-2, -1))
    return total


def sum_edges(field: Tensor, weight: Tensor) -> Tensor:
    """(B,) the same, of the differences between neighbouring pixels."""
    total = weight.new_zeros(len(field))
    for axis in (-2, -1):
        inner = weight.narrow(axis, 1, weight.shape[axis] - 1)
        total = total + (inner * _square(field.diff(dim=axis))).sum(dim=(-2, -1))
    return total


def _square(field: Tensor) -> Tensor:
    return field.real.square() + field.imag.square()
